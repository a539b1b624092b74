"""Novelty from the gradients of all layers of a classifier, toward labels that no image has."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.novelty.arguments import require_choice
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.losses import LABELS, Label, squared_norms
from xai_callbacks.novelty.whitening import WhitenedScore

__all__ = ["GradientNorm", "PurviewDistance"]

# The smallest squared norm that float32 tells from 0.
_TINY = torch.finfo(torch.float32).tiny


class GradientNorm(ModelScore):
    """Squared norm of the gradient of one loss with respect to all parameters together, `sum_t ||dJ/dt||^2`.

    | label | loss J | of labels that do not exclude each other | sign of the score | why |
    |---|---|---|---|---|
    | `uniform` | cross-entropy toward 1/K each | toward 1/2 each | minus | a sure prediction is far from it |
    | `all` | mean binary cross-entropy toward all ones | the same | plus | published; does not always hold, see below |
    | `predicted` | cross-entropy toward the largest class | those above 1/2 | plus | a sure one asks for nothing |

    Cross-entropies are those of the softmax, in which one sigmoid logit is two classes; of labels that do not exclude
    each other, those of each sigmoid by itself, averaged.

    `uniform` is `GradNorm` (Huang et al., NeurIPS 2021) with all layers and the squared 2-norm; `all` is
    `ConfoundingLabels` (Lee and AlRegib, ICIP 2020) summed over layers. Signs are those of the publications, not
    promises: large features enlarge every gradient, and docs/novelty.md shows where that turns a score round. Tensors
    with large gradients dominate the sum; `PurviewDistance` weighs all alike. Range `(-inf, 0]` or `[0, inf)`;
    comparable between images and epochs of one model. Cost: about one forward and backward pass, and forward passes of
    two and of three images once an audit; more where modules have no rule, see `PerSampleGradients`.
    """

    tasks = ("single-label", "multi-label")

    def __init__(self, label: Label = "uniform") -> None:
        require_choice("label", label, LABELS)
        self.label = label
        self.name = f"gradient_norm_{label}"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image or logits are not finite.

        Raises:
            ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
        """
        subject.task.require_classes("GradientNorm")
        total = torch.stack(list(squared_norms(subject, images, self.label).values())).sum(dim=0)
        return -total if self.label == "uniform" else total


class PurviewDistance(WhitenedScore):
    """Mahalanobis distance of the logarithms of gradient norms, one a parameter, from those of familiar images.

    Lee, Lehman, Prabhushankar and AlRegib, "Probing the purview of neural networks via gradient analysis", IEEE Access
    2023: squared norms toward an all-ones label, see `GradientNorm`, of weights and biases separately; the logarithm,
    because the norms of one tensor spread over orders of magnitude. They train a classifier of these on unfamiliar
    images; here they are whitened on familiar images alone, see `Whitener`. A norm of 0 counts as the smallest that
    float32 can hold. Squared distance, in `[0, inf)`; about the number of parameters for familiar images. Cost: that of
    `GradientNorm`, for `fit` as well.
    """

    name = "purview_distance"
    tasks = ("single-label", "multi-label")
    _must_vary = False

    def _features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        subject.task.require_classes("PurviewDistance")
        norms = squared_norms(subject, images, "all")
        return {name: values.clamp_min(_TINY).log()[:, None] for name, values in norms.items()}
