"""Small charts as cells of a page: a line of shares, and a field of probes looked at and used."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.render.paper import HAIRLINE, INK, MUTED, PAPER
from xai_callbacks.render.text import Color, draw_text, line_height, text_width

FINE: Final = 3  # drawn so much larger and reduced, so that lines and dots are smooth
RADIUS: Final = 4
LINE_COLOR: Final[Color] = (0, 90, 150)
USED: Final[Color] = (213, 94, 0)
NOT_USED: Final[Color] = (0, 114, 178)
TINT: Final[Color] = (255, 242, 230)
LOWEST: Final = -0.25
TICKS: Final = (0.0, 0.05, 0.2, 0.5, 1.0)


def line_chart(shares: Sequence[float], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw shares in [0, 1] over audits, oldest first, NaN where unknown, as a line on a chart of height and width."""
    height, width = size[0] * FINE, size[1] * FINE
    large = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(large)
    pen.rectangle((0, 0, width - 1, height - 1), outline=HAIRLINE, width=FINE)
    pen.line((0, height // 2, width, height // 2), fill=HAIRLINE, width=FINE)
    inset = 6 * FINE
    step = (width - 2 * inset) / max(1, len(shares) - 1)
    # From the right, so that a single audit stands at the last step.
    points = [
        (width - inset - ago * step, height - inset - share * (height - 2 * inset))
        for ago, share in zip(reversed(range(len(shares))), shares, strict=True)
    ]
    for before, after in pairwise(points):
        if not math.isnan(before[1] + after[1]):
            pen.line([before, after], fill=LINE_COLOR, width=2 * FINE)
    for x, y in [point for point in points if not math.isnan(point[1])][-1:]:
        _dot(pen, x, y, LINE_COLOR)
    return np.array(large.resize((size[1], size[0]), Image.Resampling.BOX))


def field_chart(
    points: Sequence[tuple[float, float]], *, chance: float, threshold: float, size: tuple[int, int], type_size: int
) -> NDArray[np.uint8]:
    """Draw where each probe lies: looked at to the right, used upwards.

    Both axes are those of the square root, and fixed: charts of several audits can be compared.

    Args:
        points: Share of the heat on the cue, in [0, 1], and pull of the cue, in [-1, 1], of each probe. Pulls
            below -.25 stand at the lower edge.
        chance: Share of heat by chance, in [0, 1]: right of it a probe is looked at.
        threshold: Pull above which the cue is used, in [0, 1].
        size: Height and width in pixels.
        type_size: Size of type in pixels.
    """
    step = line_height(type_size)
    left, below = text_width("0.05", type_size) + step + 8, 2 * step + 4
    height, width = size[0] - below, size[1] - left
    page = Image.new("RGB", (size[1], size[0]), PAPER)
    pen = ImageDraw.Draw(page)
    words = "pull of the cue (used)"
    draw_text(pen, ((height - text_width(words, type_size)) // 2, type_size), words, type_size, INK)
    upright = page.crop((0, 0, height, step)).transpose(Image.Transpose.ROTATE_90)
    pen.rectangle((0, 0, height, step), fill=PAPER)
    page.paste(upright, (0, 0))
    page.paste(_dots(_ground(chance, threshold, (height, width), type_size), points, threshold), (left, 0))
    for value in TICKS:
        label, half = f"{value:g}", text_width(f"{value:g}", type_size) // 2
        row = max(round(_row(value, height)) + type_size // 3, type_size)
        draw_text(pen, (left - 6 - 2 * half, row), label, type_size, MUTED)
        column = min(round(math.sqrt(value) * width) - half, width - 2 * half - 1)
        draw_text(pen, (left + column, height + type_size), label, type_size, MUTED)
    words = "heat on the cue (looked at)"
    draw_text(pen, (left + (width - text_width(words, type_size)) // 2, size[0] - 4), words, type_size, INK)
    return np.array(page)


def _row(used: float, height: int) -> float:
    """Pixels from the top."""
    low, root = -math.sqrt(-LOWEST), math.copysign(math.sqrt(abs(used)), used)
    return (1 - max(root, low)) / (1 - low) * (height - 1)


def _ground(chance: float, threshold: float, size: tuple[int, int], type_size: int) -> Image.Image:
    """Lines and words, below the dots: none of those is ever hidden."""
    height, width = size
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    zero, limit, level = round(_row(0, height)), round(_row(threshold, height)), round(math.sqrt(chance) * (width - 1))
    pen.rectangle((0, 0, width, limit), fill=TINT)
    pen.line((0, zero, width, zero), fill=HAIRLINE)
    pen.line((0, limit, width, limit), fill=MUTED)
    pen.line((level, 0, level, height), fill=MUTED)
    pen.rectangle((0, 0, width - 1, height - 1), outline=HAIRLINE)
    used, words = f"used: above {threshold:g}", f"chance {chance:.2g}"
    above = limit - 5 if limit > line_height(type_size) else limit + type_size + 2
    draw_text(pen, (width - 6 - text_width(used, type_size), above), used, type_size, MUTED)
    right = level + 6 + text_width(words, type_size) < width
    start = level + 6 if right else level - 6 - text_width(words, type_size)
    draw_text(pen, (start, height - 6), words, type_size, MUTED)
    return page


def _dots(ground: Image.Image, points: Sequence[tuple[float, float]], threshold: float) -> Image.Image:
    width, height = ground.size
    large = ground.resize((width * FINE, height * FINE), Image.Resampling.NEAREST)
    pen, radius = ImageDraw.Draw(large), RADIUS * FINE
    for looked, used in points:
        # Whole within the field: effects of 1 are common. The middle of a pixel is `FINE // 2` into it.
        x = np.clip(math.sqrt(looked) * (width - 1) * FINE + FINE // 2, radius, large.width - 1 - radius)
        y = np.clip(_row(used, height) * FINE + FINE // 2, radius, large.height - 1 - radius)
        _dot(pen, x, y, USED if used > threshold else NOT_USED, PAPER)
    return large.resize(ground.size, Image.Resampling.BOX)


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, color: Color, outline: Color | None = None) -> None:
    radius = RADIUS * FINE
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), color, outline, width=FINE)
