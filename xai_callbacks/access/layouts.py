"""How the output of a layer lies on the image: convolutional, channels-last, or as a row of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["FeatureLayout", "LayoutName", "infer_layout"]

LayoutName = Literal["NCHW", "NHWC", "NLC"]

# Class, distillation and register tokens: no published vision transformer puts more than this before its patches.
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class FeatureLayout:
    """How a tensor is read as a feature map `(N, D, h, w)`.

    Attributes:
        name: Order of the axes: `NCHW`, `NHWC`, or `NLC` for tokens.
        grid: Height and width `(h, w)` in cells.
        prefix: Number of tokens before the first patch (class, distillation, registers); 0 for grids.
    """

    name: LayoutName
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def cells(self) -> int:
        """Number of cells h * w."""
        return self.grid[0] * self.grid[1]

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels D of a tensor of this layout."""
        return shape[1] if self.name == "NCHW" else shape[-1]

    def to_nchw(self, features: Tensor) -> Tensor:
        """Read features, or gradients of the same shape, as `(N, D, h, w)`, without prefix tokens; a view."""
        if self.name == "NHWC":
            return features.permute(0, 3, 1, 2)
        if self.name == "NLC":
            tokens = features[:, self.prefix :]
            return tokens.reshape(tokens.shape[0], *self.grid, tokens.shape[2]).permute(0, 3, 1, 2)
        return features


def infer_layout(
    shape: Sequence[int],
    image_size: Sequence[int],
    grids: Sequence[tuple[int, int]] = (),
    name: LayoutName | None = None,
) -> FeatureLayout | None:
    """Tell the layout of a feature map from its shape.

    Four axes are channels-first unless only the channels-last reading has the aspect ratio of the image. Where a
    convolution that ran before has the grid of just one reading, and the aspect ratio does not speak against it, that
    decides. Three axes are tokens: their grid is that of such a convolution (the patch embedding), or else the one with
    the aspect ratio of the image, after the fewest prefix tokens.

    Args:
        shape: Shape of the tensor.
        image_size: Height and width of the images.
        grids: Grids `(h, w)` of convolutions that ran before, the likeliest first.
        name: The layout, if the user knows it.

    Returns:
        The layout, or None if the tensor is no feature map.

    Raises:
        ConfigurationError: `name` is not a layout.
    """
    if name is not None and name not in get_args(LayoutName):
        raise ConfigurationError(f"Expected `layout` to be one of {', '.join(get_args(LayoutName))}, but got {name!r}.")
    if len(shape) == 4 and name != "NLC":
        first, last = (shape[2], shape[3]), (shape[1], shape[2])
        seen = (first in grids, last in grids)
        # Convolutions without padding lose the aspect ratio of small images, but their own grid is known.
        fits_first = seen != (False, True) and (seen == (True, False) or _same_aspect(first, image_size))
        channels_last = name == "NHWC" or (name is None and _same_aspect(last, image_size) and not fits_first)
        return FeatureLayout("NHWC", last) if channels_last else FeatureLayout("NCHW", first)
    if len(shape) == 3 and name in (None, "NLC"):
        return _token_layout(shape[1], image_size, grids)
    return None


def _same_aspect(grid: tuple[int, int], image_size: Sequence[int]) -> bool:
    """Whether a grid could come from the image by one stride on both axes, up to rounding and padding of one cell."""
    height, width = image_size
    stride = max(height / grid[0], width / grid[1])
    return abs(grid[0] - height / stride) <= 1 and abs(grid[1] - width / stride) <= 1


def _token_layout(length: int, image_size: Sequence[int], grids: Sequence[tuple[int, int]]) -> FeatureLayout | None:
    for grid in grids:
        prefix = length - grid[0] * grid[1]
        if grid[0] * grid[1] > 1 and 0 <= prefix <= _MOST_PREFIX_TOKENS:
            return FeatureLayout("NLC", grid, prefix)
    height, width = image_size
    for prefix in range(min(_MOST_PREFIX_TOKENS, length - 1) + 1):
        rows = math.isqrt(round((length - prefix) * height / width))
        for h in (rows, rows + 1):
            if h > 0 and (length - prefix) % h == 0 and h * width == (length - prefix) // h * height:
                return FeatureLayout("NLC", (h, (length - prefix) // h), prefix)
    return None
