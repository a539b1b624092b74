import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from xai_callbacks.render.text import FONT_FILE, clean, draw_text, text_width, wrap


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog 0.93", "dog 0.93"),
        ("Größe 100 %", "Größe 100 %"),
        ("Gro\u0308ße", "Größe"),
        ("ворона ελιά ≥ → ✔", "ворона ελιά ≥ → ✔"),
        ("\uff24\uff4f\uff47", "Dog"),
        ("猫_1", "U+732B _1"),
        ("猫犬", "U+732B U+72AC"),
        ("한국", "hangug"),
        ("ねこ カ", "neko ka"),
        ("क", "ka"),
        ("🍕", "U+1F355"),
        ("שלום 1", "םולש 1"),
        ("a\x00b\x1b[31m\x7f", "ab[31m"),
        ("a\ud800b", "ab"),
        ("  a \t b c ", "a b c"),
        ("", ""),
    ],
)
def test_clean_reduces_text_to_what_the_font_can_show(text, expected):
    assert clean(text) == expected


@pytest.fixture(scope="module")
def covered():
    """Code points of the font, as another library reads them."""
    with pytest.importorskip("fontTools.ttLib").TTFont(FONT_FILE) as font:
        return font.getBestCmap().keys()


@given(text=st.text(max_size=50))
def test_no_text_leaves_a_box(covered, text):
    assert {ord(character) for character in clean(text).replace("\n", "")} <= covered


def test_the_font_covers_latin_greek_cyrillic_and_what_the_pages_use(covered):
    wanted = [*range(0x21, 0x7F), *range(0xA1, 0x180), *range(0x391, 0x3A2), *range(0x3B1, 0x3CA), *range(0x400, 0x460)]
    assert set(wanted) <= covered
    assert set(map(ord, "≥≤−·…×→✔✘△▲“”‘’–—€°²½")) <= covered


def test_the_font_is_small_and_its_licence_lies_beside_it():
    assert FONT_FILE.stat().st_size <= 1_000_000
    assert "Bitstream" in (FONT_FILE.parent / "LICENSE_DEJAVU.txt").read_text()


def test_clean_keeps_line_breaks_but_no_empty_lines():
    assert clean(" Why  dog?\r\n\n logit 4.2\n") == "Why dog?\nlogit 4.2"


def test_clean_bounds_the_length_and_keeps_both_ends():
    result = clean("start " + "x" * 100_000 + " end")
    assert len(result) <= 401
    assert result.startswith("start ")
    assert result.endswith(" end")


@given(st.text(max_size=300), st.sampled_from([60, 112, 224]), st.integers(1, 3), st.booleans())
def test_any_text_fits_into_its_lines(text, width, limit, middle):
    lines = wrap(clean(text), width, 16, limit, middle=middle)
    assert len(lines) <= limit
    assert all(0 < text_width(line, 16) <= width for line in lines)


def test_every_kind_of_character_can_be_drawn():
    draw = ImageDraw.Draw(Image.new("RGB", (100, 30)))
    for start in range(0, sys.maxunicode, 997):
        draw_text(draw, (0, 20), clean(chr(start)), 16, (0, 0, 0))


def test_long_text_ends_in_an_ellipsis():
    lines = wrap("one two three four five six seven eight nine ten", 80, 16, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert lines[0] == "one two"


def test_text_cut_in_its_middle_keeps_the_number_at_its_end():
    lines = wrap("Appenzeller Sennenhund mountain dog of the alps 0.88", 112, 16, 2, middle=True)
    assert lines[-1].endswith("0.88")
    assert "…" in "".join(lines)


def test_text_that_fits_is_left_alone():
    assert wrap("Why dog, rather than cat?", 1000, 16, 1) == ["Why dog, rather than cat?"]


def test_a_long_word_breaks_after_a_separator():
    assert wrap("photographs/validation/000123.jpg", 200, 16, 3)[0] == "photographs/validation/"


def test_a_percent_sign_stays_with_its_number():
    assert not any(line.startswith("%") for width in range(60, 260) for line in wrap("with 100 % sure", width, 16, 9))


def test_words_are_set_apart_visibly():
    assert text_width("6 0.88", 16) >= text_width("6", 16) + text_width("0.88", 16) + 4
