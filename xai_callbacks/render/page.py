"""The page a picture is drawn on: paper, inks, type sizes, and parts set below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "HAIRLINE",
    "INK",
    "MARGIN",
    "MUTED",
    "PAPER",
    "SMALL_SIZE",
    "TEXT_SIZE",
    "TITLE_SIZE",
    "Part",
    "paste_tile",
    "stack",
]

Color = tuple[int, int, int]

# The picture brings its own paper: it looks the same in the light and the dark mode of a viewer.
PAPER: Final[Color] = (252, 252, 250)
INK: Final[Color] = (24, 27, 33)
MUTED: Final[Color] = (84, 89, 98)
HAIRLINE: Final[Color] = (206, 206, 202)
MARGIN: Final = 16
PART_GAP: Final = 16

# In pixels. Viewers scale pictures down, to about 0.7 in TensorBoard's cards: nothing is set smaller than 15.
TITLE_SIZE: Final = 20
TEXT_SIZE: Final = 16
SMALL_SIZE: Final = 15


class Part(Protocol):
    """Something that knows its height and draws itself."""

    @property
    def height(self) -> int:
        """Height in pixels; 0 for a part that has nothing to show."""

    def draw(self, page: Image.Image, at: tuple[int, int]) -> None:
        """Draw with the left upper corner at `at`."""


def paste_tile(page: Image.Image, tile: NDArray[np.uint8], at: tuple[int, int]) -> None:
    """Put a tile `(H, W, 3)` on the page with a hairline around it, so that a white image has an edge."""
    height, width = tile.shape[:2]
    x, y = at
    ImageDraw.Draw(page).rectangle((x - 1, y - 1, x + width, y + height), outline=HAIRLINE)
    page.paste(Image.fromarray(tile), at)


def stack(parts: Sequence[Part], width: int) -> NDArray[np.uint8]:
    """Draw parts of the given width below each other and return the picture `(H, W, 3)`."""
    shown = [part for part in parts if part.height]
    height = sum(part.height for part in shown) + PART_GAP * max(0, len(shown) - 1)
    page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    y = MARGIN
    for part in shown:
        part.draw(page, (MARGIN, y))
        y += part.height + PART_GAP
    return np.array(page, dtype=np.uint8)
