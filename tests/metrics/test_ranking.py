"""Judgements of the order of pixels against scikit-learn, published code, and counts over all orders."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import (
    area_fraction,
    confounder_sensitivity,
    confounder_sensitivity_chance,
    pixel_auroc,
    pixel_auroc_chance,
    pixel_average_precision,
    pixel_average_precision_chance,
    pointing_game,
    pointing_game_chance,
    relevance,
    relevance_mass,
    relevance_rank,
    summarize,
    topk_intersection,
    topk_intersection_chance,
)

NAN = math.nan


def topk(values: Tensor, mask: Tensor, **rest: object) -> Tensor:
    return topk_intersection(values, mask, 0.2, **rest)


def topk_chance(mask: Tensor) -> Tensor:
    return topk_intersection_chance(mask, 0.2)


METRICS = [pointing_game, topk, confounder_sensitivity, pixel_auroc, pixel_average_precision]
CHANCE = [
    (pointing_game, pointing_game_chance),
    (topk, topk_chance),
    (confounder_sensitivity, confounder_sensitivity_chance),
    (pixel_auroc, pixel_auroc_chance),
    (pixel_average_precision, pixel_average_precision_chance),
]


def random_case(seed: int, levels: int = 1000, shape: tuple[int, ...] = (6, 7, 9)) -> tuple[Tensor, Tensor]:
    """Relevance with few levels has many ties; masks are non-empty and do not cover the image."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, shape, generator=generator).float()
    mask = torch.rand(shape, generator=generator) < 0.3
    mask[..., 0, 0], mask[..., 0, 1], values[..., 1, 1] = True, False, 1.0
    return values, mask


