"""Looked at and used: each probe by the heat on a cue and by what the cue does to the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.checks import describe, require_pixels, require_text
from xai_callbacks.render.furniture import Header
from xai_callbacks.render.page import HAIRLINE, INK, MUTED, PAPER, SMALL_SIZE, TEXT_SIZE, paste_tile, stack
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import clean, draw_text, line_height, text_width, wrap

__all__ = ["Placed", "render_quadrants"]

WIDTH: Final = 640
CHART: Final = (WIDTH - 60, 400)
AXIS: Final = 60
FINE: Final = 3
LOWEST: Final = -0.25
THUMBNAIL: Final = 56
SHOWN: Final = 5
GAP: Final = 8
DOT: Final = {True: (213, 94, 0), False: (0, 114, 178)}
TINT: Final = (255, 242, 230)

QUADRANTS: Final = (
    # used, looked at, in words
    (True, False, "used, not looked at"),
    (True, True, "used and looked at"),
    (False, False, "neither"),
    (False, True, "looked at, not used"),
)


@dataclass(frozen=True, eq=False)
class Placed:
    """One probe.

    Attributes:
        pixels: The probe `(H, W, 3)` uint8. Not copied.
        looked: Share of the heat on the cue, in [0, 1].
        used: Effect of the cue on the answer, in [-1, 1].

    Raises:
        ConfigurationError: An attribute is of another kind or out of range.
    """

    pixels: NDArray[np.uint8]
    looked: float
    used: float

    def __post_init__(self) -> None:
        require_pixels(self.pixels)
        for name, value, low in (("looked", self.looked, 0), ("used", self.used, -1)):
            if not low <= value <= 1:
                raise ConfigurationError(f"Expected `{name}` to be in [{low}, 1], but got {value}.")


def render_quadrants(
    placed: Sequence[Placed], *, chance: float, threshold: float, title: str, subtitle: str = ""
) -> NDArray[np.uint8]:
    """Draw where each probe lies: heat on the cue to the right, effect of the cue upwards, and examples below.

    Both scales are those of the square root, and fixed: pictures of several audits can be compared. Effects below -.25
    stand at the lower edge.

    Args:
        placed: At least one probe.
        chance: Share of heat by chance, the area of the cue: right of it a probe is looked at.
        threshold: Effect above which the cue is used.
        title: Name of the cue and step.
        subtitle: A line below it.

    Returns:
        A new RGB picture `(H, W, 3)` uint8, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: An argument is of another kind or out of range.
    """
    if not placed or not all(isinstance(probe, Placed) for probe in placed):
        raise ConfigurationError(
            f"Expected `placed` to be a sequence of at least one Placed, but got {describe(placed)}. Leave the picture "
            "out where no probe has both values."
        )
    for name, value in (("chance", chance), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise ConfigurationError(f"Expected `{name}` to be in [0, 1], but got {value}.")
    require_text("title", title)
    require_text("subtitle", subtitle)
    boxes = [
        _Box(words, [probe for probe in placed if _kind(probe, chance, threshold) == (used, looked)], len(placed))
        for used, looked, words in QUADRANTS
    ]
    header, chart = Header.of(title, subtitle, None, WIDTH), _Chart(placed, chance, threshold)
    return stack([header, chart, _Pair(boxes[0], boxes[1]), _Pair(boxes[2], boxes[3])], WIDTH)


def _kind(probe: Placed, chance: float, threshold: float) -> tuple[bool, bool]:
    return probe.used > threshold, probe.looked > chance


def _root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)


@dataclass(frozen=True, eq=False)
class _Chart:
    placed: Sequence[Placed]
    chance: float
    threshold: float

    @property
    def height(self) -> int:
        return CHART[1] + 2 * line_height(SMALL_SIZE) + 10

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        left, top = at[0] + AXIS, at[1]
        page.paste(self._field(), (left, top))
        for value in (0.0, 0.05, 0.2, 0.5, 1.0):
            label = f"{value:g}"
            row = top + round(self._row(value))
            draw_text(pen, (left - 8 - text_width(label, SMALL_SIZE), row + 5), label, SMALL_SIZE, MUTED)
            column = left + round(_root(value) * (CHART[0] - 1))
            half = text_width(label, SMALL_SIZE) // 2
            place = min(column - half, left + CHART[0] - 2 * half)
            draw_text(pen, (place, top + CHART[1] + SMALL_SIZE + 4), label, SMALL_SIZE, MUTED)
        baseline = top + CHART[1] + SMALL_SIZE + 6 + line_height(SMALL_SIZE)
        words = "share of the heat on the cue (looked at)"
        draw_text(pen, (left + (CHART[0] - text_width(words, SMALL_SIZE)) // 2, baseline), words, SMALL_SIZE, INK)
        page.paste(_upright("effect of the cue (used)", CHART[1]), (at[0] - 4, top))

    def _row(self, value: float) -> float:
        """Pixels from the top."""
        span = 1 - _root(LOWEST)
        return (1 - _root(max(value, LOWEST))) / span * (CHART[1] - 1)

    def _field(self) -> Image.Image:
        """Lines and words first: a dot is never hidden."""
        page = self._ground()
        large = page.resize((CHART[0] * FINE, CHART[1] * FINE), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(large)
        radius = 5 * FINE
        for probe in self.placed:
            # Whole within the field: effects of 1 are common. The middle of a pixel is `FINE // 2` into it.
            x = _within(_root(probe.looked) * (CHART[0] - 1) * FINE + FINE // 2, radius, large.width)
            y = _within(self._row(probe.used) * FINE + FINE // 2, radius, large.height)
            color = DOT[probe.used > self.threshold]
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=PAPER, width=FINE)
        return large.resize(CHART, Image.Resampling.BOX)

    def _ground(self) -> Image.Image:
        width, height = CHART
        page = Image.new("RGB", CHART, PAPER)
        pen = ImageDraw.Draw(page)
        zero, limit, level = (
            round(self._row(0)),
            round(self._row(self.threshold)),
            round(_root(self.chance) * (width - 1)),
        )
        pen.rectangle((0, 0, width, limit), fill=TINT)
        pen.line((0, zero, width, zero), fill=HAIRLINE)
        pen.line((0, limit, width, limit), fill=MUTED)
        pen.line((level, 0, level, height), fill=MUTED)
        pen.rectangle((0, 0, width - 1, height - 1), outline=HAIRLINE)
        # To the right, where few probes have so much heat.
        used, chance = f"used above {self.threshold:g}", f"chance {self.chance:.2g}"
        above = limit - 6 if limit > line_height(SMALL_SIZE) else limit + SMALL_SIZE + 2
        draw_text(pen, (width - 8 - text_width(used, SMALL_SIZE), above), used, SMALL_SIZE, MUTED)
        room = level + 6 + text_width(chance, SMALL_SIZE) < width
        beside = level + 6 if room else level - 6 - text_width(chance, SMALL_SIZE)
        draw_text(pen, (beside, height - 8), chance, SMALL_SIZE, MUTED)
        return page


def _within(place: float, radius: int, length: int) -> float:
    return min(max(place, radius), length - 1 - radius)


def _upright(words: str, length: int) -> Image.Image:
    line = Image.new("RGB", (length, line_height(SMALL_SIZE)), PAPER)
    draw_text(ImageDraw.Draw(line), ((length - text_width(words, SMALL_SIZE)) // 2, SMALL_SIZE), words, SMALL_SIZE, INK)
    return line.transpose(Image.Transpose.ROTATE_90)


@dataclass(frozen=True, eq=False)
class _Box:
    """One quadrant: how many probes, and those furthest into it."""

    words: str
    probes: Sequence[Placed]
    total: int

    def draw(self, page: Image.Image, at: tuple[int, int], width: int) -> None:
        pen = ImageDraw.Draw(page)
        heading = f"{self.words}: {len(self.probes)} ({len(self.probes) / self.total:.0%})"
        for line in wrap(clean(heading), width, TEXT_SIZE, 1):
            draw_text(pen, (at[0], at[1] + TEXT_SIZE - 2), line, TEXT_SIZE, INK)
        x, y = at[0], at[1] + line_height(TEXT_SIZE) + 4
        most = sorted(self.probes, key=lambda probe: abs(probe.used) + abs(probe.looked), reverse=True)
        for probe in most[:SHOWN]:
            height, wide = probe.pixels.shape[:2]
            picture = fit_image(probe.pixels, tile_size((height, wide), THUMBNAIL, (THUMBNAIL, THUMBNAIL)))
            paste_tile(page, picture, (x, y))
            x += THUMBNAIL + GAP


@dataclass(frozen=True, eq=False)
class _Pair:
    left: _Box
    right: _Box

    @property
    def height(self) -> int:
        return line_height(TEXT_SIZE) + 4 + THUMBNAIL

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        half = WIDTH // 2
        self.left.draw(page, at, half - GAP)
        self.right.draw(page, (at[0] + half, at[1]), half - GAP)
