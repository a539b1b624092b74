"""Methods that answer questions with heatmaps."""

from xai_callbacks.explainers.backprop import (
    Deconvnet,
    Gradient,
    GuidedBackprop,
    GuidedGradCAM,
    InputXGradient,
    SmoothGrad,
)
from xai_callbacks.explainers.base import Every, Explainer, Observation, Plan
from xai_callbacks.explainers.cam import GradCAM, HiResCAM, LayerCAM, LayerExplainer
from xai_callbacks.explainers.patchwise import Patchwise
from xai_callbacks.explainers.pixels import IntegratedGradients, Occlusion
from xai_callbacks.explainers.windows import SlidingWindow, Windows, window_scores

__all__ = [
    "Deconvnet", "Every", "Explainer", "GradCAM", "Gradient", "GuidedBackprop", "GuidedGradCAM", "HiResCAM",
    "InputXGradient", "IntegratedGradients", "LayerCAM", "LayerExplainer", "Observation", "Occlusion",
    "Patchwise", "Plan", "SlidingWindow", "SmoothGrad", "Windows", "window_scores",
]  # fmt: skip
