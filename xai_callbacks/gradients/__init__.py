"""Per-sample parameter gradients from one forward and one backward pass over a batch."""

from xai_callbacks.gradients.engine import Loss, PerSampleGradients
from xai_callbacks.gradients.reading import GradientReading, Reduce

__all__ = ["GradientReading", "Loss", "PerSampleGradients", "Reduce"]
