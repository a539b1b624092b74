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
from xai_callbacks.explainers.deep_shap import DeepSHAP, ExpectedGradients
from xai_callbacks.explainers.pixels import IntegratedGradients, Occlusion

__all__ = [
    "Deconvnet", "DeepSHAP", "Every", "ExpectedGradients", "Explainer", "GradCAM", "Gradient", "GuidedBackprop",
    "GuidedGradCAM", "HiResCAM", "InputXGradient", "IntegratedGradients", "LayerCAM", "LayerExplainer", "Observation",
    "Occlusion", "Plan", "SmoothGrad",
]  # fmt: skip
