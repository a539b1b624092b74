"""From images as the model expects them to pixels that a person can look at."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.probes.normalisation import undone
from xai_callbacks.probes.notices import warn_user

__all__ = ["display_pixels"]


def display_pixels(
    images: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """Turn model inputs `(N, C, H, W)` into display pixels `(N, H, W, 3)`, uint8.

    With `mean` and `std` the normalisation is undone. Without them, images that lie within [0, 1] are shown as they
    are; any others are stretched per channel from the smallest to the largest value in the whole set, with a warning,
    as their true colours cannot be known. One channel becomes grey, three are RGB, any other number is shown as the
    grey mean of the channels.

    Args:
        images: Finite floats.
        mean: Mean that was subtracted, one value a channel, in units of [0, 1] pixels.
        std: Standard deviation that was divided by, one value a channel, in the same units.
    """
    unit = _unit_range(images, mean, std)
    channels = unit.shape[1]
    if channels not in (1, 3):
        unit = unit.mean(dim=1, keepdim=True)
    rgb = unit.expand(-1, 3, -1, -1)
    return (rgb * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _unit_range(images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    if mean is not None and std is not None:
        original = undone(images, mean, std)
        # Rounding and mild augmentation overshoot are clipped silently; a wrong scale would show blank pictures.
        if ((original < 0) | (original > 1)).float().mean() <= 0.5:
            return original.clamp(0.0, 1.0)
        reason = "undoing `mean` and `std` leaves most pixels outside [0, 1]"
        advice = "give `mean` and `std` in units of [0, 1] pixels"
    elif float(images.min()) >= 0.0 and float(images.max()) <= 1.0:
        return images
    else:
        reason = "images lie outside [0, 1] and their normalisation is unknown"
        advice = "pass mean= and std= of the training transform (or pixels=)"
    warn_user(
        f"Display pixels of the probes are stretched per channel, as {reason}; colours will be off. "
        f"To show true colours, {advice}."
    )
    return _stretched(images)


def _stretched(images: Tensor) -> Tensor:
    low = images.amin(dim=(0, 2, 3), keepdim=True).double()
    high = images.amax(dim=(0, 2, 3), keepdim=True).double()
    span = high - low
    # A constant channel carries no contrast: mid grey, not black or white.
    scaled = torch.where(span > 0, (images.double() - low) / span.clamp_min(torch.finfo(torch.float64).tiny), 0.5)
    return scaled.float()
