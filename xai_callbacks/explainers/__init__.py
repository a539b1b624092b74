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
from xai_callbacks.explainers.cam import CAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, LayerExplainer
from xai_callbacks.explainers.deep_shap import DeepSHAP, ExpectedGradients
from xai_callbacks.explainers.foils import VOICE, ImplicitSaliency
from xai_callbacks.explainers.masks import RISE
from xai_callbacks.explainers.patchwise import Patchwise
from xai_callbacks.explainers.pixels import IntegratedGradients, Occlusion
from xai_callbacks.explainers.undesirable import UndesirablePixels
from xai_callbacks.explainers.windows import SlidingWindow, Windows, window_scores

__all__ = [
    "CAM", "RISE", "VOICE", "AttentionRollout", "Deconvnet", "DeepSHAP", "Every", "ExpectedGradients", "Explainer",
    "GradCAM", "GradCAMPlusPlus", "Gradient", "GradientAttention", "GuidedBackprop", "GuidedGradCAM", "HiResCAM",
    "ImplicitSaliency", "InputXGradient", "IntegratedGradients", "LayerCAM", "LayerExplainer", "Observation",
    "Occlusion", "Patchwise", "Plan", "SlidingWindow", "SmoothGrad", "UndesirablePixels", "Windows", "window_scores",
]  # fmt: skip
