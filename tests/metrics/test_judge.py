"""`Judge`: what is said of answers and of heatmaps, by explainer, audit after audit."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import centre_masks, pictures, tiny_probes
from xai_callbacks import ProbeSet
from xai_callbacks.metrics import area_fraction, relevance, relevance_lift, relevance_mass, relevance_rank, soft_iou
from xai_callbacks.metrics.drift import explanation_drift
from xai_callbacks.metrics.judge import Judge, KeyedMaps
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

CLASSES = SingleLabel(labels=3)
METRICS = {
    "relevance_mass": relevance_mass,
    "relevance_lift": relevance_lift,
    "relevance_rank": relevance_rank,
    "soft_iou": soft_iou,
}


def random_maps(questions=2, grid=4, seed=0):
    return torch.randn(questions, 6, grid, grid, generator=torch.Generator().manual_seed(seed))


def keyed(name="gradcam", maps=None, kind="a", keys=("why", "why_label")):
    maps = random_maps() if maps is None else maps
    return {name: KeyedMaps(maps, tuple(f"{name}/{key}" for key in keys[: len(maps)]), kind)}


def judged(judge, maps=None, *, outputs=None, truth=None, task=CLASSES, chunk_size=4):
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) if outputs is None else outputs
    return judge.judge(task, outputs, truth, {} if maps is None else maps, chunk_size)


# ---- heatmaps


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100])
def test_heatmaps_of_each_explainer_and_question_are_judged_by_the_functions_themselves(chunk_size):
    probes = tiny_probes()
    maps = {**keyed(), **keyed("occlusion", random_maps(1, 8, seed=3), "b")}
    found = judged(Judge(probes), maps, chunk_size=chunk_size)

    size = tuple(probes.images.shape[-2:])
    for given in maps.values():
        for key, heatmaps in zip(given.keys, given.heatmaps, strict=True):
            positive, peak = relevance(heatmaps, size), float(heatmaps.abs().amax())
            for region, mask in probes.masks.items():
                for name, metric in METRICS.items():
                    expected = metric(positive, mask, reference=peak)
                    torch.testing.assert_close(found[f"{key}/{name}/{region}"].values, expected, equal_nan=True)
                area = area_fraction(mask)
                torch.testing.assert_close(found[f"{key}/relevance_mass/{region}"].chance, area)
    assert len(found) == 3 * 4 * 2 + 1


def test_without_heatmaps_there_are_answers_only():
    assert judged(Judge(tiny_probes()), truth=tiny_probes().labels).keys() == {"accuracy", "confidence"}


def test_drift_is_the_cosine_distance_to_the_maps_before():
    judge, first, second = Judge(tiny_probes(masks=None)), random_maps(seed=1), random_maps(seed=2)
    assert not any("drift" in key for key in judged(judge, keyed(maps=first)))
    found = judged(judge, keyed(maps=second))
    for index, key in enumerate(("why", "why_label")):
        expected = explanation_drift(first[index], second[index])
        torch.testing.assert_close(found[f"gradcam/{key}/drift"].values, expected)


@pytest.mark.parametrize(
    "other",
    [
        keyed(kind="b"),
        keyed(maps=random_maps(grid=8)),
        keyed("occlusion"),
        keyed(keys=("why_0", "why_1")),
        keyed(maps=random_maps(1)),
    ],
    ids=["kind", "grid", "explainer", "questions", "number of questions"],
)
def test_maps_of_another_kind_are_not_compared(other):
    judge = Judge(tiny_probes(masks=None))
    judged(judge, keyed())
    assert not any("drift" in key for key in judged(judge, other))


def test_an_explainer_is_compared_with_its_own_last_maps_however_long_ago():
    judge, old = Judge(tiny_probes(masks=None)), random_maps(seed=5)
    judged(judge, keyed("occlusion", old))
    judged(judge, keyed())
    assert "occlusion/why/drift" not in judged(judge, keyed())
    found = judged(judge, keyed("occlusion", random_maps(seed=6)))
    torch.testing.assert_close(found["occlusion/why/drift"].values, explanation_drift(old[0], random_maps(seed=6)[0]))


def test_a_map_is_dead_against_the_peak_of_its_own_explainer_and_question():
    """The scales of explainers have nothing to do with each other."""
    judge = Judge(tiny_probes())
    judged(judge, {**keyed(maps=1e6 * random_maps()), **keyed("occlusion", 1e-6 * random_maps())})
    found = judged(judge, {**keyed(maps=1e-6 * random_maps()), **keyed("occlusion", 1e-6 * random_maps())})
    assert found["gradcam/why/relevance_mass/core"].summary().degenerate == 6
    assert found["occlusion/why/relevance_mass/core"].summary().degenerate == 0


# ---- answers


def test_answers_of_classes():
    outputs, labels = torch.eye(3).repeat(2, 1) * 2, torch.tensor([0, 1, 2, 0, 0, 0])
    judge = Judge(tiny_probes(masks=None))
    found = judged(judge, outputs=outputs, truth=labels)
    assert found["accuracy"].values.tolist() == [1, 1, 1, 1, 0, 0]
    assert found["accuracy"].chance.tolist() == pytest.approx([1 / 3] * 6)
    certain = math.exp(2) / (math.exp(2) + 2)
    assert found["confidence"].values.tolist() == pytest.approx([certain] * 6)
    assert "switched" not in found
    again = judged(judge, outputs=outputs.roll(1, dims=0), truth=labels)
    assert again["switched"].values.tolist() == [1] * 6
    assert judged(judge, outputs=outputs.roll(1, dims=0), truth=labels)["switched"].values.tolist() == [0] * 6


def test_answers_of_labels():
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [-1, 1], [-1, -1], [0, 1]])
    probes = ProbeSet.from_tensors(pictures(), labels)
    outputs = torch.tensor([[1.0, -1], [1, -1], [-1, -1], [1, 1], [1, 1], [1, -1]])
    judge, task = Judge(probes), MultiLabel(width=2)
    found = judged(judge, outputs=outputs, truth=labels, task=task)
    expected = [1, 0.5, 1, 1, math.nan, 0]
    torch.testing.assert_close(found["accuracy"].values, torch.tensor(expected).double(), equal_nan=True)
    exact = [1, 0, 1, 1, math.nan, 0]
    torch.testing.assert_close(found["exact_match"].values, torch.tensor(exact).double(), equal_nan=True)
    assert found["accuracy"].chance is None
    sigmoid = 1 / (1 + math.exp(-1))
    assert found["confidence"].values.tolist() == pytest.approx(
        [sigmoid, sigmoid, 1 - sigmoid, sigmoid, sigmoid, sigmoid]
    )
    # A change of one label of two is a change; one of a logit on its side of 0 is none.
    outputs[0, 1], outputs[1] = 1.0, torch.tensor([5.0, -9.0])
    again = judged(judge, outputs=outputs, truth=labels, task=task)
    assert again["switched"].values.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("names", [None, ("blur", "grain of film")])
def test_answers_of_values(names):
    targets = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    probes = ProbeSet.from_tensors(pictures(2), targets=targets, target_names=names)
    judge, task = Judge(probes), Regression(names, 2)
    found = judged(judge, outputs=torch.tensor([[1.0, 1.0], [0.0, 7.0]]), truth=targets, task=task)
    first, second = ("0", "1") if names is None else ("blur", "grain_of_film")
    assert {key: each.values.tolist() for key, each in found.items()} == {
        "absolute_error": [0.5, 3.0],
        f"absolute_error/{first}": [1.0, 2.0],
        f"absolute_error/{second}": [0.0, 4.0],
    }
    assert "switched" not in judged(judge, outputs=torch.zeros(2, 2), truth=targets, task=task)


def test_one_value_has_one_error_whatever_the_shape_of_the_targets():
    for targets in (torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]])):
        probes = ProbeSet.from_tensors(pictures(2), targets=targets)
        found = judged(Judge(probes), outputs=torch.zeros(2, 1), truth=targets, task=Regression())
        assert {key: each.values.tolist() for key, each in found.items()} == {"absolute_error": [1.0, 2.0]}


def test_unlabelled_probes_have_confidence_only():
    probes = tiny_probes(labels=None, masks=None)
    assert judged(Judge(probes)).keys() == {"confidence"}
    values = ProbeSet.from_tensors(pictures())
    assert judged(Judge(values), outputs=torch.zeros(6, 1), task=Regression()) == {}


# ---- memory


def test_forgetting_begins_anew():
    judge = Judge(tiny_probes(masks=centre_masks()))
    first = judged(judge, keyed())
    judge.forget()
    again = judged(judge, keyed())
    assert again.keys() == first.keys()


def test_the_state_is_of_one_probe_set():
    there, here = Judge(tiny_probes()), Judge(tiny_probes(seed=8))
    judged(there, keyed())
    here.load_state_dict(there.state_dict())
    assert not any("drift" in key or key == "switched" for key in judged(here, keyed()))
    same = Judge(tiny_probes())
    same.load_state_dict(there.state_dict())
    found = judged(same, keyed())
    assert found["gradcam/why/drift"].values.tolist() == pytest.approx([0] * 6, abs=1e-12)
    assert found["switched"].values.tolist() == [0] * 6


def test_a_state_before_the_first_audit_is_one_too():
    judge = Judge(tiny_probes())
    judge.load_state_dict(Judge(tiny_probes()).state_dict())
    assert not any("drift" in key for key in judged(judge, keyed()))
