"""The normalisation that images went through: what is declared, and whether it took place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.notices import warn_user

__all__ = ["normalised", "to_normalisation", "to_numbers", "undone", "warn_if_forgotten"]

Channels = tuple[float, ...]

# A normalisation that reaches no further beyond [0, 1] may leave images within.
_BELOW, _ABOVE = -0.1, 1.5
# White, nearly; no normalised images end there by chance.
_WHITE = 0.98
# Pixels that differ by no more on average, of 255, are the same.
_SAME = 2.0


def to_normalisation(mean: Any, std: Any, channels: int) -> tuple[Channels, Channels] | tuple[None, None]:
    """Return `mean` and `std` with one value a channel; one value alone stands for all channels."""
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ProbeSetError("Expected `mean` and `std` to be given together, but got only one of them.")
    means, stds = _per_channel(mean, "mean", channels), _per_channel(std, "std", channels)
    if min(stds) <= 0:
        raise ProbeSetError(f"Expected `std` to be above 0 in every channel, but got {stds}.")
    return means, stds


def to_numbers(values: Any, what: str) -> Channels:
    """Return a sequence of finite numbers."""
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


def normalised(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Subtract the mean from images `(N, C, H, W)` and divide by the deviation."""
    return (images - images.new_tensor(mean).view(1, -1, 1, 1)) / images.new_tensor(std).view(1, -1, 1, 1)


def undone(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """The inverse of `normalised`."""
    return images * images.new_tensor(std).view(1, -1, 1, 1) + images.new_tensor(mean).view(1, -1, 1, 1)


def warn_if_forgotten(images: Tensor, pixels: Tensor | None, mean: Channels | None, std: Channels | None) -> None:
    """Warn of images that lie in [0, 1], as pixels do, although they are said to be normalised.

    Of normalised images some values lie outside: below 0 what is darker than the mean, above 1 what is bright. A
    normalisation that hardly leaves [0, 1], and a set of one value, say nothing.

    Args:
        images: `(N, C, H, W)`.
        pixels: What is displayed, `(N, H, W, 3)` uint8, if it was given: the proof where it agrees with the images.
        mean: Declared mean, one value a channel.
        std: Declared standard deviation.
    """
    if mean is None or std is None:
        return
    low, high = (float(end) for end in images.aminmax())
    darkest = min(-centre / spread for centre, spread in zip(mean, std, strict=True))
    brightest = max((1 - centre) / spread for centre, spread in zip(mean, std, strict=True))
    suspicious = darkest < _BELOW or (brightest > _ABOVE and high > _WHITE)
    if not 0 <= low < high <= 1 or not suspicious or (pixels is not None and _agree(undone(images, mean, std), pixels)):
        return
    warn_user(
        f"Expected images normalised with `mean` and `std` to reach below 0 or above 1, but all lie in [{low:.3g}, "
        f"{high:.3g}], as if the transform had been forgotten. Give the images as the model expects them, or leave "
        "`mean` and `std` out."
    )


def _agree(unit: Tensor, pixels: Tensor) -> bool:
    """Whether images in [0, 1] are what is displayed, but for rounding; grey ones by their mean over the channels."""
    grey, shown = unit.mean(dim=1) * 255, pixels.to(torch.float32).mean(dim=-1)
    return float((grey - shown).abs().mean()) <= _SAME


def _per_channel(values: Any, what: str, channels: int) -> Channels:
    numbers = to_numbers(values, what)
    if len(numbers) == 1:
        numbers = numbers * channels
    if len(numbers) != channels:
        raise ProbeSetError(f"Expected `{what}` to be {channels} finite numbers, one a channel, but got {values!r}.")
    return numbers
