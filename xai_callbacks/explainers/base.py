"""The contract of every explainer: images and questions in, signed heatmaps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from xai_callbacks.access import Subject, TargetLayer, Trace
from xai_callbacks.questions import Asked, Question

__all__ = ["Explainer", "Explanation"]


class Explanation(NamedTuple):
    """Answers to Q questions about N images."""

    outputs: Tensor
    """Logits `(N, K)`, or values `(N, 1)` for regression; float32, detached."""
    asked: tuple[Asked, ...]
    """What was asked, one entry a question, detached."""
    heatmaps: Tensor
    """Signed, `(Q, N, h, w)`, float32, on the explainer's own grid: positive cells raise the score of the question.
    The sum over the cells is in units of the score: logits, or nats for one that starts at a cross-entropy."""


class Explainer(ABC):
    """Answers questions about images with heatmaps.

    An explainer holds plain settings; what it learns about a model in `prepare` is plain data too, so that it can be
    copied and pickled and never keeps a model alive.
    """

    @abstractmethod
    def prepare(self, trace: Trace) -> TargetLayer:
        """Choose the layer of one model, once, and return it.

        Raises:
            TargetLayerError: No layer fits.
        """

    @abstractmethod
    def explain(
        self, subject: Subject, layer: TargetLayer, images: Tensor, questions: Sequence[Question], truth: Tensor | None
    ) -> Explanation:
        """Answer all questions about one batch, from one forward pass. Call inside `undisturbed`.

        Args:
            subject: The model.
            layer: What `prepare` returned.
            images: Shape `(N, C, H, W)`, as the model expects them.
            questions: Q questions, checked before.
            truth: Labels or target values `(N,)`, or None.
        """
