"""`encoded`: a picture as the bytes of a file."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_callbacks.render.checks import require_pixels

__all__ = ["encoded"]

QUALITY: Final = 84
# PNG can only be smaller for a picture of few colours, such as a chart; trying it is slow.
MAX_PNG_COLORS: Final = 2048
LONGEST_JPEG: Final = 65500


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture `(H, W, 3)` uint8 as JPEG (quality 84, 4:4:4: type stays sharp), or as PNG if that is smaller.

    A side of more than 65500 pixels, which a JPEG cannot have, makes it a PNG.

    Raises:
        ConfigurationError: `pixels` is no such picture.
    """
    picture = Image.fromarray(np.ascontiguousarray(require_pixels(pixels)))
    found = []
    fits = max(picture.size) <= LONGEST_JPEG
    if fits:
        found.append(_file(picture, "JPEG", quality=QUALITY, subsampling=0, progressive=True))
    if not fits or picture.getcolors(MAX_PNG_COLORS) is not None:
        found.append(_file(picture, "PNG", optimize=True))
    return min(found, key=len)


def _file(picture: Image.Image, form: str, **settings: int | bool) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **settings)
    return buffer.getvalue()
