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
from xai_callbacks.metrics.localization import area_fraction, region_weights, relevance, relevance_mass
from xai_callbacks.metrics.nulls import permuted_mass, shift_p, signed_share, sobel_magnitude
from xai_callbacks.record import summarize

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
def test_shift_p_equals_a_loop_over_all_shifts(levels):
    values, mask = random_case(seed=levels, levels=levels)

    p = shift_p(values, mask)

    for index in range(6):
        masses = correctly_rounded_masses(values[index], mask[index])
        same(p[index], sum(mass >= masses[0] for mass in masses) / 63)


def test_shifts_that_see_the_same_pixels_are_ties_in_spite_of_rounding():
    generator = torch.Generator().manual_seed(1)
    values, mask = torch.zeros(20, 16, 24), torch.zeros(20, 16, 24, dtype=torch.bool)
    mask[:, 3:11, 5:16] = True
    for value in values:  # five pixels of odd values: most shifts share their set of pixels with many others
        value.view(-1)[torch.randperm(384, generator=generator)[:5]] = torch.rand(5, generator=generator)

    p = shift_p(values, mask)

    slow = [correctly_rounded_masses(value, inside) for value, inside in zip(values, mask, strict=True)]
    assert (p * 384).round().tolist() == [sum(mass >= each[0] for mass in each) for each in slow]


def test_lone_hot_pixel_inside_the_mask_is_matched_by_as_many_shifts_as_the_mask_has_pixels():
    values, mask = torch.zeros(2, 5, 7), torch.zeros(5, 7, dtype=torch.bool)
    mask[1:3, 2:5] = True
    values[0, 2, 3], values[1, 4, 6] = 2.0, 2.0

    p = shift_p(values, mask)

    assert p.tolist() == [6 / 35, 1.0]  # outside, every shift has at least its mass, which is zero


def test_constant_map_is_like_all_its_shifts():
    _, mask = random_case(seed=5)

    assert shift_p(torch.full((6, 7, 9), 0.1), mask).tolist() == [1.0] * 6


def test_map_at_a_random_place_is_rarely_in_the_tail():
    values, mask = random_case(seed=7, levels=5, shape=(9, 11))

    p = shift_p(all_shifts(values), mask)

    for level in (1 / 99, 0.05, 0.2, 0.5):
        assert (p <= level).double().mean() <= level
    assert p.min() == pytest.approx(1 / 99)  # the best place of all


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf])
def test_shift_p_of_a_degenerate_map_is_nan_and_leaves_its_neighbours_alone(spoil):
    values, mask = random_case(seed=1)
    expected = shift_p(values, mask)
    values[2] = 0.0
    values[2, 3, 3] = spoil

    result = shift_p(values, mask)

    assert result.isnan().tolist() == [False, False, True, False, False, False]
    assert torch.equal(result[3:], expected[3:])


@pytest.mark.parametrize("mask", [torch.zeros(1, 3, 4).bool(), torch.ones(1, 3, 4).bool()], ids=["empty", "full"])
def test_no_place_is_unusual_for_a_mask_that_is_empty_or_covers_the_image(mask):
    assert shift_p(torch.rand(1, 3, 4), mask).isnan().all()


@pytest.mark.parametrize("factor", [1e-20, 3.0, 1e20])
def test_shift_p_does_not_depend_on_the_scale_of_the_map(factor):
    values, mask = random_case(seed=8, levels=4)

    same(shift_p(values.double() * factor, mask), shift_p(values, mask))


def test_shift_p_shares_masks_over_questions_and_maps_over_masks():
    values, mask = random_case(seed=4)
    questions = torch.stack([values, values.flip(0)])

    assert torch.equal(shift_p(questions, mask)[1], shift_p(values.flip(0), mask))
    assert torch.equal(shift_p(values[0], mask), shift_p(values[0].expand(6, -1, -1), mask))


# ---- regions of other probes


def slow_permuted(values: Tensor, masks: Tensor) -> list[float]:
    result = []
    for i, value in enumerate(values):
        others = [relevance_mass(value, mask).item() for j, mask in enumerate(masks) if j != i and mask.any()]
        result.append(sum(others) / len(others) if masks[i].any() else NAN)
    return result


