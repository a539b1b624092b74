"""`render_page`: the one kit that all pictures are set with: a head, rows of captioned cells, a foot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.render.colors import ColorScale
from xai_callbacks.render.foot import color_bar, legend
from xai_callbacks.render.outlines import draw_regions
from xai_callbacks.render.overlay import overlay
from xai_callbacks.render.paper import GAP, MARGIN, PAPER, Sizes, Strip, Tone, toned
from xai_callbacks.render.resample import fit, tile_size
from xai_callbacks.render.text import clean, in_blocks, line_height, wrap

__all__ = ["Cell", "Line", "Row", "render_page"]

# A caption may be so much wider than its cell.
SPILL: Final = 6
LEAD: Final = 80
LEAD_GAP: Final = 12
TITLE_LINES: Final = 2


@dataclass(frozen=True)
class Line:
    """Words at the head of a page.

    Attributes:
        text: The words.
        tone: Their colour, and the mark that leads them.
        rows: Most lines of type; what is longer is cut.
    """

    text: str
    tone: Tone = "plain"
    rows: int = 2


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture with its caption, or words alone.

    Attributes:
        pixels: Image `(H, W, 3)` uint8, drawn at the size of its row. None for words alone.
        caption: Words below it. Line breaks are kept.
        heatmap: Map `(h, w)` laid over it, signed, in the unit of the colour scale, on any grid.
        tone: Colour and mark of the caption; "right" and "wrong" frame the picture, too.
        regions: Masks `(H, W)` by name, outlined on it. The line style hangs on the place in the mapping, so keep the
            order the same on a page.
        width: Room, and long side of the image, in pixels; None for those of its row.
    """

    pixels: NDArray[np.uint8] | None
    caption: str = ""
    heatmap: NDArray[np.generic] | None = None
    tone: Tone = "plain"
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    width: int | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """Cells side by side, in as many lines as the page is wide.

    Attributes:
        cells: The cells.
        label: Words above them, such as the name of an explainer.
        size: Room of a cell, and long side of its image, in pixels.
        lines: Most lines of a caption.
    """

    cells: Sequence[Cell]
    label: str = ""
    size: int = 112
    lines: int = 3


def render_page(
    rows: Sequence[Row],
    *,
    title: str,
    lines: Sequence[Line] = (),
    lead: Cell | None = None,
    scale: ColorScale,
    width: int = 352,
    compact: bool = False,
) -> NDArray[np.uint8]:
    """Draw a page: title and lines, beside them the image that all is about, then rows of cells, legend, colour bar.

    Args:
        rows: The rows.
        title: Cut in its middle if it is longer than two lines.
        lines: What is said below the title.
        lead: Image beside the head, 80 pixels or its `width`.
        scale: The colour scale. Give the same one to all pages that are to be compared.
        width: Width in pixels, without margins; type grows with it, see `Sizes`.
        compact: Whether the page is seen at its actual size: the smallest type, and no foot.

    Returns:
        A new RGB picture `(H, W, 3)` uint8 of the same width whatever is on it. Equal arguments give equal bytes.
    """
    sizes = Sizes.of(0 if compact else width + 2 * MARGIN)
    strips = [_head(title, lines, lead, width, sizes, scale)]
    for row in rows:
        columns = (width + GAP) // (row.size + GAP)
        for start in range(0, max(1, len(row.cells)), columns):
            label = wrap(clean(row.label if start == 0 else ""), width, sizes.text, 2)
            strips.append(_band(label, row, row.cells[start : start + columns], width, sizes, scale))
    cells = [cell for row in rows for cell in row.cells] + ([] if lead is None else [lead])
    maps = [cell.heatmap for cell in cells if cell.heatmap is not None]
    regions = {name: place for cell in cells for place, (name, mask) in enumerate(cell.regions.items()) if mask.any()}
    if not compact:
        unknown = not all(np.isfinite(heatmap).all() for heatmap in maps)
        strips.append(legend(regions, unknown=unknown, width=width, size=sizes.small))
    if maps and not compact:
        peak = max(np.abs(heatmap[np.isfinite(heatmap)]).max(initial=0) for heatmap in maps)
        strips.append(color_bar(scale, float(peak), width=width, size=sizes.small))
    shown = [np.asarray(strip.picture) for strip in strips if strip.picture.height > GAP]
    return np.pad(np.concatenate(shown), ((GAP // 2, GAP // 2), (0, 0), (0, 0)), constant_values=PAPER[0])


def _tile(cell: Cell, size: int, scale: ColorScale) -> NDArray[np.uint8] | None:
    """The image of a cell at its size, with its heat and outlines."""
    if cell.pixels is None:
        return None
    tile = fit(cell.pixels, tile_size((cell.pixels.shape[0], cell.pixels.shape[1]), size))
    if cell.heatmap is not None:
        tile = overlay(tile, cell.heatmap, scale)
    draw_regions(tile, cell.regions)
    return tile


def _head(title: str, lines: Sequence[Line], lead: Cell | None, width: int, sizes: Sizes, scale: ColorScale) -> Strip:
    tile, indent = None, 0
    if lead is not None:
        room = lead.width or LEAD
        tile, indent = _tile(lead, room, scale), room + LEAD_GAP
    titles = wrap(clean(title), width - indent, sizes.title, TITLE_LINES, middle=True)
    words = [wrap(toned(clean(each.text), each.tone), width - indent, sizes.text, each.rows) for each in lines]
    top = len(titles) * line_height(sizes.title)
    height = top + sum(map(len, words)) * line_height(sizes.text)
    strip = Strip(height if tile is None else max(height, tile.shape[0]), width)
    if tile is not None:
        strip.tile((0, 0), tile)
    for place, text in enumerate(titles):
        strip.text((indent, place * line_height(sizes.title) + sizes.title - 3), text, sizes.title, bold=True)
    for line, wrapped in zip(lines, words, strict=True):
        strip.toned((indent, top), wrapped, sizes.text, line.tone)
        top += len(wrapped) * line_height(sizes.text)
    return strip


def _band(label: Sequence[str], row: Row, cells: Sequence[Cell], width: int, sizes: Sizes, scale: ColorScale) -> Strip:
    """One line of cells: words alone begin below the label, captions below the highest tile."""
    rooms = [cell.width or row.size for cell in cells]
    tiles = [_tile(cell, room, scale) for cell, room in zip(cells, rooms, strict=True)]
    words = [
        wrap(toned(clean(cell.caption), cell.tone), room + SPILL, sizes.small, row.lines)
        for cell, room in zip(cells, rooms, strict=True)
    ]
    top = in_blocks(len(label) * line_height(sizes.text))
    highest = max((tile.shape[0] for tile in tiles if tile is not None), default=0)
    below = [top if tile is None else top + highest for tile in tiles]
    heights = [start + len(each) * line_height(sizes.small) for start, each in zip(below, words, strict=True)]
    strip = Strip(max(heights, default=top), width)
    for place, text in enumerate(label):
        strip.text((0, place * line_height(sizes.text) + sizes.text - 2), text, sizes.text, bold=True)
    x = 0
    for cell, room, tile, start, wrapped in zip(cells, rooms, tiles, below, words, strict=True):
        if tile is not None:
            strip.tile((x, top), tile, cell.tone)
        strip.toned((x, start), wrapped, sizes.small, cell.tone)
        x += room + GAP
    return strip
