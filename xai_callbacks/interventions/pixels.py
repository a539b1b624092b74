"""`PixelScale`: between images as the model expects them and images as they are displayed, in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions.fills import ROUNDING
from xai_callbacks.probes import ProbeSet

# Values that a normalisation, undone, may leave outside [0, 1]: resizing overshoots at edges, a wrong scale everywhere.
_OVERSHOOT, _OVERSHOOT_SHARE = 0.05, 0.05


@dataclass(frozen=True, eq=False)
class PixelScale:
    """Undoes the normalisation of a probe set, and does it again."""

    mean: Tensor  # (C, 1, 1), in units of [0, 1] pixels
    std: Tensor  # likewise

    @classmethod
    def of(cls, probes: ProbeSet) -> PixelScale:
        """The scale of a probe set; without `mean` and `std` its images must lie in [0, 1].

        Raises a `ConfigurationError` if it is unknown, or known wrongly, which values are black and white.
        """
        known = probes.mean is not None and probes.std is not None
        mean, std = (probes.mean, probes.std) if known else ((0.0,), (1.0,))
        scale = cls(*(probes.images.new_tensor(values).view(-1, 1, 1) for values in (mean, std)))
        margin, allowed = (_OVERSHOOT, _OVERSHOOT_SHARE) if known else (ROUNDING, 0.0)
        low, high, outside = torch.inf, -torch.inf, 0.0
        # Image by image, so that a large set is not copied as a whole.
        for image in probes.images:
            original = image * scale.std + scale.mean
            low, high = min(low, float(original.min())), max(high, float(original.max()))
            outside += float(((original < -margin) | (original > 1 + margin)).float().mean()) / len(probes)
        if outside > allowed:
            found = f"{outside:.0%} of the values outside, from {low:.3g} to {high:.3g}"
            raise ConfigurationError(
                f"Expected the images of `probes` to lie in [0, 1] once `mean` and `std` are undone, but got {found}. "
                "Give `mean` and `std` in units of [0, 1] pixels, as they are in the transform."
                if known
                else f"Expected `probes` to have `mean` and `std`, or images in [0, 1], but got neither: {found}. "
                "Build the probe set with the `mean` and `std` of the transform."
            )
        return scale

    def displayed(self, images: Tensor) -> Tensor:
        """Images as the model expects them, `(N, C, H, W)`, as they are displayed: in [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)

    def expected(self, edited: Tensor, images: Tensor) -> Tensor:
        """Edited images `(N, C, H, W)` in [0, 1] as the model expects them.

        They are bit-identical to `images`, which `displayed` was given, wherever they were not edited.
        """
        return torch.where(edited == self.displayed(images), images, (edited - self.mean) / self.std)
