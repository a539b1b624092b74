"""Nulls and references against slow obvious twins, SciPy, closed forms and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import (
    area_fraction,
    explanation_ncc,
    permuted_mask_null,
    relevance,
    relevance_mass,
    shift_null,
    signed_share,
    sobel_magnitude,
    summarize,
)

NAN = math.nan


def random_case(seed: int, levels: int = 1000, shape: tuple[int, ...] = (6, 7, 9)) -> tuple[Tensor, Tensor]:
    """Relevance with few levels has many ties; masks are non-empty, differ, and do not cover the image."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, shape, generator=generator).float()
    mask = torch.rand(shape, generator=generator) < 0.3
    mask[..., 0, 0], mask[..., 0, 1], values[..., 1, 1] = True, False, 1.0
    return values, mask


def same(result: Tensor, expected: object, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def all_shifts(value: Tensor) -> Tensor:
    height, width = value.shape
    return torch.stack([value.roll((down, right), (0, 1)) for down in range(height) for right in range(width)])


def correctly_rounded_masses(value: Tensor, mask: Tensor) -> list[float]:
    """Relevance mass of every shift, the map's own place first; equal sets of pixels give equal floats."""
    total = math.fsum(value.flatten().tolist())
    return [math.fsum(each[mask].tolist()) / total for each in all_shifts(value.double())]


# ---- circular shifts


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_shift_null_equals_a_loop_over_all_shifts(levels):
    values, mask = random_case(seed=levels, levels=levels)

    null = shift_null(values, mask)

    for index in range(6):
        masses = correctly_rounded_masses(values[index], mask[index])
        same(null.p[index], sum(mass >= masses[0] for mass in masses) / 63)
        same(null.mean[index], sum(masses) / 63)
        same(null.quantile95[index], np.quantile(masses, 0.95, method="inverted_cdf"))


def test_shifts_that_see_the_same_pixels_are_ties_in_spite_of_rounding():
    generator = torch.Generator().manual_seed(1)
    values, mask = torch.zeros(20, 16, 24), torch.zeros(20, 16, 24, dtype=torch.bool)
    mask[:, 3:11, 5:16] = True
    for value in values:  # five pixels of odd values: most shifts share their set of pixels with many others
        value.view(-1)[torch.randperm(384, generator=generator)[:5]] = torch.rand(5, generator=generator)

    null = shift_null(values, mask)

    slow = [correctly_rounded_masses(value, inside) for value, inside in zip(values, mask, strict=True)]
    assert (null.p * 384).round().tolist() == [sum(mass >= each[0] for mass in each) for each in slow]


def test_mean_over_the_shifts_is_the_area():
    values, mask = random_case(seed=3, shape=(40, 6, 8))

    same(shift_null(values, mask).mean, area_fraction(mask))


def test_lone_hot_pixel_inside_the_mask_is_matched_by_as_many_shifts_as_the_mask_has_pixels():
    values, mask = torch.zeros(2, 5, 7), torch.zeros(5, 7, dtype=torch.bool)
    mask[1:3, 2:5] = True
    values[0, 2, 3], values[1, 4, 6] = 2.0, 2.0

    null = shift_null(values, mask)

    assert null.p.tolist() == [6 / 35, 1.0]  # outside, every shift has at least its mass, which is zero
    same(null.quantile95, [1.0, 1.0])  # 29 of 35 shifts miss the mask, fewer than 95 %


def test_quantile_of_a_map_that_hits_in_fewer_than_one_shift_of_twenty_is_zero():
    values, mask = torch.zeros(1, 5, 8), torch.zeros(1, 5, 8, dtype=torch.bool)
    values[0, 0, 0], mask[0, 2, 2:4] = 1.0, True

    same(shift_null(values, mask).quantile95, [0.0])  # 2 of 40 hit: 38 are 95 %

    mask[0, 2, 4] = True
    same(shift_null(values, mask).quantile95, [1.0])


def test_constant_map_is_like_all_its_shifts():
    _, mask = random_case(seed=5)

    null = shift_null(torch.full((6, 7, 9), 0.1), mask)

    assert null.p.tolist() == [1.0] * 6
    same(null.mean, area_fraction(mask))
    same(null.quantile95, area_fraction(mask))


def test_map_at_a_random_place_is_rarely_in_the_tail():
    values, mask = random_case(seed=7, levels=5, shape=(9, 11))

    p = shift_null(all_shifts(values), mask).p

    for level in (1 / 99, 0.05, 0.2, 0.5):
        assert (p <= level).double().mean() <= level
    assert p.min() == pytest.approx(1 / 99)  # the best place of all


def test_rounding_leaves_no_mass_outside_its_range():
    values, mask = random_case(seed=1, levels=7, shape=(200, 7, 9))
    crowded = torch.ones(7, 9, dtype=torch.bool)
    crowded[0, 0] = False
    lone = values * (values.flatten(1).cumsum(1).view_as(values) <= 9)  # few pixels, and 95 % of the shifts hold all

    for quantile in (shift_null(lone, crowded).quantile95, shift_null(values, mask).quantile95):
        assert ((quantile >= 0) & (quantile <= 1)).all()


def test_mask_across_the_width_ties_with_the_shifts_along_it():
    values, mask = torch.zeros(1, 6, 10), torch.zeros(1, 6, 10, dtype=torch.bool)
    values[0, 2, 4], mask[0, 2] = 1.0, True

    assert shift_null(values, mask).p.tolist() == [10 / 60]


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf])
def test_shift_null_of_a_degenerate_map_is_nan_and_leaves_its_neighbours_alone(spoil):
    values, mask = random_case(seed=1)
    expected = shift_null(values, mask)
    values[2] = 0.0
    values[2, 3, 3] = spoil

    for result, before in zip(shift_null(values, mask), expected, strict=True):
        assert result.isnan().tolist() == [False, False, True, False, False, False]
        assert torch.equal(result[3:], before[3:])


