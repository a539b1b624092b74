"""Conditions under which a photo is taken or stored: five kinds at five levels, for condition novelty.

A stand-in for CURE-TSR (traffic signs under 12 conditions at 5 levels), which is given out by form only: its figures
cannot be compared with ours. Level 1 is just visible, level 5 is severe but leaves something to recognise.

| condition | what is done | levels 1 to 5 |
|---|---|---|
| `blur` | Gaussian blur; standard deviation as a share of the shorter side | .006, .012, .02, .032, .048 |
| `noise` | Gaussian noise on each value; its standard deviation | .04, .08, .13, .2, .3 |
| `darkening` | each value times a factor | .8, .6, .42, .28, .18 |
| `occlusion` | a grey square somewhere; its side as a share of the shorter side | .15, .24, .34, .45, .57 |
| `jpeg` | stored as JPEG; its quality | 25, 14, 8, 4, 2 |

Blur, darkening and occlusion do to a small image what they do to the same scene at full size. Noise and JPEG happen to
pixels, as in a camera: noise is an equal error a pixel, whatever a pixel shows, and the 8 x 8 blocks of JPEG, the same
at every size, hurt small images more. Mean PSNR in dB at levels 1 and 5, of 24 photos at 224 px and of 100 garments of
Fashion-MNIST at 28 px: blur 27, 19 and 35, 17; noise 28, 12 and 29, 13; darkening 20, 8 and 22, 10; occlusion 28, 17
and 25, 14; JPEG 29, 21 and 25, 19.
"""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.probes import ProbeSet

__all__ = ["CONDITIONS", "LEVELS", "apply_condition", "condition_probes"]

_STRENGTHS: dict[str, tuple[float, float, float, float, float]] = {
    "blur": (0.006, 0.012, 0.02, 0.032, 0.048),
    "noise": (0.04, 0.08, 0.13, 0.2, 0.3),
    "darkening": (0.8, 0.6, 0.42, 0.28, 0.18),
    "occlusion": (0.15, 0.24, 0.34, 0.45, 0.57),
    "jpeg": (25, 14, 8, 4, 2),
}

CONDITIONS: tuple[str, ...] = tuple(_STRENGTHS)
"""Names of the conditions."""

LEVELS: tuple[int, ...] = (1, 2, 3, 4, 5)
"""Levels of a condition, from just visible to severe."""

# In pixels, added in quadrature: 0.6 % of a side of 28 pixels would not show at all. At 224 it adds next to nothing.
_LEAST_BLUR = 0.25

# Grey stands out from a black background as well as from a white one.
_OCCLUDER = 0.5

# Resizing in float32 leaves [0, 1] by rounding.
_ROUNDING = 1e-4


def apply_condition(images01: Tensor, condition: str, level: int, *, seed: int = 0) -> Tensor:
    """Show images under a condition.

    What is random (noise, the place of the occluder) depends on `seed`, on the place of the image in the batch and on
    the image's shape only: two epochs see the same images, a level adds to the one below, and the global random states
    are neither read nor advanced. All is computed on the CPU in float32, whatever the device; JPEG may differ by a grey
    level between versions of libjpeg.

    Args:
        images01: `(N, C, H, W)` floats in [0, 1], as they are displayed: before normalisation. JPEG stores three
            channels as RGB, and any other number one by one.
        condition: One of `CONDITIONS`.
        level: 1 (just visible) to 5 (severe).
        seed: Seed of what is random.

    Returns:
        New images in [0, 1]: shape, type and device of `images01`.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    _check_condition(condition, level)
    _check_images(images01.detach())
    # Tensors made in inference mode could never take part in a gradient, which is what images are for.
    with torch.inference_mode(mode=False), torch.no_grad():
        images = images01.detach().to("cpu", torch.float32, copy=True).clamp(0, 1)
        edited = _edited(images, condition, _STRENGTHS[condition][level - 1], seed)
        return edited.clamp(0, 1).to(images01.device, images01.dtype)


def condition_probes(probes: ProbeSet, condition: str, level: int, seed: int = 0) -> Tensor:
    """Show probes under a condition, as the model expects them.

    Undoes the normalisation of the probe set, applies the condition, and normalises again.

    Args:
        probes: The probe set. Without `mean` and `std` its images must lie in [0, 1].
        condition: One of `CONDITIONS`.
        level: 1 (just visible) to 5 (severe).
        seed: Seed of what is random.

    Returns:
        `(N, C, H, W)` float32 on the CPU; the place of `probes.images`.

    Raises:
        ConfigurationError: An argument is out of range, or it is unknown which values are black and white.
    """
    scale = PixelScale.of(probes)
    edited = apply_condition(scale.displayed(probes.images), condition, level, seed=seed)
    return scale.expected(edited, probes.images)


def _edited(images: Tensor, condition: str, strength: float, seed: int) -> Tensor:
    shorter = min(images.shape[-2:])
    match condition:
        case "blur":
            return _blurred(images, math.hypot(strength * shorter, _LEAST_BLUR))
        case "noise":
            return images + strength * torch.stack([_noise(image, seed, n) for n, image in enumerate(images)])
        case "darkening":
            return images * strength
        case "occlusion":
            return torch.stack([_occluded(image, strength, seed, n) for n, image in enumerate(images)])
        case _:
            return torch.stack([_stored(image, int(strength)) for image in images])


def _blurred(images: Tensor, sigma: float) -> Tensor:
    # In float64, which autocast leaves alone.
    rows, columns = (_blur_matrix(side, sigma) for side in images.shape[-2:])
    return (rows @ images.double() @ columns.T).float()


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Weights of the pixels of a line `(side, side)`; those beyond the border are left out.

    A weight is the share of the Gaussian that lies on the pixel: taken at its centre only, it would leave images of a
    few pixels as they are.
    """
    steps = torch.arange(side, dtype=torch.float64)
    distance = steps - steps[:, None]
    weights = torch.special.ndtr((distance + 0.5) / sigma) - torch.special.ndtr((distance - 0.5) / sigma)
    matrix: Tensor = weights / weights.sum(dim=1, keepdim=True)
    return matrix


def _noise(image: Tensor, seed: int, index: int) -> Tensor:
    return torch.randn(image.shape, generator=_generator("noise", seed, index))


def _occluded(image: Tensor, share: float, seed: int, index: int) -> Tensor:
    """The square of a level lies within that of the next, as both ends move outwards with the side."""
    height, width = image.shape[-2:]
    side = share * min(height, width)
    places = torch.rand(2, generator=_generator("occlusion", seed, index), dtype=torch.float64).tolist()
    rows, columns = (
        _span(place * (length - side), side) for place, length in zip(places, (height, width), strict=True)
    )
    image = image.clone()
    image[:, rows, columns] = _OCCLUDER
    return image


def _span(start: float, side: float) -> slice:
    """Pixels whose centres lie within the side; at least the one at its middle."""
    first, end = round(start), round(start + side)
    return slice(first, end) if end > first else slice(int(start + side / 2), int(start + side / 2) + 1)


def _stored(image: Tensor, quality: int) -> Tensor:
    """One image `(C, H, W)` written as JPEG and read again."""
    pixels = (image * 255).round().to(torch.uint8)
    if len(pixels) == 3:
        return _jpeg(pixels.permute(1, 2, 0).numpy(), quality).permute(2, 0, 1)
    return torch.stack([_jpeg(channel.numpy(), quality) for channel in pixels])


def _jpeg(pixels: np.ndarray, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="JPEG", quality=quality)
    with Image.open(file) as read:
        return torch.from_numpy(np.array(read)).float() / 255


def _generator(purpose: str, seed: int, index: int) -> torch.Generator:
    """A stream of its own for each image; levels share it."""
    digest = hashlib.sha256(repr((purpose, seed, index)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _check_condition(condition: str, level: int) -> None:
    if condition not in CONDITIONS:
        raise ConfigurationError(f"Expected `condition` to be one of {', '.join(CONDITIONS)}, but got {condition!r}.")
    require_integer("level", level, minimum=1, hint="Levels are 1 to 5.")
    if level not in LEVELS:
        raise ConfigurationError(f"Expected `level` to be an integer from 1 to 5, but got {level}.")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise ConfigurationError(
            f"Expected `images01` to be floats (N, C, H, W), but got {images.dtype} {tuple(images.shape)}. "
            "Divide uint8 pixels by 255."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is refused, too
        raise ConfigurationError(
            f"Expected `images01` to lie in [0, 1], but got values from {low:.3g} to {high:.3g}. Undo the "
            "normalisation first, or hand a probe set with its `mean` and `std` to `condition_probes`."
        )
