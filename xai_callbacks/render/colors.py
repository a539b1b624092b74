"""The fixed, signed colour scale of every picture."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xai_callbacks.errors import require_instance, require_number

# One linear width for all scales, as a share of the limit: at limit 50 a map of 1 logit sits at 0.12, of 3 at 0.31 and
# of 10 at 0.59, so that the weak maps of the first epochs can be seen while the strong ones still show where.
LINEAR_SHARE: Final = 0.04
# Stops (position, red, green, blue). Each arm gets darker and more saturated outwards, so that strength is read from
# lightness as well; orange against blue-violet stays apart for the common forms of colour blindness.
STOPS: Final = (
    (-1.0, 64, 10, 130), (-0.7, 72, 60, 215), (-0.35, 40, 115, 250), (-1e-9, 60, 165, 255),
    (0.0, 255, 176, 0), (0.35, 252, 126, 10), (0.7, 226, 64, 10), (1.0, 165, 10, 21),
)  # fmt: skip
# No more, so that a blue patch is still seen to be blue under heat; strong heat has a contour instead.
MAX_OPACITY: Final = 0.4
CONTOUR: Final = 0.5
NO_HEAT: Final = 0.03  # closer to zero than this share of the scale there is no heat: 0.5 % of the limit
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

    Raises a `ConfigurationError` if `limit` is not a finite number > 0, or `unit` is not text.
    """

    limit: float = 50.0
    unit: str = "logits"

    def __post_init__(self) -> None:
        hint = "Give the largest magnitude that should still get a colour of its own, e.g. 50.0."
        require_number("limit", self.limit, 0, ends="()", hint=hint)
        require_instance("unit", self.unit, str, "text")

    def position(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Place values of any shape, in `unit`, on the scale: [-1, 1]; NaN where a value is NaN or infinite."""
        shares = np.clip(values, -self.limit, self.limit) / (self.limit * LINEAR_SHARE)
        placed = np.arcsinh(shares) / math.asinh(1.0 / LINEAR_SHARE)
        return np.where(np.isfinite(values), np.clip(placed, -1.0, 1.0), np.nan).astype(np.float32)

    def colorize(self, values: NDArray[np.generic]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Give each value `(...)`, in `unit`, a colour `(..., 3)` and an opacity `(...)` in [0, 0.4], see `paint`."""
        return paint(self.position(values))


def paint(position: NDArray[np.floating]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Colours `(..., 3)` and opacities `(...)` of positions in [-1, 1].

    NaN is neutral grey with opacity 1, which no finite value has: it cannot be mistaken for evidence.
    """
    known = np.isfinite(position)
    index = np.rint(np.where(known, position, 0.0) * HALF_STEPS).astype(np.int32) + HALF_STEPS
    beyond = np.maximum(np.abs(position) - NO_HEAT, 0.0) / (1.0 - NO_HEAT)
    rgb, opacity = _TABLE[index], MAX_OPACITY * beyond**OPACITY_POWER
    rgb[~known] = NOT_FINITE_GREY
    return rgb, np.where(known, opacity, 1.0).astype(np.float32)


def _table() -> NDArray[np.uint8]:
    """Colours `(1025, 3)` for positions -1 to 1 in even steps."""
    places, *channels = np.array(STOPS).T
    even = np.linspace(-1.0, 1.0, 2 * HALF_STEPS + 1)
    return np.stack([np.rint(np.interp(even, places, channel)) for channel in channels], axis=-1).astype(np.uint8)


_TABLE: Final = _table()
