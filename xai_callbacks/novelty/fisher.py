"""Novelty as an unusual gradient: what an image asks of the weights, against what familiar images ask."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError, require_integer, texts_of
from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.novelty.arguments import require_choice
from xai_callbacks.novelty.autoencoder import ERRORS
from xai_callbacks.novelty.losses import GradientLoss, loss_of, measured
from xai_callbacks.novelty.whitening import WhitenedScore

__all__ = ["FisherNovelty", "gradient_features"]

# The smallest squared norm that float32 tells from 0, and the smallest share of one.
_TINY, _FAINTEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).eps


class FisherNovelty(WhitenedScore):
    """Squared Mahalanobis distance of `gradient_features` from those of familiar images; needs no unfamiliar ones.

    A gradient is too long to learn a distribution of; whitening what is kept of it, see `Whitener`, does what the
    Fisher information, the covariance of the gradients themselves, would do if it could be held. Range `[0, inf)`; P or
    so for familiar images.

    Cost: about one forward and backward pass, or more, see `PerSampleGradients`; memory for a chunk of gradients.
    `fit` inverts once, P^3, with P at most `3 * sketch` a weight: choose `parameters` for deep nets.

    Args:
        loss: Whose gradient to take.
        parameters: Which parameters, as names or patterns such as `decoder.*.weight`; None for all trainable ones of
            two or more dimensions, that is weights and no biases.
        sketch: Random projections a parameter, and the most groups an axis is split into.
        seed: Of the projections, which depend on nothing else but the name of the parameter.
    """

    name = "fisher"
    _must_vary = True

    def __init__(
        self, loss: GradientLoss = "bce", parameters: Sequence[str] | None = None, *, sketch: int = 64, seed: int = 0
    ) -> None:
        require_integer("sketch", sketch, minimum=1)
        require_integer("seed", seed, minimum=0)
        _require_loss(loss)
        if loss == "uniform":
            self.tasks = ("single-label", "multi-label")
        self.loss = loss
        self.parameters = None if parameters is None else texts_of("parameters", parameters)
        self.sketch = sketch
        self.seed = seed

    def _features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        return gradient_features(subject, images, self.loss, self.parameters, sketch=self.sketch, seed=self.seed)


def gradient_features(
    subject: Subject,
    images: Tensor,
    loss: GradientLoss = "bce",
    parameters: Sequence[str] | None = None,
    *,
    sketch: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Features of `FisherNovelty`: where in each weight the gradient of an image is strong, and where it points.

    For a weight `(O, I, ...)`, per image: the logarithm of the squared norm of its gradient for every output and every
    input channel, and `sketch` random projections of the gradient. An axis longer than `sketch` is cut into as many
    groups of neighbours. Entry i of a gradient counts with a random sign in projection i modulo `sketch`: no matrix is
    held, only one byte an entry; inner products of gradients are kept in expectation over seeds.

    Arguments are those of `FisherNovelty`; images `(N, C, H, W)` are measured all at once. Call inside `undisturbed`.

    Returns:
        Shape `(N, P_name)`, float64, by parameter. A channel with less than 1.2e-7 of the squared norm of its weight,
        what float32 can tell from 0, is read as having that much. Rows of images that are not finite, or whose loss
        is not, are NaN.

    Raises:
        ConfigurationError: Outputs do not suit the loss, or gradients cannot be told apart by image.
    """
    _require_loss(loss)
    if loss == "uniform":
        subject.task.require_classes("loss='uniform'")
    if parameters is None:
        everything = PerSampleGradients(subject.module).parameters
        parameters = [name for name, parameter in everything.items() if parameter.ndim > 1]
        if not parameters:
            raise ConfigurationError(
                "Expected weights of two or more dimensions, but the model has none that require grad. Name some "
                "parameters with `parameters=`."
            )

    def reduce(name: str, gradients: Tensor) -> Tensor:
        # The same signs on every machine and in every batch.
        signs = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        return _reduced(gradients, sketch, signs)

    reading, broken = measured(subject, images, loss_of(subject, loss), parameters, norms=False, reduce=reduce)
    if reading.unused:
        raise ConfigurationError(
            f"Expected the loss to depend on `{reading.unused[0]}`, but it does not. Leave it out with `parameters=`."
        )
    return {name: rows.masked_fill(broken[:, None], torch.nan) for name, rows in reading.reduced.items()}


def _require_loss(loss: GradientLoss) -> None:
    if not callable(loss):
        require_choice("loss", loss, (*ERRORS, "uniform"), " or a function of outputs and images")


def _reduced(gradients: Tensor, sketch: int, signs: torch.Generator) -> Tensor:
    """Features `(N, P)` of the gradients `(N, *shape)` of one parameter."""
    if gradients.ndim == 1:  # a parameter without dimensions
        gradients = gradients[:, None]
    flat = gradients.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64).clamp_min(_TINY)
    # By the norm first: squares of what a good reconstruction asks for may underflow.
    shares = (flat / norm.to(flat)).square().view_as(gradients)
    if shares.ndim > 2:
        by_pair = shares.flatten(3).sum(dim=3) if shares.ndim > 3 else shares
        channels = [by_pair.sum(dim=2), by_pair.sum(dim=1)]
    else:
        channels = [shares]
    strengths = [_grouped(each, sketch).double().clamp_min(_FAINTEST).log() + 2 * norm.log() for each in channels]
    return torch.cat([*strengths, _sketched(flat, sketch, signs)], dim=1)


def _grouped(columns: Tensor, groups: int) -> Tensor:
    """Sums of neighbouring columns where there are more columns than groups."""
    if columns.shape[1] <= groups:
        return columns
    return torch.stack([part.sum(dim=1) for part in columns.tensor_split(groups, dim=1)], dim=1)


def _sketched(rows: Tensor, sketch: int, signs: torch.Generator) -> Tensor:
    """Random projections `(N, sketch)` float64 of rows `(N, M)`: entry i goes to column i modulo `sketch`."""
    width = rows.shape[1]
    drawn = torch.randint(2, (width,), generator=signs, dtype=torch.int8).mul_(2).sub_(1).to(rows)
    whole = width - width % sketch
    total = torch.einsum("nbk,bk->nk", rows[:, :whole].view(len(rows), -1, sketch), drawn[:whole].view(-1, sketch))
    total[:, : width - whole] += rows[:, whole:] * drawn[whole:]
    return total[:, : min(sketch, width)].double()
