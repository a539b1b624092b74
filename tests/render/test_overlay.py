import numpy as np
import pytest

from xai_callbacks.render import ColorScale, overlay, upsample
from xai_callbacks.render.overlay import hatch

SCALE = ColorScale()


@pytest.mark.parametrize("heatmap", [np.zeros((7, 7), np.float32), np.full((7, 7), 0.2), np.zeros((3, 5), np.int64)])
def test_a_dead_map_shows_the_photo_in_its_own_colours(helpers, heatmap):
    photo = helpers.photo(64, 48)
    np.testing.assert_array_equal(overlay(photo, heatmap, SCALE), photo)


def test_heat_lies_only_where_there_is_heat(helpers):
    photo, heatmap = helpers.photo(64, 64), np.zeros((8, 8))
    heatmap[2, 2] = 20.0
    tile = overlay(photo, heatmap, SCALE)
    changed = (tile != photo).any(axis=-1)
    assert changed[18:22, 18:22].all()
    # Interpolation reaches half a cell beyond the neighbours, and no further.
    changed[12:28, 12:28] = False
    assert not changed.any()


def test_more_heat_covers_more_of_the_photo():
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    red = [int(overlay(black, np.full((1, 1), value), SCALE)[0, 0, 0]) for value in (0.1, 0.3, 1.0, 5.0)]
    assert red[0] == 0
    assert (np.diff(red) > 0).all()


def test_positive_values_turn_the_photo_warm_and_negative_ones_cold(helpers):
    photo = helpers.photo(40, 40)
    warm, cold = (overlay(photo, np.full((2, 2), value), SCALE).astype(int) for value in (20.0, -20.0))
    photo = photo.astype(int)
    assert (warm[..., 0] - warm[..., 2] > np.minimum(photo[..., 0] - photo[..., 2], 0)).all()
    assert (cold[..., 2] - cold[..., 0] > np.minimum(photo[..., 2] - photo[..., 0], 0)).all()
    assert warm.mean(axis=(0, 1)).argmax() == 0
    assert cold.mean(axis=(0, 1)).argmax() == 2


def test_a_red_photo_is_not_taken_for_heat():
    """Under heat of either sign, a red photo and a grey one of the same brightness look the same."""
    red, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 60, np.uint8)
    red[..., 0] = 200
    for value in (30.0, -30.0):
        one, other = (overlay(photo, np.full((1, 1), value), SCALE).astype(int) for photo in (red, grey))
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("color", [(0, 114, 178), (86, 180, 233), (0, 158, 115), (40, 40, 230)])
def test_a_cold_patch_keeps_its_colour_under_the_strongest_heat(color):
    """Beside a grey one of the same brightness, a blue or green patch is told apart as well as a tint of 60 % can."""
    photo = np.broadcast_to(np.array(color, np.uint8), (8, 8, 3))
    grey = np.full((8, 8, 3), round(np.array(color) @ [0.299, 0.587, 0.114]), np.uint8)
    one, other = (overlay(each, np.full((1, 1), 50.0), SCALE).astype(float) for each in (photo, grey))
    np.testing.assert_allclose(one - other, 0.6 * (photo.astype(float) - grey), atol=1.5)


def test_strong_heat_has_a_contour_in_the_colour_of_the_scale(helpers):
    photo, heatmap = helpers.photo(64, 64), np.zeros((8, 8))
    for value in (30.0, -30.0):
        heatmap[3:5, 3:5] = value
        fine = upsample(heatmap.astype(np.float32), (64, 64))
        strong = np.abs(SCALE.position(fine)) > 0.5
        inner = np.zeros_like(strong)  # slow twin: all within two steps are strong, too
        for y, x in np.argwhere(strong):
            near = [(y + a, x + b) for a in range(-2, 3) for b in range(-2, 3) if abs(a) + abs(b) <= 2]
            inner[y, x] = all(strong[each] for each in near)
        line = strong & ~inner
        tile = overlay(photo, heatmap, SCALE)
        assert line.sum() > 100
        np.testing.assert_array_equal(tile[line], SCALE.colorize(fine)[0][line])
        assert (tile[inner] != SCALE.colorize(fine)[0][inner]).any(axis=-1).all()
    everywhere = overlay(photo, np.full((8, 8), 30.0), SCALE)
    assert (everywhere != SCALE.colorize(np.array(30.0))[0]).any(axis=-1).mean() > 0.99  # no line along the border


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cells_that_are_not_finite_are_hatched_and_never_coloured(helpers, bad):
    photo, heatmap = helpers.photo(64, 64), np.zeros((4, 4))
    heatmap[1, 2] = bad
    tile = overlay(photo, heatmap, SCALE)
    np.testing.assert_array_equal(tile[20:28, 36:44], hatch((64, 64))[20:28, 36:44])
    np.testing.assert_array_equal(tile[48:], photo[48:])


def test_drawing_leaves_its_arguments_alone(helpers):
    photo, heatmap = helpers.photo(32, 32), helpers.smooth_map(0)
    photo.setflags(write=False)
    heatmap.setflags(write=False)
    assert overlay(photo, heatmap, SCALE).flags.writeable
