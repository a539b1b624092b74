"""Sizes of tiles, and bringing images, masks and maps to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["fit", "tile_size", "upsample"]


def upsample(heatmap: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map bilinearly, with the pixel-centre convention (`align_corners=False` in torch).

    Args:
        heatmap: `(h, w)`, signed. What is not finite makes every pixel it has a share in not finite.
        size: Height and width wanted. Where a side shrinks, the map is averaged (antialiased).

    Returns:
        `size`, same unit and sign.
    """
    grid = Image.fromarray(np.ascontiguousarray(heatmap, dtype=np.float32))
    return np.array(grid.resize(size[::-1], Image.Resampling.BILINEAR))


def tile_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width at which an image `size` is drawn: its long side becomes `longest`.

    Small images grow by a whole factor instead if one brings the long side to 3/4 of `longest` or more, so that each
    pixel stays a square.
    """
    factor: float = longest // max(size)
    if max(size) * factor < 0.75 * longest:
        factor = longest / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fit(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image `(H, W, 3)` or `(H, W)`: by repeating pixels where the factor is whole, else bilinearly."""
    whole = size[0] % pixels.shape[0] == size[1] % pixels.shape[1] == 0
    how = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], how))
