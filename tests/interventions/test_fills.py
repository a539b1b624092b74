"""Fills of regions: hand computations, slow twins, and what must not change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.fills import FILLS, apply_fill, dilate

every_fill = pytest.mark.parametrize("fill", FILLS)
NAMES = ("a", "b", "c")


def images(height: int = 12, width: int = 10, count: int = 3) -> torch.Tensor:
    """Away from 0 and 1, so that small noise is never cut."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, height, width, generator=generator) * 0.6 + 0.2


def masks(height: int = 12, width: int = 10, count: int = 3) -> torch.Tensor:
    found = torch.rand(count, height, width, generator=torch.Generator().manual_seed(2)) < 0.4
    found[:, :3, :3] = True
    return found


def filled(fill: str, **changes):
    arguments = {"images": images(), "masks": masks(), "fill": fill, "names": NAMES} | changes
    return apply_fill(**arguments)


# ---- every fill


@every_fill
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_pixels_outside_are_bit_identical_and_the_others_lie_in_the_display_range(fill, seed, share, height, width):
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(2, 3, height, width, generator=generator)
    regions = torch.rand(2, height, width, generator=generator) < share

    after = apply_fill(before, regions, fill, seed=seed)

    outside = ~regions[:, None].expand_as(before)
    assert torch.equal(after[outside], before[outside])
    assert ((after >= 0) & (after <= 1)).all()


@every_fill
def test_an_empty_region_leaves_the_image_and_type_device_and_inputs_stay(fill):
    before, regions = images().half(), masks()
    regions[1] = False
    copy = before.clone()

    after = filled(fill, images=before, masks=regions)

    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert torch.equal(before, copy)


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "swap"])
def test_an_image_is_filled_the_same_in_every_batch(fill):
    whole = filled(fill, seed=5)
    order = [2, 0]

    part = filled(fill, images=images()[order], masks=masks()[order], names=[NAMES[n] for n in order], seed=5)

    assert torch.equal(part, whole[order])


@pytest.mark.parametrize("fill", ["uniform", "gauss", "shuffle", "road"])
def test_names_and_seeds_differ_in_what_is_random(fill):
    same = {"images": images()[:1].repeat(3, 1, 1, 1), "masks": masks()[:1].repeat(3, 1, 1)}
    one, other, _ = filled(fill, **same)

    assert not torch.equal(one, other)
    assert not torch.equal(filled(fill, **same, seed=1)[0], one)


@every_fill
def test_the_global_random_state_is_neither_read_nor_advanced(fill):
    state = torch.get_rng_state()
    first = filled(fill)
    assert torch.equal(torch.get_rng_state(), state)

    torch.manual_seed(99)
    assert torch.equal(filled(fill), first)


@every_fill
def test_inference_mode_and_autocast_change_nothing(fill):
    plain = filled(fill)
    with torch.inference_mode():
        inferred = filled(fill)
    with torch.autocast("cpu", torch.bfloat16):
        cast = filled(fill, images=images().requires_grad_())

    assert torch.equal(inferred, plain)
    assert torch.equal(cast, plain)
    assert not inferred.is_inference()
    assert not cast.requires_grad


@pytest.mark.parametrize("fill", ["local_mean", "gauss", "road"])
def test_a_region_that_is_the_whole_image_gets_grey(fill):
    assert (filled(fill, masks=torch.ones(3, 12, 10, dtype=torch.bool)) == 0.5).all()


# ---- one by one


@pytest.mark.parametrize(("fill", "colour"), [("black", (0, 0, 0)), ("white", (1, 1, 1))])
def test_a_colour_fills_the_region(fill, colour):
    inside = filled(fill).permute(0, 2, 3, 1)[masks()]

    assert torch.equal(inside, torch.tensor(colour, dtype=torch.float32).expand_as(inside))


def test_local_mean_is_that_of_the_pixels_outside():
    after = filled("local_mean")

    for before, region, result in zip(images(), masks(), after, strict=True):
        for channel in range(3):
            expected = before[channel][~region].double().mean().float()
            assert_close(result[channel][region], expected.expand(int(region.sum())), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 24), (16, 40), (9, 9)])
