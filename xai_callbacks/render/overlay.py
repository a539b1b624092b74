"""Laying a heatmap over a greyscale image."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.render.checks import require_heatmap
from xai_callbacks.render.colors import ColorScale
from xai_callbacks.render.outlines import Outline
from xai_callbacks.render.resample import upsample

__all__ = ["draw_tiles", "has_unknown", "hatch", "overlay", "soften"]

# Greys of black and of white under a heatmap: light enough that colours read like ink on paper, and far enough apart
# that the image is recognised.
SOFT_BLACK: Final = 92
SOFT_WHITE: Final = 246
HATCH_DARK: Final = 96
HATCH_LIGHT: Final = 168
HATCH_PERIOD: Final = 8


def soften(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn an image `(H, W, 3)` into the pale grey image `(H, W)` that lies under every heatmap."""
    # Rec. 601 luma in integers: exact on every machine.
    luma = pixels.astype(np.uint32) @ np.array([77, 150, 29], dtype=np.uint32) >> 8
    greys = np.rint(np.linspace(SOFT_BLACK, SOFT_WHITE, 256)).astype(np.uint8)
    return np.take(greys, luma)


def overlay(grey: NDArray[np.uint8], heatmap: NDArray[np.floating], scale: ColorScale) -> NDArray[np.uint8]:
    """Colour a grey tile by a heatmap.

    Args:
        grey: `(H, W)`, from `soften`.
        heatmap: `(h, w)`, signed, in the unit of `scale`. Enlarged bilinearly; NaN and infinite cells count as 0
            for their neighbours and are hatched grey themselves.
        scale: The colour scale.

    Returns:
        RGB tile `(H, W, 3)`. Where the map is 0, the grey of the tile itself.
    """
    size = (grey.shape[0], grey.shape[1])
    finite = np.isfinite(heatmap)
    rgb, opacity = scale.colorize(upsample(np.where(finite, heatmap, 0.0).astype(heatmap.dtype), size))
    base = grey.astype(np.float32)[..., None]
    tile = np.rint(base + (rgb - base) * opacity[..., None]).astype(np.uint8)
    if not finite.all():
        unknown = upsample((~finite).astype(np.float32), size) >= 0.5
        tile[unknown] = hatch(size)[unknown]
    return tile


def draw_tiles(
    plain: NDArray[np.uint8],
    heatmaps: Iterable[NDArray[np.generic] | None],
    outlines: Collection[Outline],
    scale: ColorScale,
) -> list[NDArray[np.uint8]]:
    """Draw one tile `(H, W, 3)` for each heatmap, with the regions on it; `None` gives the image itself.

    A tile hangs on nothing but the image `plain` of its size, its own map, the outlines and the scale.
    """
    grey = soften(plain)
    tiles = []
    for heatmap in heatmaps:
        tile = plain.copy() if heatmap is None else overlay(grey, require_heatmap("heatmap", heatmap), scale)
        for outline in outlines:
            (outline.draw if heatmap is None else outline.trace)(tile)
        tiles.append(tile)
    return tiles


def has_unknown(heatmap: NDArray[np.generic]) -> bool:
    """Whether a map has a cell that is NaN or infinite."""
    return not bool(np.isfinite(require_heatmap("heatmap", heatmap)).all())


def hatch(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Diagonal grey stripes `(H, W, 3)`: the look of "not finite"."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    dark = (rows + columns) % HATCH_PERIOD < HATCH_PERIOD // 2
    grey = np.where(dark, HATCH_DARK, HATCH_LIGHT).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
