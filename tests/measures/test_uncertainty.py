"""`ExplanationUncertainty`: both numbers written slowly, what is empty, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from tests.measures.records import audit, context, map_set, measured, random_maps
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import VOICE, Auditor, ExplanationUncertainty, GradCAM, Why
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.measures.uncertainty import overlap, signal_to_noise

AROUND = context(maps=("gradcam/why", "gradcam/why_label", "voice"))


def normalised(values):
    values = values.clamp(min=0)
    return (values - values.min()) / (values.max() - values.min())


def record(uncertain, explained=None):
    explained = random_maps() if explained is None else explained
    return audit(maps={"gradcam": map_set(explained), "voice": map_set(uncertain, about="image", units="relative")})


def test_both_numbers_are_those_of_the_public_code():
    uncertain, explained = random_maps(1, seed=4).abs(), random_maps()
    found = measured(ExplanationUncertainty(), record(uncertain, explained), around=AROUND)
    assert set(found) == {"voice/snr", "voice/iou"}
    for row in range(6):
        u, e = normalised(uncertain[0, row]), normalised(explained[0, row])
        both, either = float(((u > 0.1) & (e > 0.1)).sum()), float(((u > 0.1) | (e > 0.1)).sum())
        assert float(found["voice/iou"].values[row]) == pytest.approx(both / either)
        assert float(found["voice/snr"].values[row]) == pytest.approx(float(u.mean() / u.std(correction=0)), rel=1e-5)
    assert bool((found["voice/iou"].chance > 0).all())


def test_the_chance_is_that_of_areas():
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(2000, 100)
    first[:, :30] = 1
    shuffled = torch.zeros(2000, 100)
    for row in shuffled:
        row[torch.randperm(100, generator=generator)[:40]] = 1
    share, chance = overlap(first.reshape(-1, 10, 10), shuffled.reshape(-1, 10, 10))
    assert float(chance[0]) == pytest.approx(0.3 * 0.4 / (0.3 + 0.4 - 0.3 * 0.4))
    assert float(share.mean()) == pytest.approx(float(chance[0]), abs=0.01)


def test_a_threshold_is_what_counts():
    uncertain = torch.tensor([[[0.0, 0.3], [0.6, 1.0]]])
    explained = torch.tensor([[[0.0, 1.0], [0.0, 0.6]]])
    assert float(overlap(uncertain, explained, 0.5)[0]) == pytest.approx(1 / 3)
    assert float(overlap(uncertain, explained, 0.1)[0]) == pytest.approx(2 / 3)


def test_empty_maps_have_no_value_and_are_counted():
    uncertain, explained = random_maps(1, seed=4).abs(), random_maps()
    uncertain[0, 1], uncertain[0, 2], explained[0, 3] = 0, 1, -1
    found = measured(ExplanationUncertainty(), record(uncertain, explained), around=AROUND)
    assert found["voice/snr"].values.isnan().tolist() == [False, True, True, False, False, False]
    assert found["voice/iou"].values.isnan().tolist() == [False, True, True, True, False, False]
    kept = Auditor(
        tiny_probes(), [Why()], explainers=[GradCAM(), VOICE()], novelty=[], measures=[ExplanationUncertainty()]
    ).audit(tiny_net())
    assert kept.failed == ()
    estimate = kept.metrics["voice/iou"]
    assert estimate.valid + estimate.degenerate == 6
    assert bool((signal_to_noise(torch.zeros(2, 3, 3))).isnan().all())


def test_nothing_is_said_where_an_explainer_did_not_answer():
    assert measured(ExplanationUncertainty(), audit(maps={"gradcam": map_set()}), around=AROUND) == {}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (ExplanationUncertainty("spread"), "`uncertainty` to be one of the heatmaps .*voice, but got 'spread'"),
        (ExplanationUncertainty(explanation="gradcam"), "`explanation` to be one of .* but got 'gradcam'"),
    ],
)
def test_explainers_that_are_missing_are_said_before_training(measure, message):
    with pytest.raises(ConfigurationError, match=message):
        measure.keys(AROUND)


def test_settings_are_checked_and_grids_must_be_one():
    for threshold in (1.0, -0.1, math.nan, True):
        with pytest.raises(ConfigurationError, match="`threshold` to be a number in"):
            ExplanationUncertainty(threshold=threshold)
    assert repr(ExplanationUncertainty()) == "ExplanationUncertainty('voice', 'gradcam/why', threshold=0.1)"
    with pytest.raises(ConfigurationError, match=r"one grid, but got \(8, 8\) and \(4, 4\)"):
        measured(ExplanationUncertainty(), record(random_maps(1, grid=8)), around=AROUND)
