"""The foot of a page: legend and colour bar. Each part knows its height and draws itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from xai_callbacks.render.colors import CONTOUR, ColorScale, paint
from xai_callbacks.render.outlines import STYLES, draw_sample
from xai_callbacks.render.overlay import hatch
from xai_callbacks.render.paper import INK, MUTED, paste_tile
from xai_callbacks.render.text import clean, draw_text, line_height, text_width, wrap

__all__ = ["ColorBar", "Legend"]

SAMPLE: Final = (14, 30)
INDENT: Final = SAMPLE[1] + 8
BAR_HEIGHT: Final = 8
BAR_GROUND: Final = 220.0
AGAINST: Final = "against"
FOR: Final = "for"
# Less than this share of the scale is said to be little.
LITTLE: Final = 0.1


def _short(value: float) -> str:
    """A number in few characters, with a true minus sign."""
    words = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
    return words.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Legend:
    """Samples of the outlines, and of the hatch if it is used, with their names, one a line.

    Attributes:
        regions: Place of the line style by name.
        unknown: Whether the hatch is used.
        width: Width in pixels; longer names are cut.
        size: Size of type.
    """

    regions: Mapping[str, int]
    unknown: bool
    width: int
    size: int

    @property
    def height(self) -> int:
        """Height in pixels."""
        return (len(self.regions) + self.unknown) * line_height(self.size)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw at the left upper corner `at`."""
        samples = [(draw_sample(STYLES[place % len(STYLES)], SAMPLE), name) for name, place in self.regions.items()]
        x, y = at
        for sample, name in [*samples, *[(hatch(SAMPLE), "not finite")] * self.unknown]:
            page.paste(Image.fromarray(sample), (x, y + 1))
            for label in wrap(clean(name), self.width - INDENT, self.size, 1):
                draw_text(ImageDraw.Draw(page), (x + INDENT, y + self.size - 2), label, self.size, INK)
            y += line_height(self.size)


@dataclass(frozen=True)
class ColorBar:
    """The scale as a bar, with ticks in its unit, words for the two sides, and a note if little of it is used.

    Attributes:
        scale: The scale.
        width: Width of all in pixels.
        size: Size of type.
        peak: Largest magnitude on the page; 0 if there is no heat at all.
    """

    scale: ColorScale
    width: int
    size: int
    peak: float

    @property
    def note(self) -> str:
        """Sentence for a page that uses less than a tenth of the scale; else empty."""
        if self.peak >= LITTLE * self.scale.limit:
            return ""
        return f"strongest here: {self.peak:.2g}, less than a tenth of the scale"

    @property
    def height(self) -> int:
        """Height in pixels."""
        return BAR_HEIGHT + 6 + line_height(self.size) * (1 + len(self._notes()))

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw at the left upper corner `at`."""
        pen = ImageDraw.Draw(page)
        x, y = at
        unit = "".join(wrap(clean(self.scale.unit), self.width // 4, self.size, 1))
        left = x + text_width(AGAINST, self.size) + 8
        words = x + self.width - max(text_width(FOR, self.size), text_width(unit, self.size))
        right = words - 8
        _paste_bar(page, (left, y), right - left)
        draw_text(pen, (x, y + BAR_HEIGHT + 2), AGAINST, self.size, INK)
        draw_text(pen, (words, y + BAR_HEIGHT + 2), FOR, self.size, INK)
        baseline = y + BAR_HEIGHT + 6 + self.size - 2
        draw_text(pen, (words, baseline), unit, self.size, MUTED)
        for label, column, start in self.ticks(left, right):
            pen.line((column, y + BAR_HEIGHT + 1, column, y + BAR_HEIGHT + 4), fill=MUTED)
            draw_text(pen, (start, baseline), label, self.size, MUTED)
        for line in self._notes():
            baseline += line_height(self.size)
            draw_text(pen, (x, baseline), line, self.size, MUTED)

    def ticks(self, left: int, right: int) -> list[tuple[str, int, int]]:
        """Label, column and start of the label of each tick: the ends, and what has room between them.

        Labels are wider on the negative side; ticks come in pairs, so that the two sides always look alike.
        """
        least, most = (f"{sign} {_short(value)}" for sign, value in (("≤", -self.scale.limit), ("≥", self.scale.limit)))
        middle, half, free = (left + right - 1) // 2, (right - left - 1) / 2, text_width(least, self.size) + 6
        ticks = [(least, left, left), (most, right - 1, right - text_width(most, self.size))]
        inner = 0
        for value in (0.0, 10.0 ** math.floor(math.log10(0.6 * self.scale.limit))):
            reach = round(float(self.scale.position(np.array([value]))[0]) * half)
            room = text_width(_short(-value), self.size) // 2
            if reach + room + free <= half and (not value or reach - room >= inner):
                inner = reach + room + 6
                for sign in (-1, 1) if value else (1,):
                    label, column = _short(sign * value), middle + sign * reach
                    ticks.append((label, column, column - text_width(label, self.size) // 2))
        return sorted(ticks, key=lambda tick: tick[1])

    def _notes(self) -> list[str]:
        return wrap(self.note, self.width, self.size, 2) if self.note else []


def _paste_bar(page: Image.Image, at: tuple[int, int], width: int) -> None:
    position = np.linspace(-1, 1, max(1, width))
    colors, opacity = paint(position)
    opacity[np.abs(np.abs(position) - CONTOUR) <= 2 / width] = 1  # as contours are drawn
    row = np.rint(BAR_GROUND + (colors - BAR_GROUND) * opacity[:, None]).astype(np.uint8)
    paste_tile(page, np.ascontiguousarray(np.broadcast_to(row, (BAR_HEIGHT, *row.shape))), at)
