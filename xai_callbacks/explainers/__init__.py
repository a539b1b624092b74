"""Methods that answer questions with heatmaps."""

from xai_callbacks.explainers.attention import AttentionRollout, GradientAttention
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
from xai_callbacks.explainers.pixels import IntegratedGradients, Occlusion

__all__ = [
    "AttentionRollout", "Deconvnet", "Every", "Explainer", "GradCAM", "Gradient", "GradientAttention", "GuidedBackprop",
    "GuidedGradCAM", "HiResCAM", "InputXGradient", "IntegratedGradients", "LayerCAM", "LayerExplainer", "Observation",
    "Occlusion", "Plan", "SmoothGrad",
]  # fmt: skip
