"""Localization metrics against hand-computed values, slow obvious twins, and identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import (
    area_fraction,
    lift_chance,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    soft_iou,
    soft_iou_chance,
)

METRICS = [relevance_mass, relevance_lift, relevance_rank, soft_iou]
CHANCE = [
    (relevance_mass, area_fraction),
    (relevance_lift, lift_chance),
    (relevance_rank, area_fraction),
    (soft_iou, soft_iou_chance),
]


def maps(*rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


def masks(*rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows).bool()


def random_case(seed: int, levels: int = 1000, shape: tuple[int, ...] = (6, 7, 9)) -> tuple[Tensor, Tensor]:
    """Relevance with few levels has many ties; masks are non-empty and do not cover the image."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, shape, generator=generator).float()
    mask = torch.rand(shape, generator=generator) < 0.3
    mask[..., 0, 0], mask[..., 0, 1], values[..., 1, 1] = True, False, 1.0
    return values, mask


# ---- slow obvious twins, pixel by pixel


def slow_mass(values: list[float], mask: list[bool]) -> float:
    return sum(v for v, m in zip(values, mask, strict=True) if m) / sum(values)


def slow_rank(values: list[float], mask: list[bool]) -> float:
    """Expected hits among the K largest over a random order of equal pixels: each of them is drawn equally often."""
    size = sum(mask)
    threshold = sorted(values, reverse=True)[size - 1]
    sure = [v > threshold for v in values]
    maybe = [v == threshold for v in values]
    odds = (size - sum(sure)) / sum(maybe)
    return sum(m * (s + odds * e) for m, s, e in zip(mask, sure, maybe, strict=True)) / size


def slow_soft_iou(values: list[float], mask: list[bool]) -> float:
    total, size = sum(values), sum(mask)
    above = below = 0.0
    for v, m in zip(values, mask, strict=True):
        r, q = v / total, m / size
        above += r * q
        below += ((r + q) / 2) ** 2
    return above / below


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize(
    ("fast", "slow"), [(relevance_mass, slow_mass), (relevance_rank, slow_rank), (soft_iou, slow_soft_iou)]
)
def test_metric_equals_its_slow_twin(fast, slow, levels):
    values, mask = random_case(seed=levels, levels=levels)

    expected = [slow(v.flatten().tolist(), m.flatten().tolist()) for v, m in zip(values, mask, strict=True)]

    torch.testing.assert_close(fast(values, mask), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


# ---- by hand


def test_mass_lift_rank_and_soft_iou_of_a_map_worked_out_by_hand():
    values, mask = maps([[4.0, 3.0], [2.0, 1.0]]), masks([[1, 0], [1, 0]])

    assert relevance_mass(values, mask).tolist() == [0.6]  # (4 + 2) / 10
    assert relevance_lift(values, mask).tolist() == [1.2]  # 0.6 / 0.5
    assert relevance_rank(values, mask).tolist() == [0.5]  # the two largest are 4, inside, and 3, outside
    # r = .4 .3 .2 .1, m = .5 0 .5 0: .3 / (.2025 + .0225 + .1225 + .0025) = 6 / 7
    assert soft_iou(values, mask).item() == pytest.approx(6 / 7, rel=1e-15)


def test_box_is_read_rows_first_on_an_image_that_is_not_square():
    values, mask = torch.zeros(1, 4, 6), torch.zeros(1, 4, 6, dtype=torch.bool)
    values[0, 1, 5] = 1.0
    mask[0, 1:2, 4:6] = True

    assert relevance_mass(values, mask).tolist() == [1.0]


@pytest.mark.parametrize("metric", METRICS)
def test_single_hot_pixel_outside_the_mask_scores_zero(metric):
    values, mask = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5, dtype=torch.bool)
    values[0, 4, 4], mask[0, 0, 0] = 3.0, True

    assert metric(values, mask).tolist() == [0.0]


@pytest.mark.parametrize(
    ("metric", "best"), [(relevance_mass, 1.0), (relevance_lift, 25.0), (relevance_rank, 1.0), (soft_iou, 1.0)]
)
def test_single_hot_pixel_that_is_the_mask_scores_the_maximum(metric, best):
    values, mask = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5, dtype=torch.bool)
    values[0, 2, 3], mask[0, 2, 3] = 3.0, True

    assert metric(values, mask).tolist() == [best]


def test_soft_iou_is_one_only_for_relevance_spread_evenly_over_the_mask():
    mask = masks([[1, 1], [1, 0]])
    even, uneven, spilled = [[2.0, 2], [2, 0]], [[2.0, 2], [1, 0]], [[2.0, 2], [2, 0.5]]

    assert soft_iou(maps(even), mask).tolist() == [1.0]
    assert soft_iou(maps(uneven), mask).item() < 1
    assert soft_iou(maps(spilled), mask).item() < 1


