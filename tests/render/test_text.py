import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from xai_callbacks.render.text import clean, draw_text, text_width, wrap


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog 0.93", "dog 0.93"),
        ("Größe 100 %", "Grosse 100 %"),
        ("Gro\u0308ße", "Grosse"),
        ("a \u2013 b \u2212 c \u2192 d", "a - b - c -> d"),
        ("\uff24\uff4f\uff47", "Dog"),
        ("猫", "□"),
        ("한", "□"),
        ("😀", "□"),
        ("a\x00b\x1b[31m\x7f", "ab[31m"),
        ("a\ud800b", "ab"),
        ("  a \t b\n c ", "a b c"),
        ("", ""),
    ],
)
def test_clean_reduces_text_to_what_the_font_can_show(text, expected):
    assert clean(text) == expected


def test_clean_keeps_line_breaks_on_request():
    assert clean(" Why  dog?\r\n\n logit 4.2\n", lines=True) == "Why dog?\nlogit 4.2"


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
