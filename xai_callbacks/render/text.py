"""Type: the font, characters it lacks, wrapping, drawing.

The font is DejaVu Sans Condensed 2.37, which lies beside this module with its licence, so that a picture looks the same
on every machine. Letters that it lacks, such as kana and hangul, are written by the name that Unicode gives their
sound; what has none, such as Chinese characters and most emoji, by its code point: `U+732B`. Nothing is ever a box.
"""

import math
import re
import threading
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from PIL import ImageDraw, ImageFont

Color = tuple[int, int, int]
FONT_FILE: Final = Path(__file__).parent / "fonts" / "DejaVuSansCondensed.ttf"
ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
MAX_CHARACTERS: Final = 400  # longer texts are cut in the middle before anything is measured, which bounds the work
BLOCK: Final = 8
SPACE: Final = 0.3  # width of a space, in sizes of type
BREAK_AFTER: Final = "/\\_-.,:;|"
# The font is set from left to right: what is read from right to left is turned round beforehand.
RIGHT_TO_LEFT: Final = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe]+(?: [\u0590-\u08ff\ufb1d-\ufdff]+)*")
SOUND: Final = re.compile(r".*\b(?:LETTER|SYLLABLE)(?: SMALL| SIGN)? (\w+)$")
_FREETYPE = threading.RLock()  # FreeType faces are not made for two threads at once


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FILE), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _spell(character: str) -> str:
    """One character as the font can show it: itself, its base letter, its sound, its code point, or nothing."""
    if character.isspace():
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn", "Me"):
        return ""
    with _FREETYPE:
        if bytes(_font(16).getmask(character)) != bytes(_font(16).getmask("\uffff")):
            return character
    parts = unicodedata.normalize("NFKC", character)
    if parts != character:
        return "".join(map(_spell, parts))
    sound = SOUND.fullmatch(unicodedata.name(character, ""))
    return sound[1].lower() if sound else f" U+{ord(character):04X} "


def clean(text: str) -> str:
    """Reduce text to what the font can show; line breaks are kept, empty lines are not."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]}{ELLIPSIS}{text[-MAX_CHARACTERS // 2 :]}"
    spelled = ("".join(map(_spell, unicodedata.normalize("NFC", line))) for line in text.splitlines())
    shown = (RIGHT_TO_LEFT.sub(lambda found: found[0][::-1], " ".join(line.split())) for line in spelled)
    return "\n".join(filter(None, shown))


@lru_cache(maxsize=4096)
def _word_width(word: str, size: int) -> int:
    with _FREETYPE:
        return math.ceil(_font(size).getlength(word))


def text_width(text: str, size: int) -> int:
    """Width of one clean line in pixels."""
    words = text.split(" ")
    return sum(_word_width(word, size) for word in words) + round(SPACE * size) * (len(words) - 1)


def in_blocks(length: int) -> int:
    """A length rounded up to whole blocks of a JPEG, which cost less if no edge runs through them."""
    return -(-length // BLOCK) * BLOCK


def line_height(size: int) -> int:
    """Distance from one baseline to the next, in pixels: whole blocks if that is close to what looks best."""
    best = round(size * 1.2)
    return in_blocks(best) if in_blocks(best) <= 1.15 * best else best


def wrap(text: str, width: int, size: int, max_lines: int, *, middle: bool = False) -> list[str]:
    """Break clean text into at most `max_lines` lines of at most `width` pixels.

    What is too long is cut at the end, or with `middle` in the middle, which keeps a number at the end in sight.
    """
    lines = _break(text, width, size)
    if len(lines) <= max_lines:
        return lines
    if middle:
        return _break(_shorten(text, lambda cut: len(_break(cut, width, size)) <= max_lines, middle=True), width, size)
    last = _shorten(" ".join(lines[max_lines - 1 :]), lambda cut: text_width(cut, size) <= width)
    return [*lines[: max_lines - 1], last]


def _shorten(text: str, fits: Callable[[str], bool], *, middle: bool = False) -> str:
    """Cut text until it fits, and mark the cut with an ellipsis."""

    def cut(kept: int) -> str:
        tail = text[len(text) - kept // 2 :] if middle else ""
        return f"{text[: kept - len(tail)].rstrip()}{ELLIPSIS}{tail.lstrip()}"

    if fits(text):
        return text
    return cut(bisect_left(range(1, len(text)), True, key=lambda kept: not fits(cut(kept))))


def _break(text: str, width: int, size: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in re.split(r" (?!%)", paragraph):  # "100 %" stays on one line
            candidate = f"{line} {word}" if line else word
            if text_width(candidate, size) <= width:
                line = candidate
                continue
            *full, rest = _break_word(word, width, size)
            lines += [line, *full] if line else full
            line = rest
        lines.append(line)
    return lines


def _break_word(word: str, width: int, size: int) -> list[str]:
    """Pieces of a word too long for a line, each ending at a separator if there is one in its second half."""
    if text_width(word, size) <= width or len(word) == 1:
        return [word]
    head = max(1, bisect_right(range(1, len(word) + 1), width, key=lambda count: text_width(word[:count], size)))
    separators = [place + 1 for place in range(head // 2, head) if word[place] in BREAK_AFTER]
    head = separators[-1] if separators else head
    return [word[:head], *_break_word(word[head:], width, size)]


def draw_text(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: Color, *, bold: bool = False
) -> None:
    """Draw one clean line whose baseline starts at `at`."""
    x, y = at
    for word in text.split(" "):
        with _FREETYPE:
            for shift in (0, 0.5) if bold else (0,):  # a second pass half a pixel to the right makes a calm semi-bold
                pen.text((x + shift, y), word, fill=color, font=_font(size), anchor="ls")
        x += _word_width(word, size) + round(SPACE * size)
