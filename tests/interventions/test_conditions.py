"""Conditions of images: what holds for every one of them, at every size, and what is refused."""

from __future__ import annotations

import gzip
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from tests.interventions.degraded import every_condition, every_level, scenes
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions import CONDITIONS, LEVELS, apply_condition


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


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"condition": "fog"},
            "Expected `condition` to be one of blur, noise, darkening, occlusion, jpeg, but got 'fog'",
        ),
        ({"level": 0}, "Expected `level` to be an integer from 1 to 5, but got 0"),
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
