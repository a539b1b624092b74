"""Checks of what callers hand to this room. Every message names the argument."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.errors import ConfigurationError, require_instance

__all__ = ["require_heatmap", "require_numbers", "require_pixels", "require_regions"]


def describe(value: object) -> str:
    """Say what a value is, short enough for an error message."""
    if isinstance(value, np.ndarray):
        return f"shape {value.shape} of {value.dtype}"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__


def require_numbers(name: str, value: object) -> NDArray[np.floating]:
    """Return `value` as floating point: float32 and float64 as they are, anything else real as float64."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ConfigurationError(
            f"Expected `{name}` to be a NumPy array of real numbers, but got {describe(value)}. "
            f"Convert a tensor with `.detach().cpu().float().numpy()`."
        )
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float64)


def require_heatmap(name: str, value: object) -> NDArray[np.floating]:
    """Return `value` as a non-empty floating-point map `(h, w)`."""
    heatmap = require_numbers(name, value)
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise ConfigurationError(
            f"Expected `{name}` to be one map of shape (h, w), but got {describe(value)}. "
            f"Pass one probe and one question at a time."
        )
    return heatmap


def require_pixels(value: object) -> NDArray[np.uint8]:
    """Return `value` if it is one non-empty RGB image `(H, W, 3)` of uint8."""
    image = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    if isinstance(value, np.ndarray) and image and value.shape[2] == 3 and value.size > 0:
        return value
    raise ConfigurationError(
        f"Expected `pixels` to be one RGB image of shape (H, W, 3) and dtype uint8, but got {describe(value)}. "
        f"Undo the normalisation, scale to 0-255, and put the channels last."
    )


def require_regions(regions: object, size: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
    """Return the regions as a plain dict if each is a boolean mask `(H, W)` of the image's own size."""
    if not isinstance(regions, Mapping):
        raise ConfigurationError(
            f"Expected `regions` to be a mapping from name to mask, but got {describe(regions)}. Pass {{}} for none."
        )
    for name, mask in regions.items():
        require_instance("regions key", name, str, "text")
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != size:
            raise ConfigurationError(
                f"Expected `regions[{name!r}]` to be a mask of shape {size} and dtype bool like the image, "
                f"but got {describe(mask)}. Resize the mask to the image and compare it with a threshold."
            )
    return dict(regions)