def test_shift_null_of_an_empty_mask_is_nan():
    null = shift_null(torch.rand(1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.bool))

    assert [each.isnan().item() for each in null] == [True, True, True]


def test_all_shifts_are_in_a_mask_that_covers_the_image_which_no_p_can_tell_apart():
    null = shift_null(torch.rand(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool))

    assert null.p.isnan().all()
    same(torch.stack([null.mean, null.quantile95]), [[1.0], [1.0]])


@pytest.mark.parametrize("factor", [1e-20, 3.0, 1e20])
def test_shift_null_does_not_depend_on_the_scale_of_the_map(factor):
    values, mask = random_case(seed=8, levels=4)

    for scaled, plain in zip(shift_null(values.double() * factor, mask), shift_null(values, mask), strict=True):
        same(scaled, plain)


def test_shift_null_shares_masks_over_questions_and_maps_over_masks():
    values, mask = random_case(seed=4)
    questions = torch.stack([values, values.flip(0)])

    assert torch.equal(shift_null(questions, mask).p[1], shift_null(values.flip(0), mask).p)
    assert torch.equal(shift_null(values[0], mask).p, shift_null(values[0].expand(6, -1, -1), mask).p)


# ---- regions of other probes


def slow_permuted(values: Tensor, masks: Tensor) -> list[float]:
    result = []
    for i, value in enumerate(values):
        others = [relevance_mass(value, mask).item() for j, mask in enumerate(masks) if j != i and mask.any()]
        result.append(sum(others) / len(others) if masks[i].any() else NAN)
    return result


def test_permuted_mask_null_equals_a_loop_over_pairs():
    values, masks = random_case(seed=2)
    masks[3] = False

    result = permuted_mask_null(values, masks)

    assert result.dtype == torch.float64
    same(result, slow_permuted(values, masks))
    assert result.isnan().tolist() == [False, False, False, True, False, False]


def test_map_on_its_own_region_alone_has_nothing_in_the_others():
    masks = torch.eye(4, dtype=torch.bool).view(4, 2, 2)

    assert permuted_mask_null(masks.float(), masks).tolist() == [0.0] * 4


def test_map_that_is_the_same_on_all_probes_owes_its_mass_to_position():
    values, masks = random_case(seed=6, shape=(50, 9, 9))
    shared = values[:1].expand(50, -1, -1)

    masses, null = relevance_mass(shared, masks), permuted_mask_null(shared, masks)

    same(null, (masses.sum() - masses) / 49)  # of others, the mean mass of the same map
    same(null.mean(), masses.mean())


def test_constant_map_gets_exactly_the_mean_area_of_the_other_regions():
    _, masks = random_case(seed=5)
    pixels = masks.sum(dim=(1, 2))

    result = permuted_mask_null(torch.full((6, 7, 9), 0.1), masks)

    assert result.tolist() == ((pixels.sum() - pixels).double() / (63 * 5)).tolist()


