"""Normalisation that images went through, and pixels that a person can look at."""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError

Channels = tuple[float, ...]
_BELOW, _ABOVE = -0.1, 1.5  # a normalisation that reaches no further beyond [0, 1] may leave images within
_WHITE = 0.98  # white, nearly; no normalised images end there by chance


def to_normalisation(mean: Any, std: Any, channels: int) -> tuple[Channels, Channels] | tuple[None, None]:
    """`mean` and `std` with one value a channel; one value alone stands for all channels."""
    if mean is None and std is None:
        return None, None
    pair = []
    for what, values, above in (("mean", mean, -np.inf), ("std", std, 0.0)):
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.empty(0)
        if numbers.shape not in ((1,), (channels,)) or not (np.isfinite(numbers) & (numbers > above)).all():
            raise ProbeSetError(
                f"Expected `{what}` to be a sequence of {channels} finite numbers (or of one), `std` above 0, but got "
                f"{values!r}. Give both, e.g. mean=[0.5], std=[0.5]."
            )
        pair.append(tuple(np.broadcast_to(numbers, channels).tolist()))
    return pair[0], pair[1]


def display_pixels(images: Tensor, mean: Channels | None, std: Channels | None) -> Tensor:
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


def warn_if_forgotten(images: Tensor, mean: Channels | None, std: Channels | None) -> None:
    """Warn of images `(N, C, H, W)` that lie in [0, 1], as pixels do, although they are said to be normalised.

    Of normalised images some values lie outside: below 0 what is darker than the mean, above 1 what is bright. A
    normalisation that hardly leaves [0, 1], and a set of one value, say nothing.
    """
    if mean is None or std is None:
        return
    low, high = (float(end) for end in images.aminmax())
    darkest = min(-centre / spread for centre, spread in zip(mean, std, strict=True))
    brightest = max((1 - centre) / spread for centre, spread in zip(mean, std, strict=True))
    if 0 <= low < high <= 1 and (darkest < _BELOW or (brightest > _ABOVE and high > _WHITE)):
        warn_user(
            f"Expected images normalised with `mean` and `std` to reach below 0 or above 1, but all lie in [{low:.3g}, "
            f"{high:.3g}], as if the transform had been forgotten. Give the images as the model expects them, or leave "
            "`mean` and `std` out."
        )


def warn_user(message: str) -> None:
    """Warn with a `UserWarning` attributed to the first caller outside `xai_callbacks`.

    Python shows a warning once for each source line: attributed to ours, that of the first probe set alone.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("xai_callbacks."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _unit_range(images: Tensor, mean: Channels | None, std: Channels | None) -> Tensor:
    if mean is not None and std is not None:
        original = images * images.new_tensor(std).view(-1, 1, 1) + images.new_tensor(mean).view(-1, 1, 1)
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
