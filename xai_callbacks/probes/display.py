"""Normalisation that images went through, and pixels that a person can look at."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError

__all__ = ["display_pixels", "normalised", "to_normalisation", "to_numbers", "warn_if_forgotten", "warn_user"]

Channels = tuple[float, ...]

# A normalisation that reaches no further beyond [0, 1] may leave images within.
_BELOW, _ABOVE = -0.1, 1.5
# White, nearly; no normalised images end there by chance.
_WHITE = 0.98
# Pixels that differ by no more on average, of 255, are the same.
_SAME = 2.0


def to_numbers(values: Any, what: str) -> Channels:
    """Check a sequence of finite numbers."""
    try:
        if not isinstance(values, (Sequence, Tensor, np.ndarray)) or isinstance(values, (str, bytes)):
            raise TypeError  # said below, as of any other value
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ProbeSetError(
            f"Expected `{what}` to be a sequence of numbers, but got {values!r}. Write e.g. {what}=[0.5]."
        ) from error
    if not all(math.isfinite(number) for number in numbers):
        raise ProbeSetError(f"Expected `{what}` to be finite numbers, but got {values!r}.")
    return numbers


def to_normalisation(mean: Any, std: Any, channels: int) -> tuple[Channels, Channels] | tuple[None, None]:
    """`mean` and `std` with one value a channel; one value alone stands for all channels."""
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ProbeSetError("Expected `mean` and `std` to be given together, but got only one of them.")
    pair = []
    for what, values in (("mean", mean), ("std", std)):
        numbers = to_numbers(values, what)
        pair.append(numbers * channels if len(numbers) == 1 else numbers)
        if len(pair[-1]) != channels:
            raise ProbeSetError(f"Expected `{what}` to be {channels} finite numbers, but got {values!r}.")
    if min(pair[1]) <= 0:
        raise ProbeSetError(f"Expected `std` to be above 0 in every channel, but got {pair[1]}.")
    return pair[0], pair[1]


def normalised(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Subtract the mean from images `(N, C, H, W)` and divide by the deviation."""
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)


def display_pixels(images: Tensor, mean: Channels | None = None, std: Channels | None = None) -> Tensor:
    """Turn model inputs `(N, C, H, W)` into display pixels `(N, H, W, 3)`, uint8.

    With `mean` and `std`, one value a channel in units of [0, 1] pixels, the normalisation is undone. Without them,
    images that lie within [0, 1] are shown as they are; any others are stretched per channel from the smallest to the
    largest value in the whole set, with a warning, as their true colours cannot be known. One channel becomes grey,
    three are RGB, any other number is shown as the grey mean of the channels.
    """
    unit = _unit_range(images, mean, std)
    if unit.shape[1] not in (1, 3):
        unit = unit.mean(dim=1, keepdim=True)
    return (unit.expand(-1, 3, -1, -1) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def warn_if_forgotten(images: Tensor, pixels: Tensor | None, mean: Channels | None, std: Channels | None) -> None:
    """Warn of images that lie in [0, 1], as pixels do, although they are said to be normalised.

    Of normalised images some values lie outside: below 0 what is darker than the mean, above 1 what is bright. A
    normalisation that hardly leaves [0, 1], and a set of one value, say nothing.

    Args:
        images: `(N, C, H, W)`.
        pixels: Display pixels `(N, H, W, 3)` uint8, if given: the proof where they agree with the images.
        mean: Declared mean, one value a channel.
        std: Declared standard deviation.
    """
    if mean is None or std is None:
        return
    low, high = (float(end) for end in images.aminmax())
    darkest = min(-centre / spread for centre, spread in zip(mean, std, strict=True))
    brightest = max((1 - centre) / spread for centre, spread in zip(mean, std, strict=True))
    suspicious = darkest < _BELOW or (brightest > _ABOVE and high > _WHITE)
    if not 0 <= low < high <= 1 or not suspicious:
        return
    if pixels is not None:
        # But for rounding, and grey ones by their mean over the channels.
        shown, expected = pixels.float().mean(dim=-1), _undone(images, mean, std).mean(dim=1) * 255
        if float((shown - expected).abs().mean()) <= _SAME:
            return
    warn_user(
        f"Expected images normalised with `mean` and `std` to reach below 0 or above 1, but all lie in [{low:.3g}, "
        f"{high:.3g}], as if the transform had been forgotten. Give the images as the model expects them, or leave "
        "`mean` and `std` out."
    )


def warn_user(message: str) -> None:
    """Warn with a `UserWarning` attributed to the first caller outside `xai_callbacks`.

    Python shows a warning once for each source line, so a warning attributed to our own line would be shown for the
    first probe set of a process only.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("xai_callbacks."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _undone(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    return images * images.new_tensor(std).view(-1, 1, 1) + images.new_tensor(mean).view(-1, 1, 1)


def _unit_range(images: Tensor, mean: Channels | None, std: Channels | None) -> Tensor:
    if mean is not None and std is not None:
        original = _undone(images, mean, std)
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
    low, high = (end(dim=(0, 2, 3), keepdim=True).double() for end in (images.amin, images.amax))
    # A constant channel carries no contrast: mid grey, not black or white.
    scaled = (images.double() - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(high > low, scaled, 0.5).float()
