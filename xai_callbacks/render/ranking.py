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
BOUNDS: Final = (80, 96)
PLACE: Final = 30
GAP: Final = 14
# As high as a picture, so that the steps stand right below the last chart.
CHART: Final = (180, 96)
CAPTION_LINES: Final = 4
HEAD: Final = "share of probes that are less novel"
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
            not known. Empty for no chart.

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
        object.__setattr__(self, "trend", _require_trend(self.trend))


def _require_trend(trend: object) -> tuple[float, ...]:
    shares = trend.tolist() if isinstance(trend, np.ndarray) and trend.ndim == 1 else trend
    numbers = isinstance(shares, Sequence) and all(isinstance(share, int | float | np.number) for share in shares)
    if not isinstance(shares, Sequence) or not numbers:
        raise ConfigurationError(
            f"Expected `trend` to be a sequence of numbers, but got {describe(trend)}. Pass one share for each audit."
        )
    if any(not math.isnan(share) and not 0 <= share <= 1 for share in shares):
        raise ConfigurationError(
            f"Expected `trend` to hold shares in [0, 1] or NaN, but got {list(shares)}. Pass shares of probes."
        )
    return tuple(float(share) for share in shares)


def render_ranking(
    ranked: Sequence[Ranked], *, title: str, subtitle: str = "", steps: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Draw probes below each other, most novel first: picture, words, score, and a small chart of its past.

    Args:
        ranked: At least one.
        title: Name of the score and step.
        subtitle: How many of how many are shown.
        steps: Steps of the audits of the trends, oldest first. Not needed if no probe has a trend.

    Returns:
        A new RGB picture `(H, W, 3)` uint8, C-contiguous. Equal arguments give equal bytes.

    Raises:
        ConfigurationError: An argument is of another kind, or a trend is not as long as `steps`.
    """
    _require_ranked(ranked)
    _require_steps(steps)
    for row in ranked:
        if row.trend and len(row.trend) != len(steps):
            raise ConfigurationError(
                f"Expected every `trend` to have one share for each of the {len(steps)} `steps`, but got "
                f"{len(row.trend)}. Pass NaN where a share is not known."
            )
    require_text("title", title)
    require_text("subtitle", subtitle)
    header = Header.of(title, subtitle, None, WIDTH)
    rows = [_Row.of(place, row) for place, row in enumerate(ranked, start=1)]
    if not any(row.trend for row in ranked):
        return stack([header, *rows], WIDTH)
    return stack([header, _Head(wrap(HEAD, CHART[0], SMALL_SIZE, 2)), *rows, _Axis(steps[0], steps[-1])], WIDTH)


def _require_ranked(ranked: object) -> None:
    if not isinstance(ranked, Sequence) or not ranked or not all(isinstance(row, Ranked) for row in ranked):
        raise ConfigurationError(
            f"Expected `ranked` to be a sequence of at least one Ranked, but got {describe(ranked)}. Leave the picture "
            "out where there are no scores."
        )


def _require_steps(steps: object) -> None:
    whole = isinstance(steps, Sequence) and all(isinstance(step, int | np.integer) for step in steps)
    if isinstance(steps, str) or not whole:
        raise ConfigurationError(
            f"Expected `steps` to be a sequence of whole numbers, but got {describe(steps)}. "
            f"Pass the step of each audit."
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
        caption = wrap(clean(ranked.caption, lines=True), room, TEXT_SIZE, CAPTION_LINES)
        # Set apart from the caption: a long name must not cut off the score.
        score = wrap(clean(f"score: {ranked.value}"), room, TEXT_SIZE, 1)
        return cls(place, picture, caption + score, ranked.trend)

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
    # From the right, so that a single audit stands at the last step.
    points = [
        None if math.isnan(share) else (width - inset - ago * step, height - inset - share * (height - 2 * inset))
        for ago, share in zip(reversed(range(len(trend))), trend, strict=True)
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
class _Head:
    """What the charts show, above the first of them."""

    lines: list[str]

    @property
    def height(self) -> int:
        return len(self.lines) * line_height(SMALL_SIZE)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        baseline = at[1] + SMALL_SIZE + 6  # closer to the charts than parts usually are
        for line in self.lines:
            draw_text(pen, (at[0] + WIDTH - CHART[0], baseline), line, SMALL_SIZE, MUTED)
            baseline += line_height(SMALL_SIZE)


@dataclass(frozen=True)
class _Axis:
    """The first and the last step of the charts, below the last of them."""

    first: int
    last: int

    @property
    def height(self) -> int:
        return line_height(SMALL_SIZE)

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        pen = ImageDraw.Draw(page)
        left, right = at[0] + WIDTH - CHART[0], at[0] + WIDTH
        first, last = f"step {self.first}", f"step {self.last}"
        start = right - text_width(last, SMALL_SIZE)
        baseline = at[1] + SMALL_SIZE - 8
        if first != last and left + text_width(first, SMALL_SIZE) + GAP <= start:
            draw_text(pen, (left, baseline), first, SMALL_SIZE, MUTED)
        draw_text(pen, (start, baseline), last, SMALL_SIZE, MUTED)
