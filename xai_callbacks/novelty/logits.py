"""The usual baselines, from the logits alone, in float64; one sigmoid logit is read as two classes."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.novelty.arguments import require_positive
from xai_callbacks.novelty.last_layer import ClosedForm, as_classes

__all__ = ["Energy", "Entropy", "JointEnergy", "MaxLogit", "MaxSoftmax"]


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
    """`-T logsumexp(z / T)`, unbounded, in units of the logits; for T -> 0 it is `MaxLogit`.

    Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.

    Args:
        temperature: T, above 0; 1 is the paper's advice.
    """

    name = "energy"

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = require_positive("temperature", temperature)

    def _of(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.temperature * (as_classes(logits) / self.temperature).logsumexp(dim=1)


class JointEnergy(ClosedForm):
    """`-sum_k log(1 + exp(z_k))`, in `(-inf, 0)`: the energies of all labels together, each of which an image may have.

    Wang et al., "Can multi-label classification networks know what they don't know?", NeurIPS 2021. An image without
    any label that the model knows scores near 0.
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
