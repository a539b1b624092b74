"""Novelty from one call of the last layer, in closed form, float64: gradients of its weights, and the usual baselines.

For a linear head `z = W h + b`, the gradient of a loss with respect to `W` is the outer product `(dJ/dz) h^T`, so its
norm is the product of two norms that the forward pass has already computed. Images whose features or logits hold NaN
or infinity score NaN, here and in `feature_space`. One sigmoid logit is read as two classes.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.tasks import binary_logits


def checked(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(N, F)` and logits `(N, K)` in float64; a row of either that is not finite becomes NaN in both."""
    features, logits = features.double(), logits.double()
    broken = ~(features.isfinite().all(dim=1) & logits.isfinite().all(dim=1))[:, None]
    return features.masked_fill(broken, torch.nan), logits.masked_fill(broken, torch.nan)


def as_classes(logits: Tensor) -> Tensor:
    """Logits `(N, K)` with K >= 2: one sigmoid logit s becomes the two classes `(-s/2, s/2)`."""
    return binary_logits(logits) if logits.shape[1] == 1 else logits


class ClosedForm(LastLayerScore):
    """A formula of features and logits."""

    tasks: tuple[str, ...] = ("single-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score features `(N, F)` and logits `(N, K)`."""
        return self._of(*checked(features, logits))

    @abstractmethod
    def _of(self, features: Tensor, logits: Tensor) -> Tensor: ...


class GradNorm(ClosedForm):
    """`-||d KL(uniform || p) / dW||_1 = -||h||_1 ||p - 1/K||_1`: familiar images have large gradients.

    Huang et al., "On the importance of gradients for detecting distributional shifts in the wild", NeurIPS 2021.
    Range `(-inf, 0]`, in units of the features; comparable between images and epochs, not between architectures.
    """

    name = "gradnorm"

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            distance = (logits[:, 0].sigmoid() - 0.5).abs()
        else:
            distance = (logits.softmax(dim=1) - 1 / logits.shape[1]).abs().sum(dim=1)
        return -features.abs().sum(dim=1) * distance


class ConfoundingLabels(ClosedForm):
    """`||dJ/dW||^2 = ||sigmoid(z) - 1||^2 ||h||^2 / K^2`, J the mean binary cross-entropy toward an all-ones label.

    Lee and AlRegib, "Gradients as a measure of uncertainty in neural networks", ICIP 2020: no image belongs to all
    classes at once, and an unfamiliar one asks for a larger update. Range `[0, inf)`.
    """

    name = "confounding_labels"
    tasks = ("single-label", "multi-label")

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        # sigmoid(z) - 1 would round to 0 for a confident logit.
        residual = (-logits).sigmoid()
        return residual.square().sum(dim=1) * features.square().sum(dim=1) / logits.shape[1] ** 2


class GradTrust(ClosedForm):
    """`-max_k r_k^4 / mean_k r_k^4` with `r = z - 1/K`: on a trusted image one class alone asks for a change.

    Prabhushankar and AlRegib, "Counterfactual gradients-based quantification of prediction trust in neural networks",
    MIPR 2024: trust is the largest over the mean of the variances that the squared gradient of the mean squared error
    between the logits and 1/K has within each row of W. Row k of it is `2 r_k h^T / K`, so that the features cancel. A
    strongly negative logit counts as much as a positive one. Range `[-K, -1]`.
    """

    name = "gradtrust"

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        logits = as_classes(logits)
        residual = (logits - 1 / logits.shape[1]).abs()
        largest = residual.amax(dim=1, keepdim=True)
        # Relative to the largest no power under- or overflows. No residual at all is the limit of equal ones.
        relative = torch.where(largest > 0, residual / largest, 1.0).masked_fill(largest.isnan(), torch.nan)
        return -1 / relative.pow(4).mean(dim=1)


class MaxSoftmax(ClosedForm):
    """`-max_k p_k`, the maximum softmax probability (MSP), in [-1, -1/K].

    Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in neural networks",
    ICLR 2017. Ties at -1 where the other classes are less probable than 1e-16; `MaxLogit` and `Energy` do not.
    """

    name = "max_softmax"

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        return -as_classes(logits).softmax(dim=1).amax(dim=1)


class MaxLogit(ClosedForm):
    """`-max_k z_k`, unbounded, in units of the logits; of one sigmoid logit `-|s|/2`.

    Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022.
    """

    name = "max_logit"
    tasks = ("single-label", "multi-label")

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        return -as_classes(logits).amax(dim=1)


class Energy(ClosedForm):
    """`-logsumexp(z)`, unbounded, in units of the logits.

    Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020, at a temperature of 1, as they advise.
    """

    name = "energy"

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        return -as_classes(logits).logsumexp(dim=1)


class JointEnergy(ClosedForm):
    """`-sum_k log(1 + exp(z_k))`, in `(-inf, 0)`: the energies of all labels, near 0 for an image without any of them.

    Wang et al., "Can multi-label classification networks know what they don't know?", NeurIPS 2021.
    """

    name = "joint_energy"
    tasks = ("multi-label",)

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        return -torch.logaddexp(logits, torch.zeros_like(logits)).sum(dim=1)


class Entropy(ClosedForm):
    """`-sum_k p_k log p_k` in nats, in [0, log K]."""

    name = "entropy"

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        # The logarithm comes from the logits: a probability that underflows to 0 still has one.
        log_p = as_classes(logits).log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)
