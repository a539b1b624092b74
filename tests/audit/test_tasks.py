"""Audits of regression nets, of multi-label nets, and of one sigmoid."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.audit.alike import run_of
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    ConfigurationError,
    MapClusters,
    OutputError,
    ProbeSet,
    Why,
    WhyRatherThan,
    WhyValueRatherThan,
)

LABELS = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [-1, 1, 0], [-1, -1, -1]])


def multi_label_probes(**fields):
    return tiny_probes(labels=LABELS, **fields)


# ---- one value


def test_regression_probes_are_asked_about_values():
    targets = torch.linspace(0, 1, 6)
    net = tiny_net(classes=1)
    record = Auditor(tiny_probes(labels=None, class_names=None, targets=targets)).audit(net)

    assert record.questions == ("why", "why_value_rather_than_target")
    assert record.outputs.shape == (6, 1)
    assert torch.equal(record.predictions, record.outputs[:, 0])
    assert record.confidences.isnan().all()
    assert record.correct.isnan().all()
    assert record.facts.eq(0).all()  # the only value
    assert record.foils.eq(-1).all()
    assert record.titles[1][5] == f"Why {float(record.predictions[5]):.3g}, rather than 1?"
    error = (record.predictions - targets).abs().double().mean().item()
    assert record.metrics["absolute_error"].value == pytest.approx(error)
    assert not {"accuracy", "exact_match", "confidence", "switched"} & record.metrics.keys()
    # d (y - t)^2 = 2 (y - t) dy
    expected = 2 * (record.predictions - targets)[:, None, None] * record.heatmaps[0]
    torch.testing.assert_close(record.heatmaps[1], expected)


def test_predictions_of_regression_never_count_as_switched():
    probes = tiny_probes(labels=None, class_names=None, targets=torch.linspace(0, 1, 6))
    metrics = run_of(Auditor(probes), tiny_net(classes=1), tiny_net(classes=1, seed=1)).last.metrics
    assert "switched" not in metrics
    assert "gradcam/why/drift" in metrics


# ---- several values


def test_each_of_several_values_is_asked_about_and_judged():
    targets = torch.rand(6, 2, generator=torch.Generator().manual_seed(2))
    probes = tiny_probes(labels=None, class_names=None, targets=targets, target_names=("blur", "grain of film"))
    record = Auditor(probes).audit(tiny_net(classes=2))

    assert record.questions == (
        "why_blur",
        "why_blur_rather_than_target",
        "why_grain_of_film",
        "why_grain_of_film_rather_than_target",
    )
    assert torch.equal(record.predictions, record.outputs)
    assert torch.equal(record.truth, targets)
    assert torch.equal(record.facts, torch.tensor([0, 0, 1, 1])[:, None].expand(4, 6))
    first = f"{float(record.outputs[3, 1]):.3g}"
    assert record.titles[2][3] == f"Why grain of film {first}?"
    assert record.titles[3][3] == f"Why grain of film {first}, rather than {float(targets[3, 1]):.3g}?"

    errors = (record.outputs - targets).abs().double()
    assert record.metrics["absolute_error"].value == pytest.approx(errors.mean().item())
    for index, name in enumerate(("blur", "grain_of_film")):
        assert record.metrics[f"absolute_error/{name}"].value == pytest.approx(errors[:, index].mean().item())
        torch.testing.assert_close(record.per_probe[f"absolute_error/{name}"], errors[:, index])
    # d (y_v - t_v)^2 = 2 (y_v - t_v) dy_v, of each value by itself
    for index in range(2):
        expected = 2 * (record.outputs - targets)[:, index, None, None] * record.heatmaps[2 * index]
        torch.testing.assert_close(record.heatmaps[2 * index + 1], expected)


def test_a_net_of_several_values_must_be_told_which_one_is_meant():
    probes = tiny_probes(labels=None, class_names=None, targets=torch.rand(6, 2), target_names=("blur", "grain"))
    with pytest.raises(ConfigurationError, match=r"which of 2 values .*'blur', 'grain'"):
        Auditor(probes, [Why()])
    record = Auditor(probes, [Why("grain"), WhyValueRatherThan(0.5, of="blur")]).audit(tiny_net(classes=2))
    assert record.questions == ("why_grain", "why_blur_rather_than_0.5")
    assert "gradcam/why_blur_rather_than_0.5/relevance_mass/core" in record.metrics


def test_a_net_of_another_number_of_values_is_refused():
    probes = tiny_probes(labels=None, class_names=None, targets=torch.rand(6, 2))
    with pytest.raises(OutputError, match="2 values an image, as the probes have targets, but the model gives 3"):
        Auditor(probes).prepare(tiny_net(classes=3))


# ---- several labels


def test_multi_label_predictions_are_every_label_more_probable_than_not():
    record = Auditor(multi_label_probes()).audit(tiny_net())

    assert record.questions == ("why", "why_rather_than", "why_not_certain")
    assert record.predictions.dtype == torch.bool
    assert torch.equal(record.predictions, record.outputs > 0)
    torch.testing.assert_close(record.confidences, record.outputs.sigmoid().amax(dim=1))
    assert torch.equal(record.truth, LABELS)


def test_multi_label_accuracy_is_over_known_labels_and_exact_match_wants_them_all():
    record = Auditor(multi_label_probes()).audit(tiny_net())

    shares, exact = [], []
    for said, labels in zip(record.predictions.tolist(), LABELS.tolist(), strict=True):
        right = [answer == (label == 1) for answer, label in zip(said, labels, strict=True) if label != -1]
        shares.append(sum(right) / len(right) if right else math.nan)
        exact.append(float(all(right)) if right else math.nan)
    torch.testing.assert_close(record.correct, torch.tensor(shares).double(), equal_nan=True)
    torch.testing.assert_close(record.per_probe["exact_match"], torch.tensor(exact).double(), equal_nan=True)
    accuracy, matched = record.metrics["accuracy"], record.metrics["exact_match"]
    assert accuracy.value == pytest.approx(sum(shares[:5]) / 5)
    assert matched.value == pytest.approx(sum(exact[:5]) / 5)
    # The last probe has no known label.
    assert (accuracy.valid, accuracy.degenerate) == (5, 1)
    assert accuracy.chance is None


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_multi_label_probe_switches_when_any_label_does(index):
    auditor, net = Auditor(multi_label_probes()), tiny_net()
    history = run_of(auditor, net)
    first = history.last
    # Between the second and the third largest logit of that label: two probes change sides, or rather their signs.
    threshold = first.outputs[:, index].sort(descending=True).values[1:3].mean()
    with torch.no_grad():
        net[6].bias[index] -= threshold
    second = run_of(auditor, net, past=history).last

    changed = (second.predictions != first.predictions).any(dim=1).double()
    assert changed.sum() > 0
    assert second.metrics["switched"].value == pytest.approx(changed.mean().item())


def test_sigmoids_are_explained_by_the_logits_before_them():
    net = tiny_net()
    plain = Auditor(multi_label_probes()).audit(net)
    record = Auditor(multi_label_probes()).audit(nn.Sequential(net, nn.Sigmoid()))

    torch.testing.assert_close(record.outputs, plain.outputs, rtol=1e-4, atol=1e-4)
    assert "probabilities" in record.notes[0]
    torch.testing.assert_close(record.heatmaps, plain.heatmaps, rtol=1e-3, atol=1e-5)


def test_the_label_asked_about_is_the_most_probable_of_those_that_the_image_has():
    record = Auditor(multi_label_probes(), [Why("label"), WhyRatherThan(foil="label")]).audit(tiny_net())

    present = LABELS == 1
    likeliest = record.outputs.masked_fill(~present, -math.inf).argmax(dim=1)
    expected = likeliest.where(present.any(dim=1), torch.tensor(-1))
    assert torch.equal(record.facts[0], expected)
    assert torch.equal(record.foils[1], expected)
    assert expected.tolist().count(-1) == 2
    # Nothing is asked of an image without labels, and nothing answered.
    assert not record.heatmaps[0][expected < 0].any()
    assert record.titles[0][2] == "Why no label?"
    mass = record.metrics["gradcam/why_label/relevance_mass/core"]
    assert mass.valid + mass.degenerate == 6
    assert mass.degenerate >= 2


def test_softmax_and_multi_label_do_not_go_together():
    with pytest.raises(OutputError, match="ends in a softmax"):
        Auditor(multi_label_probes()).prepare(nn.Sequential(tiny_net(), nn.Softmax(dim=1)))
    with pytest.raises(OutputError, match="ends in 3 sigmoids"):
        Auditor(tiny_probes()).prepare(nn.Sequential(tiny_net(), nn.Sigmoid()))


def test_a_net_of_another_number_of_labels_is_refused():
    with pytest.raises(OutputError, match="outputs for 3 labels, as the probes have, but the model gives 2"):
        Auditor(multi_label_probes()).prepare(tiny_net(classes=2))


def test_clusters_want_one_label_a_probe():
    with pytest.raises(ConfigurationError, match=r"Expected probes with one label each for `MapClusters\(\)`"):
        Auditor(multi_label_probes(), measures=[MapClusters()])


# ---- one sigmoid


@pytest.mark.parametrize("ends_in_sigmoid", [False, True])
def test_one_sigmoid_output_is_read_as_two_classes(ends_in_sigmoid):
    net = tiny_net(classes=1)
    if ends_in_sigmoid:
        net.append(nn.Sigmoid())
    probes = tiny_probes(labels=torch.arange(6) % 2, class_names=("no", "yes"))
    record = Auditor(probes).audit(net)

    with torch.no_grad():
        positive = torch.sigmoid(nn.Sequential(*list(copy.deepcopy(net))[:7]).eval()(probes.images)[:, 0])
    torch.testing.assert_close(record.outputs.softmax(dim=1)[:, 1], positive)
    assert all(title in {"Why no?", "Why yes?"} for title in record.titles[0])
    assert (len(record.notes) == 1) is ends_in_sigmoid


def test_one_label_is_no_two_classes():
    probes = ProbeSet.from_tensors(pictures(), torch.tensor([[0], [1], [1], [0], [-1], [1]]), class_names=("rain",))
    record = Auditor(probes).audit(tiny_net(classes=1))

    assert record.questions == ("why", "why_not_certain")
    assert record.outputs.shape == record.predictions.shape == (6, 1)
    assert set(record.titles[0]) == {"Why rain?"}
    assert record.metrics["accuracy"].valid == 5
