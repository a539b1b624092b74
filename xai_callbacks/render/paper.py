"""The paper that pictures are drawn on: colours, tones of words, sizes of type, strips set below each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xai_callbacks.render.text import BLOCK, Color, draw_text, in_blocks, line_height, text_width

Tone = Literal["plain", "muted", "right", "wrong", "watch", "alarm"]

# The picture brings its own paper: it looks the same in the light and the dark mode of a viewer.
# All greys are neutral, as type in a tinted ink costs a JPEG a tenth more.
PAPER: Final[Color] = (252, 252, 252)
INK: Final[Color] = (26, 26, 26)
MUTED: Final[Color] = (88, 88, 88)
HAIRLINE: Final[Color] = (206, 206, 206)
# Parts and tiles begin at the blocks of a JPEG, see `in_blocks`.
MARGIN: Final = BLOCK
GAP: Final = BLOCK
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


def toned(text: str, tone: Tone) -> str:
    """A clean text led by the mark of its tone."""
    return f"{TONES[tone][0]} {text}".strip() if text else ""


class Strip:
    """Paper for one part of a page: as wide as the page, as high as the part and a gap, half of it above.

    Places on it are (x, y) from the left upper corner of the part.
    """

    def __init__(self, height: int, width: int) -> None:
        self.picture = Image.new("RGB", (width + 2 * MARGIN, in_blocks(height) + GAP), PAPER)
        self.pen = ImageDraw.Draw(self.picture)

    def text(self, at: tuple[int, int], line: str, size: int, color: Color = INK, *, bold: bool = False) -> None:
        """Draw one clean line whose baseline starts at `at`."""
        draw_text(self.pen, (at[0] + MARGIN, at[1] + GAP // 2), line, size, color, bold=bold)

    def toned(self, at: tuple[int, int], lines: Sequence[str], size: int, tone: Tone) -> None:
        """Draw lines of a toned text from the left upper corner `at`; "right" and "wrong" colour the mark alone."""
        mark, color = TONES[tone]
        x, y = at[0], at[1] + in_blocks(size)
        for place, line in enumerate(lines):
            indent = 0
            if mark and place == 0:
                self.text((x, y), mark, size, color)
                indent = text_width(f"{mark} ", size)
            words = line.removeprefix(mark).lstrip() if indent else line
            self.text((x + indent, y), words, size, INK if tone in ("right", "wrong") else color)
            y += line_height(size)

    def tile(self, at: tuple[int, int], tile: NDArray[np.uint8], tone: Tone = "plain") -> None:
        """Paste a tile `(H, W, 3)`, in a frame if it is "right" or "wrong", in a hairline if its edge is bright."""
        x, y = at[0] + MARGIN, at[1] + GAP // 2
        edge = np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]])
        framed = tone in ("right", "wrong")
        if framed or edge.min(axis=1).max() > BRIGHT:
            line, color = (FRAME, TONES[tone][1]) if framed else (1, HAIRLINE)
            box = (x - line, y - line, x + tile.shape[1] + line - 1, y + tile.shape[0] + line - 1)
            self.pen.rectangle(box, outline=color, width=line)
        self.picture.paste(Image.fromarray(tile), (x, y))
