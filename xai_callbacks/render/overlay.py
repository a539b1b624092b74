"""Tiles: photos at their size, with a heatmap and outlines of regions, told apart by line style and by colour."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_callbacks.render.colors import CONTOUR, ColorScale, paint

HATCH_DARK: Final = 96
HATCH_LIGHT: Final = 168
HATCH_PERIOD: Final = 8
# The photo loses warm colours this much faster than it is covered, so that a red flower is not taken for heat.
FADE: Final = 2.7
CONTOUR_WIDTH: Final = 2
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601.
CASING_OPACITY: Final = 0.6
SAMPLE_GREY: Final = 132


class LineStyle(NamedTuple):
    """A bright line in a dark casing, so that it is seen on any image; stroke and gap in pixels, gap 0 if solid."""

    color: tuple[int, int, int]
    stroke: int = 1
    gap: int = 0

    def is_stroke(self, length: int) -> NDArray[np.bool_]:
        """Whether the line is drawn at each pixel along it."""
        return np.arange(length) % (self.stroke + self.gap) < self.stroke


# None of these colours is on the colour scale of the heatmaps.
STYLES: Final = (
    LineStyle((255, 255, 255)),
    LineStyle((214, 255, 66), 8, 5),
    LineStyle((255, 158, 240), 3, 4),
    LineStyle((120, 255, 214), 14, 4),
)


def overlay(photo: NDArray[np.uint8], heatmap: NDArray[np.generic], scale: ColorScale) -> NDArray[np.uint8]:
    """Tint a photo `(H, W, 3)` by a heatmap `(h, w)`, and draw a contour where it exceeds the middle of the scale.

    The heatmap is signed, in the unit of `scale`, and enlarged bilinearly; NaN and infinite cells count as 0 for their
    neighbours and are hatched grey themselves. The new tile `(H, W, 3)` uint8 equals the photo wherever the opacity of
    `scale` is 0.
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


def greyed(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A tile `(H, W, 3)` without its colours, those of heat among them."""
    grey: NDArray[np.uint8] = np.rint(tile @ LUMA).astype(np.uint8)
    return grey[..., None].repeat(3, axis=2)


def hatch(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Diagonal grey stripes `(H, W, 3)`: the look of "not finite"."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    dark = (rows + columns) % HATCH_PERIOD < HATCH_PERIOD // 2
    return np.where(dark, HATCH_DARK, HATCH_LIGHT).astype(np.uint8)[..., None].repeat(3, axis=2)


def draw_regions(tile: NDArray[np.uint8], regions: Mapping[str, NDArray[np.bool_]]) -> None:
    """Outline each region that covers a pixel, in place. Its style hangs on its place in the mapping alone."""
    for place, mask in enumerate(regions.values()):
        if mask.any():
            covered = fit(mask.astype(np.uint8) * 255, (tile.shape[0], tile.shape[1])) >= 128
            draw_outline(tile, covered, STYLES[place % len(STYLES)])


def draw_outline(tile: NDArray[np.uint8], mask: NDArray[np.bool_], style: LineStyle) -> None:
    """Draw a line one pixel wide just inside a mask `(H, W)`, in place, with one darker pixel on either side.

    A region cut by the image border is closed there. Dashes are counted down upright edges and along all others.
    """
    from scipy.ndimage import binary_erosion

    inside = np.pad(mask, 3)
    core = binary_erosion(inside)
    upright, level = (np.roll(inside, 2, axis) != np.roll(inside, -2, axis) for axis in (1, 0))
    down, along = style.is_stroke(inside.shape[0])[:, None], style.is_stroke(inside.shape[1])
    stroke = np.where(upright & ~level, down, along)
    line, casing = (
        (part & stroke)[3:-3, 3:-3] for part in (inside & ~core, ~binary_erosion(~inside) & ~binary_erosion(core))
    )
    tile[casing] = np.rint(tile[casing] * np.float32(1.0 - CASING_OPACITY)).astype(np.uint8)
    tile[line] = style.color


def draw_sample(style: LineStyle, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A legend sample `(H, W, 3)`: the line, level, on mid grey."""
    sample = np.full((*size, 3), SAMPLE_GREY, dtype=np.uint8)
    top, stroke = size[0] // 2 - 1, style.is_stroke(size[1])
    sample[top - 1 : top + 3, stroke] = round(SAMPLE_GREY * (1.0 - CASING_OPACITY))
    sample[top : top + 2, stroke] = style.color
    return sample


def upsample(heatmap: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a signed map `(h, w)` bilinearly to `size`, with pixel centres as of `align_corners=False` in torch.

    What is not finite makes every pixel it has a share in not finite. Where a side shrinks, the map is averaged.
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
