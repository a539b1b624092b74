import numpy as np
import pytest

from xai_callbacks.render import ColorScale
from xai_callbacks.render.outlines import outline_regions
from xai_callbacks.render.overlay import draw_tiles, hatch, overlay, soften

SCALE = ColorScale()


def is_grey(tile):
    return bool((tile[..., 0] == tile[..., 1]).all() and (tile[..., 1] == tile[..., 2]).all())


@pytest.mark.parametrize("heatmap", [np.zeros((7, 7), np.float32), np.zeros((7, 7)), np.zeros((3, 5), np.int64)])
def test_a_dead_map_shows_the_grey_image_and_no_colour(helpers, heatmap):
    plain = helpers.photo(64, 48)
    (tile,) = draw_tiles(plain, [heatmap], (), SCALE)
    np.testing.assert_array_equal(tile, np.repeat(soften(plain)[..., None], 3, axis=2))
    assert is_grey(tile)


def test_softened_greys_keep_the_order_of_the_luma():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    grey = soften(ramp)[0].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert (grey[0], grey[-1]) == (92, 246)


def test_positive_values_turn_the_tile_warm_and_negative_ones_cold(helpers):
    grey = soften(helpers.photo(40, 40))
    warm, cold = (overlay(grey, np.full((2, 2), value), SCALE).astype(int) for value in (5.0, -5.0))
    assert (warm[..., 0] > warm[..., 2]).all()
    assert (cold[..., 2] > cold[..., 0]).all()


def test_stronger_maps_are_painted_stronger():
    grey = np.full((8, 8), 200, dtype=np.uint8)
    tiles = [overlay(grey, np.full((1, 1), value), SCALE).astype(int)[0, 0] for value in (0.3, 1.0, 5.0, 20.0, 50.0)]
    assert (np.diff([tile[1] for tile in tiles]) < 0).all()


def test_a_weak_early_map_can_be_seen():
    grey = np.full((8, 8), 200, dtype=np.uint8)
    tile = overlay(grey, np.full((1, 1), 1.0), SCALE).astype(int)
    assert tile[0, 0, 0] - tile[0, 0, 2] >= 30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cells_that_are_not_finite_are_hatched_and_never_coloured(helpers, bad):
    heatmap = np.zeros((4, 4))
    heatmap[1, 2] = bad
    (tile,) = draw_tiles(helpers.photo(64, 64), [heatmap], (), SCALE)
    assert is_grey(tile)
    np.testing.assert_array_equal(tile[20:28, 36:44], hatch((64, 64))[20:28, 36:44])
    clean = draw_tiles(helpers.photo(64, 64), [np.zeros((4, 4))], (), SCALE)[0]
    np.testing.assert_array_equal(tile[32 + 16 :], clean[32 + 16 :])


def test_a_tile_does_not_hang_on_the_tiles_beside_it(helpers):
    plain, weak, strong = helpers.photo(64, 64), helpers.smooth_map(0, peak=1.0), helpers.smooth_map(1, peak=500.0)
    (alone,) = draw_tiles(plain, [weak], (), SCALE)
    among = draw_tiles(plain, [strong, weak, None], (), SCALE)[1]
    np.testing.assert_array_equal(alone, among)


def test_regions_add_no_colour_to_a_dead_map(helpers):
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:40, 20:50] = True
    outlines = outline_regions({"core": mask, "spurious": np.roll(mask, 12, axis=1)}, (64, 64)).values()
    heat, image = draw_tiles(helpers.photo(64, 64), [np.zeros((2, 2)), None], outlines, SCALE)
    assert is_grey(heat)
    assert (heat[10, 20:32] == 40).all()
    assert (image[10:12, 20:31] == 255).all()


def test_drawing_leaves_its_arguments_alone(helpers):
    plain, heatmap = helpers.photo(32, 32), helpers.smooth_map(0)
    plain.setflags(write=False)
    heatmap.setflags(write=False)
    mask = np.ones((32, 32), dtype=bool)
    before = plain.copy()
    draw_tiles(plain, [None, heatmap], outline_regions({"core": mask}, (32, 32)).values(), SCALE)
    np.testing.assert_array_equal(plain, before)