def test_permuted_mass_equals_a_loop_over_pairs():
    values, masks = random_case(seed=2)
    masks[3] = False

    result = permuted_mass(values, masks)

    assert result.dtype == torch.float64
    same(result, slow_permuted(values, masks))
    assert result.isnan().tolist() == [False, False, False, True, False, False]


def test_map_on_its_own_region_alone_has_nothing_in_the_others():
    masks = torch.eye(4, dtype=torch.bool).view(4, 2, 2)

    assert permuted_mass(masks.float(), masks).tolist() == [0.0] * 4


def test_map_that_is_the_same_on_all_probes_owes_its_mass_to_position():
    values, masks = random_case(seed=6, shape=(50, 9, 9))
    shared = values[:1].expand(50, -1, -1)

    masses, null = relevance_mass(shared, masks), permuted_mass(shared, masks)

    same(null, (masses.sum() - masses) / 49)  # of others, the mean mass of the same map
    same(null.mean(), masses.mean())


def test_constant_map_gets_exactly_the_mean_area_of_the_other_regions():
    _, masks = random_case(seed=5)
    pixels = masks.sum(dim=(1, 2))

    result = permuted_mass(torch.full((6, 7, 9), 0.1), masks)

    assert result.tolist() == ((pixels.sum() - pixels).double() / (63 * 5)).tolist()


def test_permuted_mass_on_the_grid_is_that_of_enlarged_maps():
    _, masks = random_case(seed=9)
    masks[3] = False
    maps = torch.rand(2, 6, 3, 4, generator=torch.Generator().manual_seed(1))

    found = permuted_mass(maps, region_weights(masks, (3, 4)))

    same(found, permuted_mass(relevance(maps, (7, 9)), masks), tolerance=1e-6)


def test_each_question_has_its_own_permuted_mass():
    values, masks = random_case(seed=4)

    result = permuted_mass(torch.stack([values, values + 1]), masks)

    assert torch.equal(result, torch.stack([permuted_mass(each, masks) for each in (values, values + 1)]))


def test_permuted_mass_is_nan_where_no_two_probes_have_different_regions():
    values, masks = random_case(seed=2)
    alike = masks[:1].expand(6, -1, -1).clone()

    assert permuted_mass(values, alike).isnan().all()
    alike[1:4] = False  # two alike are left, and then one
    assert permuted_mass(values, alike).isnan().all()
    alike[4:] = False
    assert permuted_mass(values, alike).isnan().all()
    assert permuted_mass(values, torch.zeros_like(masks)).isnan().all()


def test_equal_regions_count_among_the_others_as_soon_as_one_is_different():
    values, masks = random_case(seed=2)
    masks[1:] = masks[0]
    masks[5, 6, 8] = ~masks[5, 6, 8]

    same(permuted_mass(values, masks), slow_permuted(values, masks))


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf])
def test_permuted_mass_of_a_degenerate_map_is_nan_and_leaves_its_neighbours_alone(spoil):
    values, masks = random_case(seed=1)
    values[2] = 0.0
    values[2, 3, 3] = spoil

    assert permuted_mass(values, masks).isnan().tolist() == [False, False, True, False, False, False]


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
    assert signed_share(row(*values), first).item() == pytest.approx(expected, rel=1e-6)


def test_signed_share_of_a_map_worked_out_by_hand():
    heatmap, mask = torch.tensor([[[4.0, -3.0], [-2.0, 1.0]]]), torch.tensor([[[True, True], [False, True]]])

    assert signed_share(heatmap, mask).tolist() == [0.2]  # (4 - 3 + 1) / 10


def test_signed_share_weighs_the_masses_of_both_signs():
    generator = torch.Generator().manual_seed(3)
    heatmap = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 9, 11, generator=generator) < 0.4

    result = signed_share(heatmap, region_weights(mask, (4, 6)))

    evidence, against = (relevance(sign * heatmap, (9, 11)).double() for sign in (1, -1))
    weights = [each.sum(dim=(1, 2)) for each in (evidence, against)]
    net = weights[0] * relevance_mass(evidence, mask) - weights[1] * relevance_mass(against, mask)
    same(result, net / (weights[0] + weights[1]))


