"""Gradient-based novelty from the last layer, in closed form.

For a linear head `z = W h + b`, the gradient of a loss with respect to `W` is the outer product `(dJ/dz) h^T`, so its
norm is the product of two norms that the forward pass has already computed: no backward pass is needed. A gradient says
how much the *model* would have to change for an image. Scores follow one orientation: larger = more novel.

All scores of features and logits, also those of `logits` and `feature_space`, share one rule: an image whose features
or logits hold NaN or infinity scores NaN, never a number. The caller knows its name and says it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.tasks import binary_logits

__all__ = ["ConfoundingLabels", "GradNorm", "GradTrust", "as_classes", "checked"]


def checked(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(N, F)` and logits `(N, K)` in float64; a row of either that is not finite becomes NaN in both.

    A formula may hide what is not finite: `sigmoid(inf) - 1` is an unremarkable 0. To raise here would make the device
    wait for every batch, and would lose the scores of the other images.

    Raises:
        ConfigurationError: The shapes are others.
    """
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits) or logits.shape[1] == 0:
        raise ConfigurationError(
            f"Expected `features` to be (N, F) and `logits` to be (N, K), but got {tuple(features.shape)} and "
            f"{tuple(logits.shape)}. Novelty of the last layer needs one row of each for every image."
        )
    features, logits = features.double(), logits.double()
    broken = ~(features.isfinite().all(dim=1) & logits.isfinite().all(dim=1))[:, None]
    return features.masked_fill(broken, torch.nan), logits.masked_fill(broken, torch.nan)


def as_classes(logits: Tensor) -> Tensor:
    """Logits `(N, K)` with K >= 2: one sigmoid logit becomes two classes."""
    return binary_logits(logits) if logits.shape[1] == 1 else logits


class GradNorm(LastLayerScore):
    """`-||d KL(uniform || p) / dW||_1 = -||h||_1 ||p - 1/K||_1`: familiar images have large gradients.

    Huang et al., "On the importance of gradients for detecting distributional shifts in the wild", NeurIPS 2021.
    Range `(-inf, 0]`, in units of the features; comparable between images and epochs of one model, not between
    architectures.
    """

    name = "gradnorm"
    tasks = ("single-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Closed form for the weight of the head; the bias is left out, as in the paper."""
        features, logits = checked(features, logits)
        if logits.shape[1] == 1:
            distance = (logits[:, 0].sigmoid() - 0.5).abs()
        else:
            distance = (logits.softmax(dim=1) - 1 / logits.shape[1]).abs().sum(dim=1)
        return -features.abs().sum(dim=1) * distance


class ConfoundingLabels(LastLayerScore):
    """`||dJ/dW||^2 = ||sigmoid(z) - 1||^2 ||h||^2 / K^2`, J the mean binary cross-entropy toward an all-ones label.

    Lee and AlRegib, "Gradients as a measure of uncertainty in neural networks", ICIP 2020: no image belongs to all
    classes at once, and an unfamiliar one asks for a larger update. Range `[0, inf)`. Every logit counts by itself, so
    that it suits labels that do not exclude each other, too.
    """

    name = "confounding_labels"
    tasks = ("single-label", "multi-label")

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Closed form for the weight of the head."""
        features, logits = checked(features, logits)
        # sigmoid(z) - 1 would round to 0 for a confident logit.
        residual = (-logits).sigmoid()
        return residual.square().sum(dim=1) * features.square().sum(dim=1) / logits.shape[1] ** 2


class GradTrust(LastLayerScore):
    """`-max_k r_k^4 / mean_k r_k^4` with `r = z - 1/K`: on a trusted image one class alone asks for a change.

    Prabhushankar and AlRegib, "Counterfactual gradients-based quantification of prediction trust in neural networks",
    MIPR 2024. There, J is the mean squared error between the logits and 1/K for every class, and trust is the largest
    over the mean of the variances that the squared gradient `dJ/dW` has within each row. Row k of `dJ/dW` is
    `2 r_k h^T / K`, so its variance is `(2 r_k / K)^4 Var(h^2)`, and the features cancel. What is left tells the
    magnitudes of the logits apart, not their order: a strongly negative logit counts as much as a positive one.

    Range `[-K, -1]`; -1 where all logits have the same magnitude around 1/K.
    """

    name = "gradtrust"
    tasks = ("single-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Closed form for the weight of the head; one sigmoid logit is read as two classes."""
        _, logits = checked(features, logits)
        logits = as_classes(logits)
        residual = (logits - 1 / logits.shape[1]).abs()
        largest = residual.amax(dim=1, keepdim=True)
        # Relative to the largest no power under- or overflows. No residual at all is the limit of equal ones.
        relative = torch.where(largest > 0, residual / largest, 1.0).masked_fill(largest.isnan(), torch.nan)
        return -1 / relative.pow(4).mean(dim=1)
