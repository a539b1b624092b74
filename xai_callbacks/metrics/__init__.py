"""Judgements of heatmaps, novelty scores and groups: pure functions, and a summary over probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xai_callbacks.metrics.found import FoundRegion, Threshold, found_iou, found_on, found_regions
from xai_callbacks.metrics.localization import (
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
from xai_callbacks.metrics.novelty import novelty_auroc, rank_correlation, separate, why_useless
from xai_callbacks.metrics.nulls import explanation_drift, permuted_mass, shift_p, signed_share, sobel_magnitude
from xai_callbacks.record import Estimate, summarize

if TYPE_CHECKING:
    from xai_callbacks.metrics.group_metrics import GroupMetrics

__all__ = [
    "Estimate", "FoundRegion", "GroupMetrics", "Threshold", "area_fraction", "explanation_drift", "found_iou",
    "found_on", "found_regions", "lift_chance", "novelty_auroc", "permuted_mass", "rank_correlation",
    "region_weights", "relevance", "relevance_lift", "relevance_mass", "relevance_rank", "separate", "shift_p",
    "signed_share", "sobel_magnitude", "soft_iou", "soft_iou_chance", "summarize", "why_useless",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name != "GroupMetrics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not before it is used: torchmetrics brings matplotlib along where that is installed.
    from xai_callbacks.metrics.group_metrics import GroupMetrics

    return GroupMetrics
