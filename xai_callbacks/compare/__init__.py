"""Models side by side on the same probes, with uncertainty."""

from xai_callbacks.compare.agreement import Agreement
from xai_callbacks.compare.comparison import Comparison, Difference, Disagreement, compare
from xai_callbacks.compare.differences import MetricDifference
from xai_callbacks.compare.sources import find_probes, read_models
from xai_callbacks.compare.verdict import quality, quality_key

__all__ = [
    "Agreement", "Comparison", "Difference", "Disagreement", "MetricDifference", "compare", "find_probes",
    "quality", "quality_key", "read_models",
]  # fmt: skip
