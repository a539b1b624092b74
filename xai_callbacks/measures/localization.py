"""`Localization`: how much of the relevance lies in the regions of the probes."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, texts_of
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, keys_of_maps
from xai_callbacks.metrics.localization import (
    RegionWeights,
    area_fraction,
    lift_chance,
    region_weights,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    soft_iou,
    soft_iou_chance,
)
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Key, Measured, PerProbe

# Regions by name and grid; bringing masks to a grid costs more than judging maps there.
_known: WeakKeyDictionary[ProbeSet, dict[tuple[int, int], dict[str, RegionWeights]]] = WeakKeyDictionary()


class _Metric(NamedTuple):
    judge: Callable[..., Tensor]
    chance: Callable[[RegionWeights], Tensor]
    words: str
    high: float | None
    level: str


_METRICS = {
    "relevance_mass": _Metric(relevance_mass, area_fraction, "share of the relevance in {}", 1.0, "area"),
    "relevance_lift": _Metric(relevance_lift, lift_chance, "share of the relevance in {} over its area", None, "1"),
    "relevance_rank": _Metric(relevance_rank, area_fraction, "share of the most relevant pixels in {}", 1.0, "area"),
    "soft_iou": _Metric(soft_iou, soft_iou_chance, "soft overlap of relevance and {}", 1.0, "4a / (1 + 3a)"),
}


class Localization(Measure):
    """Judges where the positive relevance of heatmaps lies.

    Relevance in a region says where a model looks, not what it uses: read it beside its chance level, and see
    `Baselines`. Empty maps (see `MapSet.peaks`) and those that are not finite have no value.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `<map>/relevance_mass/<region>` | share of positive relevance in the region | [0, 1] | area |
    | `<map>/relevance_lift/<region>` | relevance mass / area | [0, inf) | 1 |
    | `<map>/relevance_rank/<region>` | its share of the most relevant pixels | [0, 1] | area |
    | `<map>/soft_iou/<region>` | soft intersection over union | [0, 1] | 4a / (1 + 3a), a the area |

    Args:
        metrics: Some of `relevance_mass`, `relevance_lift`, `relevance_rank` and `soft_iou`; else a
            `ConfigurationError`. The third enlarges each map and sorts its pixels; others cost next to nothing.
    """

    def __init__(self, metrics: Sequence[str] = ("relevance_mass", "relevance_lift")) -> None:
        self.metrics = texts_of("metrics", metrics)
        if not self.metrics or not set(self.metrics) <= _METRICS.keys():
            got = repr(next((name for name in self.metrics if name not in _METRICS), "none"))
            raise ConfigurationError(f"Expected `metrics` to be some of {', '.join(_METRICS)}, but got {got}.")

    def keys(self, context: Context) -> Sequence[Key]:
        """One for each map, metric and region."""
        every = product(context.maps, ((name, _METRICS[name]) for name in self.metrics), context.probes.masks)
        return [
            Key(f"{maps}/{name}/{region}", how.words.format(region), 0.0, how.high, how.level)
            for maps, (name, how), region in every
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all heatmaps of the record."""
        found = {}
        for name, given in record.maps.items():
            positive, peaks = given.heatmaps.clamp(min=0), torch.tensor(given.peaks, dtype=torch.float64)[:, None]
            regions = regions_on(context.probes, given.heatmaps)
            for (region, weights), metric in product(regions.items(), self.metrics):
                how = _METRICS[metric]
                if metric == "relevance_rank":
                    mask = context.probes.masks[region]
                    values = enlarged(relevance_rank, given.heatmaps, mask, peaks, context.chunk_size)
                else:
                    values = how.judge(positive, weights, reference=peaks)
                for key, row in zip(keys_of_maps(record, name), values, strict=True):
                    found[f"{key}/{metric}/{region}"] = PerProbe(row, how.chance(weights))
        return found

    def __repr__(self) -> str:
        return f"Localization(metrics={self.metrics!r})"


def regions_on(probes: ProbeSet, maps: Tensor) -> dict[str, RegionWeights]:
    """Regions of the probes on the grid of maps `(..., h, w)`, by name; brought there once."""
    grid = (maps.shape[-2], maps.shape[-1])
    grids = _known.setdefault(probes, {})
    if grid not in grids:
        grids[grid] = {name: region_weights(mask, grid) for name, mask in probes.masks.items()}
    return grids[grid]


def enlarged(judge: Callable[..., Tensor], maps: Tensor, mask: Tensor, peaks: Tensor, chunk_size: int) -> Tensor:
    """Judge maps `(Q, N, h, w)` by masks `(N, H, W)` on the pixels of the image, some at a time; `(Q, N)`."""
    size, rows = (mask.shape[-2], mask.shape[-1]), []
    for question, peak in zip(maps, peaks, strict=True):
        parts = zip(torch.split(question, chunk_size), torch.split(mask, chunk_size), strict=True)
        rows.append(torch.cat([judge(relevance(part, size), inside, reference=peak) for part, inside in parts]))
    return torch.stack(rows)
