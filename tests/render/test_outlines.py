import numpy as np
import pytest

from xai_callbacks.render.overlay import STYLES, draw_outline, draw_regions, draw_sample


def disc(side, radius):
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return rows**2 + columns**2 < radius**2


def outlined(mask, style, background=128):
    tile = np.full((*mask.shape, 3), background, dtype=np.uint8)
    draw_outline(tile, mask, style)
    return tile, (tile == style.color).all(axis=-1)


@pytest.mark.parametrize("background", [0, 128, 255])
@pytest.mark.parametrize("style", STYLES)
def test_an_outline_can_be_seen_on_any_background(background, style):
    tile, _ = outlined(disc(64, 20), style, background)
    luma = tile.astype(int) @ np.array([299, 587, 114]) // 1000
    assert np.abs(luma - background).max() >= 70


def test_the_line_lies_just_inside_the_region_and_is_darkened_on_both_sides():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    tile, line = outlined(mask, STYLES[0])
    ring = mask.copy()
    ring[6:14, 6:14] = False
    np.testing.assert_array_equal(line, ring)
    assert (tile[4, 5:15] < 128).all()
    assert (tile[6, 6:14] < 128).all()
    assert (tile[7:13, 7:13] == 128).all()


def test_a_region_that_fills_the_image_is_outlined_along_the_border():
    _, line = outlined(np.ones((10, 12), dtype=bool), STYLES[0])
    for edge in (line[0], line[-1], line[:, 0], line[:, -1]):
        assert edge.all()


def test_dashes_leave_gaps_on_every_edge():
    mask = np.zeros((80, 80), dtype=bool)
    mask[10:70, 10:70] = True
    _, line = outlined(mask, STYLES[1])
    for edge in (line[10, 10:70], line[69, 10:70], line[10:70, 10], line[10:70, 69]):
        assert 0.4 < edge.mean() < 0.8


def test_line_styles_differ_without_their_colours():
    patterns = {(style.stroke, style.gap) for style in STYLES}
    assert len(patterns) == len(STYLES)


def test_empty_regions_are_left_out_and_the_others_keep_their_styles():
    some = disc(32, 9)
    tile, expected = np.zeros((32, 32, 3), dtype=np.uint8), np.zeros((32, 32, 3), dtype=np.uint8)
    draw_regions(tile, {"core": np.zeros_like(some), "spurious": some})
    draw_outline(expected, some, STYLES[1])
    np.testing.assert_array_equal(tile, expected)


def test_tiny_regions_and_tiles_can_be_outlined():
    dot = np.zeros((5, 5), dtype=bool)
    dot[2, 2] = True
    assert outlined(dot, STYLES[0])[1].sum() == 1
    draw_regions(np.zeros((1, 1, 3), dtype=np.uint8), {"all": np.ones((1, 1), dtype=bool)})


@pytest.mark.parametrize("style", STYLES)
def test_a_legend_sample_shows_the_colour_of_its_line(style):
    sample = draw_sample(style, (14, 30))
    assert sample.shape == (14, 30, 3)
    assert (sample == style.color).all(axis=-1).any()
