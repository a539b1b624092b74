"""Per-sample parameter gradients from one forward and one backward pass over a batch."""

from xai_callbacks.gradients.accumulator import GradientReading, Reduce
from xai_callbacks.gradients.engine import Loss, PerSampleGradients

__all__ = ["GradientReading", "Loss", "PerSampleGradients", "Reduce"]
