"""What stands around the tiles: header, legend, colour bar. Each part knows its height and draws itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageDraw

from xai_callbacks.render.colors import ColorScale, color_table
from xai_callbacks.render.outlines import Outline, draw_sample
from xai_callbacks.render.overlay import SOFT_WHITE, hatch
from xai_callbacks.render.page import INK, MUTED, PAPER, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, paste_tile
from xai_callbacks.render.text import clean, draw_text, line_height, text_width, wrap

__all__ = ["ColorBar", "Header", "Legend", "Verdict"]

Color = tuple[int, int, int]
Verdict = Literal["right", "wrong", "unknown"]

RIGHT_COLOR: Final[Color] = (0, 112, 96)
WRONG_COLOR: Final[Color] = (176, 0, 58)

MARK_SIZE: Final = 18
BAR_HEIGHT: Final = 14
AGAINST: Final = "against"
FOR: Final = "for"


@dataclass(frozen=True)
class Header:
    """Title and the line below it, which a mark of the verdict leads."""

    title: list[str]
    subtitle: list[str]
    verdict: Verdict | None

    @classmethod
    def of(cls, title: str, subtitle: str, verdict: Verdict | None, width: int) -> Header:
        """Fit the texts to a width. A long title loses its middle, so that a step at its end stays."""
        words = clean(subtitle, lines=True)
        if not words and verdict in ("right", "wrong"):
            words = verdict
        indent = MARK_SIZE + 8 if verdict and words else 0
        return cls(
            wrap(clean(title), width, TITLE_SIZE, 2, middle=True),
            wrap(words, width - indent, TEXT_SIZE, 3, middle="\n" not in words),
            verdict if words else None,
        )

    @property
    def height(self) -> int:
        """Height in pixels; 0 without any text."""
        title, subtitle = len(self.title) * line_height(TITLE_SIZE), len(self.subtitle) * line_height(TEXT_SIZE)
        return title + subtitle + (4 if title and subtitle else 0)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw at the left upper corner `at`."""
        draw = ImageDraw.Draw(page)
        x, y = at
        for line in self.title:
            draw_text(draw, (x, y + TITLE_SIZE - 2), line, TITLE_SIZE, INK, bold=True)
            y += line_height(TITLE_SIZE)
        y += 4 if self.title else 0
        if self.verdict:
            mark = _mark(self.verdict)
            page.paste(mark, (x, y), mark)
            x += MARK_SIZE + 8
        for line in self.subtitle:
            draw_text(draw, (x, y + TEXT_SIZE - 1), line, TEXT_SIZE, INK)
            y += line_height(TEXT_SIZE)


@lru_cache(maxsize=3)
def _mark(verdict: Verdict) -> Image.Image:
    """A disc with a check, a square with a cross, or a ring: told apart by shape, not by colour alone."""
    fine = 8
    side = MARK_SIZE * fine
    large = Image.new("RGBA", (side, side), (*PAPER, 0))
    draw = ImageDraw.Draw(large)
    stroke = round(2.2 * fine)
    if verdict == "right":
        draw.ellipse((0, 0, side - 1, side - 1), fill=RIGHT_COLOR)
        points = [(0.27 * side, 0.53 * side), (0.44 * side, 0.70 * side), (0.74 * side, 0.33 * side)]
        draw.line(points, fill=PAPER, width=stroke, joint="curve")
    elif verdict == "wrong":
        draw.rounded_rectangle((fine, fine, side - fine, side - fine), radius=3 * fine, fill=WRONG_COLOR)
        low, high = 0.31 * side, 0.69 * side
        draw.line([(low, low), (high, high)], fill=PAPER, width=stroke)
        draw.line([(low, high), (high, low)], fill=PAPER, width=stroke)
    else:
        draw.ellipse((2 * fine, 2 * fine, side - 2 * fine, side - 2 * fine), outline=MUTED, width=stroke)
    return large.resize((MARK_SIZE, MARK_SIZE), Image.Resampling.BOX)


