"""Methods that answer questions with heatmaps."""

from xai_callbacks.explainers.base import Every, Explainer, Observation, Plan
from xai_callbacks.explainers.cam import GradCAM, HiResCAM, LayerCAM, LayerExplainer
from xai_callbacks.explainers.pixels import IntegratedGradients, Occlusion

__all__ = [
    "Every", "Explainer", "GradCAM", "HiResCAM", "IntegratedGradients", "LayerCAM", "LayerExplainer", "Observation",
    "Occlusion", "Plan",
]  # fmt: skip
