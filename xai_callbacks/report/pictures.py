"""Pictures inside the page: photos once, and heat as small transparent layers over them."""

import base64
import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_callbacks.render import ColorScale, upsample
from xai_callbacks.render.colors import CONTOUR, NO_HEAT, paint

QUALITY: Final = 80  # of photos, lossy WebP; those of 64 pixels and less are lossless
LONGEST: Final = 224  # side of a photo in pixels; larger ones are reduced
TINY: Final = 64
STEPS: Final = 20  # colours on either side of zero: more would hardly be seen, and take twice the space
SIDES: Final = (24, 60)  # of a layer, in pixels: the browser enlarges it smoothly
LAYERS: Final = 3000  # that fit at the largest side

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
PLACES: Final = (
    "no heat",
    *(f"{kind} at the {row} {column}" for kind in ("strongest", "all against it, strongest")
      for row in _ROWS for column in _COLUMNS),
)  # fmt: skip


def photo(pixels: NDArray[np.uint8]) -> str:
    """A photo `(H, W, 3)` as the address of an image."""
    height, width = pixels.shape[:2]
    share = min(1.0, LONGEST / max(height, width))
    small = Image.fromarray(pixels).resize((max(1, round(width * share)), max(1, round(height * share))))
    return "data:image/webp;base64," + _encoded(small, quality=QUALITY, lossless=max(height, width) <= TINY)


def layer_size(layers: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of so many layers over photos: the more there are, the smaller."""
    longest = min(max(SIDES[1] * (LAYERS / max(layers, 1)) ** 0.5, SIDES[0]), SIDES[1])
    share = longest / max(height, width)
    return max(1, round(height * share)), max(1, round(width * share))


def legend(scale: ColorScale) -> str:
    """The colours of a scale from end to end, as the address of an image."""
    rgb, opacity = scale.colorize(np.linspace(-1, 1, 161)[None] * scale.limit)
    return "data:image/webp;base64," + _encoded(_with_opacity(rgb, opacity))


class Layers:
    """Heat on one colour scale; what looks alike is held once.

    Attributes:
        images: Base64 of a WebP each; the first is empty.
        places: For each, which of `PLACES` says where it is strongest.
    """

    def __init__(self, scale: ColorScale) -> None:
        self.scale = scale
        self.images = [_encoded(Image.new("RGBA", (1, 1)), lossless=True)]
        self.places = [0]
        self._found: dict[bytes, int] = {}

    def add(self, field: NDArray[np.float32]) -> int:
        """Keep heat `(h, w)`, in the unit of the scale; returns its place among `images`."""
        exact = self.scale.position(field)
        position = np.where(np.abs(exact) <= NO_HEAT, 0, np.rint(exact * STEPS) / STEPS)
        place = self._found.setdefault(position.tobytes(), len(self.images))
        if place == len(self.images):
            self.images.append(_encoded(_painted(position), lossless=True))
            self.places.append(_strongest(position))
        return place


def layer_by_itself(field: NDArray[np.floating[Any]], size: tuple[int, int]) -> str:
    """Signed heat `(h, w)` as base64 of a layer `size`, its largest magnitude at the end of the scale."""
    large = upsample(field, size)
    return _encoded(_painted(large / max(float(np.abs(large).max()), 1e-30)), lossless=True)


def where(place: tuple[int, int], size: tuple[int, int]) -> str:
    """A row and column of an image `size` in words, such as `lower right`."""
    row, column = divmod(_ninth(place, size), 3)
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def enlarged(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Heat `(Q, N, h, w)` at the size of layers; NaN where it is not finite."""
    known = np.where(np.isfinite(maps), maps, np.nan).reshape(-1, *maps.shape[-2:])
    return np.stack([upsample(each, size) for each in known]).reshape(*maps.shape[:2], *size)


def _painted(position: NDArray[np.floating[Any]]) -> Image.Image:
    """Colours as `render.overlay` lays them on, with its contour of strong heat."""
    from scipy.ndimage import binary_erosion

    rgb, opacity = paint(position)
    rgb[opacity == 0] = 0
    strong = np.abs(position) > CONTOUR
    opacity[strong & ~binary_erosion(strong, border_value=1)] = 1
    return _with_opacity(rgb, opacity)


def _with_opacity(rgb: NDArray[np.uint8], opacity: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.dstack([rgb, np.rint(opacity * 255).astype(np.uint8)]))


def _strongest(position: NDArray[np.floating[Any]]) -> int:
    known = np.nan_to_num(position)
    if np.abs(known).max() <= NO_HEAT:
        return 0
    against = bool(known.max() <= NO_HEAT)
    place = divmod(int((np.abs(known) if against else known).argmax()), known.shape[1])
    return 1 + 9 * against + _ninth(place, known.shape[:2])


def _ninth(place: tuple[int, int], size: tuple[int, ...]) -> int:
    return 3 * (3 * place[0] // size[0]) + 3 * place[1] // size[1]


def _encoded(image: Image.Image, **how: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="WEBP", **how)
    return base64.b64encode(file.getvalue()).decode()