def same(result: Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def mask_of(*pixels: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


# ---- detectors, against scikit-learn


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize(
    ("metric", "oracle"), [(pixel_auroc, roc_auc_score), (pixel_average_precision, average_precision_score)]
)
def test_detector_metric_is_that_of_scikit_learn(metric, oracle, levels):
    values, mask = random_case(seed=levels, levels=levels)

    expected = [oracle(m.flatten().numpy(), v.flatten().numpy()) for v, m in zip(values, mask, strict=True)]

    same(metric(values, mask), expected)


@pytest.mark.parametrize("metric", [pixel_auroc, pixel_average_precision])
def test_map_that_separates_the_mask_is_a_perfect_detector(metric):
    _, mask = random_case(seed=2)

    assert metric(mask * 2.0 + 1, mask).tolist() == [1.0] * 6
    assert pixel_auroc(~mask * 2.0, mask).tolist() == [0.0] * 6


# ---- counts over all orders


def slow_top_hits(values: Tensor, mask: Tensor, size: int) -> Fraction:
    """Pixels of the mask among the `size` largest, averaged over all orders of the pixels before a stable sort."""
    pairs = list(zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True))
    hits = orders = 0
    for order in itertools.permutations(pairs):
        orders += 1
        hits += sum(inside for _, inside in sorted(order, key=lambda pair: -pair[0])[:size])
    return Fraction(hits, orders)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_hits_among_the_top_pixels_are_the_mean_over_all_orders_of_equal_ones(size):
    values = torch.tensor([[2.0, 1, 1], [0, 1, 3]])
    masks = [mask_of((0, 1), (1, 2), shape=(2, 3)), mask_of((0, 0), (0, 1), (0, 2), (1, 0), shape=(2, 3))]

    for mask in masks:
        hits, inside = slow_top_hits(values, mask, size), int(mask.sum())

        assert topk_intersection(values, mask, size / 6).item() == float(hits / min(size, inside))
        assert confounder_sensitivity(values, mask, size / 6).item() == float(hits / inside)


def test_top_pixels_as_many_as_the_mask_has_are_relevance_rank():
    values, _ = random_case(seed=3, levels=5)
    mask = torch.zeros(7, 9, dtype=torch.bool)
    mask[2:5, 3:6] = True

    assert torch.equal(topk_intersection(values, mask, 9 / 63), relevance_rank(values, mask))


def test_area_matched_iou_follows_from_the_hits_among_the_top_pixels():
    values = torch.rand(40, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # no ties
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[1:5, 2:7] = True
    explicit = []
    for value in values:
        top = torch.zeros(80, dtype=torch.bool)
        top[value.flatten().topk(20).indices] = True
        explicit.append(float((top & mask.flatten()).sum() / (top | mask.flatten()).sum()))

    hits = topk_intersection(values, mask, 20 / 80)

    torch.testing.assert_close(hits / (2 - hits), torch.tensor(explicit, dtype=torch.float64), rtol=1e-6, atol=0)
    assert len(set(explicit)) > 5


def published_sensitivity(attribution: np.ndarray, confounder: np.ndarray, ratio: float) -> float:
    """As published with Sun et al. 2023, whose image size is a constant; ties by position."""
    largest = np.argsort(attribution.flatten())[::-1][: int(ratio * attribution.size)]
    return len(set(largest.tolist()) & set(np.flatnonzero(confounder).tolist())) / int(confounder.sum())


def test_confounder_sensitivity_is_that_of_its_publication():
    values = torch.rand(20, 10, 20, generator=torch.Generator().manual_seed(1))
    _, mask = random_case(seed=1, shape=(20, 10, 20))

    expected = [published_sensitivity(v.numpy(), m.numpy(), 0.1) for v, m in zip(values, mask, strict=True)]

    same(confounder_sensitivity(values, mask), expected)


def test_small_mask_can_be_hit_in_full_by_more_top_pixels_than_it_has():
    values = torch.rand(1, 10, 10)
    values[0, 4, 4:7] = 2.0
    mask = mask_of((4, 4), (4, 5), (4, 6), shape=(10, 10))

    assert topk_intersection(values, mask, 0.2).tolist() == [1.0]  # 3 of 20 pixels, and of 3 that could
    assert topk_intersection(values, mask, 0.02).tolist() == [1.0]
    assert confounder_sensitivity(values, mask, 0.02).item() == 2 / 3


@pytest.mark.parametrize(("share", "size"), [(0.1, 3), (0.001, 1), (0.05, 2), (1.0, 30)])
def test_share_is_rounded_to_whole_pixels_and_one_at_least(share, size):
    values = 31 - torch.arange(30.0).view(5, 6)
    everything = torch.ones(5, 6, dtype=torch.bool)

    assert confounder_sensitivity(values, everything, share).item() == size / 30
    assert confounder_sensitivity_chance(everything, share).item() == size / 30


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, NAN])
def test_share_out_of_range_is_refused(share):
    for metric in (topk_intersection, confounder_sensitivity):
        with pytest.raises(ConfigurationError, match="Expected `share` to be in"):
            metric(torch.ones(1, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool), share)


# ---- the maximum


def test_pointing_game_asks_for_the_largest_pixel():
    values = torch.tensor([[[1.0, 5], [2, 0]]])

    assert pointing_game(values, mask_of((0, 1), shape=(2, 2))).tolist() == [1.0]
    assert pointing_game(values, mask_of((0, 0), (1, 0), (1, 1), shape=(2, 2))).tolist() == [0.0]


def test_of_several_maxima_the_share_inside_counts():
    values = torch.tensor([[[5.0, 5, 1], [5, 0, 5]]])

    assert pointing_game(values, mask_of((0, 0), (0, 2), shape=(2, 3))).tolist() == [0.25]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 30])
def test_radius_is_a_euclidean_distance_to_the_mask(radius):
    _, masks = random_case(seed=1, shape=(3, 12, 9))
    masks &= torch.rand(3, 12, 9) < 0.15
    masks[:, 4, 7] = True
    places = torch.cartesian_prod(torch.arange(12), torch.arange(9))

    for mask in masks:
        squares = (places[:, None] - places[mask.flatten()]).square().sum(dim=-1)
        near = squares.amin(dim=1) <= radius**2
        lone = torch.eye(108).view(108, 12, 9)  # one map with its maximum at each place

        assert torch.equal(pointing_game(lone, mask, radius), near.double())
        assert pointing_game_chance(mask, radius).item() == near.sum().item() / 108


