"""Type: fonts, characters the font lacks, wrapping, drawing.

The font is the one inside Pillow, so that a picture has the same bytes on every machine with the same Pillow. It
covers little more than ASCII: accents are dropped (`Größe` reads `Grosse`), common punctuation is replaced by its
ASCII twin, and any other character shows as an empty box.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from PIL import ImageDraw, ImageFont

__all__ = ["clean", "draw_text", "line_height", "shorten", "text_width", "wrap"]

ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
MISSING: Final = "\N{WHITE SQUARE}"
# Longer texts are cut in the middle before anything is measured, which bounds the work.
MAX_CHARACTERS: Final = 400
BREAK_AFTER: Final = "/\\_-.,:;|"
TWINS: Final = {
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "đ": "d", "Đ": "D",
    "ł": "l", "Ł": "L", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "\N{LATIN SMALL LETTER DOTLESS I}": "i",
    "\N{HYPHEN}": "-", "\N{NON-BREAKING HYPHEN}": "-", "\N{FIGURE DASH}": "-", "\N{EN DASH}": "-",
    "\N{EM DASH}": "-", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x", "\N{DIVISION SIGN}": "/",
    "\N{RIGHTWARDS ARROW}": "->", "\N{LEFTWARDS ARROW}": "<-", "\N{BULLET}": "·", "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{ALMOST EQUAL TO}": "~", "\N{NOT EQUAL TO}": "!=",
    "\N{SINGLE LOW-9 QUOTATION MARK}": ",", "\N{DOUBLE LOW-9 QUOTATION MARK}": '"',
}  # fmt: skip

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# FreeType faces are not made for two threads at once.
_FREETYPE = threading.RLock()


@lru_cache(maxsize=16)
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    with _FREETYPE:
        font = _font(16)
        return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=4096)
def _spell(character: str) -> str:
    """One character as the font can show it: itself, a twin, its base letter, nothing, or a box."""
    if character == " " or character.isspace():
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn", "Me"):
        return ""
    if character in TWINS:
        return TWINS[character]
    if _has_glyph(character):
        return character
    parts = unicodedata.normalize("NFKD", character)
    spelled = "".join(map(_spell, parts)) if parts != character else ""
    return spelled if spelled.strip(MISSING) else MISSING


def clean(text: str, *, lines: bool = False) -> str:
    """Reduce text to what the font can show, on one line, or keeping its line breaks with `lines`."""
    if len(text) > MAX_CHARACTERS:
        half = MAX_CHARACTERS // 2
        text = f"{text[:half]}{ELLIPSIS}{text[-half:]}"
    if lines:
        kept = (clean(line) for line in text.splitlines())
        return "\n".join(line for line in kept if line)
    return " ".join("".join(map(_spell, unicodedata.normalize("NFC", text))).split())


@lru_cache(maxsize=4096)
def _word_width(word: str, size: int) -> int:
    with _FREETYPE:
        return math.ceil(_font(size).getlength(word))


def _space(size: int) -> int:
    """Width of a space. The font's own is so narrow that "6 0.88" reads as one number."""
    return round(0.3 * size)


def text_width(text: str, size: int) -> int:
    """Width of one clean line in pixels."""
    words = text.split(" ")
    return sum(_word_width(word, size) for word in words) + _space(size) * (len(words) - 1)


def line_height(size: int) -> int:
    """Distance from one baseline to the next, in pixels."""
    return round(size * 1.25)


def shorten(text: str, fits: Callable[[str], bool], *, middle: bool = False) -> str:
    """Cut clean text until it fits, at its end or in its middle, and mark the cut with an ellipsis."""
    if fits(text):
        return text
    low, high = 0, len(text) - 1
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if fits(_cut(text, kept, middle)) else (low, kept - 1)
    return _cut(text, low, middle)


def _cut(text: str, kept: int, middle: bool) -> str:
    tail = text[len(text) - kept // 2 :] if middle else ""
    # A tail that starts with a whole word reads better, and leaves more room for the head.
    boundary = re.search(r"[\s/\\_|-]", tail)
    tail = tail[boundary.start() :] if boundary else tail
    return f"{text[: kept - len(tail)].rstrip()}{ELLIPSIS}{tail}"


def wrap(text: str, width: int, size: int, max_lines: int, *, middle: bool = False) -> list[str]:
    """Break clean text into at most `max_lines` lines of at most `width` pixels.

    What is too long is cut at the end, or with `middle` in the middle, which keeps a number at the end in sight.
    """
    if middle:
        return _break(shorten(text, lambda cut: len(_break(cut, width, size)) <= max_lines, middle=True), width, size)
    lines = _break(text, width, size)
    if len(lines) <= max_lines:
        return lines
    last = shorten(" ".join(lines[max_lines - 1 :]), lambda cut: text_width(cut, size) <= width)
    return [*lines[: max_lines - 1], last]


def _break(text: str, width: int, size: int) -> list[str]:
    return [line for paragraph in text.split("\n") for line in _break_paragraph(paragraph, width, size)]


def _break_paragraph(text: str, width: int, size: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in re.split(r" (?!%)", text):  # "100 %" stays on one line
        candidate = f"{line} {word}" if line else word
        if text_width(candidate, size) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        *full, line = _break_word(word, width, size)
        lines.extend(full)
    return [*lines, line] if line else lines


def _break_word(word: str, width: int, size: int) -> list[str]:
    pieces = []
    while text_width(word, size) > width:
        head = _head(word, width, size)
        pieces.append(word[:head])
        word = word[head:]
    return [*pieces, word]


def _head(word: str, width: int, size: int) -> int:
    """Number of characters of a too long word for this line, ending at a separator if there is one near the end."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(word[:middle], size) <= width else (low, middle - 1)
    separators = [place + 1 for place in range(low // 2, low) if word[place] in BREAK_AFTER]
    return separators[-1] if separators else low


def draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int],
    *,
    bold: bool = False,
) -> None:
    """Draw one clean line whose baseline starts at `at`."""
    x, y = at
    for word in text.split(" "):
        with _FREETYPE:
            draw.text((x, y), word, fill=color, font=_font(size), anchor="ls")
            if bold:  # the font has one weight: a second pass half a pixel to the right makes a calm semi-bold
                draw.text((x + 0.5, y), word, fill=color, font=_font(size), anchor="ls")
        x += _word_width(word, size) + _space(size)
