"""What is always measured: answers, drift, and novelty scores, against the audit before."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.measures.records import audit, context, map_set, measured, past, random_maps
from tests.tiny import pictures, tiny_probes
from xai_callbacks.measures import ALWAYS, Answers, Drift, Scores
from xai_callbacks.metrics import explanation_drift, rank_correlation
from xai_callbacks.probes import ProbeSet

# ---- answers


def test_answers_of_classes():
    probes = tiny_probes(labels=torch.tensor([0, 1, 2, 0, 0, 0]))
    record = audit(probes, outputs=torch.eye(3).repeat(2, 1) * 2)
    around = context(probes)
    found = measured(Answers(), record, around=around)
    assert found["accuracy"].values.tolist() == [1, 1, 1, 1, 0, 0]
    assert found["accuracy"].chance.tolist() == pytest.approx([1 / 3] * 6)
    certain = math.exp(2) / (math.exp(2) + 2)
    assert found["confidence"].values.tolist() == pytest.approx([certain] * 6)
    assert found.keys() == {"accuracy", "confidence"}
    later = audit(probes, outputs=record.outputs.roll(1, dims=0))
    assert measured(Answers(), later, past(record), around)["switched"].values.tolist() == [1] * 6
    assert measured(Answers(), later, past(record, later), around)["switched"].values.tolist() == [0] * 6
    thinned = past(record.thin())
    assert "switched" not in measured(Answers(), later, thinned, around)


def test_answers_of_labels():
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [-1, 1], [-1, -1], [0, 1]])
    probes = ProbeSet.from_tensors(pictures(), labels)
    outputs = torch.tensor([[1.0, -1], [1, -1], [-1, -1], [1, 1], [1, 1], [1, -1]])
    record, around = audit(probes, outputs=outputs), context(probes)
    found = measured(Answers(), record, around=around)
    expected = torch.tensor([1, 0.5, 1, 1, math.nan, 0]).double()
    torch.testing.assert_close(found["accuracy"].values, expected, equal_nan=True)
    exact = torch.tensor([1, 0, 1, 1, math.nan, 0]).double()
    torch.testing.assert_close(found["exact_match"].values, exact, equal_nan=True)
    assert found["accuracy"].chance is None
    high, low = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    assert found["confidence"].values.tolist() == pytest.approx([high, high, low, high, high, high])
    # A change of one label of two is a change; one of a logit on its side of 0 is none.
    changed = outputs.clone()
    changed[0, 1], changed[1] = 1.0, torch.tensor([5.0, -9.0])
    again = measured(Answers(), audit(probes, outputs=changed), past(record), around)
    assert again["switched"].values.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("names", [None, ("blur", "grain of film")])
def test_answers_of_values(names):
    targets = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    probes = ProbeSet.from_tensors(pictures(2), targets=targets, target_names=names)
    record = audit(probes, outputs=torch.tensor([[1.0, 1.0], [0.0, 7.0]]))
    found = measured(Answers(), record, past(record), context(probes))
    first, second = ("0", "1") if names is None else ("blur", "grain_of_film")
    assert {key: each.values.tolist() for key, each in found.items()} == {
        "absolute_error": [0.5, 3.0],
        f"absolute_error/{first}": [1.0, 2.0],
        f"absolute_error/{second}": [0.0, 4.0],
    }


def test_one_value_has_one_error_whatever_the_shape_of_the_targets():
    for targets in (torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]])):
        probes = ProbeSet.from_tensors(pictures(2), targets=targets)
        found = measured(Answers(), audit(probes, outputs=torch.zeros(2, 1)), around=context(probes))
        assert {key: each.values.tolist() for key, each in found.items()} == {"absolute_error": [1.0, 2.0]}


def test_unlabelled_probes_have_confidence_only_and_without_outputs_there_is_nothing():
    probes = tiny_probes(labels=None)
    assert measured(Answers(), audit(probes), around=context(probes)).keys() == {"confidence"}
    assert measured(Answers(), audit(probes, outputs=None), around=context(probes)) == {}


# ---- drift


def test_drift_is_the_cosine_distance_to_the_maps_before():
    first, second = random_maps(seed=1), random_maps(seed=2)
    around = context(maps=("gradcam/why", "gradcam/why_label", "edges"))
    image = {"edges": map_set(first[:1], about="image")}
    before = audit(maps={"gradcam": map_set(first), **image})
    after = audit(maps={"gradcam": map_set(second), "edges": map_set(second[:1], about="image")})
    assert measured(Drift(), after, around=around) == {}
    found = measured(Drift(), after, past(before), around)
    expected = explanation_drift(first, second)
    assert found.keys() == {"gradcam/why/drift", "gradcam/why_label/drift", "edges/drift"}
    for key, row in (("gradcam/why", 0), ("gradcam/why_label", 1), ("edges", 0)):
        torch.testing.assert_close(found[f"{key}/drift"].values, expected[row])


@pytest.mark.parametrize(
    "change",
    [
        {"maps": {"gradcam": map_set(explainer="GradCAM('x')")}},
        {"maps": {"gradcam": map_set(layer="layer3")}},
        {"maps": {"gradcam": map_set(random_maps(grid=8))}},
        {"maps": {"occlusion": map_set()}},
        {"questions": ("why_0", "why_1")},
        {"asked": ("Why(of=0)", "Why(of=1)")},
        {"fingerprint": "another"},
    ],
    ids=["explainer", "layer", "grid", "name", "questions", "settings", "probes"],
)
def test_maps_of_another_kind_are_not_compared(change):
    before = audit(maps={"gradcam": map_set()})
    assert measured(Drift(), audit(maps={"gradcam": map_set()}), past(replace(before, **change))) == {}


def test_questions_are_found_in_another_order():
    maps = random_maps()
    before = audit(maps={"gradcam": map_set(maps)})
    turned = audit(maps={"gradcam": map_set(maps.flip(0))}, questions=before.questions[::-1], asked=before.asked[::-1])
    found = measured(Drift(), turned, past(before))
    assert [each.values.max().item() for each in found.values()] == pytest.approx([0, 0], abs=1e-12)


def test_an_explainer_is_compared_with_its_own_last_maps_however_long_ago():
    old, new = random_maps(seed=5), random_maps(seed=6)
    history = past(audit(maps={"gradcam": map_set(old)}), audit(), audit())
    found = measured(Drift(), audit(maps={"gradcam": map_set(new)}), history)
    torch.testing.assert_close(found["gradcam/why/drift"].values, explanation_drift(old[0], new[0]))


# ---- scores


def scores(seed=0, count=6):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_scores_have_a_mean_and_are_compared_with_the_audit_before():
    around = context(novelty=("energy", "odin"))
    first = audit(scores={"energy": scores(0)})
    second = audit(scores={"energy": scores(1), "odin": scores(2)})
    assert measured(Scores(), first, around=around).keys() == {"novelty/energy"}
    found = measured(Scores(), second, past(first), around)
    assert found["novelty/energy"].value == pytest.approx(float(scores(1).mean()))
    correlation = found["novelty/energy/rank_correlation"]
    assert correlation == (pytest.approx(rank_correlation(scores(0), scores(1))), None, None, 0.0, 6, 0)
    assert "novelty/odin/rank_correlation" not in found  # it was left out before


def test_what_is_always_measured():
    assert [type(each) for each in ALWAYS] == [Answers, Drift, Scores]
