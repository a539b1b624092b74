"""Conditions of images: closed forms, other libraries, and what must not change."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import fft, ndimage
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions import CONDITIONS, LEVELS, apply_condition, condition_probes
from xai_callbacks.probes import ProbeSet

BLUR = dict(zip(LEVELS, (0.006, 0.012, 0.02, 0.032, 0.048), strict=True))
NOISE = dict(zip(LEVELS, (0.04, 0.08, 0.13, 0.2, 0.3), strict=True))
DARKENING = dict(zip(LEVELS, (0.8, 0.6, 0.42, 0.28, 0.18), strict=True))
OCCLUSION = dict(zip(LEVELS, (0.15, 0.24, 0.34, 0.45, 0.57), strict=True))
JPEG = dict(zip(LEVELS, (25, 14, 8, 4, 2), strict=True))

every_condition = pytest.mark.parametrize("condition", CONDITIONS)
every_level = pytest.mark.parametrize("level", LEVELS)


def scenes(count: int = 4, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    """Smooth blobs with hard edges, in the full range."""
    noise = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)).double().numpy()
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, height / 12, width / 12), mode="wrap"))
    low, high = smooth.amin(dim=(1, 2, 3), keepdim=True), smooth.amax(dim=(1, 2, 3), keepdim=True)
    images = (smooth - low) / (high - low)
    images[..., height // 2 :, : width // 3] = 1 - images[..., height // 2 :, : width // 3]
    return images.float()


def psnr(images: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """In dB, one an image."""
    return -10 * torch.log10((images - edited).square().mean(dim=(1, 2, 3)))


# ---- every condition


def test_there_are_five_conditions_at_five_levels():
    assert CONDITIONS == ("blur", "noise", "darkening", "occlusion", "jpeg")
    assert LEVELS == (1, 2, 3, 4, 5)


@every_condition
@pytest.mark.parametrize("size", [(3, 64, 64), (1, 28, 28), (3, 40, 90)])
def test_each_level_is_further_from_the_original(condition, size):
    images = scenes(6, *size)

    qualities = torch.stack([psnr(images, apply_condition(images, condition, level)) for level in LEVELS])

    assert (qualities.diff(dim=0) < 0).all()


def photos(folder, count: int = 8) -> torch.Tensor:
    loaded = []
    for path in sorted((folder / "imagenet_photos").glob("*.jpg"))[:count]:
        with Image.open(path) as image:
            loaded.append(np.array(image.convert("RGB").resize((224, 224))))
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).float() / 255


def garments(folder, count: int = 60) -> torch.Tensor:
    with gzip.open(folder / "fashion_mnist" / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()).float() / 255


@pytest.mark.data
@pytest.mark.parametrize(("load", "folder"), [(photos, "imagenet_photos"), (garments, "fashion_mnist")])
@every_condition
def test_each_level_is_further_from_the_original_on_real_images(shared_data, load, folder, condition):
    if not (shared_data / folder).is_dir():
        pytest.skip(f"the optional folder ../shared/data/{folder} is absent")
    images = load(shared_data)

    qualities = torch.stack([psnr(images, apply_condition(images, condition, level)) for level in LEVELS])

    # A coarser JPEG may hit a pixel better by luck: of that, the mean only.
    if condition == "jpeg":
        qualities = qualities.mean(dim=1)
    assert (qualities.diff(dim=0) < 0).all()
    # Level 1 leaves an image close to what it was; level 5 leaves something of it.
    assert qualities[0].mean() > 20
    assert 7 < qualities[-1].mean() < 22


@every_condition
@every_level
def test_result_is_new_lies_in_the_display_range_and_keeps_shape_and_type(condition, level):
    images = scenes(2, 3, 24, 36).half()
    before = images.clone()

    edited = apply_condition(images, condition, level)

    assert (edited.shape, edited.dtype, edited.device) == (images.shape, images.dtype, images.device)
    assert 0 <= edited.min() <= edited.max() <= 1
    assert torch.equal(images, before)
    assert edited.data_ptr() != images.data_ptr()


@every_condition
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_taken(condition, channels):
    images = scenes(2, channels, 24, 24)

    assert apply_condition(images, condition, 3).shape == images.shape


@every_condition
@given(height=st.integers(1, 9), width=st.integers(1, 9), level=st.sampled_from(LEVELS))
def test_images_of_a_few_pixels_are_taken(condition, height, width, level):
    edited = apply_condition(torch.rand(1, 1, height, width), condition, level)

    assert edited.shape == (1, 1, height, width)
    assert edited.isfinite().all()


@every_condition
def test_equal_seeds_give_equal_images_and_global_random_states_stay(condition):
    images = scenes()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = apply_condition(images, condition, 3, seed=7)

    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(12345)
    assert torch.equal(apply_condition(images, condition, 3, seed=7), first)


@every_condition
def test_an_image_does_not_depend_on_those_after_it(condition):
    images = scenes(4)

    assert_close(
        apply_condition(images[:2], condition, 3), apply_condition(images, condition, 3)[:2], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("condition", ["noise", "occlusion"])
def test_places_in_the_batch_and_seeds_differ_in_what_is_random(condition):
    one, other = apply_condition(torch.full((2, 1, 64, 64), 0.25), condition, 3)

    assert not torch.equal(one, other)
    assert not torch.equal(apply_condition(torch.full((1, 1, 64, 64), 0.25), condition, 3, seed=1)[0], one)


@every_condition
def test_images_made_in_inference_mode_or_under_autocast_are_the_same_and_can_be_used(condition):
    images = scenes(2)
    plain = apply_condition(images, condition, 3)

    with torch.inference_mode():
        inferred = apply_condition(images, condition, 3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = apply_condition(images.requires_grad_(), condition, 3)

    assert torch.equal(inferred, plain)
    assert torch.equal(cast, plain)
    assert not inferred.is_inference()
    assert not cast.requires_grad


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


# ---- large and small images


@pytest.mark.parametrize("condition", ["blur", "darkening", "occlusion"])
@every_level
def test_a_small_image_is_degraded_as_its_large_version(condition, level):
    large = scenes(6, 1, 224, 224)
    small = avg_pool2d(large, 8)

    reduced = avg_pool2d(apply_condition(large, condition, level), 8)
    expected, found = psnr(small, reduced), psnr(small, apply_condition(small, condition, level))

    # Weak blur lies below a pixel of the small image, which the added quarter of a pixel makes show.
    if condition == "blur" and level < 3:
        assert found.mean() < expected.mean()
    else:
        assert_close(found, expected, rtol=0, atol=2.5)  # dB; the levels are 2 to 8 apart


@every_level
def test_noise_is_an_equal_error_a_pixel_at_every_size(level):
    large = scenes(6, 1, 224, 224)
    small = avg_pool2d(large, 8)

    errors = [psnr(images, apply_condition(images, "noise", level)).mean() for images in (large, small)]

    assert_close(errors[0], errors[1], rtol=0, atol=0.5)


# ---- probes


def probes(**normalisation) -> ProbeSet:
    images = scenes(3)
    if normalisation:
        mean, std = (torch.tensor(normalisation[key]).view(-1, 1, 1) for key in ("mean", "std"))
        images = (images - mean) / std
    return ProbeSet.from_tensors(images, torch.arange(3), **normalisation)


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@every_condition
def test_probes_are_conditioned_in_display_range_and_normalised_again(condition):
    mean, std = (torch.tensor(IMAGENET[key]).view(-1, 1, 1) for key in ("mean", "std"))
    normalised = probes(**IMAGENET)
    before = normalised.images.clone()

    edited = condition_probes(normalised, condition, 3, seed=5)

    expected = (apply_condition(scenes(3), condition, 3, seed=5) - mean) / std
    # JPEG rounds to grey levels first, and a value at the edge may fall to either side.
    difference = (edited - expected).abs()
    assert float(difference.median()) < 1e-5
    assert float(difference.max()) < (0.5 if condition == "jpeg" else 1e-4)
    assert edited.dtype == torch.float32
    assert torch.equal(normalised.images, before)


def test_one_value_of_normalisation_stands_for_all_channels():
    edited = condition_probes(probes(mean=[0.5], std=[0.25]), "darkening", 5)

    assert_close(edited, (scenes(3) * DARKENING[5] - 0.5) / 0.25, rtol=0, atol=1e-5)


def test_probes_in_display_range_need_no_normalisation():
    assert torch.equal(condition_probes(probes(), "noise", 2), apply_condition(scenes(3), "noise", 2))


def test_overshoot_of_resizing_is_cut():
    images = scenes(3)
    images[:, :, 0, 0] = 1.2
    normalised = ProbeSet.from_tensors((images - 0.5) / 0.25, mean=[0.5], std=[0.25])

    edited = condition_probes(normalised, "darkening", 1)

    assert_close(edited[:, :, 0, 0], torch.full((3, 3), (0.8 - 0.5) / 0.25), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Display pixels of the probes are stretched:UserWarning")
def test_probes_of_unknown_normalisation_are_refused_with_advice():
    unknown = ProbeSet.from_tensors(scenes(3) * 4 - 2)

    with pytest.raises(ConfigurationError, match=r"Expected `probes` to have `mean` and `std`.*Build the probe set"):
        condition_probes(unknown, "blur", 1)


@pytest.mark.filterwarnings("ignore:Display pixels of the probes are stretched:UserWarning")
def test_normalisation_in_units_of_255_is_refused_with_advice():
    wrong = ProbeSet.from_tensors((scenes(3) - 0.5) / 0.25, mean=[127.5], std=[63.75])

    with pytest.raises(ConfigurationError, match=r"once `mean` and `std` are undone.*in units of \[0, 1\] pixels"):
        condition_probes(wrong, "blur", 1)


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"condition": "fog"},
            "Expected `condition` to be one of blur, noise, darkening, occlusion, jpeg, but got 'fog'",
        ),
        ({"level": 0}, "Expected `level` to be an integer of 1 or more, but got 0. Levels are 1 to 5"),
        ({"level": 6}, "Expected `level` to be an integer from 1 to 5, but got 6"),
        ({"level": 2.0}, "Expected `level` to be an integer"),
        ({"level": True}, "Expected `level` to be an integer"),
        ({"images01": torch.rand(3, 8, 8)}, r"Expected `images01` to be floats \(N, C, H, W\), but got torch.float32"),
        ({"images01": torch.zeros(0, 3, 8, 8)}, r"but got torch.float32 \(0, 3, 8, 8\)"),
        ({"images01": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "Divide uint8 pixels by 255"),
        ({"images01": torch.full((1, 3, 8, 8), 1.1)}, r"lie in \[0, 1\], but got values from 1.1 to 1.1"),
        ({"images01": torch.full((1, 3, 8, 8), -0.1)}, "Undo the normalisation first"),
        ({"images01": torch.full((1, 3, 8, 8), math.nan)}, "but got values from nan to nan"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        apply_condition(**{"images01": torch.rand(1, 3, 8, 8), "condition": "blur", "level": 1} | arguments)


def test_rounding_of_a_resize_is_forgiven():
    images = torch.tensor([-1e-7, 1 + 1e-6]).view(1, 1, 1, 2)

    assert apply_condition(images, "darkening", 1).flatten().tolist() == pytest.approx([0.0, 0.8], abs=1e-7)
