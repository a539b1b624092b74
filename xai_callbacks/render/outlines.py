"""Outlines of regions, each told apart by its line style as well as its colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.render.resample import fit_mask

__all__ = ["STYLES", "LineStyle", "Outline", "draw_sample", "outline_regions"]

CASING_OPACITY: Final = 0.6
TRACE_GREY: Final = 40
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


@dataclass(frozen=True)
class Outline:
    """The outline of one region at the size of a tile, ready to be drawn on many tiles.

    Attributes:
        style: How it looks.
        line: Pixels `(H, W)` of the line, which lies just inside the region.
        casing: Pixels `(H, W)` of the line and of one pixel on either side of it.
        thin: Pixels `(H, W)` of a line one pixel wide.
    """

    style: LineStyle
    line: NDArray[np.bool_]
    casing: NDArray[np.bool_]
    thin: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], style: LineStyle, width: int) -> Outline:
        """Outline a mask `(H, W)` with a line of `width` pixels. A region cut by the image border is closed there."""
        room = width + 2
        inside = np.pad(mask, room)
        edge = _erode(inside)
        core = edge
        for _ in range(width - 1):
            core = _erode(core)
        stroke = _strokes(inside, style)
        crop = (slice(room, -room), slice(room, -room))
        casing = ~_erode(~inside) & ~_erode(core)
        return cls(style, *((part & stroke)[crop] for part in (inside & ~core, casing, inside & ~edge)))

    def draw(self, tile: NDArray[np.uint8]) -> None:
        """Draw into an image tile `(H, W, 3)`, in place, to be seen on dark and on bright ground."""
        tile[self.casing] = np.rint(tile[self.casing] * np.float32(1.0 - CASING_OPACITY)).astype(np.uint8)
        tile[self.line] = self.style.color

    def trace(self, tile: NDArray[np.uint8]) -> None:
        """Draw into a heatmap tile `(H, W, 3)`, in place: thin, and dark grey so as to add no colour."""
        tile[self.thin] = TRACE_GREY


def outline_regions(
    regions: Mapping[str, NDArray[np.bool_]], size: tuple[int, int], width: int = 2
) -> dict[str, Outline]:
    """Outline each region that covers a pixel. Its style hangs on its place in the mapping alone."""
    return {
        name: Outline.of(fit_mask(mask, size), STYLES[place % len(STYLES)], width)
        for place, (name, mask) in enumerate(regions.items())
        if bool(mask.any())
    }


def _strokes(inside: NDArray[np.bool_], style: LineStyle) -> NDArray[np.bool_]:
    """Where a dashed line is drawn: dashes are counted down upright edges and along all others."""
    if not style.dashes:
        return np.ones_like(inside)
    upright = np.roll(inside, 2, axis=1) != np.roll(inside, -2, axis=1)
    level = np.roll(inside, 2, axis=0) != np.roll(inside, -2, axis=0)
    down = style.is_stroke(np.arange(inside.shape[0]))[:, None]
    along = style.is_stroke(np.arange(inside.shape[1]))[None, :]
    return np.where(upright & ~level, down, along)


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop each set pixel that has an unset one above, below, left or right; pixels at the border are dropped."""
    kept = np.zeros_like(mask)
    kept[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return kept


def draw_sample(style: LineStyle, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A legend sample `(H, W, 3)`: the line, level, on mid grey."""
    height, width = size
    sample = np.full((height, width, 3), SAMPLE_GREY, dtype=np.uint8)
    stroke = style.is_stroke(np.arange(width))
    top = height // 2 - 1
    sample[top - 1 : top + 3, stroke] = round(SAMPLE_GREY * (1.0 - CASING_OPACITY))
    sample[top : top + 2, stroke] = style.color
    return sample
