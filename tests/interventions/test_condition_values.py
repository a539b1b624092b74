"""Each condition against its closed form and other libraries: what it does to pixels at its levels."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from torch.testing import assert_close

from tests.interventions.degraded import BLUR, DARKENING, JPEG, NOISE, OCCLUSION, every_level, scenes
from xai_callbacks.interventions import LEVELS, apply_condition

# ---- blur


@every_level
def test_blur_spreads_a_point_by_its_share_of_the_shorter_side(level):
    # A large image, so that the tails of the Gaussian do not reach the border.
    image = torch.zeros(1, 1, 301, 401)
    image[..., 150, 200] = 1.0

    spread = apply_condition(image, "blur", level)[0, 0].double()

    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-4)
    for length, profile in ((301, spread.sum(dim=1)), (401, spread.sum(dim=0))):
        steps = torch.arange(length) - length // 2
        # Of the Gaussian, of the quarter of a pixel, and of the pixel itself.
        variance = (BLUR[level] * 301) ** 2 + 1 / 16 + 1 / 12
        assert float((profile * steps**2).sum()) == pytest.approx(variance, rel=1e-3)


@every_level
def test_blur_agrees_with_scipy_away_from_the_border(level):
    images = scenes(2, 3, 160, 160)
    sigma = math.sqrt((BLUR[level] * 160) ** 2 + 1 / 16 + 1 / 12)
    reference = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), truncate=8)

    edited = apply_condition(images, "blur", level)

    margin = slice(40, -40)
    # scipy takes the Gaussian at the centre of each pixel: narrow ones differ by that.
    assert_close(
        edited[..., margin, margin].numpy(), reference[..., margin, margin], rtol=0, atol=0.02, check_dtype=False
    )
    if level > 2:
        assert_close(
            edited[..., margin, margin].numpy(), reference[..., margin, margin], rtol=0, atol=5e-4, check_dtype=False
        )


@every_level
def test_blur_leaves_an_even_image_as_it_is_up_to_the_border(level):
    image = torch.full((1, 3, 28, 40), 0.7)

    assert_close(apply_condition(image, "blur", level), image, rtol=0, atol=1e-6)


# ---- noise


@every_level
def test_noise_has_its_standard_deviation_and_no_bias(level):
    grey = torch.full((4, 3, 128, 128), 0.5)

    error = apply_condition(grey, "noise", level) - grey

    # Level 5 reaches beyond the range of [0, 1] and is cut there, in both directions alike.
    bounded = torch.randn(10**6, generator=torch.Generator().manual_seed(1)).mul(NOISE[level]).clamp(-0.5, 0.5).std()
    assert float(error.std()) == pytest.approx(float(bounded), rel=0.01)
    assert float(error.mean()) == pytest.approx(0.0, abs=3 * NOISE[level] / math.sqrt(error.numel()))
    assert float(error[:, 0].mul(error[:, 1]).mean()) == pytest.approx(0.0, abs=0.01 * NOISE[level])  # not grey noise


def test_noise_of_the_levels_is_one_pattern_at_growing_strength():
    grey = torch.full((1, 1, 64, 64), 0.5)

    weak, strong = (apply_condition(grey, "noise", level) - grey for level in (1, 2))

    assert_close(strong, weak * (NOISE[2] / NOISE[1]), rtol=0, atol=1e-6)


# ---- darkening


@every_level
def test_darkening_multiplies(level):
    images = scenes()

    assert torch.equal(apply_condition(images, "darkening", level), images * DARKENING[level])


# ---- occlusion


@every_level
@pytest.mark.parametrize("size", [(28, 28), (96, 60), (224, 224)])
def test_occluder_is_a_grey_square_within_the_image_and_the_rest_is_untouched(level, size):
    images = scenes(5, 3, *size) * 0.4  # grey stands out everywhere
    edited = apply_condition(images, "occlusion", level)

    for image, result in zip(images, edited, strict=True):
        changed = (result != image).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        sides = [int(hit.max() - hit.min()) + 1 for hit in (rows, columns)]
        assert sides == pytest.approx([OCCLUSION[level] * min(size)] * 2, abs=1)
        assert int(changed.sum()) == math.prod(sides)  # all of it, and nothing else
        assert (result[:, changed] == 0.5).all()


def test_occluder_of_a_level_covers_that_of_the_level_below():
    images = torch.zeros(20, 1, 28, 28)
    covered = [apply_condition(images, "occlusion", level) > 0 for level in LEVELS]

    for smaller, larger in itertools.pairwise(covered):
        assert (smaller <= larger).all()
        assert (smaller != larger).flatten(1).any(dim=1).all()


def test_occluders_lie_anywhere():
    hidden = apply_condition(torch.zeros(400, 1, 28, 28), "occlusion", 5)[:, 0] > 0

    share = hidden.double().mean(dim=0)
    assert min(share[0].max(), share[-1].max(), share[:, 0].max(), share[:, -1].max()) > 0  # the borders, too
    assert share.max() > 0.9  # so large a square always hides the middle
    assert_close(share, share.flip(0), rtol=0, atol=0.12)
    assert_close(share, share.flip(1), rtol=0, atol=0.12)


# ---- jpeg


@every_level
def test_jpeg_is_what_a_viewer_shows_of_the_stored_file(level):
    pixels = (scenes(1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=JPEG[level])
    expected = np.array(Image.open(file))

    edited = apply_condition(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, "jpeg", level)

    assert np.array_equal((edited[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected)


# Annex K of the JPEG standard.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def rounded_cosines(pixels: np.ndarray, quality: int) -> np.ndarray:
    """What JPEG loses, block by block: the table of libjpeg at a quality below 50, on cosine coefficients."""
    table = np.clip((LUMINANCE * (5000 // quality) + 50) // 100, 1, 255)
    result = np.empty(pixels.shape)
    for row, column in itertools.product(range(0, pixels.shape[0], 8), range(0, pixels.shape[1], 8)):
        block = np.s_[row : row + 8, column : column + 8]
        cosines = fft.dctn(pixels[block] - 128.0, norm="ortho")
        result[block] = fft.idctn(np.round(cosines / table) * table, norm="ortho") + 128
    return result.clip(0, 255)


@every_level
def test_jpeg_rounds_the_cosines_of_each_block(level):
    images = scenes(1, 1)

    edited = apply_condition(images, "jpeg", level)[0, 0] * 255

    expected = rounded_cosines((images[0, 0] * 255).round().numpy().astype(float), JPEG[level])
    # A coefficient half way between two steps may be rounded to either.
    difference = np.abs(edited.numpy() - expected)
    assert np.quantile(difference, 0.95) < 1.5


def test_jpeg_stores_channels_that_are_no_colours_one_by_one():
    images = scenes(2, 4)

    edited = apply_condition(images, "jpeg", 4)

    for channel in range(4):
        grey = images[:, channel : channel + 1]
        assert torch.equal(edited[:, channel : channel + 1], apply_condition(grey, "jpeg", 4))
