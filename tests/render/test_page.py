from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xai_callbacks.render import Cell, ColorScale, Line, Row, overlay, render_page
from xai_callbacks.render.page import color_bar
from xai_callbacks.render.paper import MARGIN, TONES, Sizes, Strip
from xai_callbacks.render.text import text_width

SCALE = ColorScale()
NAMES = (
    "Größe 100 %", "猫", "😀\u200d👩\u200d👧", "two\nlines", "", "x" * 200, "many short words " * 30,
    "\x00\x1b[0m", "\u202ertl",
)  # fmt: skip


def page(helpers, rows=None, **changes):
    if rows is None:
        image = helpers.photo(112, 112)
        rows = [Row([Cell(image, f"Why {place}?", helpers.smooth_map(place)) for place in range(3)])]
    given = {"title": "photo", "lines": [Line("says dog", "wrong")], "scale": SCALE}
    return render_page(rows, **(given | changes))


def test_a_page_is_a_fresh_contiguous_rgb_picture_of_its_width(helpers):
    picture = page(helpers)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (352 + 2 * MARGIN, 3)
    assert picture.flags.c_contiguous
    assert picture.flags.writeable
    assert page(helpers, width=280).shape[1] == 280 + 2 * MARGIN


def test_equal_arguments_give_equal_bytes_and_another_map_gives_others(helpers):
    first, again = page(helpers), page(helpers)
    np.testing.assert_array_equal(first, again)
    other = [Row([Cell(helpers.photo(112, 112), "Why 0?", helpers.smooth_map(0) * 2)])]
    assert (
        page(helpers, other).tobytes()
        != page(helpers, [Row([Cell(helpers.photo(112, 112), "Why 0?", helpers.smooth_map(0))])]).tobytes()
    )


def test_cells_stand_side_by_side_byte_for_byte_and_go_on_in_the_next_line(helpers):
    image, maps = helpers.photo(112, 112), [helpers.smooth_map(seed) for seed in range(4)]
    picture = page(helpers, [Row([Cell(image, heatmap=heatmap) for heatmap in maps])])
    found = [helpers.places(picture, overlay(image, heatmap, SCALE)) for heatmap in maps]
    assert all(len(where) == 1 for where in found)
    tops, lefts = zip(*(where[0] for where in found), strict=True)
    assert lefts == (MARGIN, MARGIN + 120, MARGIN + 240, MARGIN)
    assert tops[0] == tops[1] == tops[2] < tops[3]


def test_another_cell_changes_no_byte_of_a_cell(helpers):
    image, heatmap = helpers.photo(112, 112), helpers.smooth_map(0)
    tile = overlay(image, heatmap, SCALE)
    strong = Cell(image, "strong", helpers.smooth_map(9, peak=1e4))
    for cells in ([Cell(image, "a", heatmap)], [strong, Cell(image, "a", heatmap)]):
        assert len(helpers.places(page(helpers, [Row(cells)]), tile)) == 1


def test_the_lead_stands_at_the_top_left_in_its_own_colours(helpers):
    image = helpers.photo(80, 80)
    assert helpers.places(page(helpers, lead=Cell(image)), image) == [(MARGIN, MARGIN)]


def test_right_and_wrong_pictures_have_frames_of_their_colours(helpers):
    image = helpers.photo(112, 112)
    for tone in ("right", "wrong", "plain"):
        picture = page(helpers, [Row([Cell(image, tone=tone)])], lines=[])
        ((top, left),) = helpers.places(picture, image)
        ring = [picture[top - 3, left : left + 112], picture[top + 112 + 2, left : left + 112]]
        assert all((line == TONES[tone][1]).all() for line in ring) is (tone != "plain")


def test_marks_of_tones_differ_by_shape(helpers, words):
    marks = {mark for mark, _ in TONES.values() if mark}
    assert len(marks) == 4
    for tone in ("right", "wrong", "watch", "alarm"):
        page(helpers, lines=[Line("words", tone)])
    assert marks <= set(words)


def test_words_alone_need_no_picture(helpers, words):
    page(helpers, [Row([Cell(None, "epoch 3\nstep 20"), Cell(None, "epoch 4")], "when")])
    assert {"epoch", "3", "step", "20", "4", "when"} <= set(words)


@pytest.mark.parametrize("width", [280, 352, 568])
def test_type_has_twelve_pixels_or_more_in_a_card_of_300(width):
    sizes = Sizes.of(width + 2 * MARGIN)
    assert min(sizes) * min(1.0, 300 / (width + 2 * MARGIN)) >= 12 - 1e-9
    assert sizes.small <= sizes.text < sizes.title


