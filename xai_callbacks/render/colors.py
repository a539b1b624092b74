"""The fixed, signed colour scale of every picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.errors import ConfigurationError, is_number, require_instance
from xai_callbacks.render.checks import require_numbers

__all__ = ["CONTOUR", "ColorScale", "paint"]

# One linear width for all scales, as a share of the limit: at limit 50 a map of 1 logit sits at 0.12, of 3 at 0.31 and
# of 10 at 0.59, so that the weak maps of the first epochs can be seen while the strong ones still show where.
LINEAR_SHARE: Final = 0.04
# Stops (position, red, green, blue) of the two arms. Each gets darker and more saturated outwards, so that strength
# is read from lightness as well; orange against blue-violet stays apart for the common forms of colour blindness.
FOR_STOPS: Final = ((0.0, 255, 176, 0), (0.35, 252, 126, 10), (0.7, 226, 64, 10), (1.0, 165, 10, 21))
AGAINST_STOPS: Final = ((0.0, 60, 165, 255), (0.35, 40, 115, 250), (0.7, 72, 60, 215), (1.0, 64, 10, 130))
# No more, so that a blue patch is still seen to be blue under heat; strong heat has a contour instead.
MAX_OPACITY: Final = 0.4
CONTOUR: Final = 0.5
# Closer to zero than this share of the scale there is no heat: 0.5 % of the limit.
NO_HEAT: Final = 0.03
OPACITY_POWER: Final = 0.35
HALF_STEPS: Final = 512
NOT_FINITE_GREY: Final = 128


@dataclass(frozen=True)
class ColorScale:
    """A symmetric colour scale around zero whose range is set once and never taken from a map.

    A value `v` lies at `asinh(v / w) / asinh(limit / w)` with `w = limit / 25`, cut at -1 and 1: linear close to zero,
    logarithmic far from it, odd, and strictly rising up to the limit. Evidence for the answer is orange to red,
    evidence against it blue to violet. Opacity is exactly 0 up to 0.5 % of the limit and rises with the distance from
    zero beyond, so a dead map shows nothing but the image.

    Attributes:
        limit: Value, in `unit`, at which the colour is strongest; larger values look the same. Finite, > 0.
        unit: Name of the unit, printed beside the colour bar.

    Raises:
        ConfigurationError: If `limit` is not a finite number > 0, or `unit` is not text.
    """

    limit: float = 50.0
    unit: str = "logits"

    def __post_init__(self) -> None:
        limit = self.limit.item() if isinstance(self.limit, np.generic) else self.limit
        if not is_number(limit) or limit <= 0:
            raise ConfigurationError(
                f"Expected `limit` to be a finite number > 0, but got {self.limit!r}. "
                f"Give the largest magnitude that should still get a colour of its own, e.g. 50.0."
            )
        require_instance("unit", self.unit, str, "text")
        object.__setattr__(self, "limit", float(limit))

    def position(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Place values on the scale.

        Args:
            values: Any shape, in `unit`.

        Returns:
            The same shape, in [-1, 1]; NaN where a value is NaN or infinite.
        """
        numbers = require_numbers("values", values)
        width = self.limit * LINEAR_SHARE
        shares = np.clip(numbers, -self.limit, self.limit) / width
        placed = np.arcsinh(shares) / math.asinh(1.0 / LINEAR_SHARE)
        placed = np.where(np.isfinite(numbers), placed, np.nan)
        return np.asarray(np.clip(placed, -1.0, 1.0), dtype=np.float32)

    def colorize(self, values: NDArray[np.generic]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Give each value its colour and opacity.

        Args:
            values: Any shape `(...)`, in `unit`.

        Returns:
            Colours `(..., 3)` and opacities `(...)` in [0, 0.4]. A NaN or infinite value is neutral grey with
            opacity 1, which no finite value has: it cannot be mistaken for evidence.
        """
        return paint(self.position(values))


def paint(position: NDArray[np.floating]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Colours `(..., 3)` and opacities `(...)` of positions in [-1, 1]; NaN is neutral grey with opacity 1."""
    known = np.isfinite(position)
    index = np.rint(np.where(known, position, 0.0) * HALF_STEPS).astype(np.int32) + HALF_STEPS
    rgb = np.where(known[..., None], _color_table()[index], np.uint8(NOT_FINITE_GREY))
    return rgb, np.where(known, _opacity(np.abs(position)), 1.0).astype(np.float32)


def _opacity(distance: NDArray[np.floating]) -> NDArray[np.float32]:
    """Opacity for a distance from zero in [0, 1]: 0 where there is no heat, then rising to `MAX_OPACITY`."""
    beyond = np.maximum(distance - NO_HEAT, 0.0) / (1.0 - NO_HEAT)
    return np.asarray(MAX_OPACITY * beyond**OPACITY_POWER, dtype=np.float32)


@lru_cache(maxsize=1)
def _color_table() -> NDArray[np.uint8]:
    """Colours `(1025, 3)` for positions -1 to 1 in even steps. Shared: not to be written."""
    distance = np.linspace(0.0, 1.0, HALF_STEPS + 1, dtype=np.float32)
    against, favour = _arm(AGAINST_STOPS, distance), _arm(FOR_STOPS, distance)
    colors: NDArray[np.uint8] = np.rint(np.concatenate([against[:0:-1], favour])).astype(np.uint8)
    colors.setflags(write=False)
    return colors


def _arm(stops: tuple[tuple[float, int, int, int], ...], distance: NDArray[np.float32]) -> NDArray[np.float64]:
    table = np.asarray(stops, dtype=np.float64)
    return np.stack([np.interp(distance, table[:, 0], table[:, channel]) for channel in (1, 2, 3)], axis=-1)