def test_maps_may_come_in_chunks():
    values, masks = random_case(seed=9)

    chunks = [permuted_mask_null(values[i : i + 2], masks[i : i + 2], pool=masks) for i in (0, 2, 4)]

    assert torch.equal(torch.cat(chunks), permuted_mask_null(values, masks))


def test_each_question_has_its_own_permuted_mask_null():
    values, masks = random_case(seed=4)

    result = permuted_mask_null(torch.stack([values, values + 1]), masks)

    assert torch.equal(result, torch.stack([permuted_mask_null(each, masks) for each in (values, values + 1)]))


def test_permuted_mask_null_is_nan_where_no_two_probes_have_different_regions():
    values, masks = random_case(seed=2)
    alike = masks[:1].expand(6, -1, -1).clone()

    assert permuted_mask_null(values, alike).isnan().all()
    alike[1:4] = False  # two alike are left, and then one
    assert permuted_mask_null(values, alike).isnan().all()
    alike[4:] = False
    assert permuted_mask_null(values, alike).isnan().all()
    assert permuted_mask_null(values, torch.zeros_like(masks)).isnan().all()


def test_equal_regions_count_among_the_others_as_soon_as_one_is_different():
    values, masks = random_case(seed=2)
    masks[1:] = masks[0]
    masks[5, 6, 8] = ~masks[5, 6, 8]

    same(permuted_mask_null(values, masks), slow_permuted(values, masks))


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf])
def test_permuted_mask_null_of_a_degenerate_map_is_nan_and_leaves_its_neighbours_alone(spoil):
    values, masks = random_case(seed=1)
    values[2] = 0.0
    values[2, 3, 3] = spoil

    assert permuted_mask_null(values, masks).isnan().tolist() == [False, False, True, False, False, False]


def test_pool_of_another_size_is_refused():
    values, masks = random_case(seed=1)

    with pytest.raises(ConfigurationError, match="`masks` and `pool` to be"):
        permuted_mask_null(values, masks, pool=masks[:, :5])
    with pytest.raises(ConfigurationError, match="`masks` and `pool` to be"):
        permuted_mask_null(values, masks[0])
    with pytest.raises(ConfigurationError, match="Expected `mask` to be bool"):
        permuted_mask_null(values, masks, pool=masks.float())


# ---- edges


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_magnitude_is_that_of_scipy(channels):
    images = torch.rand(4, channels, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    expected = [
        np.hypot(*(scipy.ndimage.sobel(grey, axis=axis, mode="reflect") for axis in (0, 1)))
        for grey in images.mean(dim=1).numpy()
    ]

    same(sobel_magnitude(images), np.stack(expected))


def test_sobel_magnitude_of_a_step_worked_out_by_hand():
    step = torch.zeros(1, 3, 3, 6)
    step[..., 3:] = 1.0

    # (1 + 2 + 1) * 1 on the two columns beside the step, in every row: rows are repeated beyond the border.
    assert sobel_magnitude(step).tolist() == [[[0.0, 0, 4, 4, 0, 0]] * 3]
    assert sobel_magnitude(step.transpose(2, 3)).tolist() == sobel_magnitude(step).transpose(1, 2).tolist()


def test_sobel_magnitude_averages_the_channels():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, :, 1] = 0.9  # 0.3 of grey

    torch.testing.assert_close(sobel_magnitude(image), torch.full((1, 2, 2), 1.2))


@pytest.mark.parametrize("colour", [(0.1, 0.7, 1 / 3), (1.0, 1.0, 1.0)])
def test_image_of_one_colour_has_no_edges_and_no_share_of_them(colour):
    image = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 5, 4)
    edges = sobel_magnitude(image)

    assert not edges.any()
    assert relevance_mass(edges, torch.ones(1, 5, 4, dtype=torch.bool)).isnan().all()


def test_edges_of_a_square_lie_on_its_rim():
    image, rim = torch.zeros(1, 1, 12, 10), torch.zeros(1, 12, 10, dtype=torch.bool)
    image[..., 3:9, 3:7] = 1.0
    rim[:, 2:10, 2:8], rim[:, 4:8, 4:6] = True, False

    assert relevance_mass(sobel_magnitude(image), rim).tolist() == [1.0]


def test_image_of_a_single_row_has_edges_across_only():
    assert sobel_magnitude(torch.tensor([[[[0.0, 0, 1]]]])).tolist() == [[[0.0, 4, 4]]]


