"""How new an image is to a model, measured by gradients; larger = more novel, always."""

from xai_callbacks.novelty.last_layer import ConfoundingLabels, GradNorm, NoveltyScore

__all__ = ["ConfoundingLabels", "GradNorm", "NoveltyScore"]
