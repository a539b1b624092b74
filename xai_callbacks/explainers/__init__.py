"""Methods that answer questions with heatmaps."""

from xai_callbacks.explainers.base import Explainer, Explanation
from xai_callbacks.explainers.cam import CAM, GradCAM, HiResCAM, LayerCAM

__all__ = ["CAM", "Explainer", "Explanation", "GradCAM", "HiResCAM", "LayerCAM"]
