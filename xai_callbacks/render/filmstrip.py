"""One probe over many audits: questions as rows, audits as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.checks import describe, require_heatmap, require_pixels, require_regions, require_text
from xai_callbacks.render.colors import ColorScale, require_scale
from xai_callbacks.render.furniture import ColorBar, Header, Legend
from xai_callbacks.render.outlines import outline_regions
from xai_callbacks.render.overlay import draw_tiles, has_unknown
from xai_callbacks.render.page import INK, MUTED, TEXT_SIZE, paste_tile, stack
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import clean, draw_text, line_height, wrap

__all__ = ["MAX_FRAMES", "Frame", "render_filmstrip"]

MAX_FRAMES: Final = 10
TARGET: Final = 112
BOUNDS: Final = (88, 112)
MIN_CELL: Final = 96
SIDE: Final = 152
SIDE_GAP: Final = 16
GAP: Final = 8
HEAD_GAP: Final = 14
CAPTION_GAP: Final = 4
STEP: Final = line_height(TEXT_SIZE)
MIN_CONTENT: Final = 480
MAX_BAR: Final = 560


@dataclass(frozen=True, eq=False)
class Frame:
    """One audit of a filmstrip.

    Attributes:
        label: When, e.g. "step 120".
        caption: What was predicted, e.g. "dog 0.93". Cut in its middle if it is too long.
        heatmaps: One map `(h, w)` for each row, signed, in the unit of the colour scale. Not copied.

    Raises:
        ConfigurationError: If a text is no text or a heatmap is no map of real numbers.
    """

    label: str
    caption: str
    heatmaps: Sequence[NDArray[np.generic]]

    def __post_init__(self) -> None:
        require_text("label", self.label)
        require_text("caption", self.caption)
        if not isinstance(self.heatmaps, Sequence | np.ndarray):
            raise ConfigurationError(
                f"Expected `heatmaps` to be a sequence of maps (h, w), but got {describe(self.heatmaps)}. "
                f"Pass one map for each row of the filmstrip."
            )
        for place, heatmap in enumerate(self.heatmaps):
            require_heatmap(f"heatmaps[{place}]", heatmap)


def render_filmstrip(
    pixels: NDArray[np.uint8],
    row_captions: Sequence[str],
    frames: Sequence[Frame],
    *,
    title: str,
    subtitle: str = "",
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
    scale: ColorScale,
) -> NDArray[np.uint8]:
    """Draw one probe over audits: the image and the questions on the left, then one column an audit.

    Args:
        pixels: The probe `(H, W, 3)`, as people see it.
        row_captions: The questions, one a row, at least one.
        frames: The audits, oldest first, 1 to 10 of them; `keep_frame_indices` thins out more.
        title: Name of the probe. Cut in its middle if it is too long.
        subtitle: A line below the title.
        regions: Boolean masks `(H, W)` by name: outlined on the image, traced thinly in dark grey on heatmaps, and
            named in a legend. Keep their order the same for all probes.
        scale: The colour scale, the same for all columns.

    Returns:
        A new RGB picture, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: If an argument has the wrong type, shape or dtype, there is no frame or more than 10, or a
            frame has not one heatmap for each row; the message names it.
    """
    image = require_pixels(pixels)
    masks = require_regions({} if regions is None else regions, (image.shape[0], image.shape[1]))
    _require_rows(row_captions, frames)
    require_scale(scale)
    require_text("title", title)
    require_text("subtitle", subtitle)
    plain = fit_image(image, tile_size((image.shape[0], image.shape[1]), TARGET, BOUNDS))
    outlines = outline_regions(masks, (plain.shape[0], plain.shape[1]), width=1)
    columns = [_Column.of(frame, draw_tiles(plain, frame.heatmaps, outlines.values(), scale)) for frame in frames]
    for outline in outlines.values():
        outline.draw(plain)
    strip = _Strip.of(plain, columns, row_captions, title, subtitle)
    unknown = any(has_unknown(heatmap) for frame in frames for heatmap in frame.heatmaps)
    legend = Legend.of(outlines, unknown, strip.width)
    return stack([strip, legend, ColorBar(scale, min(strip.width, MAX_BAR))], strip.width)


def _require_rows(row_captions: object, frames: object) -> None:
    if isinstance(row_captions, str) or not isinstance(row_captions, Sequence) or not row_captions:
        raise ConfigurationError(
            f"Expected `row_captions` to be a sequence of at least one text, but got {describe(row_captions)}. "
            f"Pass the title of each question."
        )
    for place, caption in enumerate(row_captions):
        require_text(f"row_captions[{place}]", caption)
    frames_given = isinstance(frames, Sequence) and all(isinstance(frame, Frame) for frame in frames)
    if not isinstance(frames, Sequence) or not frames_given or not 1 <= len(frames) <= MAX_FRAMES:
        got = f"{len(frames)} of them" if isinstance(frames, Sequence) and frames_given else describe(frames)
        raise ConfigurationError(
            f"Expected `frames` to be a sequence of 1 to {MAX_FRAMES} Frames, but got {got}. "
            f"Thin out more with `keep_frame_indices`."
        )
    for place, frame in enumerate(frames):
        if len(frame.heatmaps) != len(row_captions):
            raise ConfigurationError(
                f"Expected `frames[{place}].heatmaps` to be one map for each of the {len(row_captions)} "
                f"`row_captions`, but got {len(frame.heatmaps)}. Leave out audits that lack a question."
            )


@dataclass(frozen=True)
class _Column:
    """One audit: a head of text lines over its tiles, which are all of one size."""

    label: list[str]
    caption: list[str]
    tiles: list[NDArray[np.uint8]]

    @classmethod
    def of(cls, frame: Frame, tiles: list[NDArray[np.uint8]]) -> _Column:
        width = max(tiles[0].shape[1], MIN_CELL)
        label = wrap(clean(frame.label), width, TEXT_SIZE, 1, middle=True)
        return cls(label, wrap(clean(frame.caption), width, TEXT_SIZE, 2, middle=True), tiles)

    @property
    def lines(self) -> list[tuple[str, tuple[int, int, int]]]:
        return [*((line, MUTED) for line in self.label), *((line, INK) for line in self.caption)]


@dataclass(frozen=True)
class _Strip:
    """The image beside the title, below it a row of tiles for each question.

    Attributes:
        image: The image `(H, W, 3)` at the size of the tiles.
        columns: The audits.
        captions: The lines of each row's caption.
        header: Title and subtitle.
        side: Width of the column that holds image and captions, with its gap.
        cell: Width of an audit.
        width: Width of all.
    """

    image: NDArray[np.uint8]
    columns: list[_Column]
    captions: list[list[str]]
    header: Header
    side: int
    cell: int
    width: int

    @classmethod
    def of(
        cls, image: NDArray[np.uint8], columns: list[_Column], row_captions: Sequence[str], title: str, subtitle: str
    ) -> _Strip:
        lines = max(3, image.shape[0] // STEP)
        captions = [wrap(clean(text, lines=True), SIDE, TEXT_SIZE, lines) for text in row_captions]
        side = max(SIDE, image.shape[1]) + SIDE_GAP
        cell = max(image.shape[1], MIN_CELL)
        width = max(side + len(columns) * (cell + GAP) - GAP, MIN_CONTENT)
        return cls(image, columns, captions, Header.of(title, subtitle, None, width - side), side, cell, width)

    @property
    def head_height(self) -> int:
        """Height of all above the first row of tiles."""
        heads = max(len(column.lines) for column in self.columns) * STEP
        return max(int(self.image.shape[0]) + GAP, self.header.height + HEAD_GAP + heads + CAPTION_GAP)

    @property
    def row_height(self) -> int:
        return max(int(self.image.shape[0]), max(map(len, self.captions)) * STEP)

    @property
    def height(self) -> int:
        return self.head_height + len(self.captions) * (self.row_height + GAP) - GAP

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        x, y = at
        paste_tile(page, self.image, at)
        self.header.draw(page, (x + self.side, y))
        self._draw_captions(page, (x, y + self.head_height))
        for place, column in enumerate(self.columns):
            self._draw_column(page, (x + self.side + place * (self.cell + GAP), y + self.head_height), column)

    def _draw_captions(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        x, y = at
        for row, lines in enumerate(self.captions):
            top = y + row * (self.row_height + GAP) + (self.row_height - len(lines) * STEP) // 2
            for place, line in enumerate(lines):
                draw_text(pen, (x, top + place * STEP + TEXT_SIZE - 1), line, TEXT_SIZE, INK)

    def _draw_column(self, page: Image.Image, at: tuple[int, int], column: _Column) -> None:
        pen = ImageDraw.Draw(page)
        x, y = at
        # Heads start on one line, even where one of them is longer.
        top = y - CAPTION_GAP - max(len(other.lines) for other in self.columns) * STEP
        for place, (line, color) in enumerate(column.lines):
            draw_text(pen, (x, top + place * STEP + TEXT_SIZE - 1), line, TEXT_SIZE, color)
        for row, tile in enumerate(column.tiles):
            paste_tile(page, tile, (x, y + row * (self.row_height + GAP) + (self.row_height - tile.shape[0]) // 2))
