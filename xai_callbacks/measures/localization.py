"""`Localization`: how much of the relevance lies in the regions of the probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, texts_of
from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured, keys_of_maps
from xai_callbacks.measures.regions import peaks_of, regions_on
from xai_callbacks.metrics.localization import (
    RegionWeights,
    area_fraction,
    lift_chance,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    soft_iou,
    soft_iou_chance,
)
from xai_callbacks.record import AuditRecord, Key, MapSet, PerProbe

__all__ = ["Localization"]


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
        metrics: Which of `relevance_mass`, `relevance_lift`, `relevance_rank` and `soft_iou`. All but
            `relevance_rank`, for which each map is enlarged and its pixels sorted, cost next to nothing.

    Raises:
        ConfigurationError: A metric has another name.
    """

    def __init__(self, metrics: Sequence[str] = ("relevance_mass", "relevance_lift")) -> None:
        self.metrics = texts_of("metrics", metrics)
        unknown = [name for name in self.metrics if name not in _METRICS]
        if unknown or not self.metrics:
            got = repr(unknown[0]) if unknown else "none"
            raise ConfigurationError(f"Expected `metrics` to be some of {', '.join(_METRICS)}, but got {got}.")
        self._how = {name: _METRICS[name] for name in self.metrics}

    def keys(self, context: Context) -> Sequence[Key]:
        """One for each map, metric and region."""
        return [
            Key(f"{name}/{metric}/{region}", how.words.format(region), 0.0, how.high, how.level)
            for name in context.maps
            for metric, how in self._how.items()
            for region in context.probes.masks
        ]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all heatmaps of the record."""
        found = {}
        for name, given in record.maps.items():
            begins = keys_of_maps(record, name)
            for region, weights in regions_on(context.probes, given.heatmaps).items():
                for metric, how in self._how.items():
                    if metric == "relevance_rank":
                        values = _ranks(given, context.probes.masks[region], context.chunk_size)
                    else:
                        values = how.judge(given.heatmaps.clamp(min=0), weights, reference=peaks_of(given))
                    for key, row in zip(begins, values, strict=True):
                        found[f"{key}/{metric}/{region}"] = PerProbe(row, how.chance(weights))
        return found

    def __repr__(self) -> str:
        return f"Localization(metrics={self.metrics!r})"


def _ranks(given: MapSet, mask: Tensor, chunk_size: int) -> Tensor:
    """Relevance ranks `(Q, N)`; maps are enlarged some at a time."""
    size, rows = (mask.shape[-2], mask.shape[-1]), []
    for question, peak in zip(given.heatmaps, peaks_of(given), strict=True):
        chunks = zip(torch.split(question, chunk_size), torch.split(mask, chunk_size), strict=True)
        rows.append(torch.cat([relevance_rank(relevance(maps, size), part, reference=peak) for maps, part in chunks]))
    return torch.stack(rows)
