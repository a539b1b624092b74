"""Gradient-based novelty from the last layer, in closed form.

For a linear head `z = W h + b`, the gradient of a loss with respect to `W` is the outer product `(dJ/dz) h^T`, so its
norm is the product of two norms that the forward pass has already computed: no backward pass is needed. A gradient says
how much the *model* would have to change for an image. Scores follow one orientation: larger = more novel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["ConfoundingLabels", "GradNorm", "NoveltyScore"]


class NoveltyScore(ABC):
    """One number an image; larger = more novel."""

    name: str

    @abstractmethod
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score a batch.

        Args:
            features: Input of the linear head, `(N, F)`.
            logits: Outputs of the head as the model gave them, `(N, K)`; K = 1 is one sigmoid logit.

        Returns:
            Shape `(N,)`, float64.
        """


class GradNorm(NoveltyScore):
    """`-||d KL(uniform || p) / dW||_1 = -||h||_1 ||p - 1/K||_1`: familiar images have large gradients.

    Huang et al., "On the importance of gradients for detecting distributional shifts in the wild", NeurIPS 2021.
    Range `(-inf, 0]`, in units of the features; comparable between images and epochs of one model, not between
    architectures.
    """

    name = "gradnorm"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Closed form for the weight of the head; the bias is left out, as in the paper."""
        features, logits = features.double(), logits.double()
        if logits.shape[1] == 1:
            distance = (logits[:, 0].sigmoid() - 0.5).abs()
        else:
            distance = (logits.softmax(dim=1) - 1 / logits.shape[1]).abs().sum(dim=1)
        return -features.abs().sum(dim=1) * distance


class ConfoundingLabels(NoveltyScore):
    """`||dJ/dW||^2 = ||sigmoid(z) - 1||^2 ||h||^2 / K^2`, J the mean binary cross-entropy toward an all-ones label.

    Lee and AlRegib, "Gradients as a measure of uncertainty in neural networks", ICIP 2020: no image belongs to all
    classes at once, and an unfamiliar one asks for a larger update. Range `[0, inf)`.
    """

    name = "confounding_labels"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Closed form for the weight of the head."""
        features, logits = features.double(), logits.double()
        residual = logits.sigmoid() - 1
        return residual.square().sum(dim=1) * features.square().sum(dim=1) / logits.shape[1] ** 2
