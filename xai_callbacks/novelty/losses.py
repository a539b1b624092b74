"""Per-sample gradients of the losses that scores ask about, with broken images kept from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients import GradientReading, Loss, PerSampleGradients, Reduce
from xai_callbacks.novelty.autoencoder import ErrorKind, reconstruction_error

__all__ = ["LABELS", "GradientLoss", "Label", "loss_of", "measured", "squared_norms"]

Label = Literal["uniform", "all", "predicted"]
"""A target of the gradient: no class rather than another, all of them at once, or the predicted one."""
LABELS: tuple[str, ...] = get_args(Label)

GradientLoss = ErrorKind | Literal["uniform"] | Callable[[Tensor, Tensor], Tensor]
"""The loss whose gradient is taken: the error of a reconstruction given as logits (`mse` of the sigmoid, or `bce`); the
cross-entropy of a classifier toward no class rather than another, see `GradientNorm`; or a function of outputs and
images with one loss an image."""

# What an audit measures gradients with, by the parameters: how images lie in the layers is found out once for all
# scores and chunks. An audit makes a subject of its own, and lets go of it.
_MADE: WeakKeyDictionary[Subject, dict[tuple[tuple[str, int], ...], PerSampleGradients]] = WeakKeyDictionary()


def measured(
    subject: Subject,
    images: Tensor,
    loss: Loss,
    parameters: Sequence[str] | None = None,
    *,
    norms: bool = True,
    reference: Mapping[str, Tensor] | None = None,
    reduce: Reduce | None = None,
) -> tuple[GradientReading, Tensor]:
    """Gradients of the loss of each image, see `PerSampleGradients`, and which images are broken, `(N,)`.

    Images that are not finite, or whose loss is not, are broken; their gradients mean nothing.
    """
    made = PerSampleGradients(subject.module, subject.call, parameters=parameters)
    # By what is measured, not by how that was asked for: layers may have been frozen or exchanged since.
    key = tuple((name, id(parameter)) for name, parameter in made.parameters.items())
    measure = _MADE.setdefault(subject, {}).setdefault(key, made)
    images = subject.images(images)
    broken = ~images.flatten(1).isfinite().all(dim=1)
    images = images.masked_fill(broken.view(-1, *[1] * (images.ndim - 1)), 0)
    wrong: list[Tensor] = []

    def guarded(outputs: object, given: Tensor) -> Tensor:
        losses = loss(outputs, given)
        wrong.append(~losses.isfinite())
        # A broken image must not take the others with it.
        return torch.where(wrong[-1], torch.zeros_like(losses), losses)

    reading = measure(images, guarded, norms=norms, reference=reference, reduce=reduce)
    return reading, broken | torch.cat(wrong)


def squared_norms(subject: Subject, images: Tensor, label: Label) -> dict[str, Tensor]:
    """Squared norm of the gradient of every trainable parameter, `(N,)` float64 by name; NaN for broken images."""
    reading, broken = measured(subject, images, loss_of(subject, label))
    return {name: values.masked_fill(broken, torch.nan) for name, values in reading.squared_norms.items()}


def loss_of(subject: Subject, loss: GradientLoss | Label) -> Loss:
    """A function of what the model returns and the images, with one loss an image, `(N,)`."""
    if callable(loss):
        return loss  # type: ignore[return-value]  # outputs are what the user's model returns

    def of_label(outputs: object, images: Tensor) -> Tensor:
        # In float64, where 1 - p of a sure prediction keeps its digits.
        logits = subject.interpret(subject.select(outputs, len(images))).double()
        wrong = ~logits.isfinite().all(dim=1)
        return _label_losses(subject, logits.masked_fill(wrong[:, None], 0), loss).masked_fill(wrong, torch.nan)

    def of_reconstruction(outputs: object, images: Tensor) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise ConfigurationError(
                f"Expected an autoencoder that returns logits of pixels for `loss={loss!r}`, but got a "
                f"{type(outputs).__name__}. Give a function of outputs and images as `loss`."
            )
        return reconstruction_error(outputs, images, loss)  # type: ignore[arg-type]  # no label, see below

    return of_label if loss in LABELS else of_reconstruction


def _label_losses(subject: Subject, logits: Tensor, label: str) -> Tensor:
    """Losses of logits `(N, K)` as the table of `GradientNorm` has them."""
    task = subject.task
    if label == "all" or task.kind == "multi-label":
        half = torch.full_like(logits, 0.5 if label == "uniform" else 1)
        wanted = task.predictions(logits).to(logits) if label == "predicted" else half
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
    if label == "predicted":
        return F.cross_entropy(logits, task.predictions(logits), reduction="none")
    return -logits.log_softmax(dim=1).mean(dim=1)