def test_each_mask_grows_on_its_own():
    _, masks = random_case(seed=1, shape=(2, 3, 12, 9))

    result = pointing_game_chance(masks, 1)

    assert torch.equal(result, torch.stack([torch.stack([pointing_game_chance(m, 1) for m in row]) for row in masks]))


@pytest.mark.parametrize("radius", [-1, 1.5, True])
def test_radius_that_is_no_count_of_pixels_is_refused(radius):
    with pytest.raises(ConfigurationError, match="`radius` to be an integer of 0 or more"):
        pointing_game(torch.ones(1, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool), radius)


# ---- chance


@pytest.mark.parametrize("level", [1e-30, 0.1, 1 / 3, 7e20])
@pytest.mark.parametrize(("metric", "chance"), CHANCE)
def test_constant_map_gets_exactly_the_chance_level(metric, chance, level):
    _, mask = random_case(seed=5, shape=(20, 13, 17))

    constant = relevance(torch.full((20, 5, 7), level), (13, 17))

    assert torch.equal(metric(constant, mask), chance(mask))


def test_constant_map_gets_the_chance_level_of_a_grown_mask():
    _, mask = random_case(seed=5, shape=(20, 13, 17))

    assert torch.equal(pointing_game(torch.ones(20, 13, 17), mask, 1), pointing_game_chance(mask, 1))
    assert (pointing_game_chance(mask, 1) > area_fraction(mask)).all()


def test_chance_levels_worked_out_by_hand():
    mask = mask_of((0, 0), (0, 1), (1, 0), shape=(5, 4))

    assert pointing_game_chance(mask).item() == 3 / 20
    assert pointing_game_chance(mask, 1).item() == 6 / 20
    assert topk_intersection_chance(mask, 0.1).item() == 3 / 20  # two pixels, fewer than the mask has
    assert topk_intersection_chance(mask, 0.5).item() == 10 / 20
    assert confounder_sensitivity_chance(mask, 0.1).item() == 2 / 20
    assert pixel_auroc_chance(mask).item() == 0.5
    assert pixel_average_precision_chance(mask).item() == 3 / 20


def average_precision_of_noise(inside: int, pixels: int) -> float:
    """Mean over all orders of the pixels, above the chance level by a term that is small beside large masks only."""
    harmonic, area = math.fsum(1 / place for place in range(1, pixels + 1)), inside / pixels
    return area + (1 - area) * (harmonic - 1) / (pixels - 1)


def test_mean_over_all_orders_of_the_pixels_is_chance():
    values = torch.tensor(list(itertools.permutations([1.0, 2, 3, 4, 5, 6]))).view(720, 2, 3)
    mask = mask_of((0, 0), (1, 2), shape=(2, 3))

    for metric, chance in CHANCE[:-1]:
        same(metric(values, mask).mean(), chance(mask))
    same(pixel_average_precision(values, mask).mean(), average_precision_of_noise(2, 6))


