"""Novelty from the gradients of all layers of a classifier, toward labels that no image has.

The last layer alone has closed forms, see `last_layer`; here every trainable parameter takes part, at the cost of one
forward and one backward pass over the batch. One sigmoid logit is read as two classes. An image that is not finite, or
whose logits are not, scores NaN, never a number.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.gradients import PerSampleGradients
from xai_callbacks.novelty.measuring import measurer
from xai_callbacks.novelty.whitened import WhitenedScore
from xai_callbacks.novelty.whitening import Whitener

__all__ = ["GradientNorm", "Label", "PurviewDistance", "purview_features"]

Label = Literal["uniform", "all", "predicted"]
"""What the gradient pulls toward: equal probabilities, every class at once, or the class that the model predicts."""

# The smallest squared norm that float32 tells from 0.
_TINY = torch.finfo(torch.float32).tiny


class GradientNorm(ModelScore):
    """Squared norm of the gradient of one loss with respect to all parameters together, `sum_t ||dJ/dt||^2`.

    | label | loss J | sign of the score | why |
    |---|---|---|---|
    | `uniform` | cross-entropy of the softmax toward 1/K each | minus | a sure prediction is far from uniform |
    | `all` | mean binary cross-entropy toward all ones | plus | published; does not always hold, see below |
    | `predicted` | cross-entropy of the softmax toward its largest class | plus | a sure prediction asks for nothing |

    `uniform` is `GradNorm` (Huang et al., NeurIPS 2021) with all layers instead of the last and the squared 2-norm
    instead of the 1-norm; their paper finds familiar images to have the larger gradients, hence the minus. `all` is
    `ConfoundingLabels` (Lee and AlRegib, ICIP 2020) summed over layers. Signs are those of the publications, not
    promises: large features enlarge every gradient, so that either sign can be the wrong one for a kind of novelty;
    `scripts/novelty_classifiers.py` and `scripts/novelty_conditions.py` measure where. Tensors with large gradients
    dominate the sum; `PurviewDistance` weighs all alike. Range `(-inf, 0]` or `[0, inf)`; comparable between images and
    epochs of one model.

    Cost: about one forward and backward pass, and forward passes of two and of three images once an audit; more where
    modules have no rule of their own, see `PerSampleGradients`.

    Args:
        label: What the gradient pulls toward.

    Raises:
        ConfigurationError: `label` is unknown.
    """

    def __init__(self, label: Label = "uniform") -> None:
        if label not in get_args(Label):
            raise ConfigurationError(f"Expected `label` to be one of {get_args(Label)}, but got {label!r}.")
        self.label = label
        self.name = f"gradient_norm_{label}"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; call inside `access.undisturbed`.

        Raises:
            ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
        """
        total = torch.stack(list(squared_norms(subject, images, self.label).values())).sum(dim=0)
        return -total if self.label == "uniform" else total


class PurviewDistance(WhitenedScore):
    """Mahalanobis distance of `purview_features` from those of familiar images; needs no unfamiliar ones.

    The publication trains a classifier of these features on unfamiliar images. Here they are standardised and whitened
    on familiar images alone, with the covariance shrunk toward the identity as much as Ledoit and Wolf ("A
    well-conditioned estimator for large-dimensional covariance matrices", 2004) find best. A norm that is the same for
    all familiar images counts in units of its logarithm. Squared distance, in `[0, inf)`; about P for familiar images.

    Cost: that of `GradientNorm`, for `fit` as well.
    """

    name = "purview_distance"
    _columns = "trainable parameters"

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn from familiar images `(N, C, H, W)`, commonly of the training set; call inside `access.undisturbed`.

        Raises:
            ConfigurationError: Fewer than two images, or one of those of `purview_features`.
            AuditError: An image gives NaN or infinite gradients.
        """
        features = purview_features(subject, images, chunk_size=chunk_size)
        broken = (~features.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        if broken:
            raise AuditError(
                f"Expected finite gradients of the familiar images, but got NaN or inf for {len(broken)} of "
                f"{len(images)}, first for image {broken[0]}. Look at that image, and at the loss of the training."
            )
        self._familiar = Whitener(features)

    def _rows(self, subject: Subject, images: Tensor) -> Tensor:
        return purview_features(subject, images, chunk_size=max(1, len(images)))


def purview_features(subject: Subject, images: Tensor, *, chunk_size: int = 64) -> Tensor:
    """Logarithm of the squared norm of the gradient of every parameter, toward an all-ones label.

    Lee, Lehman, Prabhushankar and AlRegib, "Probing the purview of neural networks via gradient analysis", IEEE Access
    2023: the loss is the mean binary cross-entropy of the logits toward all classes at once, and weights and biases
    count separately. The logarithm, because the norms of one tensor spread over orders of magnitude. For a detector of
    your own; `PurviewDistance` is one that needs no unfamiliar images. Call inside `access.undisturbed`.

    Args:
        subject: A classifier.
        images: Shape `(N, C, H, W)`.
        chunk_size: Images at once.

    Returns:
        Shape `(N, P)`, float64, one column for every parameter that requires grad, in the order of the model; a norm of
        0 is read as the smallest that float32 can hold. Rows of images that are not finite are NaN.

    Raises:
        ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
    """
    measure = _measure(subject, "purview_features")
    rows = [
        torch.stack(list(_squared_norms(subject, measure, chunk, "all").values()), dim=1)
        for chunk in torch.split(images, chunk_size)
    ]
    return torch.cat(rows).clamp_min(_TINY).log()


def squared_norms(subject: Subject, images: Tensor, label: Label) -> dict[str, Tensor]:
    """Squared norm of the gradient of every trainable parameter for every image, `(N,)` float64 by name.

    Args:
        subject: A classifier.
        images: Shape `(N, C, H, W)`; those that are not finite give NaN.
        label: What the gradient pulls toward.

    Raises:
        ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
    """
    return _squared_norms(subject, _measure(subject, "gradient norms"), images, label)


def _measure(subject: Subject, what: str) -> PerSampleGradients:
    if subject.task != "classification":
        raise ConfigurationError(
            f"Expected a classifier for `{what}`, but got a model for {subject.task}. Choose a score of features, such "
            "as KNearest()."
        )
    return measurer(subject)


def _squared_norms(subject: Subject, measure: PerSampleGradients, images: Tensor, label: Label) -> dict[str, Tensor]:
    images = subject.images(images)
    broken = ~images.flatten(1).isfinite().all(dim=1)

    wrong: list[Tensor] = []

    def loss(outputs: object, given: Tensor) -> Tensor:
        # In float64, where 1 - p of a sure prediction keeps its digits.
        logits = subject.interpret(subject.select(outputs, len(given))).double()
        wrong.append(~logits.isfinite().all(dim=1))
        # A broken image must not take the others with it; its own row is overwritten below.
        return _loss(logits.masked_fill(wrong[-1][:, None], 0), label)

    reading = measure(images, loss)
    broken |= torch.cat(wrong)
    none = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    return {name: reading.squared_norms.get(name, none).masked_fill(broken, torch.nan) for name in measure.parameters}


def _loss(logits: Tensor, label: Label) -> Tensor:
    """One loss an image, `(N,)`, of logits `(N, K)`."""
    if label == "all":
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none").mean(dim=1)
    if label == "predicted":
        return F.cross_entropy(logits, logits.argmax(dim=1), reduction="none")
    return -logits.log_softmax(dim=1).mean(dim=1)
