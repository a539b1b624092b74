"""Conditions under which a photo is taken or stored: five kinds at five levels, from just visible to severe.

A stand-in for CURE-TSR (traffic signs under 12 conditions at 5 levels), whose figures cannot be compared with ours.
Noise and JPEG happen to pixels, as in a camera: the 8 x 8 blocks of JPEG hurt small images more.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_choice
from xai_callbacks.interventions.fills import check_images, named_generator
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.probes import ProbeSet

_STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.006, 0.012, 0.02, 0.032, 0.048),  # Gaussian; standard deviation as a share of the shorter side
    "noise": (0.04, 0.08, 0.13, 0.2, 0.3),  # Gaussian, on each value; its standard deviation
    "darkening": (0.8, 0.6, 0.42, 0.28, 0.18),  # each value times a factor
    "occlusion": (0.15, 0.24, 0.34, 0.45, 0.57),  # a grey square somewhere; its side as a share of the shorter side
    "jpeg": (25, 14, 8, 4, 2),  # stored as JPEG; its quality
}

CONDITIONS: tuple[str, ...] = tuple(_STRENGTHS)
LEVELS: tuple[int, ...] = (1, 2, 3, 4, 5)

# In pixels, added in quadrature: 0.6 % of a side of 28 pixels would not show at all. At 224 it adds next to nothing.
_LEAST_BLUR = 0.25
_OCCLUDER = 0.5  # grey stands out from a black background as well as from a white one


def apply_condition(images01: Tensor, condition: str, level: int, *, seed: int = 0) -> Tensor:
    """Show images under a condition: new ones in [0, 1], of shape, type and device of `images01`.

    Noise and the place of the occluder depend on `seed`, on the place of the image in the batch and on its shape only:
    a level adds to the one below. All is computed on the CPU in float32, without the global random states; JPEG may
    differ by a grey level between versions of libjpeg.

    Args:
        images01: `(N, C, H, W)` floats in [0, 1], not normalised. JPEG stores three channels as RGB, others alone.
        condition: One of `CONDITIONS`.
        level: 1 (just visible) to 5 (severe).
        seed: Seed of noise and places.

    Raises a `ConfigurationError` if an argument is out of range.
    """
    strength = _strength(condition, level)
    check_images("images01", images01, "Undo the normalisation first, or hand a probe set to `condition_probes`.")
    # Tensors made in inference mode could never take part in a gradient, which is what images are for.
    with torch.inference_mode(mode=False), torch.no_grad():
        images = images01.detach().to("cpu", torch.float32, copy=True).clamp(0, 1)
        edited = _edited(images, condition, strength, seed)
        return edited.clamp(0, 1).to(images01.device, images01.dtype)


def condition_probes(probes: ProbeSet, condition: str, level: int, seed: int = 0) -> Tensor:
    """Show probes under a condition, see `apply_condition`, as the model expects them: `(N, C, H, W)` on the CPU.

    Raises a `ConfigurationError`, also if it is unknown which values are black and white.
    """
    scale = PixelScale.of(probes)
    edited = apply_condition(scale.displayed(probes.images), condition, level, seed=seed)
    return scale.expected(edited, probes.images)


def condition_in_words(condition: str, level: int, shorter: int) -> str:
    """Say what a condition does to images whose shorter side is `shorter` pixels."""
    strength = _strength(condition, level)
    return {
        "blur": f"a blur with a standard deviation of {math.hypot(strength * shorter, _LEAST_BLUR):.1f} px",
        "noise": f"noise with a standard deviation of {strength:g}",
        "darkening": f"darkening to {strength:.0%}",
        "occlusion": f"a grey square of {strength * shorter:.0f} px",
        "jpeg": f"JPEG of quality {strength:g}",
    }[condition]


def _strength(condition: str, level: int) -> float:
    require_choice("condition", condition, CONDITIONS)
    if type(level) is not int or level not in LEVELS:
        raise ConfigurationError(f"Expected `level` to be an integer from 1 to 5, but got {level!r}.")
    return _STRENGTHS[condition][level - 1]


def _edited(images: Tensor, condition: str, strength: float, seed: int) -> Tensor:
    shorter = min(images.shape[-2:])
    match condition:
        case "blur":
            sigma = math.hypot(strength * shorter, _LEAST_BLUR)
            rows, columns = (_blur_matrix(side, sigma) for side in images.shape[-2:])
            return (rows @ images.double() @ columns.T).float()  # in float64, which autocast leaves alone
        case "noise":
            streams = (named_generator("noise", seed, n) for n in range(len(images)))
            return images + strength * torch.stack([torch.randn(images.shape[1:], generator=each) for each in streams])
        case "darkening":
            return images * strength
        case "occlusion":
            return torch.stack([_occluded(image, strength, seed, n) for n, image in enumerate(images)])
        case _:
            return torch.stack([_stored(image, int(strength)) for image in images])


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Weights of the pixels of a line `(side, side)`, each the share of the Gaussian on it; none beyond the border."""
    steps = torch.arange(side, dtype=torch.float64)
    distance = steps - steps[:, None]
    weights: Tensor = torch.special.ndtr((distance + 0.5) / sigma) - torch.special.ndtr((distance - 0.5) / sigma)
    return weights / weights.sum(dim=1, keepdim=True)


def _occluded(image: Tensor, share: float, seed: int, index: int) -> Tensor:
    """The square of a level lies within that of the next, as both ends move outwards with the side."""
    height, width = image.shape[-2:]
    side = share * min(height, width)
    places = torch.rand(2, generator=named_generator("occlusion", seed, index), dtype=torch.float64).tolist()
    spans = []
    for start in (place * (size - side) for place, size in zip(places, (height, width), strict=True)):
        # Pixels whose centres lie within the side; at least the one at its middle.
        first, end, middle = round(start), round(start + side), int(start + side / 2)
        spans.append(slice(first, end) if end > first else slice(middle, middle + 1))
    image = image.clone()
    image[:, spans[0], spans[1]] = _OCCLUDER
    return image


def _stored(image: Tensor, quality: int) -> Tensor:
    """One image `(C, H, W)` written as JPEG and read again: three channels at once, any other number one by one."""
    stored = []
    for part in [image] if len(image) == 3 else image[:, None]:
        file = io.BytesIO()
        pixels = (part * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="JPEG", quality=quality)
        with Image.open(file) as read:
            stored.append(torch.from_numpy(np.atleast_3d(np.array(read))).permute(2, 0, 1))
    return torch.cat(stored).float() / 255
