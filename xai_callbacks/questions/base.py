"""The contract of questions: posed once, then scored of any outputs for altered versions of the same images.

A question never looks inside the model. `Question.pose` reads the outputs of the probes and settles which output is
asked about (the fact), what it is held against (the foil), or which value. What it returns, a `Posed`, turns outputs
of these images, or of altered versions of them, into one differentiable scalar an image, which explainers explain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.tasks import Task

__all__ = ["Posed", "Question", "pick", "refuse_task"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Posed(ABC):
    """A question about N particular images; a subclass says how outputs are scored.

    Attributes:
        fact: The output asked about, `(N,)` int64; -1 for an image that has none, whose score is 0.
        foil: The output it is held against, `(N,)` int64; None where there is none.
        value: The value it is held against, `(N,)` float32; None for classes and labels.
    """

    fact: Tensor
    foil: Tensor | None = None
    value: Tensor | None = None

    @abstractmethod
    def score(self, outputs: Tensor) -> Tensor:
        """The scalar to explain, `(N,)`, attached to the graph of `outputs`.

        Args:
            outputs: Logits `(N, K)` or values `(N, V)` of versions of the images, in their order.
        """

    def rows(self, index: Tensor) -> Self:
        """The same question about the images at `index` `(M,)`, each as often as it occurs there."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: value[index.to(value.device)] for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **chosen)


class Question(ABC):
    """Base of all questions. Subclasses hold plain values only, so they can be written in YAML and compared."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Name of the question in tags and metric keys, e.g. `why_rather_than`: letters, digits, `_`, `-` and `.`."""

    @abstractmethod
    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Settle what is asked about each image.

        Args:
            outputs: Logits `(N, K)` or values `(N, V)` of the images themselves, as `task` reads them.
            truth: Labels or target values of the images; None for unlabelled probes.
            task: How outputs are read.
        """

    @abstractmethod
    def title(self, fact: str, foil: str) -> str:
        """The question in words, given the names of fact and foil (for regression: the two values)."""

    @abstractmethod
    def check(self, task: Task, *, labelled: bool) -> None:
        """Refuse what can be known to be unanswerable.

        Args:
            task: How outputs are read; its width is None until a model has been looked at.
            labelled: Whether labels or targets are known.

        Raises:
            ConfigurationError: The question needs labels, another task, or an output that the model does not have.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


def pick(outputs: Tensor, index: Tensor) -> Tensor:
    """One output of each image, `(N,)`; 0 where the index is -1."""
    chosen = outputs.gather(1, index.clamp_min(0)[:, None])[:, 0]
    return chosen * (index >= 0) if bool((index < 0).any()) else chosen


def refuse_task(question: Question, task: Task, wanted: str) -> None:
    """Raise that a question does not suit a task.

    Raises:
        ConfigurationError: Always.
    """
    raise ConfigurationError(
        f"Expected `questions` to suit {task.kind} probes, but got {question!r}, which asks about {wanted}. Float "
        "`targets` make probes of regression, integer `labels` of classification."
    )
