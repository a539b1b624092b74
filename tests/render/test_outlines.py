import numpy as np
import pytest

from xai_callbacks.render.outlines import STYLES, Outline, draw_sample, outline_regions


def disc(side, radius):
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return rows**2 + columns**2 < radius**2


@pytest.mark.parametrize("background", [0, 128, 255])
@pytest.mark.parametrize("style", STYLES)
def test_an_outline_can_be_seen_on_any_background(background, style):
    tile = np.full((64, 64, 3), background, dtype=np.uint8)
    Outline.of(disc(64, 20), style, 2).draw(tile)
    luma = tile.astype(int) @ np.array([299, 587, 114]) // 1000
    assert np.abs(luma - background).max() >= 70


def test_the_line_lies_just_inside_the_region_and_the_casing_around_it():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    outline = Outline.of(mask, STYLES[0], 2)
    ring = mask.copy()
    ring[7:13, 7:13] = False
    np.testing.assert_array_equal(outline.line, ring)
    assert outline.casing[4, 5:15].all()
    assert outline.casing[7, 7:13].all()
    assert not outline.casing[8:12, 8:12].any()
    assert outline.thin.sum() == 36


def test_a_region_that_fills_the_image_is_outlined_along_the_border():
    outline = Outline.of(np.ones((10, 12), dtype=bool), STYLES[0], 1)
    assert outline.line[0].all()
    assert outline.line[-1].all()
    assert outline.line[:, 0].all()
    assert outline.line[:, -1].all()


def test_dashes_leave_gaps_on_every_edge():
    mask = np.zeros((80, 80), dtype=bool)
    mask[10:70, 10:70] = True
    outline = Outline.of(mask, STYLES[1], 2)
    for edge in (outline.line[10, 10:70], outline.line[69, 10:70], outline.line[10:70, 10], outline.line[10:70, 69]):
        assert 0.4 < edge.mean() < 0.8


def test_line_styles_differ_without_their_colours():
    patterns = {style.dashes for style in STYLES}
    assert len(patterns) == len(STYLES)


def test_empty_regions_are_left_out_and_the_others_keep_their_styles():
    some = disc(32, 9)
    both = outline_regions({"core": some, "spurious": some}, (32, 32))
    one = outline_regions({"core": np.zeros_like(some), "spurious": some}, (32, 32))
    assert list(one) == ["spurious"]
    assert one["spurious"].style == both["spurious"].style != both["core"].style


def test_tiny_regions_and_tiles_can_be_outlined():
    dot = np.zeros((5, 5), dtype=bool)
    dot[2, 2] = True
    assert outline_regions({"dot": dot}, (5, 5))["dot"].line.sum() == 1
    outline_regions({"all": np.ones((1, 1), dtype=bool)}, (1, 1))["all"].draw(np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.mark.parametrize("style", STYLES)
def test_a_legend_sample_shows_the_colour_of_its_line(style):
    sample = draw_sample(style, (14, 30))
    assert sample.shape == (14, 30, 3)
    assert (sample == style.color).all(axis=-1).any()
