"""The usual baselines, from the logits alone: what a gradient-based score has to beat.

Larger = more novel. One sigmoid logit s is read as the two classes `(-s/2, s/2)`. All are float64 and cost nothing
beside the forward pass; NaN where features or logits are not finite, see `last_layer`. A softmax is that of classes
which exclude each other; for labels that do not, there are `MaxLogit` and `JointEnergy`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.novelty.last_layer import as_classes, checked

__all__ = ["Energy", "Entropy", "JointEnergy", "MaxLogit", "MaxSoftmax", "require_positive"]


class MaxSoftmax(LastLayerScore):
    """`-max_k p_k`, the maximum softmax probability (MSP), in [-1, -1/K].

    Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in neural networks",
    ICLR 2017. Ties at -1 where the other classes are less probable than 1e-16; `MaxLogit` and `Energy` do not.
    """

    name = "max_softmax"
    tasks = ("single-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Unchanged by a constant added to all logits."""
        return -_classes(features, logits).softmax(dim=1).amax(dim=1)


class MaxLogit(LastLayerScore):
    """`-max_k z_k`, unbounded, in units of the logits; of one sigmoid logit `-|s|/2`.

    Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022; for labels that
    exclude each other, and for those that do not.
    """

    name = "max_logit"
    tasks = ("single-label", "multi-label")

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """A constant added to all logits is subtracted from the score."""
        return -_classes(features, logits).amax(dim=1)


class Energy(LastLayerScore):
    """`-T logsumexp(z / T)`, unbounded, in units of the logits; for T -> 0 it is `MaxLogit`.

    Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.

    Args:
        temperature: T, above 0; 1 is the paper's advice.

    Raises:
        ConfigurationError: `temperature` is not above 0.
    """

    name = "energy"
    tasks = ("single-label",)

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = require_positive("temperature", temperature)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """A constant added to all logits is subtracted from the score."""
        return -self.temperature * (_classes(features, logits) / self.temperature).logsumexp(dim=1)


class JointEnergy(LastLayerScore):
    """`-sum_k log(1 + exp(z_k))`, in `(-inf, 0)`: the energies of all labels together, each of which an image may have.

    Wang et al., "Can multi-label classification networks know what they don't know?", NeurIPS 2021. An image without
    any label that the model knows scores near 0.
    """

    name = "joint_energy"
    tasks = ("multi-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Every logit counts by itself, also where there is but one."""
        _, logits = checked(features, logits)
        return -torch.logaddexp(logits, torch.zeros_like(logits)).sum(dim=1)


class Entropy(LastLayerScore):
    """`-sum_k p_k log p_k` in nats, in [0, log K]: how undecided the model is."""

    name = "entropy"
    tasks = ("single-label",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Unchanged by a constant added to all logits."""
        # The logarithm comes from the logits: a probability that underflows to 0 still has one.
        log_p = _classes(features, logits).log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)


def require_positive(name: str, value: object, *, or_zero: bool = False) -> float:
    """A finite number above 0, or of 0 or more, as float.

    Raises:
        ConfigurationError: `value` is none.
    """
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (number >= 0 if or_zero else number > 0) or number == math.inf:
        wanted = "of 0 or more" if or_zero else "above 0"
        raise ConfigurationError(f"Expected `{name}` to be a finite number {wanted}, but got {value!r}.")
    return float(number)


def _classes(features: Tensor, logits: Tensor) -> Tensor:
    return as_classes(checked(features, logits)[1])
