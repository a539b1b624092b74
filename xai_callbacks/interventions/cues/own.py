"""`FunctionCue`: a cue of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.cues.painted import PaintedCue
from xai_callbacks.interventions.shown import Shown

__all__ = ["FunctionCue"]

# Arithmetic in float32 leaves [0, 1] by rounding.
_ROUNDING = 1e-4


class FunctionCue(PaintedCue):
    """A cue of the user's own.

    Args:
        function: Gets images `(n, C, H, W)` in [0, 1] and the variant of each, `(n,)` int64; returns the images with
            the cue, of the same shape. It must do the same to an image at every call.
        points_to: See `Cue`.
        name: See `Cue`.
        region: Gets the images, returns where the cue lies, `(n, H, W)` bool; None if everywhere or unknown.

    Raises:
        ConfigurationError: A function is not callable; when it is used, if it returns something else.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        points_to: int | str | Sequence[int | str],
        *,
        name: str = "own",
        region: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(name, points_to)
        for argument, given in (("function", function), ("region", region)):
            if not callable(given) and (argument == "function" or given is not None):
                raise ConfigurationError(
                    f"Expected `{argument}` of the cue {name!r} to be callable, but got {type(given).__name__}. Pass a "
                    "function of images."
                )
        self.function = function
        self._region = region

    def paint(self, shown: Shown, variants: Tensor) -> Tensor:
        """See `PaintedCue.paint`."""
        painted: object = self.function(shown.images.clone(), variants.clone())
        if isinstance(painted, Tensor) and painted.shape == shown.images.shape and painted.is_floating_point():
            if bool(((painted >= -_ROUNDING) & (painted <= 1 + _ROUNDING)).all()):
                return painted.detach().to(shown.images).clamp(0, 1)
            got = f"values from {float(painted.min()):.3g} to {float(painted.max()):.3g}. Clamp what it returns"
        else:
            got = _described(painted)
        raise ConfigurationError(
            f"Expected `function` of the cue {self.name!r} to return images {tuple(shown.images.shape)} in [0, 1], but "
            f"got {got}."
        )

    def region(self, shown: Shown) -> Tensor | None:
        """See `PaintedCue.region`."""
        if self._region is None:
            return None
        found: object = self._region(shown.images.clone())
        size = (len(shown.images), *shown.images.shape[-2:])
        if isinstance(found, Tensor) and found.shape == size and found.dtype == torch.bool:
            return found.cpu()
        raise ConfigurationError(
            f"Expected `region` of the cue {self.name!r} to return booleans {size}, but got {_described(found)}. "
            "Compare a map with a threshold."
        )


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
