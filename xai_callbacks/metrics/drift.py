"""How much did an explanation change since the last look?"""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["explanation_drift"]


def explanation_drift(before: Tensor, after: Tensor) -> Tensor:
    """Cosine distance of signed heatmaps, `1 - cos(before, after)`, in [0, 2].

    0: the same map up to a positive factor; 1: unrelated; 2: the opposite map. Only the pattern counts, not the
    magnitude. Computed as half the squared distance of the unit maps, which keeps its digits where the maps are nearly
    equal. Has no chance level.

    Both are `(..., h, w)`, of the same probes and question. NaN where either map is all zeros or not finite.

    Raises:
        ConfigurationError: The shapes differ or have no two last axes.
    """
    if before.shape != after.shape or before.ndim < 2:
        raise ConfigurationError(
            f"Expected `before` and `after` to have one shape (..., h, w), but got {tuple(before.shape)} and "
            f"{tuple(after.shape)}. Compare maps of one explainer at one layer."
        )
    distance = (_unit(before) - _unit(after)).square().sum(dim=-1) / 2
    return distance.clamp(max=2)


def _unit(maps: Tensor) -> Tensor:
    """Maps as unit vectors `(..., h w)`; NaN where a map is all zeros or not finite."""
    flat = maps.double().flatten(-2)
    scaled = flat / flat.abs().amax(dim=-1, keepdim=True)  # so that no square over- or underflows
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    # inf / inf is NaN only at that pixel, but the sum over pixels carries it to the whole map.
    return unit
