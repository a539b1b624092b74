"""Similarity of maps, and curves of deletion and insertion, against closed forms and slow twins."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.trust import (
    SHARES,
    area_under,
    blurred,
    chance_similarity,
    coarse,
    deletion_curve,
    insertion_curve,
    map_similarity,
    marked,
    permuted_maps,
    shifted_maps,
)


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- similarity


def test_similarity_is_the_rank_correlation_of_cells():
    maps, others = random_maps(2, 5, 4, 3), random_maps(2, 5, 4, 3, seed=1)
    maps[0, 0, :2] = 0.5  # ties
    expected = [[spearmanr(maps[q, n].flatten(), others[q, n].flatten()).statistic for n in range(5)] for q in range(2)]
    torch.testing.assert_close(map_similarity(maps, others), torch.tensor(expected, dtype=torch.float64))


def test_a_map_is_like_itself_and_any_rising_curve_of_it_and_unlike_its_negative():
    maps = random_maps(3, 4, 4)
    for others, expected in ((maps, 1), (3 * maps + 1, 1), (maps**3, 1), (-maps, -1)):
        torch.testing.assert_close(map_similarity(maps, others), torch.full((3,), float(expected)).double())


def test_chance_is_the_mean_similarity_to_the_maps_of_the_other_images():
    maps, others = random_maps(2, 5, 4, 4), random_maps(2, 5, 4, 4, seed=1)
    expected = torch.stack(
        [map_similarity(maps, others.roll(by, dims=1)) for by in range(1, 5)]  # every other image once
    ).mean(dim=0)
    torch.testing.assert_close(chance_similarity(maps, others), expected)


def test_maps_without_order_have_no_similarity_and_are_left_out_of_chance():
    maps, others = random_maps(4, 3, 3), random_maps(4, 3, 3, seed=1)
    maps[1], others[2] = 0.0, torch.nan
    same, chance = map_similarity(maps, others), chance_similarity(maps, others)
    assert same.isnan().tolist() == [False, True, True, False]
    assert chance.isnan().tolist() == [False, True, False, False]
    expected = sum(map_similarity(maps[:1], others[place : place + 1]) for place in (1, 3)) / 2
    torch.testing.assert_close(chance[:1], expected)
    assert chance_similarity(maps[:1], maps[:1]).isnan().all()


def test_maps_of_two_grids_are_refused():
    with pytest.raises(ConfigurationError, match=r"one shape \(\.\.\., h, w\), but got \(2, 3, 3\) and \(2, 4, 4\)"):
        map_similarity(random_maps(2, 3, 3), random_maps(2, 4, 4))


def test_coarse_maps_are_means_over_at_most_sixteen_cells_a_side():
    maps = random_maps(2, 3, 64, 32)
    found = coarse(maps)
    torch.testing.assert_close(found, maps.reshape(2, 3, 16, 4, 16, 2).mean(dim=(3, 5)))
    assert coarse(found) is found
    assert coarse(random_maps(2, 7, 40)).shape == (2, 7, 16)


# ---- maps that know nothing


def test_permuted_maps_hold_the_same_cells_in_another_order_each():
    maps = random_maps(3, 4, 4, 5)
    found = permuted_maps(maps, seed=1)
    assert torch.equal(found.flatten(-2).sort().values, maps.flatten(-2).sort().values)
    assert torch.equal(found, permuted_maps(maps, seed=1))
    assert (found != maps).flatten(-2).any(dim=-1).all()
    same = torch.arange(20.0).view(1, 4, 5).expand(3, 4, 5)
    assert not torch.equal(*permuted_maps(same, seed=1)[:2])


def test_shifted_maps_are_rolls_that_leave_none_in_its_place():
    maps = random_maps(40, 3, 4)
    found = shifted_maps(maps, seed=1)
    rolls = {(row, column) for row in range(3) for column in range(4)}
    pairs = zip(maps, found, strict=True)
    by = [{each for each in rolls if torch.equal(one.roll(each, (0, 1)), other)} for one, other in pairs]
    assert all(len(each) == 1 for each in by)
    assert set.union(*by) == rolls - {(0, 0)}


# ---- deletion and insertion


def test_marked_are_the_largest_pixels_and_ties_are_drawn():
    maps = random_maps(3, 6, 5)
    for share, count in ((0.1, 3), (0.5, 15), (1.0, 30), (0.001, 1)):
        masks = marked(maps, (6, 5), share)
        assert masks.flatten(1).sum(dim=1).tolist() == [count] * 3
        inside, outside = maps.masked_fill(~masks, torch.inf), maps.masked_fill(masks, -torch.inf)
        assert (inside.amin(dim=(1, 2)) >= outside.amax(dim=(1, 2))).all()
    flat = torch.zeros(1, 6, 5)
    assert not torch.equal(marked(flat, (6, 5), 0.5, seed=0), marked(flat, (6, 5), 0.5, seed=1))
    assert not marked(flat, (6, 5), 0.5)[0, :3].all()


def test_curves_of_a_linear_score_are_sums_of_the_sorted_map():
    images, weights = random_maps(4, 1, 5, 8).abs(), random_maps(1, 5, 8, seed=1)
    maps = (images * weights)[:, 0]

    def score(altered):
        return (altered * weights).sum(dim=(1, 2, 3))

    shares = (0.1, 0.25, 0.5)
    ordered = maps.flatten(1).sort(dim=1, descending=True).values
    kept = torch.stack([ordered[:, :count].sum(dim=1) for count in (4, 10, 20)])
    nothing = torch.zeros_like(images)
    torch.testing.assert_close(insertion_curve(score, images, maps, fill=nothing, shares=shares), kept)
    torch.testing.assert_close(deletion_curve(score, images, maps, fill=nothing, shares=shares), score(images) - kept)


def test_the_map_of_a_linear_score_beats_any_other_order():
    images, weights = random_maps(6, 1, 8, 8).abs(), random_maps(1, 8, 8, seed=1)
    maps, nothing = (images * weights)[:, 0], torch.zeros_like(images)

    def score(altered):
        return (altered * weights).sum(dim=(1, 2, 3))

    for others in (permuted_maps(maps, 0), shifted_maps(maps, 0), -maps):
        for curve, side in ((deletion_curve, -1), (insertion_curve, 1)):
            own, other = (area_under(curve(score, images, each, fill=nothing)) for each in (maps, others))
            assert (side * (own - other) > 0).all()


def test_curves_of_several_questions_cost_one_call_a_share():
    calls = []

    def scores(altered):
        calls.append(len(altered))
        return torch.stack([altered.sum(dim=(1, 2, 3)), altered.amax(dim=(1, 2, 3))])

    images = random_maps(3, 2, 8, 8)
    curve = deletion_curve(scores, images, random_maps(3, 4, 4), fill=blurred(images))
    assert curve.shape == (len(SHARES), 2, 3)
    assert calls == [3] * len(SHARES)


def test_area_is_the_mean_height_by_trapezoids():
    curve = torch.tensor([[0.0, 5.0], [2.0, 5.0], [2.0, 5.0]])
    torch.testing.assert_close(area_under(curve, (0.1, 0.2, 0.4)), torch.tensor([(0.1 + 0.4) / 0.3, 5.0]))
    assert torch.equal(area_under(curve[1:2], (0.1,)), curve[1])


def test_blurred_images_keep_their_mean_colour_and_lose_detail():
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    images = checks.float().expand(1, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(blurred(images), images.mean(dim=(2, 3), keepdim=True).expand_as(images))
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    assert blurred(ramp)[0, 0, 0].diff().min() >= 0
