"""The contract of questions: posed once, then scored of any outputs for altered versions of the same images."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_instance, require_name
from xai_callbacks.tasks import Task


@dataclass(frozen=True, eq=False, kw_only=True)
class Posed(ABC):
    """A question about N particular images.

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
        """The scalar to explain `(N,)`, attached to the graph of outputs `(N, K)` of versions of the images."""

    def rows(self, index: Tensor) -> Self:
        """The same question about the images at `index` `(M,)`, each as often as it occurs there."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: value[index.to(value.device)] for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **chosen)


class Question(ABC):
    """Base of all questions. Subclasses hold plain values only, so they can be written in YAML and compared."""

    words: ClassVar[str]  # the question, with `{fact}` and `{foil}` for their names

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
    def check(self, task: Task, *, labelled: bool) -> None:
        """Refuse what can be known to be unanswerable, by a `ConfigurationError`.

        Args:
            task: How outputs are read; its width is None until a model has been looked at.
            labelled: Whether labels or targets are known.
        """

    def title(self, fact: str, foil: str) -> str:
        """The question in words, given the names of fact and foil (for regression: the two values)."""
        return self.words.format(fact=fact, foil=foil)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


def check_questions(questions: Sequence[Question], task: Task, *, labelled: bool) -> None:
    """Raise a `ConfigurationError` if one of them is no question, asks the same as another, or cannot be answered."""
    seen: set[str] = set()
    for question in questions:
        require_instance("questions", question, Question, "a list of questions such as Why()")
        require_name(f"`key` of {question!r}", question.key)
        if question.key in seen:
            raise ConfigurationError(
                f"Expected `questions` to differ, but got {question!r}, whose key {question.key!r} another has too."
            )
        seen.add(question.key)
        question.check(task, labelled=labelled)


def pick(outputs: Tensor, index: Tensor) -> Tensor:
    """One output of each image, `(N,)`; 0 where the index is -1."""
    chosen = outputs.gather(1, index.clamp_min(0)[:, None])[:, 0]
    return chosen * (index >= 0) if bool((index < 0).any()) else chosen


def to_reference(argument: str, value: str | int, words: Sequence[str]) -> str | int:
    """Check that an argument is a word or name, or an index."""
    if not (value.strip() if isinstance(value, str) else type(value) is int and value >= 0):
        rank = "a rank such as 'top-2', " if len(words) > 1 else ""
        raise ConfigurationError(
            f"Expected `{argument}` to be {', '.join(map(repr, words))}, {rank}an index >= 0, or the name of a class, "
            f"label or value, but got {value!r}."
        )
    return value


def check_reference(argument: str, reference: str | int, words: Sequence[str], task: Task, *, labelled: bool) -> None:
    """Refuse an output that the task does not have, `label` without labels, and a word for one of several values."""
    rank = _rank(reference)
    if rank is not None and not (task.classifies and rank <= (task.width or rank)):
        most = f"of {task.width} outputs" if task.classifies else "of values, which have no order of probability"
        raise ConfigurationError(
            f"Expected `{argument}` to be the rank of a class or label, but got {reference!r} {most}. Give an index or "
            "a name."
        )
    if rank is not None:
        return
    if reference not in words:
        try:
            task.index(argument, reference)
        except ConfigurationError as error:
            known = [*map(repr, words), *["a rank such as 'top-2'"] * task.classifies]
            options = f" Or write {' or '.join(known)}." if isinstance(reference, str) else ""
            raise ConfigurationError(f"{error}{options}") from None
    elif not task.classifies and task.width is not None and task.width > 1:
        names = ", ".join(repr(task.name(index)) for index in range(min(task.width, 8)))
        raise ConfigurationError(
            f"Expected `{argument}` to say which of {task.width} values is asked about, but got {reference!r}. Name "
            f"one, by index or name: {names}."
        )
    elif reference == "label" and not labelled:
        raise ConfigurationError(
            f"Expected probes with `labels` because `{argument}` is 'label', but got none. Give the probes labels or "
            f"ask about a {task.noun} by index or name."
        )


def resolve(reference: str | int, outputs: Tensor, truth: Tensor | None, task: Task) -> Tensor:
    """The output that a reference means for each image, `(N,)` int64, -1 for none."""
    if reference == "predicted":
        return task.most_probable(outputs)
    rank = _rank(reference)
    if rank is not None:
        return outputs.detach().argsort(dim=1, descending=True, stable=True)[:, rank - 1]
    if reference == "label":
        if truth is None:
            raise ConfigurationError("Expected probes with `labels` for a question about the label, but got none.")
        return task.truth_of(truth, outputs)
    return torch.full((len(outputs),), task.index("of", reference), dtype=torch.int64, device=outputs.device)


def _rank(reference: str | int) -> int | None:
    """The k of `top-k`, from 1; None for another reference."""
    found = re.fullmatch(r"top-([1-9]\d*)", reference) if isinstance(reference, str) else None
    return None if found is None else int(found[1])