# ---- chance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [1e-30, 0.1, 1 / 3, 7e20])
@pytest.mark.parametrize(("metric", "chance"), CHANCE)
def test_constant_map_gets_exactly_the_chance_level(metric, chance, level, dtype):
    _, mask = random_case(seed=5, shape=(20, 13, 17))

    constant = relevance(torch.full((20, 5, 7), level, dtype=dtype), (13, 17))

    assert torch.equal(metric(constant, mask), chance(mask))


def test_chance_levels_worked_out_by_hand():
    mask = masks([[1, 0], [0, 0]])

    assert area_fraction(mask).tolist() == [0.25]
    assert lift_chance(mask).tolist() == [1.0]
    assert soft_iou_chance(mask).tolist() == [4 * 0.25 / (1 + 3 * 0.25)]


def test_mass_averaged_over_all_circular_shifts_is_the_area():
    values, mask = random_case(seed=3, shape=(6, 8))

    shifted = torch.stack([values.roll((dy, dx), (0, 1)) for dy in range(6) for dx in range(8)])

    torch.testing.assert_close(relevance_mass(shifted, mask).mean(), area_fraction(mask), rtol=1e-12, atol=0)


# ---- identities


def test_area_matched_iou_follows_from_the_rank():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, 8, 8, generator=generator, dtype=torch.float64)  # no ties
    mask = torch.rand(50, 8, 8, generator=generator) < 0.3
    explicit = []
    for value, inside in zip(values.flatten(1), mask.flatten(1), strict=True):
        top = torch.zeros_like(inside)
        top[value.topk(int(inside.sum())).indices] = True
        explicit.append(float((top & inside).sum() / (top | inside).sum()))

    rank = relevance_rank(values, mask)

    torch.testing.assert_close(rank / (2 - rank), torch.tensor(explicit, dtype=torch.float64), rtol=1e-6, atol=0)


@given(
    hnp.arrays("float32", (4, 5), elements=st.integers(0, 3).map(float)),
    hnp.arrays("bool", (4, 5)),
    st.permutations(range(20)),
)
def test_moving_the_pixels_of_map_and_mask_together_changes_nothing(array, inside, order):
    values, mask = torch.from_numpy(array)[None], torch.from_numpy(inside)[None]
    moved_values, moved_mask = (each.flatten()[torch.tensor(order)].reshape(1, 4, 5) for each in (values, mask))

    for metric in METRICS:
        torch.testing.assert_close(
            metric(values, mask), metric(moved_values, moved_mask), rtol=1e-12, atol=0, equal_nan=True
        )


def test_tied_pixels_do_not_favour_a_position_of_the_mask():
    values = torch.zeros(2, 4, 4)
    values[:, 1, 1] = 1.0  # all others tie at zero
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0], mask[1, 3] = True, True

    top, bottom = relevance_rank(values, mask).tolist()

    assert top == bottom == 3 * 4 / 15 / 4  # three more pixels drawn from fifteen, four of them inside


@given(hnp.arrays("float32", (3, 4), elements=st.floats(0, 100, width=32)), hnp.arrays("bool", (3, 4)))
def test_values_stay_in_range(array, inside):
    values, mask = torch.from_numpy(array)[None], torch.from_numpy(inside)[None]

    for metric in (relevance_mass, relevance_rank, soft_iou):
        value = metric(values, mask).item()
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12


@pytest.mark.parametrize("factor", [1e-20, 3.0, 1e20])
@pytest.mark.parametrize("metric", METRICS)
def test_scale_of_the_map_does_not_matter(metric, factor):
    values, mask = random_case(seed=8)

    torch.testing.assert_close(metric(values.double() * factor, mask), metric(values, mask), rtol=1e-12, atol=0)


# ---- what has no answer


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spoil", [0.0, math.nan, math.inf])
def test_degenerate_map_is_nan_and_leaves_its_neighbours_alone(metric, spoil):
    values, mask = random_case(seed=1)
    expected = metric(values, mask)
    values[2] = 0.0
    values[2, 3, 3] = spoil

    result = metric(values, mask)

    assert result.isnan().tolist() == [False, False, True, False, False, False]
    assert torch.equal(result[:2], expected[:2])
    assert torch.equal(result[3:], expected[3:])


@pytest.mark.parametrize("metric", METRICS)
def test_map_that_is_nothing_beside_the_largest_of_the_run_is_nan(metric):
    values, mask = random_case(seed=1)
    faint = values * 1e-12

    assert not metric(faint, mask).isnan().any()
    assert metric(faint, mask, reference=float(values.max())).isnan().all()
    assert not metric(values, mask, reference=float(values.max())).isnan().any()


