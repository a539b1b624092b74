"""How new an image is to a model, measured by gradients; larger = more novel, always."""

from xai_callbacks.novelty.autoencoder import ConvAutoencoder, dead, reconstruction_error
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore
from xai_callbacks.novelty.feature_space import KNearest, Mahalanobis, ViM
from xai_callbacks.novelty.fisher import FisherNovelty, PurviewDistance
from xai_callbacks.novelty.gradcon import GradConScore, GradientConstraint, ReconstructionError
from xai_callbacks.novelty.last_layer import (
    ConfoundingLabels,
    Energy,
    Entropy,
    GradNorm,
    GradTrust,
    JointEnergy,
    MaxLogit,
    MaxSoftmax,
)
from xai_callbacks.novelty.losses import GradientNorm
from xai_callbacks.novelty.map import NoveltyMap
from xai_callbacks.novelty.odin import ODIN

__all__ = [
    "ODIN", "ConfoundingLabels", "ConvAutoencoder", "Energy", "Entropy", "FisherNovelty", "GradConScore", "GradNorm",
    "GradTrust", "GradientConstraint", "GradientNorm", "Inliers", "JointEnergy", "KNearest", "LastLayerScore",
    "Mahalanobis", "MaxLogit", "MaxSoftmax", "ModelScore", "NoveltyMap", "NoveltyScore", "PurviewDistance",
    "ReconstructionError", "ViM", "dead", "reconstruction_error",
]  # fmt: skip
