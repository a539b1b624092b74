"""What the record of one audit of a classifier holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.tiny import CLASSES, tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    GradCAM,
    HiResCAM,
    Why,
    WhyRatherThan,
)


def test_record_holds_every_probe_and_every_question():
    record = Auditor(tiny_probes(6)).audit(tiny_net(), step=40, epoch=3)

    assert (record.step, record.epoch, record.layer) == (40, 3, "2")
    assert record.questions == ("why", "why_rather_than", "why_not_certain")
    assert record.outputs.shape == (6, 3)
    assert list(record.maps) == ["gradcam"]
    assert record.heatmaps.shape == (3, 6, 8, 8)
    assert record.facts.shape == record.foils.shape == (3, 6)
    assert record.scores["gradnorm"].shape == (6,)
    assert [len(titles) for titles in record.titles] == [6, 6, 6]
    assert record.fingerprint == tiny_probes(6).fingerprint
    assert record.notes == ()
    assert record.failed == ()
    assert set(record.seconds) == {"explain", "try", "judge"}


def test_maps_say_what_they_are():
    (maps,) = Auditor(tiny_probes(), explainers=[GradCAM("2", name="mine")]).audit(tiny_net()).maps.values()

    assert maps.explainer.startswith("GradCAM(")
    assert "mine" in maps.explainer
    assert (maps.layer, maps.units, maps.about) == ("2", "score", "question")
    assert maps.reason.startswith("`2`, as named")
    assert maps.kind == (maps.explainer, "2", (3, 6, 8, 8))


def test_predictions_and_confidences_are_those_of_the_model_in_eval_mode():
    net, probes = tiny_net().train(), tiny_probes()
    record = Auditor(probes).audit(net)
    with torch.no_grad():
        probabilities = copy.deepcopy(net).eval()(probes.images).softmax(dim=1)

    torch.testing.assert_close(record.confidences, probabilities.amax(dim=1))
    assert torch.equal(record.predictions, probabilities.argmax(dim=1))
    assert torch.equal(record.truth, probes.labels)
    assert torch.equal(record.correct, (record.predictions == probes.labels).double())
    accuracy = record.metrics["accuracy"]
    assert accuracy.value == pytest.approx((record.predictions == probes.labels).double().mean().item())
    assert accuracy.chance == pytest.approx(1 / 3)
    assert record.metrics["confidence"].value == pytest.approx(record.confidences.mean().item())


def test_titles_name_the_classes_asked_about():
    record = Auditor(tiny_probes()).audit(tiny_net())
    ranking = record.outputs.argsort(dim=1, descending=True)

    for probe in range(6):
        fact, foil = (CLASSES[index] for index in ranking[probe, :2].tolist())
        assert [titles[probe] for titles in record.titles] == [
            f"Why {fact}?",
            f"Why {fact}, rather than {foil}?",
            f"Why not {fact} with 100 % confidence?",
        ]
    assert record.headings == ("Why P?", "Why P, rather than Q?", "Why not P with 100 % confidence?")


def test_facts_and_foils_are_the_classes_asked_about():
    probes = tiny_probes()
    record = Auditor(probes, [Why("label"), WhyRatherThan(foil=1, fact=0), Why(2)]).audit(tiny_net())

    assert torch.equal(record.facts, torch.stack([probes.labels, torch.full((6,), 0), torch.full((6,), 2)]))
    assert torch.equal(record.foils, torch.stack([torch.full((6,), -1), torch.full((6,), 1), torch.full((6,), -1)]))


def test_heatmap_of_a_net_with_global_average_pooling_sums_up_to_its_logit():
    """CAM's identity, an oracle for the whole chain."""
    net = tiny_net()
    record = Auditor(tiny_probes(), [Why(of=1)]).audit(net)
    torch.testing.assert_close(record.heatmaps[0].sum(dim=(1, 2)) + net[6].bias[1].detach(), record.outputs[:, 1])


def test_unlabelled_probes_have_all_but_accuracy():
    record = Auditor(tiny_probes(labels=None)).audit(tiny_net())

    assert record.truth is None
    assert record.correct.isnan().all()
    assert "accuracy" not in record.metrics
    assert {"confidence", "gradcam/why/relevance_mass/core"} <= record.metrics.keys()


def test_probabilities_are_explained_by_their_logarithm_and_noted():
    net = tiny_net()
    plain = Auditor(tiny_probes()).audit(net)
    record = Auditor(tiny_probes()).audit(nn.Sequential(net, nn.Softmax(dim=1)))

    torch.testing.assert_close(record.outputs, plain.outputs.log_softmax(dim=1))
    assert "probabilities" in record.notes[0]
    # Cross-entropies do not change by a constant on all logits, so neither do these two maps.
    torch.testing.assert_close(record.heatmaps[1:], plain.heatmaps[1:])


def test_net_without_a_linear_head_has_no_novelty_and_a_note_says_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    record = Auditor(tiny_probes()).audit(net)

    assert record.scores == {}
    assert not any(key.startswith("novelty/") for key in record.metrics)
    assert [note for note in record.notes if "Novelty was left out" in note]


def test_metrics_cover_every_question_and_region():
    keys = Auditor(tiny_probes()).audit(tiny_net()).metrics.keys()

    expected = {
        f"gradcam/{question}/{metric}/{region}"
        for question in ("why", "why_rather_than", "why_not_certain")
        for metric in ("relevance_mass", "relevance_lift")
        for region in ("core", "spurious")
    }
    assert keys == expected | {"accuracy", "confidence", "novelty/gradnorm"}


def test_probes_without_masks_have_no_localization():
    keys = Auditor(tiny_probes(masks=None)).audit(tiny_net()).metrics.keys()
    assert keys == {"accuracy", "confidence", "novelty/gradnorm"}


def test_relevance_mass_of_a_region_and_of_its_rest_sum_to_one_and_chance_is_the_area():
    metrics = Auditor(tiny_probes()).audit(tiny_net()).metrics
    inside, outside = (metrics[f"gradcam/why_not_certain/relevance_mass/{region}"] for region in ("core", "spurious"))

    assert inside.valid > 0
    assert inside.value + outside.value == pytest.approx(1)
    assert inside.chance == pytest.approx(16 / 64)


def test_explainer_can_be_chosen():
    auditor = Auditor(tiny_probes(), [Why(0)], explainers=[HiResCAM("0")])
    record = auditor.audit(tiny_net())
    assert record.layer == "0"
    assert record.layer_reason.startswith("`0`, as named")
    assert "hirescam/why_0/relevance_mass/core" in record.metrics


@pytest.mark.parametrize("part", ["heatmaps", "layer"])
def test_a_record_without_heatmaps_says_so_where_one_is_asked_for(part):
    record = Auditor(tiny_probes(), explainers=[]).audit(tiny_net())

    assert record.maps == {}
    assert record.metrics.keys() == {"accuracy", "confidence", "novelty/gradnorm"}
    with pytest.raises(AuditError, match="there are none"):
        getattr(record, part)


def test_a_record_without_heatmaps_says_why():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(len(CLASSES)))
    model(tiny_probes().images)
    assert Auditor(tiny_probes()).audit(model).layer_reason.startswith("There are no heatmaps.")
