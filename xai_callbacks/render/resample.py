"""Sizes of tiles, and bringing images, masks and maps to them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.checks import require_heatmap

__all__ = ["fit_image", "fit_mask", "tile_size", "upsample"]

# Interpolating two float32 numbers of this size cannot overflow.
HUGE: Final = 1e30


def upsample(heatmap: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map bilinearly, with the pixel-centre convention (`align_corners=False` in torch).

    Args:
        heatmap: `(h, w)`, signed. NaN and infinity spread to every pixel they have a share in.
        size: Height and width wanted, both >= 1. Where a side shrinks, the map is averaged (antialiased).

    Returns:
        `size`, same unit and sign. Finite values beyond 1e30 are cut there.

    Raises:
        ConfigurationError: If `heatmap` is no map `(h, w)` of real numbers, or `size` is not positive.
    """
    grid = require_heatmap("heatmap", heatmap)
    height, width = size
    if height < 1 or width < 1:
        raise ConfigurationError(f"Expected `size` to be two numbers >= 1, but got {size}. Pass (height, width).")
    finite = np.isfinite(grid)
    numbers = np.where(finite, np.clip(grid, -HUGE, HUGE), np.nan).astype(np.float32)
    picture = Image.fromarray(numbers).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(picture, dtype=np.float32)


def tile_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Choose how large an image is drawn, keeping its aspect: its long side becomes `longest`.

    Small images grow by a whole factor instead if one brings the long side to 3/4 of `longest` or more, so that each
    pixel stays a square.

    Args:
        size: Height and width of the image.
        longest: Long side wanted, in pixels.

    Returns:
        Height and width of the tile, both from 1 to `longest`.
    """
    factor = longest // max(size)
    if max(size) * factor >= 0.75 * longest:
        return size[0] * factor, size[1] * factor
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def fit_image(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image `(H, W, 3)`: by repeating pixels where the factor is whole, else bilinearly, antialiased."""
    factor = _whole_factor((pixels.shape[0], pixels.shape[1]), size)
    if factor:
        return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(picture, dtype=np.uint8)


def fit_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask `(H, W)` to `size`; a pixel is set where at least half of it is covered."""
    factor = _whole_factor((mask.shape[0], mask.shape[1]), size)
    if factor:
        return np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)
    cover = Image.fromarray(mask.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(cover) >= 128


def _whole_factor(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The whole number of times that `size` goes into `wanted` on both sides, or 0."""
    factor = wanted[0] // size[0]
    return factor if factor and (size[0] * factor, size[1] * factor) == wanted else 0
