import pytest
import torch

from xai_callbacks.access.layouts import FeatureLayout, infer_layout
from xai_callbacks.errors import ConfigurationError


@pytest.mark.parametrize(
    ("shape", "image", "grids", "expected"),
    [
        ((2, 512, 7, 7), (224, 224), (), FeatureLayout("NCHW", (7, 7))),
        ((2, 7, 7, 768), (224, 224), (), FeatureLayout("NHWC", (7, 7))),
        ((2, 64, 4, 8), (128, 256), (), FeatureLayout("NCHW", (4, 8))),
        ((2, 4, 8, 64), (128, 256), (), FeatureLayout("NHWC", (4, 8))),
        ((2, 64, 1, 25), (32, 100), (), FeatureLayout("NCHW", (1, 25))),  # no reading has the aspect: channels first
        ((2, 197, 192), (224, 224), (), FeatureLayout("NLC", (14, 14), 1)),
        ((2, 198, 192), (224, 224), (), FeatureLayout("NLC", (14, 14), 2)),
        ((2, 196, 192), (224, 224), (), FeatureLayout("NLC", (14, 14), 0)),
        ((2, 201, 192), (224, 224), (), FeatureLayout("NLC", (14, 14), 5)),
        ((2, 33, 8), (16, 32), (), FeatureLayout("NLC", (4, 8), 1)),
        ((2, 9, 8), (32, 32), ((2, 2),), FeatureLayout("NLC", (2, 2), 5)),  # the patch embedding knows better
        ((2, 512), (224, 224), (), None),
        ((2, 3, 4, 5, 6), (224, 224), (), None),
        ((2, 100, 8), (224, 225), (), None),
        # Both readings of 4 x 6 x 8 have the aspect of the image, give or take a cell: the patch embedding decides.
        ((2, 4, 6, 8), (16, 24), (), FeatureLayout("NCHW", (6, 8))),
        ((2, 4, 6, 8), (16, 24), ((4, 6),), FeatureLayout("NHWC", (4, 6))),
        ((2, 4, 6, 8), (16, 24), ((6, 8), (4, 6)), FeatureLayout("NCHW", (6, 8))),
        ((2, 7, 7, 8), (28, 28), ((7, 7),), FeatureLayout("NHWC", (7, 7))),
        # Without padding, the map of a convolution need not have the aspect of the image.
        ((2, 6, 11, 29), (15, 33), (), FeatureLayout("NHWC", (6, 11))),
        ((2, 6, 11, 29), (15, 33), ((11, 29), (13, 31)), FeatureLayout("NCHW", (11, 29))),
    ],
)
def test_the_layout_is_told_from_the_shape(shape, image, grids, expected):
    assert infer_layout(shape, image, grids) == expected


def test_the_user_may_say_which():
    assert infer_layout((2, 7, 7, 7), (224, 224)).name == "NCHW"
    assert infer_layout((2, 7, 7, 7), (224, 224), (), "NHWC").name == "NHWC"
    assert infer_layout((2, 197, 192), (224, 224), (), "NCHW") is None
    with pytest.raises(ConfigurationError, match="Expected `layout` to be one of NCHW, NHWC, NLC, but got 'NWHC'"):
        infer_layout((2, 7, 7, 7), (224, 224), (), "NWHC")


def test_every_layout_reads_the_same_map():
    maps = torch.randn(2, 5, 3, 4)
    last = maps.permute(0, 2, 3, 1)
    tokens = torch.cat([torch.full((2, 2, 5), torch.nan), last.reshape(2, 12, 5)], dim=1)
    for layout, tensor in (
        (FeatureLayout("NCHW", (3, 4)), maps),
        (FeatureLayout("NHWC", (3, 4)), last),
        (FeatureLayout("NLC", (3, 4), 2), tokens),
    ):
        assert torch.equal(layout.to_nchw(tensor), maps)
        assert layout.channels(tensor.shape) == 5
        assert layout.cells == 12
