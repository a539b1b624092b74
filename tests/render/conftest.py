import numpy as np
import pytest
from PIL import ImageDraw


def smooth_map(seed, shape=(7, 7), peak=12.0):
    """A signed map with one strong cell and weak noise."""
    generator = np.random.default_rng(seed)
    heatmap = generator.normal(0.0, 0.3, shape).astype(np.float32)
    heatmap[shape[0] // 3, shape[1] // 3] = peak
    return heatmap


def photo(height, width, seed=0):
    """A colourful image with detail everywhere."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def places(picture, tile):
    """Left upper corners (y, x) at which a tile stands in a picture, byte for byte."""
    height, width = tile.shape[:2]
    rows, columns = picture.shape[0] - height + 1, picture.shape[1] - width + 1
    if rows < 1 or columns < 1:
        return []
    candidates = np.ones((rows, columns), dtype=bool)
    for y, x in [(0, 0), (height // 2, width // 2), (height - 1, width - 1), (height // 3, width - 1)]:
        candidates &= (picture[y : y + rows, x : x + columns] == tile[y, x]).all(axis=-1)
    return [
        (int(y), int(x)) for y, x in np.argwhere(candidates) if (picture[y : y + height, x : x + width] == tile).all()
    ]


@pytest.fixture
def helpers():
    class Helpers:
        pass

    Helpers.smooth_map = staticmethod(smooth_map)
    Helpers.photo = staticmethod(photo)
    Helpers.places = staticmethod(places)
    return Helpers


@pytest.fixture
def words(monkeypatch):
    """Each word that is drawn from now on."""
    drawn, original = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        drawn.append(text)
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn
