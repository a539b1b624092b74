"""How a tensor lies on the image: convolutional, channels-last, or as a row of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["FeatureLayout", "LayoutName", "check_layout", "possible_layouts"]

LayoutName = Literal["NCHW", "NHWC", "NLC", "NCL", "LNC"]

# Class, distillation and register tokens: no published vision transformer has more than this beside its patches.
_MOST_EXTRA_TOKENS = 16
# Cells that are so many times longer than wide are no cells of a map; sooner where the map is a single row of them.
_LONGEST, _LONGEST_OF_STRIP = 8.0, 2.0


def check_layout(name: object) -> None:
    """Raise a `ConfigurationError` for what is not the name of a layout."""
    if name not in get_args(LayoutName):
        raise ConfigurationError(f"Expected `layout` to be one of {', '.join(get_args(LayoutName))}, but got {name!r}.")


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
        sides = {"N": images, "H": self.grid[0], "W": self.grid[1], "L": self.prefix + self.cells + self.suffix}
        return tensor.ndim == len(self.name) and all(
            size == sides.get(axis, size) for axis, size in zip(self.name, tensor.shape, strict=True)
        )

    def to_nchw(self, features: Tensor) -> Tensor:
        """Read features, or gradients of the same shape, as `(N, D, h, w)`, without extra tokens; a view if it can."""
        tokens = "L" in self.name
        features = features.permute([self.name.index(axis) for axis in ("NCL" if tokens else "NCHW")])
        if not tokens:
            return features
        features = features[:, :, self.prefix : self.prefix + self.cells]
        return features.reshape(*features.shape[:2], *self.grid)


def possible_layouts(
    shape: Sequence[int], images: Sequence[int], grids: Sequence[tuple[int, int]] = (), name: LayoutName | None = None
) -> Iterator[FeatureLayout]:
    """Every way in which a tensor of a shape could lie on images `(N, C, H, W)`, the likeliest first.

    Four axes are channels-first or channels-last. Three axes are tokens: their grid is the first that fits of those
    `(h, w)` of convolutions that ran before (the patch embedding), or one with the aspect ratio of the image; up to 16
    extra tokens may stand before or behind the patches. Grids of long cells are rows, columns or channels, of which no
    map is made unless the user says so by `name`. Which one is right, if any, `locality.measure` finds out.
    """
    if name is not None:
        check_layout(name)
    names: dict[int, tuple[LayoutName, ...]] = {4: ("NCHW", "NHWC"), 3: ("NLC", "LNC", "NCL")}
    for each in names.get(len(shape), ()):
        if name not in (None, each) or shape[each.index("N")] != images[0]:
            continue
        if "H" in each:
            grid = shape[each.index("H")], shape[each.index("W")]
            if grid[0] * grid[1] > 1 and (name is not None or not _is_strip(grid, images)):
                yield FeatureLayout(each, grid)
            continue
        length = shape[each.index("L")]
        known = [
            grid for grid in grids if grid[0] * grid[1] > 1 and 0 <= length - math.prod(grid) <= _MOST_EXTRA_TOKENS
        ]
        for grid in known or _grids_of_aspect(length, images):
            extra = length - math.prod(grid)
            yield from (FeatureLayout(each, grid, extra - suffix, suffix) for suffix in range(extra + 1))


def _is_strip(grid: tuple[int, int], images: Sequence[int]) -> bool:
    """Whether the cells are too long to say where along them."""
    height, width = (side / cells for side, cells in zip(images[-2:], grid, strict=True))
    longest = _LONGEST_OF_STRIP if min(grid) == 1 else _LONGEST
    return max(height, width) >= longest * min(height, width)


def _grids_of_aspect(length: int, images: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Grids of up to so many cells with the aspect ratio of the image, fewest extra tokens first."""
    height, width = images[-2:]
    for extra in range(min(_MOST_EXTRA_TOKENS, length - 2) + 1):
        rows = math.isqrt(round((length - extra) * height / width))
        for h in (rows, rows + 1):
            if h > 0 and (length - extra) % h == 0 and h * width == (length - extra) // h * height:
                yield h, (length - extra) // h
