"""Models of which nothing can be seen from within: perceptrons without feature maps, and functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.audit.alike import run_of
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    Baselines,
    ConfigurationError,
    CueTrial,
    Energy,
    GradCAM,
    IntegratedGradients,
    Localization,
    MapClusters,
    Occlusion,
    PatchCue,
    ProbeSet,
    TargetLayerError,
    Why,
)


def perceptron(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, classes))


def cue():
    return PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1])


@pytest.mark.parametrize("measures", [None, [Localization(), Baselines(), MapClusters()]], ids=["default", "all"])
def test_a_perceptron_is_audited_without_heatmaps_and_a_note_says_so(measures):
    auditor = Auditor(tiny_probes(40), novelty=[Energy()], trials=[CueTrial(cue())], measures=measures)
    record = auditor.audit(perceptron())

    assert record.maps == {}
    assert [note for note in record.notes if note.startswith("There are no heatmaps.")]
    assert record.failed == record.useless == ()
    for key in ("accuracy", "confidence", "cue/patch/effect", "novelty/energy"):
        assert record.metrics[key].valid == 40, key
    assert record.scores["energy"].shape == (40,)
    assert not any(key.startswith("cluster/") for key in {**record.metrics, **record.per_probe})
    # What was asked stands there all the same, with nobody's answer.
    assert record.facts.shape == (3, 40)
    assert [len(titles) for titles in record.titles] == [40, 40, 40]
    with pytest.raises(AuditError, match=r"there are none\. There are no heatmaps\."):
        _ = record.heatmaps


def test_answers_of_a_perceptron_are_its_own():
    probes, net = tiny_probes(40), perceptron()
    record = Auditor(probes).audit(net)
    with torch.no_grad():
        outputs = net(probes.images)

    torch.testing.assert_close(record.outputs, outputs)
    assert record.metrics["accuracy"].value == (outputs.argmax(dim=1) == probes.labels).double().mean()


def test_the_pixels_of_a_perceptron_can_be_explained():
    record = Auditor(tiny_probes(), [Why(0)], explainers=[IntegratedGradients(32), Occlusion(1)]).audit(perceptron())

    assert list(record.maps) == ["integrated_gradients", "occlusion"]
    assert record.notes == ()
    assert "occlusion/why_0/relevance_mass/core" in record.metrics
    with torch.no_grad():
        black = perceptron()(torch.zeros(1, 3, 8, 8))[0, 0]
    torch.testing.assert_close(record.heatmaps[0].sum(dim=(1, 2)), record.outputs[:, 0] - black, rtol=1e-2, atol=1e-3)


def test_an_explainer_that_was_asked_for_and_cannot_answer_is_refused():
    with pytest.raises(TargetLayerError, match="Expected a feature map between the images and the outputs"):
        Auditor(tiny_probes(), explainers=[GradCAM()]).prepare(perceptron())


def test_a_perceptron_can_be_resumed_and_compared_with_a_net_that_has_maps():
    *earlier, third = run_of(Auditor(tiny_probes()), perceptron(), tiny_net(), perceptron())
    assert [list(record.maps) for record in earlier] == [[], ["gradcam"]]
    assert list(third.maps) == []
    assert "switched" in third.metrics
    assert not any(key.endswith("drift") for key in third.metrics)


# ---- a function


def black_box(net):
    """A function from images to an array, as of a model behind a server."""
    net.eval()

    def answer(images):
        assert not torch.is_grad_enabled()
        return net(images).detach().numpy()

    return answer


@pytest.mark.parametrize("chunk_size", [3, 16])
def test_a_function_is_audited_by_occlusion_and_a_cue_like_the_net_inside(chunk_size):
    probes, net = tiny_probes(40), tiny_net()
    arguments = {"explainers": [Occlusion(4)], "trials": [CueTrial(cue())], "novelty": [], "chunk_size": chunk_size}
    expected = Auditor(probes, **arguments).audit(net.eval())
    record = Auditor(probes, **arguments).audit(black_box(net))

    torch.testing.assert_close(record.outputs, expected.outputs)
    torch.testing.assert_close(record.heatmaps, expected.heatmaps)
    assert record.heatmaps.abs().max() > 0
    assert record.metrics.keys() == expected.metrics.keys()
    for key, estimate in expected.metrics.items():
        assert record.metrics[key].value == pytest.approx(estimate.value, rel=1e-4, nan_ok=True), key
    assert record.metrics["cue/patch/effect"].valid == 40
    assert record.failed == ()


def test_heatmaps_of_a_function_are_what_it_loses_by_hiding_a_square():
    """A function that reads one pixel: the square over it, and no other, costs what it says."""

    def red_corner(images):
        corner = images[:, 0, 1, 1]
        return torch.stack([corner, torch.zeros_like(corner)], dim=1)

    probes = ProbeSet.from_tensors(pictures(5), torch.tensor([0, 1, 0, 1, 0]))
    explainer = Occlusion(2, 2, baseline=0.0)
    record = Auditor(probes, [Why(0)], explainers=[explainer], novelty=[]).audit(red_corner)

    maps = record.heatmaps[0]
    torch.testing.assert_close(maps[:, :2, :2].sum(dim=(1, 2)), probes.images[:, 0, 1, 1])
    assert not maps[:, 2:, :].any()
    assert not maps[:, :, 2:].any()


def test_a_function_has_no_heatmaps_by_default_and_a_note_says_so():
    record = Auditor(tiny_probes(), novelty=[]).audit(black_box(tiny_net()))

    assert record.maps == {}
    assert [note for note in record.notes if note.startswith("There are no heatmaps.")]
    assert record.metrics["accuracy"].valid == 6


def test_novelty_of_a_function_is_left_out_with_a_note():
    record = Auditor(tiny_probes(), explainers=[]).audit(black_box(tiny_net()))
    assert record.scores == {}
    assert [note for note in record.notes if note.startswith("Novelty was left out")]


def test_explainers_that_need_gradients_are_refused_of_a_function():
    with pytest.raises(ConfigurationError, match="differentiated with respect to its images"):
        Auditor(tiny_probes(), explainers=[IntegratedGradients(4)]).prepare(black_box(tiny_net()))


def test_a_function_of_several_labels_and_of_values_is_audited_too():
    labels = torch.arange(6)[:, None] % torch.tensor([2, 3]) == 0
    probes = ProbeSet.from_tensors(pictures(), labels.long(), class_names=("a", "b"))
    record = Auditor(probes, explainers=[Occlusion(4)], novelty=[]).audit(black_box(tiny_net(classes=2)))
    assert record.predictions.dtype == torch.bool
    assert "exact_match" in record.metrics

    probes = ProbeSet.from_tensors(pictures(), targets=torch.rand(6, 2))
    record = Auditor(probes, explainers=[Occlusion(4)], novelty=[]).audit(black_box(tiny_net(classes=2)))
    assert record.heatmaps.shape == (4, 6, 8, 8)
    assert "absolute_error/1" in record.metrics
