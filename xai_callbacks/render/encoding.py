"""`encoded`: a picture as the bytes of a file."""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["encoded"]

# PNG can only be smaller for a picture of few colours, such as a chart; trying it is slow.
MAX_PNG_COLORS: Final = 2048
LONGEST_JPEG: Final = 65500


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture `(H, W, 3)` as JPEG (quality 84, 4:4:4: type stays sharp), or as PNG if that is smaller.

    A side of more than 65500 pixels, which a JPEG cannot have, makes it a PNG.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    jpeg, png = BytesIO(), BytesIO()
    if fits := max(picture.size) <= LONGEST_JPEG:
        picture.save(jpeg, "JPEG", quality=84, subsampling=0, progressive=True)
    if not fits or picture.getcolors(MAX_PNG_COLORS) is not None:
        picture.save(png, "PNG", optimize=True)
    return min(filter(None, (jpeg.getvalue(), png.getvalue())), key=len)
