"""Laying a heatmap over a colour photo."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.render.colors import CONTOUR, ColorScale, paint
from xai_callbacks.render.resample import upsample

__all__ = ["hatch", "overlay"]

HATCH_DARK: Final = 96
HATCH_LIGHT: Final = 168
HATCH_PERIOD: Final = 8
# The photo loses warm colours this much faster than it is covered, so that a red flower is not taken for heat.
FADE: Final = 2.7
CONTOUR_WIDTH: Final = 2
# Rec. 601.
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def overlay(photo: NDArray[np.uint8], heatmap: NDArray[np.generic], scale: ColorScale) -> NDArray[np.uint8]:
    """Tint a photo by a heatmap, where there is heat, and draw a contour where it exceeds the middle of the scale.

    Args:
        photo: `(H, W, 3)`.
        heatmap: `(h, w)`, signed, in the unit of `scale`. Enlarged bilinearly; NaN and infinite cells count as 0
            for their neighbours and are hatched grey themselves.
        scale: The colour scale.

    Returns:
        A new tile `(H, W, 3)` uint8, equal to the photo wherever the opacity of `scale` is 0.
    """
    from scipy.ndimage import binary_erosion

    size = (photo.shape[0], photo.shape[1])
    finite = np.isfinite(heatmap)
    position = scale.position(upsample(np.where(finite, heatmap, 0), size))
    rgb, opacity = paint(position)
    strong = np.abs(position) > CONTOUR
    line = strong & ~binary_erosion(strong, iterations=CONTOUR_WIDTH, border_value=1)
    cover = np.where(line, 1.0, opacity)[..., None]
    base = photo.astype(np.float32)
    red, green, blue = np.moveaxis(base, 2, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    warmth = np.maximum(red - blue, 0.0) / np.maximum(spread, 1.0)
    base += ((base @ LUMA)[..., None] - base) * np.minimum(1.0, FADE * cover * warmth[..., None])
    tile = np.rint(base + (rgb - base) * cover).astype(np.uint8)
    if not finite.all():
        unknown = upsample(~finite, size) >= 0.5
        tile[unknown] = hatch(size)[unknown]
    return tile


def hatch(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Diagonal grey stripes `(H, W, 3)`: the look of "not finite"."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    dark = (rows + columns) % HATCH_PERIOD < HATCH_PERIOD // 2
    return np.where(dark, HATCH_DARK, HATCH_LIGHT).astype(np.uint8)[..., None].repeat(3, axis=2)