@dataclass(frozen=True)
class Legend:
    """Samples of the outlines, and of the hatch if it is used, with their names."""

    entries: list[tuple[np.ndarray, str, int, int]]
    height: int

    @classmethod
    def of(cls, outlines: Mapping[str, Outline], unknown: bool, width: int) -> Legend:
        """Set the entries in lines of at most `width` pixels."""
        samples = [(draw_sample(outline.style, (14, 30)), name) for name, outline in outlines.items()]
        if unknown:
            samples.append((hatch((14, 30)), "not finite"))
        entries = []
        x = y = 0
        for sample, name in samples:
            label = "".join(wrap(clean(name), width - 38, SMALL_SIZE, 1))
            needed = 38 + text_width(label, SMALL_SIZE)
            if x and x + needed > width:
                x, y = 0, y + line_height(SMALL_SIZE) + 2
            entries.append((sample, label, x, y))
            x += needed + 20
        return cls(entries, y + line_height(SMALL_SIZE) if entries else 0)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw at the left upper corner `at`."""
        draw = ImageDraw.Draw(page)
        for sample, label, x, y in self.entries:
            page.paste(Image.fromarray(sample), (at[0] + x, at[1] + y + 2))
            draw_text(draw, (at[0] + x + 38, at[1] + y + SMALL_SIZE - 1), label, SMALL_SIZE, INK)


@dataclass(frozen=True)
class ColorBar:
    """The scale as a bar, with ticks in its unit and words for the two sides."""

    scale: ColorScale
    width: int

    @property
    def height(self) -> int:
        """Height in pixels."""
        return BAR_HEIGHT + 6 + line_height(SMALL_SIZE)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw at the left upper corner `at`."""
        pen = ImageDraw.Draw(page)
        x, y = at
        # Half of an end label juts out to either side of the bar.
        overhang = text_width(self._label(-self.scale.limit), SMALL_SIZE) // 2
        unit = "".join(wrap(clean(self.scale.unit), self.width // 4, SMALL_SIZE, 1))
        left = x + max(text_width(AGAINST, SMALL_SIZE) + 10, overhang)
        words = x + self.width - max(text_width(FOR, SMALL_SIZE), text_width(unit, SMALL_SIZE))
        right = words - overhang - 8
        _paste_bar(page, (left, y), right - left)
        draw_text(pen, (x, y + BAR_HEIGHT - 2), AGAINST, SMALL_SIZE, INK)
        draw_text(pen, (words, y + BAR_HEIGHT - 2), FOR, SMALL_SIZE, INK)
        baseline = y + BAR_HEIGHT + 6 + SMALL_SIZE - 1
        draw_text(pen, (words, baseline), unit, SMALL_SIZE, MUTED)
        for tick, column in self._places(left, right):
            pen.line((column, y + BAR_HEIGHT + 1, column, y + BAR_HEIGHT + 5), fill=MUTED)
            label = self._label(tick)
            draw_text(pen, (column - text_width(label, SMALL_SIZE) // 2, baseline), label, SMALL_SIZE, MUTED)

    @staticmethod
    def _label(tick: float) -> str:
        return f"{tick:.0f}" if 1000 <= abs(tick) < 1e6 else f"{tick:.4g}"

    def _places(self, left: int, right: int) -> list[tuple[float, int]]:
        """Ticks and their columns: both ends, zero, and between them what keeps its distance on the negative side.

        Labels are wider there for their sign; ticks come in pairs, so that the two sides always look alike.
        """
        middle, half = (left + right - 1) // 2, (right - left - 1) / 2
        room = {tick: text_width(self._label(-tick), SMALL_SIZE) / 2 + 5 for tick in self.scale.ticks()}

        def reach(tick: float) -> int:
            return round(float(self.scale.position(np.array([tick]))[0]) * half)

        shown = [0.0, self.scale.limit]
        for tick in sorted((tick for tick in room if 0 < tick < self.scale.limit), reverse=True):
            if all(abs(reach(tick) - reach(other)) >= room[tick] + room[other] for other in shown):
                shown.append(tick)
        return [(0.0, middle)] + [(sign * tick, middle + sign * reach(tick)) for tick in shown[1:] for sign in (-1, 1)]


def _paste_bar(page: Image.Image, at: tuple[int, int], width: int) -> None:
    colors, opacity = color_table()
    index = np.rint(np.linspace(0, len(colors) - 1, width)).astype(np.intp)
    base = np.float32(SOFT_WHITE - 26)
    row = np.rint(base + (colors[index] - base) * opacity[index, None]).astype(np.uint8)
    paste_tile(page, np.ascontiguousarray(np.broadcast_to(row, (BAR_HEIGHT, width, 3))), at)
