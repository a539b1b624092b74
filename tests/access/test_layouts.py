import pytest
import torch

from xai_callbacks.access.layouts import FeatureLayout, possible_layouts
from xai_callbacks.errors import ConfigurationError

NCHW, NHWC, NLC = (
    lambda grid, *extra, name=name: FeatureLayout(name, grid, *extra) for name in ("NCHW", "NHWC", "NLC")
)


@pytest.mark.parametrize(
    ("shape", "image", "grids", "likeliest"),
    [
        ((2, 512, 7, 7), (224, 224), (), NCHW((7, 7))),
        ((2, 64, 2, 6), (32, 100), (), NCHW((2, 6))),
        ((2, 64, 1, 25), (32, 100), (), None),  # columns: the other axis was pooled away
        ((2, 3, 1, 1), (32, 32), (), None),  # what a convolution gives as the head, not a column of three rows
        ((2, 197, 192), (224, 224), (), NLC((14, 14), 1)),
        ((2, 196, 192), (224, 224), (), NLC((14, 14))),
        ((2, 201, 192), (224, 224), (), NLC((14, 14), 5)),
        ((2, 33, 8), (16, 32), (), NLC((4, 8), 1)),
        ((2, 9, 8), (32, 32), ((2, 2),), NLC((2, 2), 5)),  # the patch embedding knows better
        ((2, 512), (224, 224), (), None),
        ((2, 3, 4, 5, 6), (224, 224), (), None),
        ((3, 512, 7, 7), (224, 224), (), None),  # another number of images than went in
    ],
)
def test_the_likeliest_layout_comes_first(shape, image, grids, likeliest):
    assert next(possible_layouts(shape, (2, 3, *image), grids), None) == likeliest


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 7, 7, 768), NHWC((7, 7))),
        ((2, 68, 8), NLC((8, 8), 0, 4)),  # registers behind the patches
        ((2, 68, 8), NLC((8, 8), 1, 3)),
        ((64, 2, 8), FeatureLayout("LNC", (8, 8))),
        ((2, 8, 64), FeatureLayout("NCL", (8, 8))),
    ],
)
def test_every_layout_that_could_be_is_tried(shape, expected):
    assert expected in list(possible_layouts(shape, (2, 3, 64, 64)))


def test_the_user_may_say_which():
    assert [each.grid for each in possible_layouts((2, 64, 1, 25), (2, 3, 32, 100), (), "NCHW")] == [(1, 25)]
    assert [each.name for each in possible_layouts((2, 7, 7, 7), (2, 3, 224, 224))] == ["NCHW", "NHWC"]
    assert [each.name for each in possible_layouts((2, 7, 7, 7), (2, 3, 224, 224), (), "NHWC")] == ["NHWC"]
    assert list(possible_layouts((2, 197, 192), (2, 3, 224, 224), (), "NCHW")) == []
    with pytest.raises(ConfigurationError, match="one of NCHW, NHWC, NLC, NCL, LNC, but got 'NWHC'"):
        list(possible_layouts((2, 7, 7, 7), (2, 3, 224, 224), (), "NWHC"))


def test_every_layout_reads_the_same_map():
    maps = torch.randn(2, 5, 3, 4)
    last = maps.permute(0, 2, 3, 1)
    tokens = torch.cat([torch.full((2, 2, 5), torch.nan), last.reshape(2, 12, 5), torch.full((2, 1, 5), torch.nan)], 1)
    for layout, tensor in (
        (FeatureLayout("NCHW", (3, 4)), maps),
        (FeatureLayout("NHWC", (3, 4)), last),
        (FeatureLayout("NLC", (3, 4), 2, 1), tokens),
        (FeatureLayout("LNC", (3, 4), 2, 1), tokens.transpose(0, 1)),
        (FeatureLayout("NCL", (3, 4), 2, 1), tokens.transpose(1, 2)),
    ):
        assert torch.equal(layout.to_nchw(tensor), maps)
        assert layout.channels(tensor.shape) == 5
        assert layout.cells == 12
        assert layout.fits(tensor, 2)
        assert not layout.fits(tensor, 3)