def test_half_precision_images_have_edges_in_single_precision():
    assert sobel_magnitude(torch.ones(1, 1, 3, 3, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4)])
def test_pixels_that_are_no_batch_of_floats_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="Expected `images01` to be floats"):
        sobel_magnitude(wrong)


# ---- evidence of both signs


def row(*values: float) -> Tensor:
    return torch.tensor([[values]])


@pytest.mark.parametrize(("values", "expected"), [((3, -2, -0.9, 0), 3 / 5.9), ((3, -2, -2, 0), 3 / 7)])
def test_signs_that_cancel_do_not_blow_up_the_share(values, expected):
    first = torch.tensor([[[True, False, False, False]]])

    # Sum over the mask by sum over the map would be 30 and -3.
    assert signed_share(row(*values), first, (1, 4)).item() == pytest.approx(expected, rel=1e-6)


def test_signed_share_of_a_map_worked_out_by_hand():
    heatmap, mask = torch.tensor([[[4.0, -3.0], [-2.0, 1.0]]]), torch.tensor([[[True, True], [False, True]]])

    assert signed_share(heatmap, mask, (2, 2)).tolist() == [0.2]  # (4 - 3 + 1) / 10


def test_signed_share_weighs_the_masses_of_both_signs():
    generator = torch.Generator().manual_seed(3)
    heatmap, mask = torch.randn(5, 4, 6, generator=generator), torch.rand(5, 9, 11, generator=generator) < 0.4

    result = signed_share(heatmap, mask, (9, 11))

    evidence, against = (relevance(heatmap, (9, 11), policy).double() for policy in ("positive", "negative"))
    weights = [each.sum(dim=(1, 2)) for each in (evidence, against)]
    net = weights[0] * relevance_mass(evidence, mask) - weights[1] * relevance_mass(against, mask)
    same(result, net / (weights[0] + weights[1]))


def test_opposite_signs_side_by_side_count_in_full_when_enlarged():
    full = torch.ones(1, 1, 4, dtype=torch.bool)

    # Enlarged, the parts are (4, 3, 1, 0) and (0, .5, 1.5, 2): 8 - 4 of 12. Enlarged as one: (4, 2.5, -.5, -2), 4 of 9.
    assert signed_share(row(4.0, -2.0), full, (1, 4)).item() == pytest.approx(4 / 12)


def test_signed_share_of_the_opposite_map_is_the_opposite():
    generator = torch.Generator().manual_seed(4)
    heatmap, mask = torch.randn(7, 5, 5, generator=generator), torch.rand(7, 5, 5, generator=generator) < 0.4

    assert torch.equal(signed_share(-heatmap, mask, (5, 5)), -signed_share(heatmap, mask, (5, 5)))


@pytest.mark.parametrize("sign", [1, -1])
def test_signed_share_of_a_constant_map_is_exactly_the_area_with_its_sign(sign):
    _, mask = random_case(seed=5)

    result = signed_share(torch.full((6, 2, 3), sign * 0.1), mask, (7, 9))

    assert torch.equal(result, sign * area_fraction(mask))


def test_signed_share_of_noise_is_zero_on_average():
    generator = torch.Generator().manual_seed(5)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[2:6, 3:9] = True

    shares = summarize(signed_share(torch.randn(500, 12, 12, generator=generator), mask, (12, 12)))

    assert shares.low < 0 < shares.high
    assert shares.high - shares.low < 0.02


@given(hnp.arrays("float32", (3, 4), elements=st.floats(-100, 100, width=32)), hnp.arrays("bool", (3, 4)))
def test_signed_share_stays_in_range(array, inside):
    value = signed_share(torch.from_numpy(array)[None], torch.from_numpy(inside)[None], (3, 4)).item()

    assert math.isnan(value) or abs(value) <= 1 + 1e-12


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf, -math.inf])
def test_signed_share_of_a_degenerate_map_is_nan(spoil):
    heatmap = torch.zeros(1, 3, 3)
    heatmap[0, 1, 1] = spoil

    assert signed_share(heatmap, torch.eye(3, dtype=torch.bool)[None], (3, 3)).isnan().all()
    assert signed_share(heatmap, torch.eye(9, dtype=torch.bool)[None], (9, 9)).isnan().all()


