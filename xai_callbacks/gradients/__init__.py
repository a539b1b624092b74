"""Per-sample parameter gradients from one forward and one backward pass over a batch."""

from xai_callbacks.gradients.engine import GradientReading, Loss, PerSampleGradients, Reduce

__all__ = ["GradientReading", "Loss", "PerSampleGradients", "Reduce"]
