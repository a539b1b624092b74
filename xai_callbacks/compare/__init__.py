"""Models side by side on the same probes, with uncertainty."""

from xai_callbacks.compare.agreement import Agreement
from xai_callbacks.compare.comparison import Comparison, Difference, Disagreement, compare
from xai_callbacks.compare.differences import MetricDifference
from xai_callbacks.compare.sources import find_probes, read_models

__all__ = [
    "Agreement", "Comparison", "Difference", "Disagreement", "MetricDifference", "compare", "find_probes",
    "read_models",
]  # fmt: skip