def test_blur_agrees_with_scipy(size):
    before = images(*size)
    expected = ndimage.gaussian_filter(before.double().numpy(), (0, 0, size[0] / 8, size[0] / 8), mode="mirror")

    after = filled("blur", images=before, masks=torch.ones(3, *size, dtype=torch.bool))

    assert_close(after, torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


def test_uniform_noise_has_its_moments():
    after = filled("uniform", images=images(100, 100), masks=torch.ones(3, 100, 100, dtype=torch.bool)).double()

    assert float(after.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(after.var()) == pytest.approx(1 / 12, rel=0.02)


def test_gauss_has_the_moments_of_the_pixels_outside():
    before = images(100, 100) * torch.tensor([0.5, 0.7, 1.0]).view(1, 3, 1, 1) * 0.5 + 0.25
    regions = torch.zeros(3, 100, 100, dtype=torch.bool)
    regions[:, :50] = True

    inside, outside = filled("gauss", images=before, masks=regions)[:, :, :50], before[:, :, 50:]

    assert_close(inside.mean(dim=(2, 3)), outside.mean(dim=(2, 3)), rtol=0, atol=0.01)
    assert_close(inside.std(dim=(2, 3)), outside.std(dim=(2, 3)), rtol=0.05, atol=0)


def test_shuffle_permutes_pixels_with_all_their_channels():
    before, regions, after = images(), masks(), filled("shuffle")

    for old, region, new in zip(before, regions, after, strict=True):
        assert sorted(old[:, region].T.tolist()) == sorted(new[:, region].T.tolist())
        assert not torch.equal(old, new)


def test_swap_takes_the_same_region_of_one_other_image_for_all():
    before, regions = images(count=5), masks(count=5)
    shifts = set()
    for seed in range(20):
        after = apply_fill(before, regions, "swap", seed=seed)
        matches = [
            shift
            for shift in range(5)
            if torch.equal(after, torch.where(regions[:, None], before[[(n + shift) % 5 for n in range(5)]], before))
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert shifts == {1, 2, 3, 4}


def imputed(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """One channel, by a dense solve, with weights normalised at the borders."""
    places = [tuple(place) for place in np.argwhere(region)]
    matrix, right = np.eye(len(places)), np.zeros(len(places))
    for row, (y, x) in enumerate(places):
        around = {}
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            if (dy or dx) and 0 <= y + dy < image.shape[0] and 0 <= x + dx < image.shape[1]:
                around[y + dy, x + dx] = 1 / 12 if dy and dx else 1 / 6
        for place, weight in around.items():
            share = weight / sum(around.values())
            if region[place]:
                matrix[row, places.index(place)] -= share
            else:
                right[row] += share * image[place]
    result = image.copy()
    result[region] = np.linalg.solve(matrix, right)
    return result


@pytest.mark.parametrize("region", ["random", "square", "one pixel left"])
def test_road_solves_for_neighbour_means_exactly_and_adds_its_noise(region):
    regions = masks()
    if region == "square":
        regions = torch.zeros_like(regions)
        regions[:, 2:, :7] = True
    if region == "one pixel left":
        regions = torch.ones_like(regions)
        regions[:, 4, 7] = False
    # Noise depends on the name and the shape only, and all neighbours of an even image agree.
    noise = filled("road", images=torch.full_like(images(), 0.5), masks=regions) - 0.5

    after = filled("road", masks=regions) - noise

    assert_close(noise[regions[:, None].expand_as(noise)].std().item(), 0.01, rtol=0.15, atol=0)
    for image, one, result in zip(images(), regions, after, strict=True):
        for channel in range(3):
            expected = imputed(image[channel].double().numpy(), one.numpy())
            assert_close(result[channel].double().numpy(), expected, rtol=0, atol=1e-5)


def test_dilation_grows_in_eight_directions():
    regions = masks() & (torch.rand(3, 12, 10) < 0.2)
    expected = np.stack([ndimage.binary_dilation(one, np.ones((5, 5))) for one in regions.numpy()])

    assert np.array_equal(dilate(regions, 2).numpy(), expected)
    assert torch.equal(dilate(regions, 0), regions)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": "fog"}, "Expected `fill` to be one of black, white, .*, but got 'fog'"),
        ({"images": torch.rand(3, 12, 10)}, r"Expected `images` to be floats \(N, C, H, W\), but got"),
        ({"images": torch.zeros(3, 3, 12, 10, dtype=torch.uint8)}, "Divide uint8 pixels by 255"),
        ({"images": images() + 1}, r"to lie in \[0, 1\], but got values from .* Undo the normalisation"),
        ({"images": images() * torch.nan}, "but got values from nan to nan"),
        ({"masks": masks().float()}, r"Expected `masks` to be booleans \(3, 12, 10\), .* but got torch.float32"),
        ({"masks": masks()[:2]}, r"Expected `masks` to be booleans \(3, 12, 10\), one for each .* \(2, 12, 10\)"),
        (
            {"fill": "swap", "images": images()[:1], "masks": masks()[:1], "names": ["a"]},
            "two or more for 'swap', but got 1",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        filled(**{"fill": "black"} | changes)