def test_opposite_signs_side_by_side_count_in_full_when_enlarged():
    full = torch.ones(1, 1, 4, dtype=torch.bool)

    # Enlarged, the parts are (4, 3, 1, 0) and (0, .5, 1.5, 2): 8 - 4 of 12. Enlarged as one: (4, 2.5, -.5, -2), 4 of 9.
    assert signed_share(row(4.0, -2.0), region_weights(full, (1, 2))).item() == pytest.approx(4 / 12)


def test_signed_share_of_the_opposite_map_is_the_opposite():
    generator = torch.Generator().manual_seed(4)
    heatmap, mask = torch.randn(7, 5, 5, generator=generator), torch.rand(7, 5, 5, generator=generator) < 0.4

    assert torch.equal(signed_share(-heatmap, mask), -signed_share(heatmap, mask))


@pytest.mark.parametrize("sign", [1, -1])
def test_signed_share_of_a_constant_map_is_exactly_the_area_with_its_sign(sign):
    _, mask = random_case(seed=5)

    assert torch.equal(signed_share(torch.full((6, 7, 9), sign * 0.1), mask), sign * area_fraction(mask))
    same(signed_share(torch.full((6, 2, 3), sign * 0.1), region_weights(mask, (2, 3))), sign * area_fraction(mask))


def test_signed_share_of_noise_is_zero_on_average():
    generator = torch.Generator().manual_seed(5)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[2:6, 3:9] = True

    shares = summarize(signed_share(torch.randn(500, 12, 12, generator=generator), mask))

    assert shares.low < 0 < shares.high
    assert shares.high - shares.low < 0.02


@given(hnp.arrays("float32", (3, 4), elements=st.floats(-100, 100, width=32)), hnp.arrays("bool", (3, 4)))
def test_signed_share_stays_in_range(array, inside):
    value = signed_share(torch.from_numpy(array)[None], torch.from_numpy(inside)[None]).item()

    assert math.isnan(value) or abs(value) <= 1 + 1e-12


@pytest.mark.parametrize("spoil", [0.0, NAN, math.inf, -math.inf])
def test_signed_share_of_a_degenerate_map_is_nan(spoil):
    heatmap = torch.zeros(1, 3, 3)
    heatmap[0, 1, 1] = spoil

    assert signed_share(heatmap, torch.eye(3, dtype=torch.bool)[None]).isnan().all()
    assert signed_share(heatmap, region_weights(torch.eye(9, dtype=torch.bool)[None], (3, 3))).isnan().all()


def test_signed_share_of_an_empty_mask_or_beside_a_much_larger_map_is_nan():
    heatmap, mask = torch.randn(1, 3, 3), torch.eye(3, dtype=torch.bool)[None]

    assert signed_share(heatmap, torch.zeros_like(mask)).isnan().all()
    assert signed_share(heatmap, mask, reference=1e12).isnan().all()


def test_size_that_is_not_that_of_the_masks_is_refused():
    with pytest.raises(ConfigurationError, match="same height and width"):
        signed_share(torch.ones(1, 2, 2), torch.ones(1, 4, 6, dtype=torch.bool))


# ---- both


@pytest.mark.parametrize("null", [shift_p, permuted_mass])
def test_null_of_a_signed_map_is_refused(null):
    with pytest.raises(ConfigurationError, match="non-negative, but got a smallest value of -2"):
        null(torch.full((2, 2, 2), -2.0), torch.eye(2, dtype=torch.bool).expand(2, 2, 2))


@pytest.mark.parametrize("null", [shift_p, permuted_mass])
def test_null_of_a_map_that_is_nothing_beside_the_largest_of_the_run_is_nan(null):
    values, mask = random_case(seed=1)

    assert null(values * 1e-12, mask, reference=1000.0).isnan().all()
    assert not null(values, mask, reference=1000.0).isnan().any()


@pytest.mark.gpu
def test_nulls_are_the_same_on_the_gpu():
    values, mask = random_case(seed=6)
    images = torch.rand(2, 3, 8, 8)

    same(shift_p(values.cuda(), mask.cuda()).cpu(), shift_p(values, mask))
    same(permuted_mass(values.cuda(), mask.cuda()).cpu(), permuted_mass(values, mask))
    torch.testing.assert_close(sobel_magnitude(images.cuda()), sobel_magnitude(images))
