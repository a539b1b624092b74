"""Judgements of heatmaps and novelty scores: pure functions, a summary over probes, and torchmetrics twins.

The twins are imported when they are first used: torchmetrics brings matplotlib along where that is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from xai_callbacks.metrics.drift import explanation_drift
from xai_callbacks.metrics.localization import (
    area_fraction,
    lift_chance,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    soft_iou,
    soft_iou_chance,
)
from xai_callbacks.metrics.novelty import (
    fpr_at_95tpr_id,
    fpr_at_95tpr_ood,
    novelty_aupr,
    novelty_auroc,
    rank_correlation,
    separate,
)
from xai_callbacks.metrics.nulls import (
    ShiftNull,
    explanation_ncc,
    permuted_mask_null,
    shift_null,
    signed_share,
    sobel_magnitude,
)
from xai_callbacks.metrics.ranking import (
    confounder_sensitivity,
    confounder_sensitivity_chance,
    pixel_auroc,
    pixel_auroc_chance,
    pixel_average_precision,
    pixel_average_precision_chance,
    pointing_game,
    pointing_game_chance,
    topk_intersection,
    topk_intersection_chance,
)
from xai_callbacks.metrics.summary import Estimate, summarize

if TYPE_CHECKING:
    from xai_callbacks.metrics.group_modules import GroupMetrics
    from xai_callbacks.metrics.modules import RelevanceMass, RelevanceRank, SoftIoU
    from xai_callbacks.metrics.novelty_modules import NoveltySeparation

__all__ = [
    "Estimate",
    "GroupMetrics",
    "NoveltySeparation",
    "RelevanceMass",
    "RelevanceRank",
    "ShiftNull",
    "SoftIoU",
    "area_fraction",
    "confounder_sensitivity",
    "confounder_sensitivity_chance",
    "explanation_drift",
    "explanation_ncc",
    "fpr_at_95tpr_id",
    "fpr_at_95tpr_ood",
    "lift_chance",
    "novelty_aupr",
    "novelty_auroc",
    "permuted_mask_null",
    "pixel_auroc",
    "pixel_auroc_chance",
    "pixel_average_precision",
    "pixel_average_precision_chance",
    "pointing_game",
    "pointing_game_chance",
    "rank_correlation",
    "relevance",
    "relevance_lift",
    "relevance_mass",
    "relevance_rank",
    "separate",
    "shift_null",
    "signed_share",
    "sobel_magnitude",
    "soft_iou",
    "soft_iou_chance",
    "summarize",
    "topk_intersection",
    "topk_intersection_chance",
]

_TWINS = {
    "GroupMetrics": "group_modules",
    "NoveltySeparation": "novelty_modules",
    "RelevanceMass": "modules",
    "RelevanceRank": "modules",
    "SoftIoU": "modules",
}


def __getattr__(name: str) -> object:
    if name not in _TWINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"xai_callbacks.metrics.{_TWINS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
