"""The paper that pictures are drawn on: colours, tones of words, sizes of type, parts set below each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render.text import BLOCK, draw_text, in_blocks, line_height, text_width

__all__ = [
    "HAIRLINE", "INK", "MARGIN", "MUTED", "PAPER", "TONES", "Color", "Part", "Sizes", "Tone", "draw_toned",
    "paste_tile", "require_tone", "stack", "toned",
]  # fmt: skip

Color = tuple[int, int, int]
Tone = Literal["plain", "muted", "right", "wrong", "watch", "alarm"]

# The picture brings its own paper: it looks the same in the light and the dark mode of a viewer.
# All greys are neutral, as type in a tinted ink costs a JPEG a tenth more.
PAPER: Final[Color] = (252, 252, 252)
INK: Final[Color] = (26, 26, 26)
MUTED: Final[Color] = (88, 88, 88)
HAIRLINE: Final[Color] = (206, 206, 206)
# Parts and tiles begin at the blocks of a JPEG, see `in_blocks`.
MARGIN: Final = BLOCK
PART_GAP: Final = BLOCK
BRIGHT: Final = 225
FRAME: Final = 3

TONES: Final[dict[Tone, tuple[str, Color]]] = {
    "plain": ("", INK),
    "muted": ("", MUTED),
    "right": ("\N{HEAVY CHECK MARK}", (0, 112, 96)),
    "wrong": ("\N{HEAVY BALLOT X}", (190, 0, 58)),
    "watch": ("\N{WHITE UP-POINTING TRIANGLE}", (150, 84, 0)),
    "alarm": ("\N{BLACK UP-POINTING TRIANGLE}", (190, 0, 58)),
}
"""Mark and colour by tone: told apart by shape, not by colour alone."""


class Sizes(NamedTuple):
    """Sizes of type in pixels, in proportion to the width of the page.

    Image viewers show a picture in cards of some 300 pixels: nothing is set so small that it has less than 12 there.
    """

    title: int
    text: int
    small: int

    @classmethod
    def of(cls, width: int) -> Sizes:
        """Sizes for a page, its margins included."""
        text = max(13, round(0.042 * width))
        return cls(round(1.2 * text), text, max(12, math.ceil(0.04 * width)))


class Part(Protocol):
    """Something that knows its height and draws itself."""

    @property
    def height(self) -> int:
        """Height in pixels; 0 for a part that has nothing to show."""

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw with the left upper corner at `at`."""


def require_tone(tone: object) -> None:
    """Refuse what is no tone."""
    if tone not in TONES:
        raise ConfigurationError(f"Expected `tone` to be one of {', '.join(TONES)}, but got {tone!r}.")


def toned(text: str, tone: Tone) -> str:
    """A clean text led by the mark of its tone."""
    return f"{TONES[tone][0]} {text}".strip() if text else ""


def draw_toned(page: Image.Image, at: tuple[int, int], lines: Sequence[str], size: int, tone: Tone) -> None:
    """Draw lines of a toned text from the left upper corner `at`; of "right" and "wrong" the mark alone is coloured."""
    pen = ImageDraw.Draw(page)
    mark, color = TONES[tone]
    x, y = at[0], at[1] + in_blocks(size)
    words = INK if tone in ("right", "wrong") else color
    if mark and lines:
        draw_text(pen, (x, y), mark, size, color)
        rest = lines[0].removeprefix(mark)
        draw_text(pen, (x + text_width(f"{mark} ", size), y), rest.lstrip(), size, words)
        y, lines = y + line_height(size), lines[1:]
    for place, line in enumerate(lines):
        draw_text(pen, (x, y + place * line_height(size)), line, size, words)


def paste_tile(page: Image.Image, tile: NDArray[np.uint8], at: tuple[int, int], tone: Tone = "plain") -> None:
    """Put a tile `(H, W, 3)` on the page, in a frame of the colour of "right" or "wrong".

    Of others only a tile with a bright edge gets a hairline.
    """
    height, width = tile.shape[:2]
    x, y = at
    edge = max(int(side.min(axis=-1).max()) for side in (tile[0], tile[-1], tile[:, 0], tile[:, -1]))
    framed = tone in ("right", "wrong")
    if framed or edge > BRIGHT:
        line, color = (FRAME, TONES[tone][1]) if framed else (1, HAIRLINE)
        box = (x - line, y - line, x + width + line - 1, y + height + line - 1)
        ImageDraw.Draw(page).rectangle(box, outline=color, width=line)
    page.paste(Image.fromarray(tile), at)


def stack(parts: Sequence[Part], width: int) -> NDArray[np.uint8]:
    """Draw parts of the given width below each other and return the picture `(H, W, 3)`."""
    shown = [part for part in parts if part.height]
    height = sum(in_blocks(part.height) + PART_GAP for part in shown) - PART_GAP
    page = Image.new("RGB", (width + 2 * MARGIN, max(0, height) + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in shown:
        part.draw(page, (MARGIN, y))
        y += in_blocks(part.height) + PART_GAP
    return np.array(page, dtype=np.uint8)
