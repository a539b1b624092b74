"""The contract of novelty scores: one number an image, larger = more novel, always."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from xai_callbacks.access import Subject

__all__ = ["Inliers", "LastLayerScore", "ModelScore", "NoveltyScore"]


class Inliers(NamedTuple):
    """What the last layer saw and said for familiar images.

    Attributes:
        features: Inputs of the linear head, `(N, F)`.
        logits: Its outputs, `(N, K)`.
        labels: Classes `(N,)` int64, all the same where there are none that exclude each other; None where unknown.
        weight: Weight of the head, `(K, F)`.
        bias: Bias of the head, `(K,)`; zeros where it has none.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None
    weight: Tensor
    bias: Tensor


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


class LastLayerScore(NoveltyScore):
    """A score from what the last layer saw and said: it costs no pass through the model of its own.

    Name in `tasks` what the outputs may be: a softmax wants classes that exclude each other, `("single-label",)`;
    logits of labels, each by itself, are `("single-label", "multi-label")`; features suit any task.
    """

    def check(self, count: int, width: int) -> None:
        """Raise what is wrong with the inliers before training; only scores that learn are asked.

        Args:
            count: Number of familiar images to come.
            width: Features of the last layer, F.
        """

    def fit(self, inliers: Inliers) -> None:
        """Learn what is familiar; scores with `learns = False` need not be fitted."""

    @abstractmethod
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score a batch.

        Args:
            features: Input of the linear head, `(N, F)`.
            logits: Outputs of the head as the model gave them, `(N, K)`; K = 1 is one sigmoid logit.

        Returns:
            Shape `(N,)`, float64.
        """


class ModelScore(NoveltyScore):
    """A score that runs the model itself, forward and often backward."""

    def check(self, subject: Subject, images: Tensor) -> None:
        """Raise before training what would keep `fit` or `score` from working, at little cost, inside `undisturbed`.

        Scores that do not learn are asked for those of two images besides, and need not do so here.

        Args:
            subject: The model.
            images: The first two familiar images `(N, C, H, W)`, or the only one, if the score learns; else two probes.
        """

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        """Learn what is familiar from images `(N, C, H, W)`; scores with `learns = False` need not be fitted."""

    @abstractmethod
    def score(self, subject: Subject, images: Tensor) -> Tensor:
        """Score a batch of images `(N, C, H, W)`; call inside `access.undisturbed`.

        Returns:
            Shape `(N,)`, float64.
        """
