"""The contract of novelty scores, one number an image, larger = more novel, always; and checks that they share."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from xai_callbacks.access import Subject
from xai_callbacks.errors import AuditError, ConfigurationError, with_settings


class Inliers(NamedTuple):
    """Input and output of the last layer for familiar images."""

    features: Tensor  # inputs of the linear head, (N, F)
    logits: Tensor  # its outputs, (N, K)
    labels: Tensor | None  # classes (N,) int64, all the same unless they exclude each other; None where unknown
    weight: Tensor  # of the head, (K, F)
    bias: Tensor  # of the head, (K,); zeros where it has none


class NoveltyScore(ABC):
    """One number an image; larger = more novel. Implement `LastLayerScore` or `ModelScore`.

    Attributes:
        name: Key under which the score is logged, such as `energy`.
        learns: Whether `fit` must see familiar images before `score` can be asked.
        tasks: Kinds of task, see `Task.kind`, of the models that it suits; it is left out of audits of others.
    """

    name: str
    learns: bool = False
    tasks: tuple[str, ...] = ("single-label", "multi-label", "regression")

    def __repr__(self) -> str:
        return with_settings(self)


class LastLayerScore(NoveltyScore):
    """A score of input and output of the last layer: it costs no pass through the model of its own.

    Name in `tasks` what the outputs may be: a softmax wants classes that exclude each other, `("single-label",)`;
    logits of labels, each by itself, are `("single-label", "multi-label")`; features suit any task.
    """

    def check(self, count: int, width: int) -> None:
        """Raise before training what is wrong with `count` familiar images of `width` features, if the score learns."""

    def fit(self, inliers: Inliers) -> None:
        """Learn what is familiar, if the score learns."""

    @abstractmethod
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score inputs `(N, F)` and outputs `(N, K)` of the head; K = 1 is one logit. Returns `(N,)` float64."""


class ModelScore(NoveltyScore):
    """A score that runs the model itself, forward and often backward; all its methods run inside `undisturbed`."""

    def check(self, subject: Subject, images: Tensor) -> None:
        """Raise before training, at little cost, what would keep `fit` or `score` from working.

        Scores that learn are shown two familiar images `(N, C, H, W)`; others two probes, which are also scored.
        """

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn what is familiar from images `(N, C, H, W)`, if the score learns."""

    @abstractmethod
    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score a batch of images `(N, C, H, W)`; returns `(N,)` float64."""


def require_images(count: int, minimum: int, why: str) -> None:
    """Raise `ConfigurationError` of too few familiar images."""
    if count < minimum:
        raise ConfigurationError(f"Expected {minimum} familiar images or more {why}, but got {count}. Give more.")


def require_finite(what: str, rows: Tensor) -> None:
    """Raise `AuditError` if one of the rows `(N, ...)` of familiar images holds NaN or infinity."""
    broken = (~rows.isfinite()).reshape(len(rows), -1).any(dim=1)
    if broken.any():
        raise AuditError(
            f"Expected {what} to be finite, but got NaN or inf in {int(broken.sum())} of {len(rows)} rows, the first "
            f"at index {int(broken.nonzero()[0])}. Look at that image, and at the loss of the training."
        )


def require_fitted(score: object, learnt: int | None, width: int) -> None:
    """Raise `ConfigurationError` unless a score has learnt, of as many features an image as it is asked about."""
    if learnt != width:
        known = "`fit` has not been called" if learnt is None else f"it has learnt of {learnt}"
        raise ConfigurationError(
            f"Expected `{type(score).__name__}` to have learnt of {width} features an image, but {known}. Fit it for "
            "this model."
        )