def test_signed_share_of_an_empty_mask_or_beside_a_much_larger_map_is_nan():
    heatmap, mask = torch.randn(1, 3, 3), torch.eye(3, dtype=torch.bool)[None]

    assert signed_share(heatmap, torch.zeros_like(mask), (3, 3)).isnan().all()
    assert signed_share(heatmap, mask, (3, 3), reference=1e12).isnan().all()


def test_size_that_is_not_that_of_the_masks_is_refused():
    with pytest.raises(ConfigurationError, match="same height and width"):
        signed_share(torch.ones(1, 2, 2), torch.ones(1, 4, 6, dtype=torch.bool), (6, 4))


# ---- with and without the cue


def published_ncc(a: np.ndarray, v: np.ndarray) -> float:
    """As published with Sun et al. 2023."""
    a, v = a.flatten(), v.flatten()
    a = (a - np.mean(a)) / (np.std(a) * len(a))
    v = (v - np.mean(v)) / np.std(v)
    return np.correlate(a, v).item()


def test_ncc_is_that_of_its_publication_and_of_numpy():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator)
    other = other + 0.7 * one

    result = explanation_ncc(one, other)

    same(result, [published_ncc(a.numpy(), v.numpy()) for a, v in zip(one, other, strict=True)])
    same(result, [np.corrcoef(a.flatten(), v.flatten())[0, 1] for a, v in zip(one, other, strict=True)])


def test_ncc_sees_neither_scale_nor_offset_but_the_sign():
    one = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    same(explanation_ncc(one, one * 1e-200), [1.0] * 4)
    same(explanation_ncc(one, 3e200 * one), [1.0] * 4)
    same(explanation_ncc(one, one + 1000), [1.0] * 4, tolerance=1e-10)
    same(explanation_ncc(one, -one), [-1.0] * 4)


def test_rounding_leaves_no_ncc_outside_its_range():
    one = torch.randn(1000, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    assert explanation_ncc(one, one).max() <= 1
    assert explanation_ncc(one, -one).min() >= -1


def test_ncc_of_unrelated_patterns_is_zero():
    one, other = torch.tensor([[1.0, 1], [0, 0]]), torch.tensor([[0.3, 0.9], [0.3, 0.9]])

    same(explanation_ncc(one, other), 0.0, tolerance=1e-7)


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 7e20])
def test_ncc_with_a_constant_map_is_nan(level):
    one = torch.rand(2, 11, 13)
    other = one.clone()
    other[0] = level

    assert explanation_ncc(one, other).isnan().tolist() == [True, False]
    assert explanation_ncc(other, one).isnan().tolist() == [True, False]


@pytest.mark.parametrize("spoil", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("pixel", [(0, 0), (2, 1)])
def test_ncc_with_a_map_that_is_not_finite_is_nan(spoil, pixel):
    one = torch.rand(2, 3, 3)
    other = one.clone()
    other[0][pixel] = spoil

    assert explanation_ncc(one, other).isnan().tolist() == [True, False]


def test_ncc_of_maps_of_different_shape_is_refused():
    with pytest.raises(ConfigurationError, match="to have one shape"):
        explanation_ncc(torch.ones(1, 3, 4), torch.ones(1, 4, 3))


# ---- both


@pytest.mark.parametrize("null", [shift_null, permuted_mask_null])
def test_null_of_a_signed_map_is_refused(null):
    with pytest.raises(ConfigurationError, match="non-negative, but got a smallest value of -2"):
        null(torch.full((2, 2, 2), -2.0), torch.eye(2, dtype=torch.bool).expand(2, 2, 2))


@pytest.mark.parametrize("null", [lambda *given, **rest: shift_null(*given, **rest).p, permuted_mask_null])
def test_null_of_a_map_that_is_nothing_beside_the_largest_of_the_run_is_nan(null):
    values, mask = random_case(seed=1)

    assert null(values * 1e-12, mask, reference=1000.0).isnan().all()
    assert not null(values, mask, reference=1000.0).isnan().any()


@pytest.mark.gpu
def test_nulls_are_the_same_on_the_gpu():
    values, mask = random_case(seed=6)
    images = torch.rand(2, 3, 8, 8)

    for result, expected in zip(shift_null(values.cuda(), mask.cuda()), shift_null(values, mask), strict=True):
        same(result.cpu(), expected)
    same(permuted_mask_null(values.cuda(), mask.cuda()).cpu(), permuted_mask_null(values, mask))
    torch.testing.assert_close(sobel_magnitude(images.cuda()).cpu(), sobel_magnitude(images))
