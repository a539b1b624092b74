"""Novelty from the gradients of all layers of a classifier, toward labels that no image has.

The last layer alone has closed forms, see `last_layer`; here every trainable parameter takes part, at the cost of one
forward and one backward pass over the batch. One sigmoid logit is read as two classes, and labels that do not exclude
each other each by itself. An image that is not finite, or whose logits are not, scores NaN, never a number.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.measuring import measurer
from xai_callbacks.novelty.whitened import WhitenedScore
from xai_callbacks.novelty.whitening import Whitener
from xai_callbacks.tasks import Task

__all__ = ["GradientNorm", "Label", "PurviewDistance", "label_losses", "purview_features"]

Label = Literal["uniform", "all", "predicted"]
"""What the gradient pulls toward: no class rather than another, all of them at once, or what the model predicts."""

_CLASSIFIERS = ("single-label", "multi-label")

# The smallest squared norm that float32 tells from 0.
_TINY = torch.finfo(torch.float32).tiny


class GradientNorm(ModelScore):
    """Squared norm of the gradient of one loss with respect to all parameters together, `sum_t ||dJ/dt||^2`.

    | label | loss J | of labels that do not exclude each other | sign of the score | why |
    |---|---|---|---|---|
    | `uniform` | cross-entropy toward 1/K each | toward 1/2 each | minus | a sure prediction is far from it |
    | `all` | mean binary cross-entropy toward all ones | the same | plus | published; does not always hold, see below |
    | `predicted` | cross-entropy toward the largest class | those above 1/2 | plus | a sure one asks for nothing |

    Cross-entropies are those of the softmax; of labels that do not exclude each other, those of each sigmoid by itself,
    averaged.

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

    tasks = _CLASSIFIERS

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
        total = torch.stack(list(squared_norms(subject, images, self.label, "GradientNorm").values())).sum(dim=0)
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
    tasks = _CLASSIFIERS
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


def squared_norms(subject: Subject, images: Tensor, label: Label, wanted: str) -> dict[str, Tensor]:
    """Squared norm of the gradient of every trainable parameter for every image, `(N,)` float64 by name.

    Args:
        subject: A classifier.
        images: Shape `(N, C, H, W)`; those that are not finite give NaN.
        label: What the gradient pulls toward.
        wanted: What asks for them, for messages.

    Raises:
        ConfigurationError: The model is no classifier, or its gradients cannot be told apart by image.
    """
    return _squared_norms(subject, _measure(subject, wanted), images, label)


def label_losses(logits: Tensor, label: Label, task: Task) -> Tensor:
    """One loss an image, `(N,)`, of logits `(N, K)`, as the table of `GradientNorm` has them."""
    if label == "all":
        return _binary_losses(logits, torch.ones_like(logits))
    if task.kind == "multi-label":
        predicted = task.predictions(logits).to(logits) if label == "predicted" else torch.full_like(logits, 0.5)
        return _binary_losses(logits, predicted)
    if label == "predicted":
        return F.cross_entropy(logits, task.predictions(logits), reduction="none")
    return -logits.log_softmax(dim=1).mean(dim=1)


def _binary_losses(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)


def _measure(subject: Subject, wanted: str) -> PerSampleGradients:
    subject.task.require_classes(wanted)
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
        return label_losses(logits.masked_fill(wrong[-1][:, None], 0), label, subject.task)

    reading = measure(images, loss)
    broken |= torch.cat(wrong)
    return {name: values.masked_fill(broken, torch.nan) for name, values in reading.squared_norms.items()}
