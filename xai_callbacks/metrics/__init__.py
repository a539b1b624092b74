"""Judgements of heatmaps: pure functions with one value a probe, a summary over probes, and torchmetrics twins.

The twins are imported when they are first used: torchmetrics brings matplotlib along where that is installed.
"""

from __future__ import annotations

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
from xai_callbacks.metrics.summary import Estimate, summarize

if TYPE_CHECKING:
    from xai_callbacks.metrics.modules import RelevanceMass, RelevanceRank, SoftIoU

__all__ = [
    "Estimate",
    "RelevanceMass",
    "RelevanceRank",
    "SoftIoU",
    "area_fraction",
    "explanation_drift",
    "lift_chance",
    "relevance",
    "relevance_lift",
    "relevance_mass",
    "relevance_rank",
    "soft_iou",
    "soft_iou_chance",
    "summarize",
]

_TWINS = ("RelevanceMass", "RelevanceRank", "SoftIoU")


def __getattr__(name: str) -> object:
    if name not in _TWINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xai_callbacks.metrics import modules

    return getattr(modules, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
