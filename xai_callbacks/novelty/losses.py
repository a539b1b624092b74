"""Per-sample gradients of the losses that scores ask about, and `GradientNorm`, their norm."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError, require_choice
from xai_callbacks.gradients import GradientReading, Loss, PerSampleGradients, Reduce
from xai_callbacks.novelty.autoencoder import ErrorKind, reconstruction_error
from xai_callbacks.novelty.base import ModelScore

Label = Literal["uniform", "all", "predicted"]
"""A target of the gradient: no class rather than another, all of them at once, or the predicted one."""
_LABELS: tuple[str, ...] = get_args(Label)

GradientLoss = ErrorKind | Literal["uniform"] | Callable[[Tensor, Tensor], Tensor]
"""The loss whose gradient is taken: the error of a reconstruction given as logits (`mse` of the sigmoid, or `bce`); the
cross-entropy of a classifier toward no class rather than another, see `GradientNorm`; or a function of outputs and
images with one loss an image."""

# What an audit measures gradients with, by the parameters: how images lie in the layers is found out once for all
# scores and chunks.
_MADE: WeakKeyDictionary[Subject, dict[tuple[int, ...], PerSampleGradients]] = WeakKeyDictionary()


class GradientNorm(ModelScore):
    """Squared norm of the gradient of one loss with respect to all parameters together, `sum_t ||dJ/dt||^2`.

    | label | loss J | of labels that do not exclude each other | sign of the score | why |
    |---|---|---|---|---|
    | `uniform` | cross-entropy toward 1/K each | toward 1/2 each | minus | a sure prediction is far from it |
    | `all` | mean binary cross-entropy toward all ones | the same | plus | published; does not always hold, see below |
    | `predicted` | cross-entropy toward the largest class | those above 1/2 | plus | a sure one asks for nothing |

    Cross-entropies are those of the softmax, in which one sigmoid logit is two classes; of labels that do not exclude
    each other, those of each sigmoid, averaged. `uniform` is `GradNorm` with all layers and the squared 2-norm, `all`
    is `ConfoundingLabels` summed over layers. Signs are those of the publications, not promises: large features enlarge
    every gradient, and docs/novelty.md shows where that turns a score round. Tensors with large gradients dominate the
    sum; `PurviewDistance` weighs all alike. Range `(-inf, 0]` or `[0, inf)`; comparable between images and epochs of
    one model. Cost: about one forward and backward pass; more where modules have no rule, see `PerSampleGradients`.
    """

    tasks = ("single-label", "multi-label")

    def __init__(self, label: Label = "uniform") -> None:
        require_choice("label", label, _LABELS)
        self.label = label
        self.name = f"gradient_norm_{label}"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where image or logits are not finite."""
        subject.task.require_classes("GradientNorm")
        total = torch.stack(list(squared_norms(subject, images, self.label).values())).sum(dim=0)
        return -total if self.label == "uniform" else total


def measured(
    subject: Subject, images: Tensor, loss: Loss, parameters: Sequence[str] | None = None, reduce: Reduce | None = None
) -> tuple[GradientReading, Tensor]:
    """Gradients of the loss of each image, see `PerSampleGradients`, and which images are broken, `(N,)`.

    Images that are not finite, or whose loss is not, are broken; their gradients mean nothing.
    """
    made = PerSampleGradients(subject.module, subject.call, parameters=parameters)
    # By what is measured, not by how that was asked for: layers may have been frozen or exchanged since.
    measure = _MADE.setdefault(subject, {}).setdefault(tuple(map(id, made.parameters.values())), made)
    images = subject.images(images)
    broken = ~images.flatten(1).isfinite().all(dim=1)
    images = images.masked_fill(broken.view(-1, *[1] * (images.ndim - 1)), 0)
    wrong: list[Tensor] = []

    def guarded(outputs: object, given: Tensor) -> Tensor:
        losses = loss(outputs, given)
        wrong.append(~losses.isfinite())
        # A broken image must not take the others with it.
        return torch.where(wrong[-1], torch.zeros_like(losses), losses)

    return measure(images, guarded, reduce=reduce), broken | torch.cat(wrong)


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

    return of_label if loss in _LABELS else of_reconstruction


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