def test_reference_may_differ_between_questions():
    values, mask = random_case(seed=1)

    result = relevance_mass(torch.stack([values, values]), mask, reference=torch.tensor([[1.0], [1e30]]))

    assert result.isnan().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize(("metric", "chance"), CHANCE)
def test_empty_mask_is_nan_and_so_is_its_chance_level(metric, chance):
    empty = torch.zeros(1, 3, 3, dtype=torch.bool)

    assert metric(torch.ones(1, 3, 3), empty).isnan().all()
    assert chance(empty).isnan().all()


@pytest.mark.parametrize(
    ("metric", "value"), [(relevance_mass, 1.0), (relevance_rank, 1.0), (relevance_lift, math.nan)]
)
def test_mask_that_covers_the_image_holds_everything_but_has_no_lift(metric, value):
    values = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    full = torch.ones(1, 3, 3, dtype=torch.bool)

    torch.testing.assert_close(
        metric(values, full), torch.tensor([value], dtype=torch.float64), rtol=0, atol=0, equal_nan=True
    )
    assert lift_chance(full).isnan().all()


@pytest.mark.parametrize("metric", METRICS)
def test_signed_maps_are_refused(metric):
    with pytest.raises(ConfigurationError, match="non-negative, but got a smallest value of -2"):
        metric(maps([[3.0, -2.0]]), masks([[1, 0]]))


def test_mask_and_map_of_different_size_are_refused():
    with pytest.raises(ConfigurationError, match="same height and width"):
        relevance_mass(torch.ones(1, 3, 4), torch.ones(1, 4, 3, dtype=torch.bool))


def test_mask_that_is_not_bool_is_refused():
    with pytest.raises(ConfigurationError, match="Expected `mask` to be bool"):
        relevance_mass(torch.ones(1, 3, 3), torch.ones(1, 3, 3))


# ---- shapes


@pytest.mark.parametrize("metric", METRICS)
def test_masks_are_shared_by_all_questions(metric):
    values, mask = random_case(seed=4)
    questions = torch.stack([values, values.flip(0), values + 1])

    result = metric(questions, mask)

    assert result.shape == (3, 6)
    assert result.dtype == torch.float64
    assert torch.equal(result, torch.stack([metric(each, mask) for each in questions]))


@pytest.mark.parametrize("metric", METRICS)
def test_one_map_is_judged_against_several_masks(metric):
    values, mask = random_case(seed=4)

    assert torch.equal(metric(values[0], mask), metric(values[0].expand(6, -1, -1), mask))


@pytest.mark.parametrize("metric", [relevance_mass, relevance_lift, soft_iou])
def test_metric_is_differentiable_in_the_relevance(metric):
    values, mask = random_case(seed=2, shape=(2, 3, 3))

    assert torch.autograd.gradcheck(lambda each: metric(each, mask), (values.double() + 1).requires_grad_())


# ---- relevance


def test_clips_before_it_enlarges():
    signed = maps([[4.0, -4.0]])

    # Half-pixel centres of four columns lie at 0, 0.25, 0.75 and 1 between the two cells 4 and 0.
    assert relevance(signed, (1, 4)).tolist() == [[[4.0, 3.0, 1.0, 0.0]]]


def test_equals_plain_bilinear_enlargement_up_to_rounding():
    generator = torch.Generator().manual_seed(0)
    signed = torch.randn(2, 3, 4, 5, generator=generator)

    expected = torch.nn.functional.interpolate(signed.clamp(min=0), size=(13, 11), mode="bilinear")

    torch.testing.assert_close(relevance(signed, (13, 11)), expected, rtol=0, atol=1e-6)


def test_map_that_is_not_finite_does_not_become_so():
    spoiled = torch.ones(2, 3, 3)
    spoiled[0, 1, 1], spoiled[1, 1, 1] = math.nan, math.inf

    result = relevance(spoiled, (8, 8))

    assert not torch.isfinite(result).all(dim=-1).all(dim=-1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_enlarged_in_single_precision(dtype):
    assert relevance(torch.ones(1, 2, 2, dtype=dtype), (5, 5)).dtype == torch.float32


def test_vector_is_refused_as_a_heatmap():
    with pytest.raises(ConfigurationError, match="Expected `heatmap` to be"):
        relevance(torch.ones(4), (2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_metric_is_the_same_on_the_gpu(metric):
    values, mask = random_case(seed=6)

    result = metric(values.cuda(), mask.cuda())

    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), metric(values, mask), rtol=1e-12, atol=0)
