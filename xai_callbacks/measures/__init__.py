"""Judgements of an audit."""

from __future__ import annotations

from xai_callbacks.measures.answers import Answers
from xai_callbacks.measures.base import Context, Measure, Measured, ModelAccess, earlier_row, keys_of_maps, maps_by_key
from xai_callbacks.measures.baselines import Baselines
from xai_callbacks.measures.conditions import Conditions
from xai_callbacks.measures.drift import Drift
from xai_callbacks.measures.localization import Localization
from xai_callbacks.measures.map_clusters import MapClusters
from xai_callbacks.measures.scores import Scores
from xai_callbacks.measures.separation import Separation

__all__ = [
    "ALWAYS",
    "Answers",
    "Baselines",
    "Conditions",
    "Context",
    "Drift",
    "Localization",
    "MapClusters",
    "Measure",
    "Measured",
    "ModelAccess",
    "Scores",
    "Separation",
    "default_measures",
    "earlier_row",
    "keys_of_maps",
    "maps_by_key",
]

ALWAYS: tuple[Measure, ...] = (Answers(), Drift(), Scores())
"""What every audit measures."""


def default_measures() -> list[Measure]:
    """What an auditor measures beside where nothing else is asked for."""
    return [Localization()]
