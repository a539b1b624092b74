from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import ColorScale, Tile, render_panel
from xai_callbacks.render.furniture import ColorBar
from xai_callbacks.render.overlay import draw_tiles
from xai_callbacks.render.page import MARGIN
from xai_callbacks.render.resample import fit_image, tile_size
from xai_callbacks.render.text import text_width

SCALE = ColorScale()
QUESTIONS = ("Why boxer?", "Why boxer, rather than tiger cat?", "Why not boxer with 100 % confidence?")
NAMES = (
    "Größe 100 %",
    "猫",
    "😀\u200d👩\u200d👧",
    "two\nlines",
    "",
    "x" * 200,
    "many short words " * 30,
    "\x00\x1b[0m",
    "\u202ertl",
)


def some_tiles(helpers, count=4):
    maps = [helpers.smooth_map(seed) for seed in range(count - 1)]
    captions = [*QUESTIONS, *(f"Question {number}" for number in range(count))]
    return [Tile("Image"), *(Tile(caption, heatmap) for caption, heatmap in zip(captions, maps, strict=False))]


def panel(helpers, pixels=None, tiles=None, **changes):
    arguments = {
        "title": "photo · step 120",
        "subtitle": "true: cat | predicted: dog 0.93",
        "verdict": "wrong",
        "scale": SCALE,
    }
    return render_panel(
        helpers.photo(64, 64) if pixels is None else pixels,
        some_tiles(helpers) if tiles is None else tiles,
        **(arguments | changes),
    )


def test_a_panel_is_a_fresh_contiguous_rgb_picture(helpers):
    picture = panel(helpers)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.flags.c_contiguous
    assert picture.flags.writeable
    assert picture.flags.owndata


def test_equal_arguments_give_equal_bytes_and_another_map_gives_others(helpers):
    first, again = panel(helpers), panel(helpers)
    np.testing.assert_array_equal(first, again)
    tiles = some_tiles(helpers)
    tiles[2] = Tile(tiles[2].caption, tiles[2].heatmap * 2)
    assert (panel(helpers, tiles=tiles) != first).any()


def test_every_tile_stands_in_the_panel_byte_for_byte_in_a_grid(helpers):
    pixels, tiles = helpers.photo(224, 224), some_tiles(helpers)
    picture = panel(helpers, pixels, tiles)
    expected = draw_tiles(pixels, [tile.heatmap for tile in tiles], (), SCALE)
    found = [helpers.places(picture, tile) for tile in expected]
    assert all(len(where) == 1 for where in found)
    (top, left), (same_top, right), (bottom, same_left), (same_bottom, same_right) = (where[0] for where in found)
    assert (top, bottom, left, right) == (same_top, same_bottom, same_left, same_right)
    assert left == MARGIN
    assert right == left + 224 + 16


def test_another_tile_changes_no_byte_of_a_tile(helpers):
    pixels, tiles = helpers.photo(64, 64), some_tiles(helpers)
    size = tile_size((64, 64), 224, (176, 256))
    (expected,) = draw_tiles(fit_image(pixels, size), [tiles[1].heatmap], (), SCALE)
    strong = Tile("strong", helpers.smooth_map(9, peak=1e4))
    for chosen in ([tiles[1]], tiles, [*tiles, strong], [strong, tiles[1]]):
        assert len(helpers.places(panel(helpers, pixels, chosen), expected)) == 1


def test_a_dead_map_shows_the_grey_image(helpers):
    pixels = helpers.photo(224, 224)
    picture = panel(helpers, pixels, [Tile("Image"), Tile("Why?", np.zeros((7, 7)))])
    image, dead = draw_tiles(pixels, [None, np.zeros((1, 1))], (), SCALE)
    assert len(helpers.places(picture, dead)) == 1
    assert len(helpers.places(picture, image)) == 1
    assert (dead[..., 0] == dead[..., 2]).all()


@pytest.mark.parametrize(
    ("size", "width"),
    [
        ((28, 28), 496),
        ((32, 32), 496),
        ((64, 64), 432),
        ((96, 96), 432),
        ((224, 224), 496),
        ((512, 512), 560),
        ((128, 256), 560),
        ((256, 128), 400),
    ],
)
def test_four_tiles_make_two_columns_that_a_card_can_show(helpers, size, width):
    picture = panel(helpers, helpers.photo(*size))
    assert picture.shape[1] == width
    assert picture.shape[0] <= 800


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("size", [(224, 224), (256, 128), (64, 512), (1, 1), (1, 600), (600, 1)])
def test_pictures_stay_within_bounds_for_any_number_of_tiles(helpers, count, size):
    picture = panel(helpers, helpers.photo(*size), some_tiles(helpers, count))
    assert 400 <= picture.shape[1] <= 672
    assert picture.shape[0] <= 340 * count + 200


@pytest.mark.parametrize("name", NAMES)
def test_no_name_raises_or_widens_the_picture(helpers, name):
    mask = np.ones((64, 64), dtype=bool)
    picture = panel(
        helpers,
        tiles=[Tile(name), Tile(name, helpers.smooth_map(0))],
        title=name,
        subtitle=name,
        regions={name: mask},
        scale=ColorScale(50.0, name),
    )
    assert picture.shape[1] == 432
    assert picture.shape[0] <= 520


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_a_caption_title_and_subtitle(text):
    render_panel(np.zeros((8, 8, 3), np.uint8), [Tile(text)], title=text, subtitle=text, verdict="right", scale=SCALE)


def test_captions_take_three_lines_at_most(helpers):
    def height(words):
        return panel(helpers, tiles=[Tile("word " * words, helpers.smooth_map(0))]).shape[0]

    assert height(1) < height(12) < height(30) == height(300)


