"""Novelty as an unusual gradient: what an image asks of the weights, against what familiar images ask."""

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError, require_choice, texts_of
from xai_callbacks.gradients import PerSampleGradients
from xai_callbacks.novelty.autoencoder import ERRORS
from xai_callbacks.novelty.base import ModelScore, require_finite, require_fitted, require_images
from xai_callbacks.novelty.losses import GradientLoss, loss_of, measured, squared_norms

_MIN_SHRINKAGE = 1e-6  # share of the identity in a covariance, whatever the estimate: two features may be one number
_ROUNDING = 1e-5  # relative to a feature, what is this small is its rounding
_SKETCH = 64  # random projections a parameter, and the most groups an axis is split into
# The smallest squared norm that float32 tells from 0, and the smallest share of one.
_TINY, _FAINTEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).eps


class Whitener:
    """Squared Mahalanobis distance from two or more familiar rows, `(N, P)` float64; about P for familiar ones.

    Columns are standardised, and their covariance is shrunk toward the identity after Ledoit and Wolf, so that fewer
    rows than columns have an answer too; one that is the same in all rows counts in its own unit. Learning costs P^3.
    """

    def __init__(self, rows: Tensor) -> None:
        from sklearn.covariance import ledoit_wolf

        require_images(len(rows), 2, "to learn from")
        self.mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
        self.scale = torch.where(spread > _ROUNDING * self.mean.abs(), spread, 1.0)
        standard = (rows - self.mean) / self.scale
        covariance = torch.from_numpy(ledoit_wolf(standard.cpu().numpy(), assume_centered=True)[0]).to(rows)
        covariance.diagonal().add_(_MIN_SHRINKAGE)
        self._factor = torch.linalg.cholesky(covariance)

    def distance(self, rows: Tensor) -> Tensor:
        """Squared distance of rows `(N, P)`, as `(N,)` in [0, inf); NaN where a row has a NaN or an infinity."""
        mean, scale, factor = (each.to(rows.device) for each in (self.mean, self.scale, self._factor))
        broken = ~rows.isfinite().all(dim=1)
        standard = ((rows - mean) / scale).masked_fill(broken[:, None], 0)
        white: Tensor = torch.linalg.solve_triangular(factor, standard.T, upper=False)
        return white.square().sum(dim=0).masked_fill(broken, torch.nan)


class _WhitenedScore(ModelScore):
    """Squared Mahalanobis distance of gradient features of an image from those of familiar images."""

    learns = True
    _familiar: Whitener | None = None

    def check(self, subject: Subject, images: Tensor) -> None:
        """Measure two familiar images; raise `ConfigurationError` of a single one."""
        require_images(len(images), 2, "to learn from")
        self.features(subject, images)

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn from familiar images `(N, C, H, W)`; raises `AuditError` of one that gives NaN or infinite features."""
        parts = [self.features(subject, chunk) for chunk in torch.split(images, chunk_size)]
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, rows in features.items():
            require_finite(f"gradients of `{name}` for familiar images", rows)
        self._familiar = Whitener(torch.cat(list(features.values()), dim=1))

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score images `(N, C, H, W)`; NaN where an image, or its loss, is not finite."""
        rows, familiar = torch.cat(list(self.features(subject, images).values()), dim=1), self._familiar
        require_fitted(self, None if familiar is None else len(familiar.mean), rows.shape[1])
        return cast("Whitener", familiar).distance(rows)

    @abstractmethod
    def features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Features `(N, P_name)` float64 by parameter; NaN where they cannot be measured."""


class PurviewDistance(_WhitenedScore):
    """Mahalanobis distance of the logarithms of gradient norms, one a parameter, from those of familiar images.

    Lee, Lehman, Prabhushankar and AlRegib, "Probing the purview of neural networks via gradient analysis", IEEE Access
    2023: squared norms toward an all-ones label, see `GradientNorm`, of weights and biases separately; the logarithm,
    because the norms of one tensor spread over orders of magnitude. They train a classifier of these on unfamiliar
    images; here they are whitened on familiar images alone, see `Whitener`. Squared distance, in `[0, inf)`; about the
    number of parameters for familiar images. Cost: that of `GradientNorm`, for `fit` as well.
    """

    name = "purview_distance"
    tasks = ("single-label", "multi-label")

    def features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Logarithm of each squared norm; one of 0 counts as the smallest that float32 can hold."""
        subject.task.require_classes("PurviewDistance")
        norms = squared_norms(subject, images, "all")
        return {name: values.clamp_min(_TINY).log()[:, None] for name, values in norms.items()}