@pytest.mark.parametrize("name", NAMES)
def test_no_name_raises_or_widens_the_picture(helpers, name):
    mask = np.ones((64, 64), dtype=bool)
    cell = Cell(helpers.photo(64, 64), name, helpers.smooth_map(0), regions={name: mask})
    picture = page(
        helpers, [Row([cell], name)], title=name, lines=[Line(name)], lead=cell, scale=ColorScale(50.0, name)
    )
    assert picture.shape[1] == 368
    assert picture.shape[0] <= 420


@settings(max_examples=30)
@given(st.text(max_size=80))
def test_any_text_can_stand_anywhere(text):
    cell = Cell(np.zeros((8, 8, 3), np.uint8), text, tone="right")
    render_page([Row([cell], text)], title=text, lines=[Line(text, "alarm")], scale=SCALE)


def test_regions_are_outlined_and_named(helpers, words):
    image, mask = helpers.photo(112, 112), np.zeros((112, 112), dtype=bool)
    mask[20:60, 20:60] = True
    without = page(helpers, [Row([Cell(image)])])
    empty = page(helpers, [Row([Cell(image, regions={"core": np.zeros_like(mask)})])])
    np.testing.assert_array_equal(without, empty)
    words.clear()
    page(helpers, [Row([Cell(image, regions={"none": np.zeros_like(mask), "core": mask})])])
    assert "core" in words
    assert "none" not in words


def test_a_map_that_is_not_finite_is_named_in_the_legend(helpers, words):
    bad = helpers.smooth_map(0)
    bad[3, 3] = np.nan
    page(helpers, [Row([Cell(helpers.photo(64, 64), heatmap=bad)])])
    assert " ".join(words).find("not finite") > 0


def test_a_page_without_heat_has_no_colour_bar(helpers, words):
    page(helpers, [Row([Cell(helpers.photo(64, 64))])])
    assert "against" not in words


def test_a_compact_page_has_the_smallest_type_and_no_foot(helpers, words):
    rows = [Row([Cell(helpers.photo(64, 64), "caption", helpers.smooth_map(0))], size=64)]
    whole, words[:] = page(helpers, rows), []
    assert page(helpers, rows, compact=True).shape[0] < whole.shape[0] - 50
    assert "caption" in words
    assert "against" not in words
    assert Sizes.of(0) == (16, 13, 12)


def test_the_colour_bar_has_open_ends_and_its_unit(helpers, words):
    page(helpers, scale=ColorScale(20.0, "nats"))
    assert {"≤", "−20", "≥", "20", "nats", "against", "for"} <= set(words)


@pytest.mark.parametrize(("peak", "said"), [(4.9, True), (5.1, False)])
def test_the_colour_bar_says_if_less_than_a_tenth_of_the_scale_is_used(helpers, words, peak, said):
    heatmap = np.zeros((7, 7))
    heatmap[2, 2], heatmap[3, 3] = -peak, np.nan
    page(helpers, [Row([Cell(helpers.photo(64, 64), heatmap=heatmap)])])
    assert ("less than a tenth of the scale" in " ".join(words)) is said


@pytest.mark.parametrize("limit", [0.00037, 0.5, 1.0, 19.0, 37.415, 50.0, 999.0, 12345.6, 3.2e7])
@pytest.mark.parametrize("width", [280, 352, 560])
def test_labels_of_the_colour_bar_never_touch(monkeypatch, limit, width):
    drawn, original = [], Strip.text

    def text(self, at, line, size, *args, **kwargs):
        drawn.append((at[1], at[0], at[0] + text_width(line, size)))
        original(self, at, line, size, *args, **kwargs)

    monkeypatch.setattr(Strip, "text", text)
    color_bar(ColorScale(limit), limit, width=width, size=Sizes.of(width).small)
    drawn.sort()
    assert len(drawn) == 6
    for (y, _, end), (after, start, _) in pairwise(drawn):
        assert y != after or end < start
    assert max(end for _, _, end in drawn) <= width


def test_threads_draw_the_same_bytes_as_one_alone(helpers):
    def draw(seed):
        return page(helpers, [Row([Cell(helpers.photo(32, 32, seed), f"Why {seed}?", helpers.smooth_map(seed))])])

    alone = [draw(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(16)))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first, second)


def test_drawing_touches_no_random_state_and_no_argument(helpers):
    image, heatmap, mask = helpers.photo(112, 112), helpers.smooth_map(0), np.ones((112, 112), dtype=bool)
    for array in (image, heatmap, mask):
        array.setflags(write=False)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    cell = Cell(image, heatmap=heatmap, regions={"core": mask})
    page(helpers, [Row([cell])], lead=Cell(image, regions={"core": mask}))
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)
