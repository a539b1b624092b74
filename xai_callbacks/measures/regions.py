"""The regions of probes on the grids of heatmaps, brought there once."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xai_callbacks.metrics.localization import RegionWeights, region_weights
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import MapSet

__all__ = ["peaks_of", "regions_on"]

_Known = dict[tuple[int, int], dict[str, RegionWeights]]
_known: WeakKeyDictionary[ProbeSet, _Known] = WeakKeyDictionary()


def regions_on(probes: ProbeSet, maps: Tensor) -> dict[str, RegionWeights]:
    """Regions of the probes on the grid of maps `(..., h, w)`, by name."""
    grid = (maps.shape[-2], maps.shape[-1])
    grids = _known.setdefault(probes, {})
    if grid not in grids:
        grids[grid] = {name: region_weights(mask, grid) for name, mask in probes.masks.items()}
    return grids[grid]


def peaks_of(given: MapSet) -> Tensor:
    """Largest magnitude in the run so far, `(Q, 1)` float64; where the auditor gave none, that of these maps."""
    if given.peaks:
        return torch.tensor(given.peaks, dtype=torch.float64)[:, None]
    magnitudes = given.heatmaps.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    return magnitudes.flatten(1).amax(dim=1, keepdim=True)
