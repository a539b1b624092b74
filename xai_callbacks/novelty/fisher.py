"""Novelty as an unusual gradient: what an image asks of the weights, against what familiar images ask.

A gradient is too long to learn a distribution of. `gradient_features` keeps where in each weight it is strong and a
random projection of where it points; `FisherNovelty` whitens these by their covariance over familiar images, which is
what the Fisher information, the covariance of the gradients themselves, would do if it could be held. No unfamiliar
image is ever seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import AuditError, ConfigurationError, require_integer, texts_of
from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.novelty.all_layers import label_losses
from xai_callbacks.novelty.autoencoder import ErrorKind, reconstruction_error
from xai_callbacks.novelty.measuring import measurer
from xai_callbacks.novelty.whitened import WhitenedScore
from xai_callbacks.novelty.whitening import Whitener

__all__ = ["FisherNovelty", "GradientLoss", "gradient_features"]

GradientLoss = ErrorKind | Literal["uniform"] | Callable[[Tensor, Tensor], Tensor]
"""The loss whose gradient is taken: the error of a reconstruction given as logits (`mse` of the sigmoid, or `bce`); the
cross-entropy of a classifier toward no class rather than another, see `GradientNorm`; or a function of outputs and
images with one loss an image."""

# The smallest squared norm that float32 tells from 0.
_TINY = torch.finfo(torch.float32).tiny

# The least share of a squared norm that float32 can tell from 0.
_FAINTEST = torch.finfo(torch.float32).eps


class FisherNovelty(WhitenedScore):
    """Squared Mahalanobis distance of `gradient_features` from those of familiar images; needs no unfamiliar ones.

    Features are standardised, and their covariance is shrunk toward the identity as much as Ledoit and Wolf ("A
    well-conditioned estimator for large-dimensional covariance matrices", 2004) find best, so that fewer images than
    features have an answer too. Range `[0, inf)`, in float64; about P for images like those of `fit`. Images that are
    not finite, or whose loss is not, score NaN.

    Cost: an image costs about one forward and backward pass, formed gradients of all weights included, or more, see
    `PerSampleGradients`: memory grows with the chunk times the number of weights chosen. `fit` keeps `(N, P)` features
    and inverts once, P^3. P is at most `3 * sketch` a weight: choose `parameters` for deep nets.

    Args:
        loss: Whose gradient to take.
        parameters: Which parameters, as names or patterns such as `decoder.*.weight`; None for all trainable ones of
            two or more dimensions, that is weights and no biases.
        sketch: Random projections a parameter, and the most groups an axis is split into.
        seed: Of the projections. PyTorch's global random state is neither read nor advanced.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    name = "fisher"
    _columns = "gradient features"

    def __init__(
        self,
        loss: GradientLoss = "bce",
        parameters: Sequence[str] | None = None,
        *,
        sketch: int = 64,
        seed: int = 0,
    ) -> None:
        require_integer("sketch", sketch, minimum=1)
        require_integer("seed", seed, minimum=0)
        self.loss = require_loss(loss)
        if loss == "uniform":
            self.tasks = ("single-label", "multi-label")
        self.parameters = None if parameters is None else texts_of("parameters", parameters)
        self.sketch = sketch
        self.seed = seed

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn from familiar images `(N, C, H, W)`: training and validation ones; call inside `access.undisturbed`.

        An earlier fit is replaced, and kept if this one fails.

        Raises:
            ConfigurationError: Fewer than two images, or one of those of `gradient_features`.
            AuditError: An image gives NaN or infinite features, or those of a whole weight are the same for all images.
        """
        measure = _weights_of(subject, self.parameters)
        parts = [self._features(subject, measure, chunk) for chunk in torch.split(images, chunk_size)]
        by_name = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        _require_learnable(by_name)
        self._familiar = Whitener(torch.cat(list(by_name.values()), dim=1))

    def _rows(self, subject: Subject, images: Tensor) -> Tensor:
        found = self._features(subject, _weights_of(subject, self.parameters), images)
        return torch.cat(list(found.values()), dim=1)

    def _features(self, subject: Subject, measure: PerSampleGradients, images: Tensor) -> dict[str, Tensor]:
        return _features(subject, measure, images, self.loss, sketch=self.sketch, seed=self.seed)


def gradient_features(
    subject: Subject,
    images: Tensor,
    loss: GradientLoss = "bce",
    parameters: Sequence[str] | None = None,
    *,
    sketch: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What `FisherNovelty` looks at: where in each weight the gradient of an image is strong, and where it points.

    For a weight `(O, I, ...)`, per image: the logarithm of the squared norm of its gradient for every output and every
    input channel, and `sketch` random projections of the gradient. An axis longer than `sketch` is cut into as many
    groups of neighbours. Entry i of a gradient counts with a random sign in projection i modulo `sketch`: no matrix is
    held, only one byte an entry; inner products of gradients are kept in expectation over seeds.

    Args:
        subject: The model.
        images: Shape `(N, C, H, W)`, all at once; call inside `access.undisturbed`.
        loss: Whose gradient to take.
        parameters: As for `FisherNovelty`.
        sketch: Projections a parameter.
        seed: Of the signs, which depend on the name of the parameter besides.

    Returns:
        Shape `(N, P_name)`, float64, by parameter. A channel with less than 1.2e-7 of the squared norm of its weight,
        what float32 can tell from 0, is read as having that much. Rows of images that are not finite, or whose loss
        is not, are NaN.

    Raises:
        ConfigurationError: Outputs do not suit the loss, or gradients cannot be told apart by image.
    """
    measure = _weights_of(subject, parameters)
    return _features(subject, measure, images, require_loss(loss), sketch=sketch, seed=seed)


def _weights_of(subject: Subject, parameters: Sequence[str] | None) -> PerSampleGradients:
    """Measures gradients of some parameters; None for all trainable ones of two or more dimensions."""
    if parameters is None:
        everything = PerSampleGradients(subject.module)
        parameters = [name for name, parameter in everything.parameters.items() if parameter.ndim > 1]
        if not parameters:
            raise ConfigurationError(
                "Expected weights of two or more dimensions, but the model has none that require grad. Name some "
                "parameters with `parameters=`."
            )
    return measurer(subject, parameters)


def _features(
    subject: Subject, measure: PerSampleGradients, images: Tensor, loss: GradientLoss, *, sketch: int, seed: int
) -> dict[str, Tensor]:
    watched = Losses(subject, loss)

    def reduce(name: str, gradients: Tensor) -> Tensor:
        return _reduced(gradients, sketch, _stream(seed, name))

    reading = measure(watched.sound(images), watched, norms=False, reduce=reduce)
    if reading.unused:
        raise ConfigurationError(
            f"Expected the loss to depend on `{reading.unused[0]}`, but it does not. Leave it out with `parameters=`."
        )
    return {name: rows.masked_fill(watched.broken[:, None], torch.nan) for name, rows in reading.reduced.items()}


class Losses:
    """The loss of each image, with images that are not finite kept from the others.

    Attributes:
        broken: Which images, or their losses, are not finite, `(N,)`; known after the call.
    """

    def __init__(self, subject: Subject, loss: GradientLoss) -> None:
        self.subject = subject
        self.loss = loss
        self.broken = torch.zeros(0, dtype=torch.bool)
        self._seen = 0

    def sound(self, images: Tensor) -> Tensor:
        """The images where the model is, zeros instead of those that are not finite."""
        images = self.subject.images(images)
        self.broken, self._seen = ~images.flatten(1).isfinite().all(dim=1), 0
        return images.masked_fill(self.broken.view(-1, *[1] * (images.ndim - 1)), 0)

    def __call__(self, outputs: object, images: Tensor) -> Tensor:
        losses = self._losses(outputs, images)
        wrong = ~losses.isfinite()
        if losses.ndim == 1:
            # Images come in one pass or several, in order.
            seen = slice(self._seen, self._seen + len(losses))
            self.broken[seen] |= wrong
            self._seen += len(losses)
        # A broken image must not take the others with it.
        return torch.where(wrong, torch.zeros_like(losses), losses)

    def _losses(self, outputs: object, images: Tensor) -> Tensor:
        if callable(self.loss):
            return self.loss(outputs, images)  # type: ignore[arg-type]
        if self.loss == "uniform":
            self.subject.task.require_classes("loss='uniform'")
            logits = self.subject.interpret(self.subject.select(outputs, len(images)))
            return label_losses(logits.double(), "uniform", self.subject.task)
        if not isinstance(outputs, Tensor):
            raise ConfigurationError(
                f"Expected an autoencoder that returns logits of pixels for `loss={self.loss!r}`, but got a "
                f"{type(outputs).__name__}. Give a function of outputs and images as `loss`."
            )
        return reconstruction_error(outputs, images, self.loss)


def require_loss(loss: GradientLoss) -> GradientLoss:
    """A known loss, or an error that says which there are."""
    known = (*get_args(ErrorKind), "uniform")
    if not callable(loss) and loss not in known:
        raise ConfigurationError(
            f"Expected `loss` to be one of {known} or a function of outputs and images, but got {loss!r}."
        )
    return loss


def _reduced(gradients: Tensor, sketch: int, signs: torch.Generator) -> Tensor:
    """Features `(N, P)` of the gradients `(N, *shape)` of one parameter."""
    if gradients.ndim == 1:  # a parameter without dimensions
        gradients = gradients[:, None]
    flat = gradients.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64).clamp_min(_TINY)
    # By the norm first: squares of what a good reconstruction asks for may underflow.
    shares = _shares((flat / norm.to(flat)).square().view_as(gradients))
    strengths = [_grouped(each, sketch).double().clamp_min(_FAINTEST).log() + 2 * norm.log() for each in shares]
    return torch.cat([*strengths, _sketched(flat, sketch, signs)], dim=1)