def test_the_three_verdicts_differ_without_colour(helpers):
    pictures = [panel(helpers, verdict=verdict) for verdict in ("right", "wrong", "unknown")]
    inked = [(picture[:76, :42].astype(int).sum(axis=-1) < 600) for picture in pictures]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (inked[first] != inked[second]).sum() > 20


def test_a_verdict_is_shown_in_words_where_there_is_no_subtitle(helpers):
    blank = panel(helpers, subtitle="", verdict="unknown")
    assert panel(helpers, subtitle="", verdict="right").shape[0] > blank.shape[0]


def test_regions_are_outlined_and_named(helpers):
    mask = np.zeros((64, 64), dtype=bool)
    mask[8:40, 8:40] = True
    without, empty = panel(helpers), panel(helpers, regions={"core": np.zeros_like(mask)})
    np.testing.assert_array_equal(without, empty)
    outlined = panel(helpers, regions={"core": mask})
    assert outlined.shape[0] > without.shape[0]
    assert (panel(helpers, regions={"other": mask}) != outlined).any()


def test_a_map_that_is_not_finite_gets_a_legend_entry(helpers):
    bad = helpers.smooth_map(0)
    bad[3, 3] = np.nan
    fine = panel(helpers, tiles=[Tile("Why?", helpers.smooth_map(0))])
    assert panel(helpers, tiles=[Tile("Why?", bad)]).shape[0] > fine.shape[0]


def test_a_panel_without_heatmaps_has_no_colour_bar(helpers):
    with_bar = panel(helpers, tiles=[Tile("a", np.zeros((2, 2)))])
    assert panel(helpers, tiles=[Tile("a")]).shape[0] < with_bar.shape[0]


def test_the_colour_bar_prints_limit_and_unit(helpers):
    pictures = [panel(helpers, scale=scale) for scale in (SCALE, ColorScale(50.0, "nats"), ColorScale(20.0))]
    foot = [picture[-50:] for picture in pictures]
    assert (foot[0] != foot[1]).any()
    assert (foot[0] != foot[2]).any()


@pytest.mark.parametrize("limit", [0.00037, 0.5, 1.0, 19.0, 37.415, 50.0, 999.0, 12345.6, 3.2e7])
@pytest.mark.parametrize("width", [368, 464, 560])
def test_tick_labels_of_the_colour_bar_come_in_pairs_and_never_touch(limit, width):
    bar = ColorBar(ColorScale(limit), width)
    places = sorted(bar._places(70, width - 60), key=lambda place: place[1])
    ticks = [tick for tick, _ in places]
    assert ticks == sorted(-tick for tick in ticks)
    assert {0.0, limit, -limit} <= set(ticks)
    for (tick, column), (after, next_column) in pairwise(places):
        assert next_column - column >= (text_width(bar._label(tick), 15) + text_width(bar._label(after), 15)) / 2 + 4


def test_threads_draw_the_same_bytes_as_one_alone(helpers):
    jobs = [(seed, f"probe {seed} · step {seed * 37}") for seed in range(24)]

    def draw(job):
        seed, title = job
        return panel(helpers, helpers.photo(32, 32, seed), [Tile("Why?", helpers.smooth_map(seed))], title=title)

    alone = [draw(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, jobs))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first, second)


def test_drawing_touches_no_random_state_and_no_argument(helpers):
    pixels, tiles = helpers.photo(64, 64), some_tiles(helpers)
    mask = np.ones((64, 64), dtype=bool)
    pixels.setflags(write=False)
    mask.setflags(write=False)
    for tile in tiles[1:]:
        tile.heatmap.setflags(write=False)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    panel(helpers, pixels, tiles, regions={"core": mask})
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_pixels_that_are_not_contiguous_give_the_same_picture(helpers):
    pixels = helpers.photo(300, 300)[::-1, ::2]
    np.testing.assert_array_equal(panel(helpers, pixels), panel(helpers, np.ascontiguousarray(pixels)))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        [[1]],
    ],
)
def test_wrong_pixels_are_named(helpers, pixels):
    with pytest.raises(ConfigurationError, match=r"Expected `pixels` to be one RGB image of shape \(H, W, 3\)"):
        panel(helpers, pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiles": []}, "Expected `tiles` to be a sequence of at least one Tile, but got list of length 0"),
        ({"tiles": ["a"]}, "Expected `tiles`"),
        ({"title": 3}, "Expected `title` to be text, but got int"),
        ({"subtitle": None}, "Expected `subtitle` to be text"),
        ({"verdict": "good"}, "Expected `verdict` to be one of .* but got 'good'"),
        ({"regions": [1]}, "Expected `regions` to be a mapping"),
        ({"regions": {"core": np.zeros((64, 64))}}, r"Expected `regions\['core'\]` to be a mask .* float64"),
        (
            {"regions": {"core": np.zeros((8, 8), bool)}},
            r"Expected `regions\['core'\]` to be a mask of shape \(64, 64\)",
        ),
        ({"regions": {1: np.zeros((64, 64), bool)}}, "Expected `regions key` to be text"),
        ({"scale": 50.0}, "Expected `scale` to be a ColorScale, but got float"),
    ],
)
def test_wrong_arguments_are_named(helpers, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        panel(helpers, **changes)


@pytest.mark.parametrize(
    "heatmap", [np.zeros((2, 7, 7)), np.zeros((0, 7)), torch.zeros(7, 7), [[1.0]], np.zeros((2, 2), bool)]
)
def test_a_tile_refuses_what_is_no_map(heatmap):
    with pytest.raises(ConfigurationError, match="Expected `heatmap` to be"):
        Tile("Why?", heatmap)


def test_a_tile_refuses_a_caption_that_is_not_text():
    with pytest.raises(ConfigurationError, match="Expected `caption` to be text, but got NoneType"):
        Tile(None)
