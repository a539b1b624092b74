"""Judgements on the grid of small maps against the slow way: enlarge each map, and sum over its pixels."""

from __future__ import annotations

import math

import pytest
import torch

from xai_callbacks.metrics.localization import (
    area_fraction,
    lift_chance,
    region_weights,
    relevance,
    relevance_lift,
    relevance_mass,
    soft_iou,
    soft_iou_chance,
)

JUDGEMENTS = (relevance_mass, relevance_lift, soft_iou)
CHANCES = (area_fraction, lift_chance, soft_iou_chance)


def case(grid=(7, 7), size=(224, 224), count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, count, *grid, generator=generator)
    mask = torch.zeros(count, *size, dtype=torch.bool)
    for row in range(count):
        mask[row, row : row + size[0] // 3, size[1] // 4 : size[1] // 2 + row] = True
    mask[-2], mask[-1] = True, False
    return maps, mask


@pytest.mark.parametrize("judge", JUDGEMENTS)
@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), (224, 224)), ((3, 5), (33, 40)), ((8, 8), (8, 8)), ((16, 12), (8, 9)), ((1, 1), (6, 7))]
)
def test_judgements_on_the_grid_are_those_of_enlarged_maps(judge, grid, size):
    maps, mask = case(grid, size)

    found = judge(maps.clamp(min=0), region_weights(mask, grid))

    expected = judge(relevance(maps, size), mask)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    if judge is not relevance_lift:
        assert bool(((found >= 0) & (found <= 1) | found.isnan()).all())


@pytest.mark.parametrize(("judge", "chance"), list(zip(JUDGEMENTS, CHANCES, strict=True)))
def test_a_constant_map_is_at_chance(judge, chance):
    _, mask = case()
    weights = region_weights(mask, (7, 7))

    torch.testing.assert_close(chance(weights), chance(mask), rtol=0, atol=0, equal_nan=True)
    found = judge(torch.full((5, 7, 7), 0.1), weights)
    torch.testing.assert_close(found, chance(mask), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_weights_add_up_to_the_pixels_of_each_region():
    _, mask = case()
    weights = region_weights(mask, (7, 7))
    torch.testing.assert_close(weights.inside.sum(dim=(1, 2)), mask.sum(dim=(1, 2)).double())
    assert weights.area.tolist() == mask.sum(dim=(1, 2)).tolist()


def test_many_masks_are_brought_to_the_grid_in_parts():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(40, 9, 10, generator=generator) < 0.5
    alone = torch.cat([region_weights(mask[[row]], (3, 4)).inside for row in range(40)])
    torch.testing.assert_close(region_weights(mask, (3, 4)).inside, alone)
    assert region_weights(mask[:0], (3, 4)).inside.shape == (0, 3, 4)


@pytest.mark.parametrize("spoil", [0.0, math.nan, math.inf])
def test_degenerate_maps_are_nan_and_leave_their_neighbours_alone(spoil):
    maps, mask = case()
    positive = maps[0].clamp(min=0)
    expected = relevance_mass(positive, region_weights(mask, (7, 7)))
    positive[1] = 0.0
    positive[1, 3, 3] = spoil
    found = relevance_mass(positive, region_weights(mask, (7, 7)))
    assert found.isnan().tolist() == [False, True, False, False, True]
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_a_map_that_is_nothing_beside_the_largest_of_the_run_is_nan_as_it_is_when_enlarged():
    maps, mask = case()
    positive, weights = maps.clamp(min=0), region_weights(mask, (7, 7))
    total = relevance(maps, (224, 224)).double().sum(dim=(-2, -1))
    limit = total / (torch.finfo(torch.float32).eps * 224 * 224)  # the reference at which each map is empty
    for factor, empty in ((0.99, False), (1.01, True)):
        for judge in JUDGEMENTS:
            found = judge(positive, weights, reference=factor * limit)[:, :3]
            assert bool(found.isnan().all()) is empty
            slow = judge(relevance(maps, (224, 224)), mask, reference=factor * limit)[:, :3]
            assert torch.equal(found.isnan(), slow.isnan())
