import numpy as np
import pytest
import torch

from xai_callbacks.render import upsample
from xai_callbacks.render.overlay import fit, tile_size


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (8, 5), (14, 14), (3, 9)])
@pytest.mark.parametrize("size", [(224, 224), (28, 31), (100, 97), (14, 14)])
def test_upsample_equals_torch_interpolate_without_aligned_corners(grid, size):
    heatmap = np.random.default_rng(0).normal(0, 5, grid).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(heatmap).double()[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    result = upsample(heatmap, size)
    assert (result.shape, result.dtype) == (size, np.float32)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_upsample_averages_where_it_shrinks():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(upsample(checkers, (8, 8))[1:-1, 1:-1], 0.5, atol=0.01)


def test_upsample_of_float64_and_integers_and_huge_values():
    np.testing.assert_array_equal(upsample(np.full((2, 2), 3), (4, 4)), 3.0)
    assert np.isfinite(upsample(np.array([[3e38, -3e38]]), (4, 8))).all()


def test_upsample_passes_nan_on_to_its_neighbours_only():
    result = upsample(np.array([[np.nan, 1.0, 1.0, 1.0]]), (4, 16))
    assert np.isnan(result[:, :4]).all()
    np.testing.assert_array_equal(result[:, 6:], 1.0)


def test_upsample_leaves_its_argument_alone():
    heatmap = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    heatmap.setflags(write=False)
    upsample(heatmap, (2, 2))[...] = 9.0
    np.testing.assert_array_equal(heatmap, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((28, 28), 112, (112, 112)),
        ((32, 32), 112, (96, 96)),
        ((64, 64), 112, (112, 112)),
        ((224, 224), 112, (112, 112)),
        ((28, 28), 64, (56, 56)),
        ((512, 256), 64, (64, 32)),
        ((480, 640), 112, (84, 112)),
        ((1, 1000), 112, (1, 112)),
        ((1, 1), 112, (112, 112)),
    ],
)
def test_tile_sizes(size, longest, expected):
    assert tile_size(size, longest) == expected


def test_tile_size_keeps_the_aspect_and_stays_within_bounds():
    for height in range(1, 700, 7):
        for width in (height, 2 * height):
            tile = tile_size((height, width), 112)
            assert 84 <= max(tile) <= 112
            assert abs(tile[0] * 2 - tile[1] if width != height else tile[0] - tile[1]) <= 1


def test_small_images_grow_by_repeating_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(pixels, (224, 112))[3::7, 3::7], pixels)
    assert len(np.unique(fit(pixels[:1, :1], (224, 224)).reshape(-1, 3), axis=0)) == 1


def test_grey_images_grow_by_repeating_and_shrink_by_averaging():
    grey = np.zeros((4, 4), dtype=np.uint8)
    grey[:2, :3] = 255
    np.testing.assert_array_equal(fit(grey, (8, 8))[::2, ::2], grey)
    half = np.zeros((512, 512), dtype=np.uint8)
    half[:, :256] = 255
    assert (fit(half, (256, 256)) >= 128).sum() == 256 * 128
