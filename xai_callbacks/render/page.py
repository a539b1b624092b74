"""`render_page`: the one kit that all pictures are set with: a head, rows of captioned cells, a foot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError, require_instance
from xai_callbacks.render.checks import describe, require_heatmap, require_pixels, require_regions
from xai_callbacks.render.colors import ColorScale
from xai_callbacks.render.furniture import ColorBar, Legend
from xai_callbacks.render.outlines import draw_regions
from xai_callbacks.render.overlay import has_unknown, overlay
from xai_callbacks.render.paper import (
    INK,
    MARGIN,
    Part,
    Sizes,
    Tone,
    draw_toned,
    paste_tile,
    require_tone,
    stack,
    toned,
)
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import clean, draw_text, in_blocks, line_height, wrap

__all__ = ["Cell", "Line", "Row", "render_page"]

GAP: Final = 8
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

    def __post_init__(self) -> None:
        require_instance("text", self.text, str, "text")
        require_tone(self.tone)


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
        exact: Whether the pixels are drawn as they are, as of a chart.
        width: Room in pixels; None for that of its row.

    Raises:
        ConfigurationError: An attribute is of another kind.
    """

    pixels: NDArray[np.uint8] | None
    caption: str = ""
    heatmap: NDArray[np.generic] | None = None
    tone: Tone = "plain"
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    exact: bool = False
    width: int | None = None

    def __post_init__(self) -> None:
        require_instance("caption", self.caption, str, "text")
        require_tone(self.tone)
        if self.pixels is not None:
            height, width, _ = require_pixels(self.pixels).shape
            require_regions(self.regions, (height, width))
        if self.heatmap is not None:
            require_heatmap("heatmap", self.heatmap)


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

    def __post_init__(self) -> None:
        require_instance("label", self.label, str, "text")
        cells: object = self.cells
        if not isinstance(cells, Sequence) or not all(isinstance(cell, Cell) for cell in cells):
            raise ConfigurationError(f"Expected `cells` to be a sequence of Cells, but got {describe(cells)}.")


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
        A new RGB picture `(H, W, 3)` uint8, C-contiguous, of the same width whatever is on it. Equal arguments give
        equal bytes.

    Raises:
        ConfigurationError: An argument has the wrong type; the message names it.
    """
    require_instance("title", title, str, "text")
    require_instance("scale", scale, ColorScale, "a ColorScale")
    sizes = Sizes.of(0 if compact else width + 2 * MARGIN)
    cells = [cell for row in rows for cell in row.cells] + ([] if lead is None else [lead])
    maps = [cell.heatmap for cell in cells if cell.heatmap is not None]
    regions = {name: place for cell in cells for place, (name, mask) in enumerate(cell.regions.items()) if mask.any()}
    parts: list[Part] = [_Head.of(title, lines, lead, width, sizes, scale)]
    parts += [band for row in rows for band in _bands(row, width, sizes, scale)]
    if not compact:
        parts.append(Legend(regions, any(map(has_unknown, maps)), width, sizes.small))
    if maps and not compact:
        parts.append(ColorBar(scale, width, sizes.small, max(map(_peak, maps))))
    return stack(parts, width)


def _peak(heatmap: NDArray[np.generic]) -> float:
    grid = require_heatmap("heatmap", heatmap)
    return float(np.abs(grid[np.isfinite(grid)]).max(initial=0.0))


def _tile(cell: Cell, size: int, scale: ColorScale) -> NDArray[np.uint8] | None:
    """The image of a cell at its size, with its heat and outlines."""
    if cell.pixels is None or cell.exact:
        return cell.pixels
    shape = tile_size((cell.pixels.shape[0], cell.pixels.shape[1]), size)
    tile = fit_image(cell.pixels, shape)
    tile = tile.copy() if cell.heatmap is None else overlay(tile, cell.heatmap, scale)
    draw_regions(tile, cell.regions)
    return tile


@dataclass(frozen=True, eq=False)
class _Head:
    """The title and the lines below it, beside the image that all is about."""

    title: list[str]
    lines: list[tuple[list[str], Tone]]
    tile: NDArray[np.uint8] | None
    beside: int
    tone: Tone
    sizes: Sizes

    @classmethod
    def of(
        cls, title: str, lines: Sequence[Line], lead: Cell | None, width: int, sizes: Sizes, scale: ColorScale
    ) -> _Head:
        tile = None if lead is None else _tile(lead, lead.width or LEAD, scale)
        beside = 0 if lead is None else (lead.width or LEAD) + LEAD_GAP
        words = [
            (wrap(toned(clean(line.text), line.tone), width - beside, sizes.text, line.rows), line.tone)
            for line in lines
        ]
        tone = "plain" if lead is None else lead.tone
        titles = wrap(clean(title), width - beside, sizes.title, TITLE_LINES, middle=True)
        return cls(titles, words, tile, beside, tone, sizes)

    @property
    def height(self) -> int:
        words = len(self.title) * line_height(self.sizes.title)
        words += sum(len(lines) for lines, _ in self.lines) * line_height(self.sizes.text)
        return max(words, 0 if self.tile is None else int(self.tile.shape[0]))

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        x, y = at
        if self.tile is not None:
            paste_tile(page, self.tile, (x, y), self.tone)
            x += self.beside
        for text in self.title:
            draw_text(pen, (x, y + self.sizes.title - 3), text, self.sizes.title, INK, bold=True)
            y += line_height(self.sizes.title)
        for lines, tone in self.lines:
            draw_toned(page, (x, y), lines, self.sizes.text, tone)
            y += len(lines) * line_height(self.sizes.text)


def _bands(row: Row, width: int, sizes: Sizes, scale: ColorScale) -> Iterator[_Band]:
    """The lines of a row, the first of them with its label."""
    label = wrap(clean(row.label), width, sizes.text, 2)
    line: list[Cell] = []
    used = 0
    for cell in row.cells:
        needed = cell.width or row.size
        if line and used + needed > width:
            yield _Band.of(label, line, row, sizes, scale)
            label, line, used = [], [], 0
        line.append(cell)
        used += needed + GAP
    if line or label:
        yield _Band.of(label, line, row, sizes, scale)


@dataclass(frozen=True, eq=False)
class _Band:
    """One line of cells, each with its width, its tile and the lines of its caption."""

    label: list[str]
    cells: list[tuple[int, NDArray[np.uint8] | None, list[str], Tone]]
    sizes: Sizes

    @classmethod
    def of(cls, label: list[str], line: Sequence[Cell], row: Row, sizes: Sizes, scale: ColorScale) -> _Band:
        cells = []
        for cell in line:
            room = cell.width or row.size
            words = wrap(toned(clean(cell.caption, lines=True), cell.tone), room + SPILL, sizes.small, row.lines)
            cells.append((room, _tile(cell, room, scale), words, cell.tone))
        return cls(label, cells, sizes)

    @property
    def height(self) -> int:
        return self._top + max((self._tiles(tile) + self._words(words) for _, tile, words, _ in self.cells), default=0)

    @property
    def _top(self) -> int:
        """Height of the label."""
        return in_blocks(len(self.label) * line_height(self.sizes.text))

    def _tiles(self, tile: NDArray[np.uint8] | None) -> int:
        """How far below the label a caption begins: below all tiles, or at once for words alone."""
        return 0 if tile is None else max(int(each.shape[0]) for _, each, _, _ in self.cells if each is not None)

    def _words(self, words: Sequence[str]) -> int:
        return len(words) * line_height(self.sizes.small)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        x, y = at
        for place, text in enumerate(self.label):
            baseline = y + place * line_height(self.sizes.text) + self.sizes.text - 2
            draw_text(pen, (x, baseline), text, self.sizes.text, INK, bold=True)
        y += self._top
        for room, tile, words, tone in self.cells:
            if tile is not None:
                paste_tile(page, tile, (x, y), tone)
            draw_toned(page, (x, y + self._tiles(tile)), words, self.sizes.small, tone)
            x += room + GAP
