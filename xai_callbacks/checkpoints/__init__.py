"""Sources of weights, and the models that they belong to."""

from xai_callbacks.checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
