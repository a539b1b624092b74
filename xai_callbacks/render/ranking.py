"""The most novel probes of one audit, with where they stood in earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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

__all__ = ["Ranked", "render_ranking"]

WIDTH: Final = 620
THUMBNAIL: Final = 96
BOUNDS: Final = (80, 112)
PLACE: Final = 30
GAP: Final = 14
CHART: Final = (180, 72)
LINES: Final = 5
AXIS: Final = "share of probes less novel"
LINE_COLOR: Final = (0, 90, 150)
FINE: Final = 4


@dataclass(frozen=True, eq=False)
class Ranked:
    """One probe of a ranking.

    Attributes:
        pixels: The probe `(H, W, 3)` uint8, as people see it. Not copied.
        caption: What is known of it; line breaks are kept.
        value: Its score, as text.
        trend: Share of the probes that were less novel, in [0, 1], one number an audit, oldest first; NaN where it is
            not known.

    Raises:
        ConfigurationError: An attribute is of another kind.
    """

    pixels: NDArray[np.uint8]
    caption: str
    value: str
    trend: Sequence[float] = ()

    def __post_init__(self) -> None:
        require_pixels(self.pixels)
        require_text("caption", self.caption)
        require_text("value", self.value)
        if any(not math.isnan(share) and not 0 <= share <= 1 for share in self.trend):
            raise ConfigurationError(
                f"Expected `trend` to hold shares in [0, 1] or NaN, but got {list(self.trend)}. Pass shares of probes."
            )


def render_ranking(
    ranked: Sequence[Ranked], *, title: str, subtitle: str = "", steps: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Draw probes below each other, most novel first: picture, words, score, and a small chart of its past.

    Args:
        ranked: At least one.
        title: Name of the score and step.
        subtitle: How many of how many are shown.
        steps: Steps of the audits of the trends, oldest first.

    Returns:
        A new RGB picture `(H, W, 3)` uint8, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: An argument is of another kind, or a trend is not as long as `steps`.
    """
    _require_ranked(ranked)
    for row in ranked:
        if len(row.trend) != len(steps):
            raise ConfigurationError(
                f"Expected every `trend` to have one share for each of the {len(steps)} `steps`, but got "
                f"{len(row.trend)}. Pass NaN where a share is not known."
            )
    require_text("title", title)
    require_text("subtitle", subtitle)
    rows = [_Row.of(place, row) for place, row in enumerate(ranked, start=1)]
    return stack([Header.of(title, subtitle, None, WIDTH), *rows, _Axis(tuple(steps))], WIDTH)


def _require_ranked(ranked: object) -> None:
    if not isinstance(ranked, Sequence) or not ranked or not all(isinstance(row, Ranked) for row in ranked):
        raise ConfigurationError(
            f"Expected `ranked` to be a sequence of at least one Ranked, but got {describe(ranked)}. Leave the picture "
            "out where there are no scores."
        )


@dataclass(frozen=True, eq=False)
class _Row:
    place: int
    picture: NDArray[np.uint8]
    lines: list[str]
    trend: Sequence[float]

    @classmethod
    def of(cls, place: int, ranked: Ranked) -> _Row:
        height, width = ranked.pixels.shape[:2]
        picture = fit_image(ranked.pixels, tile_size((height, width), THUMBNAIL, BOUNDS))
        room = WIDTH - PLACE - BOUNDS[1] - (CHART[0] + GAP if ranked.trend else 0) - 2 * GAP
        words = f"{ranked.caption}\nscore: {ranked.value}"
        return cls(place, picture, wrap(clean(words, lines=True), room, TEXT_SIZE, LINES), ranked.trend)

    @property
    def height(self) -> int:
        text = len(self.lines) * line_height(TEXT_SIZE)
        return max(int(self.picture.shape[0]), text, CHART[1] if self.trend else 0)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        left, top = at
        draw_text(pen, (left, top + TEXT_SIZE - 2), str(self.place), TEXT_SIZE, MUTED)
        paste_tile(page, self.picture, (left + PLACE, top))
        baseline = top + TEXT_SIZE - 2
        for line in self.lines:
            draw_text(pen, (left + PLACE + BOUNDS[1] + GAP, baseline), line, TEXT_SIZE, INK)
            baseline += line_height(TEXT_SIZE)
        if self.trend:
            page.paste(_chart(self.trend), (left + WIDTH - CHART[0], top))


def _chart(trend: Sequence[float]) -> Image.Image:
    """A small line chart from 0 at the bottom to 1 at the top, drawn large and reduced so that its lines are smooth."""
    width, height = CHART[0] * FINE, CHART[1] * FINE
    large = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(large)
    pen.rectangle((0, 0, width - 1, height - 1), outline=HAIRLINE, width=FINE)
    pen.line((0, height // 2, width, height // 2), fill=HAIRLINE, width=FINE)
    inset = 6 * FINE
    step = (width - 2 * inset) / max(1, len(trend) - 1)
    points = [
        None if math.isnan(share) else (inset + place * step, height - inset - share * (height - 2 * inset))
        for place, share in enumerate(trend)
    ]
    for before, after in pairwise(points):
        if before is not None and after is not None:
            pen.line([before, after], fill=LINE_COLOR, width=2 * FINE)
    known = [point for point in points if point is not None]
    for x, y in known[-1:]:
        radius = 4 * FINE
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=LINE_COLOR)
    return large.resize(CHART, Image.Resampling.BOX)


@dataclass(frozen=True)
class _Axis:
    """What the charts show, below the last of them."""

    steps: tuple[int, ...]

    @property
    def height(self) -> int:
        return 2 * line_height(SMALL_SIZE) if self.steps else 0

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        left, right = at[0] + WIDTH - CHART[0], at[0] + WIDTH
        first, last = f"step {self.steps[0]}", f"step {self.steps[-1]}"
        baseline = at[1] + SMALL_SIZE - 8
        if len(self.steps) > 1:
            draw_text(pen, (left, baseline), first, SMALL_SIZE, MUTED)
        draw_text(pen, (right - text_width(last, SMALL_SIZE), baseline), last, SMALL_SIZE, MUTED)
        draw_text(
            pen, (right - text_width(AXIS, SMALL_SIZE), baseline + line_height(SMALL_SIZE)), AXIS, SMALL_SIZE, MUTED
        )
