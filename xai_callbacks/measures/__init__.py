"""Judgements of an audit."""

from xai_callbacks.measures.always import Answers, Drift, Scores
from xai_callbacks.measures.base import Context, Measure, ModelAccess, keys_of_maps
from xai_callbacks.measures.baselines import Baselines
from xai_callbacks.measures.found_regions import FoundRegions
from xai_callbacks.measures.localization import Localization
from xai_callbacks.measures.map_clusters import MapClusters
from xai_callbacks.measures.novel import Conditions, Separation
from xai_callbacks.measures.representations import Representations
from xai_callbacks.measures.trust import Trust
from xai_callbacks.measures.uncertainty import ExplanationUncertainty
from xai_callbacks.record import Measured

__all__ = [
    "ALWAYS", "Answers", "Baselines", "Conditions", "Context", "Drift", "ExplanationUncertainty", "FoundRegions",
    "Localization", "MapClusters", "Measure", "Measured", "ModelAccess", "Representations", "Scores", "Separation",
    "Trust", "keys_of_maps",
]  # fmt: skip

ALWAYS: tuple[Measure, ...] = (Answers(), Drift(), Scores())
"""What every audit measures."""