@pytest.mark.parametrize(("metric", "chance"), [*CHANCE, (relevance_mass, area_fraction)])
def test_mean_over_maps_of_noise_is_within_an_interval_around_chance(metric, chance):
    values = torch.rand(400, 16, 20, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(16, 20, dtype=torch.bool)
    mask[4:12, 5:14] = True
    level = average_precision_of_noise(72, 320) if metric is pixel_average_precision else chance(mask).item()

    scores = summarize(metric(values, mask), confidence=0.99)

    assert scores.low <= level <= scores.high
    assert scores.high - scores.low < 0.12


# ---- invariances


@given(
    hnp.arrays("float32", (4, 5), elements=st.integers(0, 3).map(float)),
    hnp.arrays("bool", (4, 5)),
    st.permutations(range(20)),
)
def test_moving_the_pixels_of_map_and_mask_together_changes_nothing(array, inside, order):
    values, mask = torch.from_numpy(array)[None], torch.from_numpy(inside)[None]
    moved_values, moved_mask = (each.flatten()[torch.tensor(order)].reshape(1, 4, 5) for each in (values, mask))

    for metric in METRICS:
        same(metric(values, mask), metric(moved_values, moved_mask))


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_order_of_the_pixels_counts(metric):
    values, mask = random_case(seed=8, levels=9)

    assert torch.equal(metric(values.double().exp() * 1e20, mask), metric(values, mask))


@given(hnp.arrays("float32", (3, 4), elements=st.floats(0, 100, width=32)), hnp.arrays("bool", (3, 4)))
def test_values_stay_in_range(array, inside):
    values, mask = torch.from_numpy(array)[None], torch.from_numpy(inside)[None]

    for metric in METRICS:
        value = metric(values, mask).item()
        assert math.isnan(value) or 0 <= value <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_rows_come_first_on_an_image_that_is_not_square(metric):
    values, mask = torch.zeros(1, 4, 6), torch.zeros(1, 4, 6, dtype=torch.bool)
    values[0, 1, 4:6], mask[0, 1:2, 4:6] = 1.0, True

    assert metric(values, mask).tolist() == [1.0]


# ---- what has no answer


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf])
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

    assert metric(values * 1e-12, mask, reference=1000.0).isnan().all()
    assert not metric(values, mask, reference=1000.0).isnan().any()


@pytest.mark.parametrize(("metric", "chance"), CHANCE)
def test_empty_mask_is_nan_and_so_is_its_chance_level(metric, chance):
    empty = torch.zeros(1, 3, 3, dtype=torch.bool)

    assert metric(torch.rand(1, 3, 3), empty).isnan().all()
    assert chance(empty).isnan().all()
    assert pointing_game(torch.rand(1, 3, 3), empty, 2).isnan().all()


@pytest.mark.parametrize(
    ("metric", "chance", "value"),
    [(*CHANCE[0], 1.0), (*CHANCE[1], 1.0), (*CHANCE[2], 1 / 9), (*CHANCE[3], NAN), (*CHANCE[4], NAN)],
)
def test_mask_that_covers_the_image_has_nothing_to_be_told_from(metric, chance, value):
    full = torch.ones(1, 3, 3, dtype=torch.bool)

    same(metric(torch.rand(1, 3, 3), full), [value])
    same(chance(full), [value])


@pytest.mark.parametrize("metric", METRICS)
def test_signed_maps_are_refused(metric):
    with pytest.raises(ConfigurationError, match="non-negative, but got a smallest value of -2"):
        metric(torch.tensor([[[3.0, -2.0]]]), torch.tensor([[[True, False]]]))


@pytest.mark.parametrize("metric", METRICS)
def test_mask_that_is_not_bool_or_of_another_size_is_refused(metric):
    with pytest.raises(ConfigurationError, match="Expected `mask` to be bool"):
        metric(torch.ones(1, 3, 3), torch.ones(1, 3, 3))
    with pytest.raises(ConfigurationError, match="same height and width"):
        metric(torch.ones(1, 3, 4), torch.ones(1, 4, 3, dtype=torch.bool))


# ---- shapes


@pytest.mark.parametrize("metric", METRICS)
def test_masks_are_shared_by_all_questions_and_maps_by_all_masks(metric):
    values, mask = random_case(seed=4)
    questions = torch.stack([values, values.flip(0), values + 1])

    result = metric(questions, mask)

    assert result.dtype == torch.float64
    assert torch.equal(result, torch.stack([metric(each, mask) for each in questions]))
    assert torch.equal(metric(values[0], mask), metric(values[0].expand(6, -1, -1), mask))


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_metric_is_the_same_on_the_gpu(metric):
    values, mask = random_case(seed=6, levels=5)

    same(metric(values.cuda(), mask.cuda()).cpu(), metric(values, mask))
