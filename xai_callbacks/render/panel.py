"""One probe at one audit: the image, and one heatmap for each question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.checks import describe, require_heatmap, require_pixels, require_regions, require_text
from xai_callbacks.render.colors import ColorScale, require_scale
from xai_callbacks.render.furniture import ColorBar, Header, Legend, Verdict
from xai_callbacks.render.outlines import outline_regions
from xai_callbacks.render.overlay import draw_tiles, has_unknown
from xai_callbacks.render.page import INK, TEXT_SIZE, paste_tile, stack
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import clean, draw_text, line_height, wrap

__all__ = ["Tile", "render_panel"]

TARGET: Final = 224
BOUNDS: Final = (176, 256)
MIN_CELL: Final = 144
MIN_CONTENT: Final = 368
MAX_CONTENT: Final = 640
GAP: Final = 16
ROW_GAP: Final = 16
CAPTION_GAP: Final = 7
CAPTION_LINES: Final = 3
# Width over height of the tiles that the grid comes closest to: the cards of image viewers are narrow.
ASPECT: Final = 0.9


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a panel.

    Attributes:
        caption: What is asked, e.g. "Why dog, rather than cat?". A line break is kept.
        heatmap: The answer `(h, w)`, signed, in the unit of the colour scale, on any grid; `None` shows the image
            itself. Not copied.

    Raises:
        ConfigurationError: If `caption` is not text or `heatmap` is no map of real numbers.
    """

    caption: str
    heatmap: NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        require_text("caption", self.caption)
        if self.heatmap is not None:
            require_heatmap("heatmap", self.heatmap)


def render_panel(
    pixels: NDArray[np.uint8],
    tiles: Sequence[Tile],
    *,
    title: str,
    subtitle: str = "",
    verdict: Verdict = "unknown",
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
    scale: ColorScale,
) -> NDArray[np.uint8]:
    """Draw one probe at one audit: its tiles in a grid under a header, with captions and a colour bar.

    Args:
        pixels: The probe `(H, W, 3)`, as people see it.
        tiles: At least one. Usually first `Tile("Image")`, then one tile a question.
        title: Name of the probe and step. Cut in its middle if it is too long.
        subtitle: Usually "true: cat | predicted: dog 0.93". A line break is kept.
        verdict: Whether the prediction is right; a mark before the subtitle shows it. "unknown" if there is no label.
        regions: Boolean masks `(H, W)` by name. Outlined on the image, traced thinly in dark grey on heatmaps, and
            named in a legend; a mask that is False everywhere is left out. The line style hangs on the place in the
            mapping, so keep the order the same for all probes.
        scale: The colour scale. Give the same one for all probes and steps: pictures are then comparable.

    Returns:
        A new RGB picture, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: If an argument has the wrong type, shape or dtype; the message names it.
    """
    image = require_pixels(pixels)
    masks = require_regions({} if regions is None else regions, (image.shape[0], image.shape[1]))
    _require_words(tiles, title, subtitle, verdict)
    require_scale(scale)
    plain = fit_image(image, tile_size((image.shape[0], image.shape[1]), TARGET, BOUNDS))
    outlines = outline_regions(masks, (plain.shape[0], plain.shape[1]))
    pictures = draw_tiles(plain, [tile.heatmap for tile in tiles], outlines.values(), scale)
    grid = _Grid.of(pictures, [tile.caption for tile in tiles])
    heatmaps = [tile.heatmap for tile in tiles if tile.heatmap is not None]
    header = Header.of(title, subtitle, verdict, grid.width)
    legend = Legend.of(outlines, any(map(has_unknown, heatmaps)), grid.width)
    bar = [ColorBar(scale, grid.width)] if heatmaps else []
    return stack([header, grid, legend, *bar], grid.width)


def _require_words(tiles: object, title: object, subtitle: object, verdict: object) -> None:
    if not isinstance(tiles, Sequence) or not tiles or not all(isinstance(tile, Tile) for tile in tiles):
        raise ConfigurationError(
            f"Expected `tiles` to be a sequence of at least one Tile, but got {describe(tiles)}. "
            f'Pass [Tile("Image"), Tile("Why cat?", heatmap)].'
        )
    require_text("title", title)
    require_text("subtitle", subtitle)
    if verdict not in get_args(Verdict):
        raise ConfigurationError(
            f"Expected `verdict` to be one of {get_args(Verdict)}, but got {verdict!r}. "
            f"Pass 'unknown' where there is no label."
        )


@dataclass(frozen=True)
class _Grid:
    """Tiles in rows, each with its caption below. All tiles have one size."""

    pictures: list[NDArray[np.uint8]]
    captions: list[list[str]]
    columns: int
    cell: int

    @classmethod
    def of(cls, pictures: list[NDArray[np.uint8]], captions: Sequence[str]) -> _Grid:
        height, width = pictures[0].shape[:2]
        columns = _choose_columns(len(pictures), (height, max(width, MIN_CELL)))
        # Cells share out a width that header and colour bar need as well.
        cell = max(width, MIN_CELL, math.ceil((MIN_CONTENT + GAP) / columns) - GAP)
        lines = [wrap(clean(caption, lines=True), cell, TEXT_SIZE, CAPTION_LINES) for caption in captions]
        return cls(pictures, lines, columns, cell)

    @property
    def width(self) -> int:
        return self.columns * (self.cell + GAP) - GAP

    @property
    def height(self) -> int:
        rows = range(math.ceil(len(self.pictures) / self.columns))
        return sum(self._row_height(row) for row in rows) + ROW_GAP * (len(rows) - 1)

    def _row_height(self, row: int) -> int:
        lines = max(map(len, self.captions[row * self.columns : (row + 1) * self.columns]))
        caption = CAPTION_GAP + lines * line_height(TEXT_SIZE) if lines else 0
        return int(self.pictures[0].shape[0]) + caption

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        tile_height = self.pictures[0].shape[0]
        top = at[1]
        for place, (picture, lines) in enumerate(zip(self.pictures, self.captions, strict=True)):
            row, column = divmod(place, self.columns)
            if place and column == 0:
                top += self._row_height(row - 1) + ROW_GAP
            left = at[0] + column * (self.cell + GAP)
            paste_tile(page, picture, (left, top))
            baseline = top + tile_height + CAPTION_GAP + TEXT_SIZE - 2
            for line in lines:
                draw_text(pen, (left, baseline), line, TEXT_SIZE, INK)
                baseline += line_height(TEXT_SIZE)


def _choose_columns(count: int, cell: tuple[int, int]) -> int:
    """The number of columns whose grid is closest to `ASPECT`, counting an empty place as a fault."""
    height, width = cell[0] + CAPTION_GAP + 2 * line_height(TEXT_SIZE) + ROW_GAP, cell[1] + GAP

    def fault(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = rows * columns - count
        return abs(math.log(columns * width / (rows * height) / ASPECT)) + 0.5 * empty

    allowed = [columns for columns in range(1, count + 1) if columns * width - GAP <= MAX_CONTENT]
    return min(allowed or [1], key=fault)
