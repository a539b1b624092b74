from io import BytesIO

import numpy as np
from PIL import Image

from xai_callbacks.render import encoded


def decoded(content):
    return Image.open(BytesIO(content))


def test_a_photo_becomes_a_jpeg_whose_colours_are_not_halved(helpers):
    photo = np.asarray(Image.fromarray(helpers.photo(20, 20)).resize((160, 160), Image.Resampling.BICUBIC))
    content = encoded(photo)
    picture = decoded(content)
    assert picture.format == "JPEG"
    # 4:4:4: all three components are sampled alike.
    assert {layer[1:3] for layer in picture.layer} == {(1, 1)}
    assert np.abs(np.asarray(picture).astype(int) - photo).mean() < 4


def test_a_chart_becomes_a_png_that_is_smaller_and_exact():
    chart = np.full((200, 300, 3), 252, dtype=np.uint8)
    chart[50:60, 20:280] = (0, 90, 150)
    content = encoded(chart)
    picture = decoded(content)
    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture), chart)


def test_equal_pictures_have_equal_bytes_also_if_they_are_not_contiguous(helpers):
    photo = helpers.photo(64, 64)
    assert encoded(photo[::-1, ::2]) == encoded(photo[::-1, ::2].copy())