class FisherNovelty(_WhitenedScore):
    """Squared Mahalanobis distance of features of a gradient from those of familiar images; needs no unfamiliar ones.

    Whitening what is kept of a gradient, see `Whitener`, does what the Fisher information, the covariance of the
    gradients themselves, would do if it could be held. Range `[0, inf)`; P or so for familiar images. Cost: about one
    forward and backward pass, see `PerSampleGradients`, and memory for a chunk of gradients; `fit` inverts once, P^3,
    with P at most 192 a weight: choose `parameters` for deep nets.

    Args:
        loss: Whose gradient to take.
        parameters: Names or patterns such as `decoder.*.weight`; None for all trainable ones of two dimensions or more.
    """

    name = "fisher"

    def __init__(self, loss: GradientLoss = "bce", parameters: Sequence[str] | None = None) -> None:
        if not callable(loss):
            require_choice("loss", loss, (*ERRORS, "uniform"))
        if loss == "uniform":
            self.tasks = ("single-label", "multi-label")
        self.loss = loss
        self.parameters = None if parameters is None else texts_of("parameters", parameters)

    def features(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Where in each weight the gradient of an image is strong, and where it points; `(N, P_name)` float64.

        For a weight `(O, I, ...)`, per image: the logarithm of the squared norm of its gradient for every output and
        every input channel, at least 1.2e-7 of that of the weight; and 64 random projections of the gradient, which
        depend on nothing but the name of the parameter. An axis longer than 64 is cut into as many groups of
        neighbours. Entry i of a gradient counts with a random sign in projection i modulo 64: no matrix is held.
        """
        if self.loss == "uniform":
            subject.task.require_classes("loss='uniform'")
        chosen = self.parameters
        if chosen is None:
            everything = PerSampleGradients(subject.module).parameters
            chosen = tuple(name for name, parameter in everything.items() if parameter.ndim > 1)
        reading, broken = measured(subject, images, loss_of(subject, self.loss), chosen, _reduced)
        if reading.unused:
            raise ConfigurationError(
                f"Expected the loss to depend on `{reading.unused[0]}`, but it does not. Leave it out by `parameters=`."
            )
        return {name: rows.masked_fill(broken[:, None], torch.nan) for name, rows in reading.reduced.items()}


def _reduced(name: str, gradients: Tensor) -> Tensor:
    """Features `(N, P)` of the gradients `(N, *shape)` of one parameter."""
    gradients = gradients[:, None] if gradients.ndim == 1 else gradients
    flat = gradients.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True, dtype=torch.float64).clamp_min(_TINY)
    # By the norm first: squares of what a good reconstruction asks for may underflow.
    shares = (flat / norm.to(flat)).square().view_as(gradients)
    by_pair = shares.flatten(3).sum(dim=3) if shares.ndim > 3 else shares
    channels = [by_pair.sum(dim=2), by_pair.sum(dim=1)] if by_pair.ndim > 2 else [by_pair]
    strengths = [_grouped(each).double().clamp_min(_FAINTEST).log() + 2 * norm.log() for each in channels]
    # The same signs on every machine and in every batch.
    signs = torch.Generator().manual_seed(zlib.crc32(f"0:{name}".encode()))
    drawn = torch.randint(2, flat.shape[1:], generator=signs, dtype=torch.int8).mul_(2).sub_(1).to(flat)
    whole = flat.shape[1] - flat.shape[1] % _SKETCH
    parts = flat[:, :whole].view(len(flat), -1, _SKETCH), drawn[:whole].view(-1, _SKETCH)
    sketched = torch.einsum("nbk,bk->nk", *parts)
    sketched[:, : flat.shape[1] - whole] += flat[:, whole:] * drawn[whole:]
    return torch.cat([*strengths, sketched[:, : flat.shape[1]].double()], dim=1)


def _grouped(columns: Tensor) -> Tensor:
    """Sums of neighbouring columns, in as many groups as there are columns or `_SKETCH`."""
    parts = columns.tensor_split(min(_SKETCH, columns.shape[1]), dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1)
