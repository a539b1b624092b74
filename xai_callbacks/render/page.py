"""`render_page`: the one kit that all pictures are set with: a head, rows of captioned cells, a foot; and its bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_callbacks.render.colors import CONTOUR, ColorScale, paint
from xai_callbacks.render.overlay import STYLES, draw_regions, draw_sample, fit, greyed, hatch, overlay, tile_size
from xai_callbacks.render.paper import GAP, MARGIN, MUTED, PAPER, Sizes, Strip, Tone, toned
from xai_callbacks.render.text import clean, in_blocks, line_height, text_width, wrap

SPILL: Final = 6  # a caption may be so much wider than its cell
LEAD: Final = 80
LEAD_GAP: Final = 12
TITLE_LINES: Final = 2
SAMPLE: Final = (14, 30)
INDENT: Final = SAMPLE[1] + 8
BAR_HEIGHT: Final = 8
BAR_GROUND: Final = 220.0
LITTLE: Final = 0.1  # less than this share of the scale is said to be little
MAX_PNG_COLORS: Final = 2048  # PNG can only be smaller for a picture of few colours, such as a chart; trying it is slow
LONGEST_JPEG: Final = 65500


@dataclass(frozen=True)
class Line:
    """Words at the head of a page."""

    text: str
    tone: Tone = "plain"  # their colour, and the mark that leads them
    rows: int = 2  # most lines of type; what is longer is cut


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture with its caption, or words alone."""

    pixels: NDArray[np.uint8] | None  # image `(H, W, 3)`, drawn at the size of its row; None for words alone
    caption: str = ""  # words below it; line breaks are kept
    heatmap: NDArray[np.generic] | None = None  # `(h, w)`, signed, in the unit of the colour scale, on any grid
    tone: Tone = "plain"  # colour and mark of the caption; "right" and "wrong" frame the picture, too
    # Masks `(H, W)` by name, outlined; the line style hangs on the place, so keep the order the same on a page.
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    width: int | None = None  # room, and long side of the image, in pixels; None for those of its row
    grey: bool = False  # without colours, for a heatmap that is not to be believed


@dataclass(frozen=True, eq=False)
class Row:
    """Cells side by side, in as many lines as the page is wide."""

    cells: Sequence[Cell]
    label: str = ""  # words above them, such as the name of an explainer
    size: int = 112  # room of a cell, and long side of its image, in pixels
    lines: int = 3  # most lines of a caption


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
    if cell.pixels is None:
        return None
    tile = fit(cell.pixels, tile_size((cell.pixels.shape[0], cell.pixels.shape[1]), size))
    if cell.heatmap is not None:
        tile = overlay(tile, cell.heatmap, scale)
    if cell.grey:
        tile = greyed(tile)
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


def legend(regions: Mapping[str, int], *, unknown: bool, width: int, size: int) -> Strip:
    """Draw samples of outlines, with the place of its style for each name, and of the hatch if it is used."""
    samples = [(name, draw_sample(STYLES[place % len(STYLES)], SAMPLE)) for name, place in regions.items()]
    samples += [("not finite", hatch(SAMPLE))] * unknown
    strip = Strip(len(samples) * line_height(size), width)
    for place, (name, sample) in enumerate(samples):
        y = place * line_height(size)
        strip.picture.paste(Image.fromarray(sample), (MARGIN, GAP // 2 + y + 1))
        for label in wrap(clean(name), width - INDENT, size, 1):
            strip.text((INDENT, y + size - 2), label, size)
    return strip


def color_bar(scale: ColorScale, peak: float, *, width: int, size: int) -> Strip:
    """Draw the scale with its ends and its unit, and a note if `peak`, the strongest heat, uses little of it."""
    note = f"strongest here: {peak:.2g}, less than a tenth of the scale" if peak < LITTLE * scale.limit else ""
    notes = wrap(note, width, size, 2)
    strip = Strip(BAR_HEIGHT + 6 + line_height(size) * (1 + len(notes)), width)
    unit = "".join(wrap(clean(scale.unit), width // 4, size, 1))
    left, words = text_width("against", size) + 8, width - max(text_width("for", size), text_width(unit, size))
    length, baseline = words - 8 - left, BAR_HEIGHT + 4 + size
    position = np.linspace(-1, 1, length)
    colors, opacity = paint(position)
    opacity[np.abs(np.abs(position) - CONTOUR) <= 2 / length] = 1  # as contours are drawn
    bar = np.rint(BAR_GROUND + (colors - BAR_GROUND) * opacity[:, None]).astype(np.uint8)
    strip.tile((left, 0), bar[None].repeat(BAR_HEIGHT, axis=0))
    beside = max(BAR_HEIGHT + 2, size - 5)  # type of wide pages is higher than the bar
    strip.text((0, beside), "against", size)
    strip.text((words, beside), "for", size)
    strip.text((words, baseline), unit, size, MUTED)
    limit = f"{scale.limit:.0f}" if 1000 <= scale.limit < 1e6 else f"{scale.limit:.4g}"
    for place, label in enumerate((f"≤ \N{MINUS SIGN}{limit}", "0", f"≥ {limit}")):
        strip.text((left + place * (length - text_width(label, size)) // 2, baseline), label, size, MUTED)
        x, y = MARGIN + left + place * (length - 1) // 2, GAP // 2 + BAR_HEIGHT
        strip.pen.line((x, y + 1, x, y + 4), fill=MUTED)
    for place, line in enumerate(notes, start=1):
        strip.text((0, baseline + place * line_height(size)), line, size, MUTED)
    return strip


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture `(H, W, 3)` as JPEG (quality 84, 4:4:4: type stays sharp), or as PNG if that is smaller.

    A side of more than 65500 pixels, which a JPEG cannot have, makes it a PNG.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    jpeg, png = BytesIO(), BytesIO()
    if fits := max(picture.size) <= LONGEST_JPEG:
        picture.save(jpeg, "JPEG", quality=84, subsampling=0, progressive=True)
    if not fits or picture.getcolors(MAX_PNG_COLORS) is not None:
        picture.save(png, "PNG", optimize=True)
    return min(filter(None, (jpeg.getvalue(), png.getvalue())), key=len)