def _shares(squares: Tensor) -> list[Tensor]:
    """Sums over all axes but the first, and over all but the second where there are two."""
    if squares.ndim == 2:
        return [squares]
    by_pair = squares.flatten(3).sum(dim=3) if squares.ndim > 3 else squares
    return [by_pair.sum(dim=2), by_pair.sum(dim=1)]


def _grouped(columns: Tensor, most: int) -> Tensor:
    """Sums of neighbouring columns where there are more than `most`."""
    if columns.shape[1] <= most:
        return columns
    return torch.stack([part.sum(dim=1) for part in columns.tensor_split(most, dim=1)], dim=1)


def _sketched(rows: Tensor, sketch: int, signs: torch.Generator) -> Tensor:
    """Random projections `(N, sketch)` float64 of rows `(N, M)`: entry i goes to column i modulo `sketch`."""
    width = rows.shape[1]
    drawn = torch.randint(2, (width,), generator=signs, dtype=torch.int8).mul_(2).sub_(1).to(rows)
    whole = width - width % sketch
    total = torch.einsum("nbk,bk->nk", rows[:, :whole].view(len(rows), -1, sketch), drawn[:whole].view(-1, sketch))
    total[:, : width - whole] += rows[:, whole:] * drawn[whole:]
    return total[:, : min(sketch, width)].double()


def _stream(seed: int, name: str) -> torch.Generator:
    """Signs of one parameter, the same on every machine and in every batch."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))


def _require_learnable(by_name: dict[str, Tensor]) -> None:
    for name, rows in by_name.items():
        broken = (~rows.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        if broken:
            raise AuditError(
                f"Expected finite gradients of `{name}`, but got NaN or inf for {len(broken)} of {len(rows)} familiar "
                f"images, first for image {broken[0]}. Look at that image, and at the loss of the training."
            )
        if len(rows) > 1 and bool((rows == rows[0]).all()):
            raise AuditError(
                f"Expected gradients of `{name}` that differ between familiar images, but those of all {len(rows)} are "
                "the same. The layer is dead, or the images are one; leave it out with `parameters=`."
            )
