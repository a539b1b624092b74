"""How a tensor lies on the image: convolutional, channels-last, or as a row of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["FeatureLayout", "LayoutName", "possible_layouts"]

LayoutName = Literal["NCHW", "NHWC", "NLC", "NCL", "LNC"]

# Class, distillation and register tokens: no published vision transformer has more than this beside its patches.
_MOST_EXTRA_TOKENS = 16
# Cells that are so many times longer than wide are no cells of a map; sooner where the map is a single row of them.
_LONGEST, _LONGEST_OF_STRIP = 8.0, 2.0


@dataclass(frozen=True)
class FeatureLayout:
    """How a tensor is read as a feature map `(N, D, h, w)`.

    Attributes:
        name: Order of the axes: N images, C channels, H and W rows and columns of cells, L tokens.
        grid: Height and width `(h, w)` in cells.
        prefix: Number of tokens before the first patch (class, distillation, registers); 0 for grids.
        suffix: Number of tokens after the last patch.
    """

    name: LayoutName
    grid: tuple[int, int]
    prefix: int = 0
    suffix: int = 0

    @property
    def cells(self) -> int:
        """Number of cells h * w."""
        return self.grid[0] * self.grid[1]

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels D of a tensor of this layout."""
        return shape[self.name.index("C")]

    def fits(self, tensor: Tensor, images: int) -> bool:
        """Whether a tensor of so many images has this layout."""
        if tensor.ndim != len(self.name) or tensor.shape[self.name.index("N")] != images:
            return False
        if "L" in self.name:
            return tensor.shape[self.name.index("L")] == self.prefix + self.cells + self.suffix
        return (tensor.shape[self.name.index("H")], tensor.shape[self.name.index("W")]) == self.grid

    def to_nchw(self, features: Tensor) -> Tensor:
        """Read features, or gradients of the same shape, as `(N, D, h, w)`, without extra tokens; a view if it can."""
        if self.name == "NCHW":
            return features
        if self.name == "NHWC":
            return features.permute(0, 3, 1, 2)
        order = [self.name.index(axis) for axis in "NCL"]
        tokens = features.permute(order)[:, :, self.prefix : self.prefix + self.cells]
        return tokens.reshape(*tokens.shape[:2], *self.grid)


def possible_layouts(
    shape: Sequence[int],
    images: Sequence[int],
    grids: Sequence[tuple[int, int]] = (),
    name: LayoutName | None = None,
) -> Iterator[FeatureLayout]:
    """Every way in which a tensor could lie on images, the likeliest first.

    Four axes are channels-first or channels-last. Three axes are tokens: their grid is that of a convolution that ran
    before (the patch embedding), or one with the aspect ratio of the image; up to 16 extra tokens may stand before or
    behind the patches. Grids of long cells are rows, columns or channels, of which no map is made unless the user says
    so. Which one is right, if any, `locality.measure` finds out.

    Args:
        shape: Shape of the tensor.
        images: Shape `(N, C, H, W)` of the images that went in.
        grids: Grids `(h, w)` of convolutions that ran before, the likeliest first.
        name: The layout, if the user knows it.

    Raises:
        ConfigurationError: `name` is not a layout.
    """
    if name is not None and name not in get_args(LayoutName):
        raise ConfigurationError(f"Expected `layout` to be one of {', '.join(get_args(LayoutName))}, but got {name!r}.")
    names: tuple[LayoutName, ...] = ("NCHW", "NHWC") if len(shape) == 4 else ("NLC", "LNC", "NCL")
    if len(shape) not in (3, 4) or (name is not None and name not in names):
        return
    for each in names if name is None else (name,):
        if shape[each.index("N")] != images[0]:
            continue
        if "H" in each:
            height, width = shape[each.index("H")], shape[each.index("W")]
            if height * width > 1 and (name is not None or not _is_strip((height, width), images)):
                yield FeatureLayout(each, (height, width))
        else:
            yield from _token_layouts(each, shape[each.index("L")], images, grids)


def _is_strip(grid: tuple[int, int], images: Sequence[int]) -> bool:
    """Whether the cells are too long to say where along them."""
    height, width = (side / cells for side, cells in zip(images[-2:], grid, strict=True))
    longest = _LONGEST_OF_STRIP if min(grid) == 1 else _LONGEST
    return max(height, width) >= longest * min(height, width)


def _token_layouts(
    name: LayoutName, length: int, images: Sequence[int], grids: Sequence[tuple[int, int]]
) -> Iterator[FeatureLayout]:
    known = [grid for grid in grids if grid[0] * grid[1] > 1 and 0 <= length - grid[0] * grid[1] <= _MOST_EXTRA_TOKENS]
    for grid in known or _grids_of_aspect(length, images):
        extra = length - grid[0] * grid[1]
        for suffix in range(extra + 1):
            yield FeatureLayout(name, grid, extra - suffix, suffix)


def _grids_of_aspect(length: int, images: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Grids of up to so many cells with the aspect ratio of the image, fewest extra tokens first."""
    height, width = images[-2:]
    for extra in range(min(_MOST_EXTRA_TOKENS, length - 2) + 1):
        rows = math.isqrt(round((length - extra) * height / width))
        for h in (rows, rows + 1):
            if h > 0 and (length - extra) % h == 0 and h * width == (length - extra) // h * height:
                yield h, (length - extra) // h
