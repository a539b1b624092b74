"""Outlines of regions, each told apart by its line style as well as its colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.render.resample import fit_mask

__all__ = ["STYLES", "LineStyle", "draw_outline", "draw_regions", "draw_sample"]

CASING_OPACITY: Final = 0.6
SAMPLE_GREY: Final = 132


@dataclass(frozen=True)
class LineStyle:
    """A bright line in a dark casing, so that it is seen on any image.

    Attributes:
        color: RGB of the line.
        dashes: Lengths of stroke, gap, stroke, gap, ... in pixels; empty for a solid line.
    """

    color: tuple[int, int, int]
    dashes: tuple[int, ...] = ()

    def is_stroke(self, along: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the line is drawn at each distance along it."""
        if not self.dashes:
            return np.ones(along.shape, dtype=np.bool_)
        pattern = np.concatenate([np.full(length, place % 2 == 0) for place, length in enumerate(self.dashes)])
        return np.asarray(pattern[along % len(pattern)], dtype=np.bool_)


# None of these colours is on the colour scale of the heatmaps.
STYLES: Final = (
    LineStyle((255, 255, 255)),
    LineStyle((214, 255, 66), (8, 5)),
    LineStyle((255, 158, 240), (3, 4)),
    LineStyle((120, 255, 214), (9, 4, 3, 4)),
)


def draw_regions(tile: NDArray[np.uint8], regions: Mapping[str, NDArray[np.bool_]]) -> None:
    """Outline each region that covers a pixel, in place. Its style hangs on its place in the mapping alone."""
    for place, mask in enumerate(regions.values()):
        if mask.any():
            draw_outline(tile, fit_mask(mask, (tile.shape[0], tile.shape[1])), STYLES[place % len(STYLES)])


def draw_outline(tile: NDArray[np.uint8], mask: NDArray[np.bool_], style: LineStyle) -> None:
    """Draw a line one pixel wide just inside a mask `(H, W)`, in place, with one darker pixel on either side.

    A region cut by the image border is closed there.
    """
    from scipy.ndimage import binary_erosion

    inside = np.pad(mask, 3)
    core = binary_erosion(inside)
    stroke = _strokes(inside, style)
    line, casing = (
        (part & stroke)[3:-3, 3:-3] for part in (inside & ~core, ~binary_erosion(~inside) & ~binary_erosion(core))
    )
    tile[casing] = np.rint(tile[casing] * np.float32(1.0 - CASING_OPACITY)).astype(np.uint8)
    tile[line] = style.color


def _strokes(inside: NDArray[np.bool_], style: LineStyle) -> NDArray[np.bool_]:
    """Where a dashed line is drawn: dashes are counted down upright edges and along all others."""
    upright = np.roll(inside, 2, axis=1) != np.roll(inside, -2, axis=1)
    level = np.roll(inside, 2, axis=0) != np.roll(inside, -2, axis=0)
    down = style.is_stroke(np.arange(inside.shape[0]))[:, None]
    along = style.is_stroke(np.arange(inside.shape[1]))[None, :]
    return np.where(upright & ~level, down, along)


def draw_sample(style: LineStyle, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A legend sample `(H, W, 3)`: the line, level, on mid grey."""
    sample = np.full((*size, 3), SAMPLE_GREY, dtype=np.uint8)
    stroke = style.is_stroke(np.arange(size[1]))
    top = size[0] // 2 - 1
    sample[top - 1 : top + 3, stroke] = round(SAMPLE_GREY * (1.0 - CASING_OPACITY))
    sample[top : top + 2, stroke] = style.color
    return sample
