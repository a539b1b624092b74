"""The torchmetrics twins: same values as the functions, and shards that add up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from xai_callbacks import metrics
from xai_callbacks.metrics import (
    RelevanceMass,
    RelevanceRank,
    SoftIoU,
    relevance,
    relevance_mass,
    relevance_rank,
    soft_iou,
)

TWINS = [(RelevanceMass, relevance_mass), (RelevanceRank, relevance_rank), (SoftIoU, soft_iou)]


def maps_and_masks(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.randn(count, 4, 4, generator=generator)
    heatmaps[3] = -1.0  # no positive relevance
    return heatmaps, torch.rand(count, 9, 9, generator=generator) < 0.4


@pytest.mark.parametrize(("twin", "function"), TWINS)
def test_twin_is_the_mean_of_its_function_over_batches(twin, function):
    heatmaps, masks = maps_and_masks()
    metric = twin()

    for start in (0, 5, 10):
        metric.update(heatmaps[start : start + 5], masks[start : start + 5])

    expected = function(relevance(heatmaps, (9, 9)), masks).nanmean()
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    assert (int(metric.valid), int(metric.degenerate)) == (11, 1)


@pytest.mark.parametrize(("twin", "function"), TWINS)
def test_policy_is_handed_on(twin, function):
    heatmaps, masks = maps_and_masks()
    metric = twin(policy="negative")

    metric.update(heatmaps, masks)

    expected = function(relevance(heatmaps, (9, 9), "negative"), masks).nanmean()
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("twin", [RelevanceMass, RelevanceRank, SoftIoU])
def test_two_shards_merged_equal_the_whole(twin):
    heatmaps, masks = maps_and_masks()
    whole, left, right = twin(), twin(), twin()
    whole.update(heatmaps, masks)
    left.update(heatmaps[:5], masks[:5])
    right.update(heatmaps[5:], masks[5:])

    left.merge_state(right)

    torch.testing.assert_close(left.compute(), whole.compute(), rtol=1e-12, atol=0)
    assert int(left.valid) == int(whole.valid) == 11
    assert int(left.degenerate) == int(whole.degenerate) == 1


@pytest.mark.parametrize("twin", [RelevanceMass, RelevanceRank, SoftIoU])
def test_state_starts_anew_after_reset(twin):
    heatmaps, masks = maps_and_masks()
    metric = twin()
    metric.update(heatmaps[:6], masks[:6])
    metric.reset()
    metric.update(heatmaps[6:], masks[6:])
    fresh = twin()
    fresh.update(heatmaps[6:], masks[6:])

    assert metric.compute() == fresh.compute()


@pytest.mark.parametrize("twin", [RelevanceMass, RelevanceRank, SoftIoU])
def test_without_a_valid_map_the_mean_is_nan(twin):
    metric = twin()
    metric.update(torch.zeros(2, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))

    assert metric.compute().isnan()
    assert int(metric.degenerate) == 2


@pytest.mark.parametrize("twin", [RelevanceMass, RelevanceRank, SoftIoU])
def test_twin_is_differentiable_if_it_says_so(twin):
    heatmaps, masks = maps_and_masks()

    batch_value = twin()(heatmaps.requires_grad_(), masks)

    assert batch_value.requires_grad is twin.is_differentiable


def test_twins_say_neither_high_nor_low_is_better_since_that_depends_on_the_region():
    assert [twin.higher_is_better for twin, _ in TWINS] == [None, None, None]
    assert [twin.full_state_update for twin, _ in TWINS] == [False, False, False]


def test_importing_the_room_leaves_torchmetrics_out():
    code = "import sys, xai_callbacks.metrics as m; assert 'torchmetrics' not in sys.modules; print('ok')"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.stdout.strip() == "ok", result.stderr


def test_room_lists_what_it_has_and_refuses_what_it_has_not():
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="no attribute 'RelevanceSum'"):
        metrics.RelevanceSum  # noqa: B018
