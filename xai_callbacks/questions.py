"""What is asked of a model: each question turns model outputs into one differentiable scalar an image.

A question never looks inside the model. It receives the outputs of one forward pass, shape `(N, K)`, and says which
scalar of them is to be explained; an explainer then differentiates that scalar. All questions of an audit therefore
share one forward pass.

Notation: `z` logits, `p = softmax(z)`, `P` the fact, `Q` the foil, `R_c` the heatmap of logit `z_c`. The cross-entropy
toward the foil, `J_Q = -log p_Q`, has the gradient `p - e_Q`, so its heatmap is `sum_c p_c R_c - R_Q`: where the net
looks when it moves *away* from Q (Prabhushankar et al., "Contrastive explanations in neural networks", ICIP 2020).
"""

from __future__ import annotations

import math
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = [
    "Answerable",
    "Asked",
    "Question",
    "WhatIfNot",
    "Why",
    "WhyNotCertain",
    "WhyRatherThan",
    "WhyValueRatherThan",
    "default_questions",
]

Task = Literal["classification", "regression"]


class Answerable(NamedTuple):
    """What is known before a question is asked; questions are checked against it once, at construction."""

    task: Task
    labelled: bool
    num_classes: int | None = None


class Asked(NamedTuple):
    """One question put to one batch."""

    score: Tensor
    """Shape `(N,)`: the scalar to explain, attached to the graph of the outputs."""
    fact: Tensor | None
    """Shape `(N,)`, int64: the class asked about; None where the question is about a value."""
    foil: Tensor | None
    """Shape `(N,)`, int64: the class it is held against; None where there is none."""
    value: Tensor | None = None
    """Shape `(N,)`, float32: the value it is held against (regression); None for classes."""


class Question(ABC):
    """Base of all questions. Subclasses hold plain values only, so they can be written in YAML and compared."""

    task: Task = "classification"

    @property
    @abstractmethod
    def key(self) -> str:
        """Name of the question in tags and metric keys, e.g. `why_rather_than`."""

    @abstractmethod
    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Turn outputs `(N, K)` into one scalar an image.

        Args:
            outputs: Logits `(N, K)`, or predicted values `(N, 1)` for regression, attached to a graph.
            truth: Labels `(N,)` int64 or target values `(N,)` float32; None for unlabelled probes.
        """

    @abstractmethod
    def title(self, fact: str, foil: str) -> str:
        """The question in words, given the names of fact and foil (for regression: the two values)."""

    def check(self, known: Answerable) -> None:
        """Refuse what can be known to be unanswerable.

        Raises:
            ConfigurationError: The question needs labels, another task, or a class the model does not have.
        """
        if known.task != self.task:
            raise ConfigurationError(
                f"Expected `questions` to suit a {known.task} task, but got {self!r}, which asks about {self.task}. "
                "Float `targets` make a probe set a regression set, integer `labels` a classification set."
            )

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


class Why(Question):
    """Ask "Why P?": the logit of the class asked about, or the predicted value of a regression net.

    Args:
        of: The class asked about: `predicted`, `label` (the true class), or a class index.
    """

    def __init__(self, of: Literal["predicted", "label"] | int = "predicted") -> None:
        self.of = _class_reference("of", of, ("predicted", "label"))

    @property
    def key(self) -> str:
        """`why`, `why_label` or `why_<index>`."""
        return "why" if self.of == "predicted" else f"why_{self.of}"

    def check(self, known: Answerable) -> None:
        """Regression is welcome: the question is then "why this value?"."""
        if known.task == "classification":
            _check_class("of", self.of, known)
        elif self.of != "predicted":
            raise ConfigurationError(
                f"Expected `of` to be 'predicted' for a regression task, but got {self.of!r}. A regression net has one "
                "output."
            )

    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Score `z_P`."""
        if outputs.shape[1] == 1:
            return Asked(outputs[:, 0], None, None)
        fact = _classes(self.of, outputs, truth)
        return Asked(_pick(outputs, fact), fact, None)

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why cat?"."""
        return f"Why {fact}?"


class WhyRatherThan(Question):
    """Ask "Why P, rather than Q?": a contrast.

    Without `fact`, the score is the cross-entropy toward the foil, in nats; the fact is the predicted class and enters
    through the softmax alone. With `fact`, the score is the logit difference `z_P - z_Q`, which is what the
    cross-entropy tends to as `p_P` approaches 1.

    Args:
        foil: The class held against the fact: `runner-up` (the best-scoring other class), `label`, or a class index.
        fact: None, `predicted`, `label`, or a class index.
    """

    def __init__(
        self,
        foil: Literal["runner-up", "label"] | int = "runner-up",
        fact: Literal["predicted", "label"] | int | None = None,
    ) -> None:
        self.foil = _class_reference("foil", foil, ("runner-up", "label"))
        self.fact = None if fact is None else _class_reference("fact", fact, ("predicted", "label"))
        if self.foil == self.fact:
            raise ConfigurationError(
                f"Expected `foil` and `fact` to differ, but got {foil!r} for both. WhyNotCertain() asks why the answer "
                "is not certain."
            )

    @property
    def key(self) -> str:
        """`why_rather_than`, with the foil and fact where they are not the default."""
        foil = "" if self.foil == "runner-up" else f"_{self.foil}"
        return f"why_{self.fact}_rather_than{foil}" if self.fact is not None else f"why_rather_than{foil}"

    def check(self, known: Answerable) -> None:
        """Labels and class indexes must exist."""
        super().check(known)
        _check_class("foil", self.foil, known)
        if self.fact is not None:
            _check_class("fact", self.fact, known)

    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Score `-log p_Q`, or `z_P - z_Q` where a fact was named."""
        fact = _classes(self.fact if self.fact is not None else "predicted", outputs, truth)
        foil = _runner_up(outputs, fact) if self.foil == "runner-up" else _classes(self.foil, outputs, truth)
        if self.fact is None:
            return Asked(cross_entropy_toward(outputs, foil), fact, foil)
        return Asked(_pick(outputs, fact) - _pick(outputs, foil), fact, foil)

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why cat, rather than dog?"; where the foil is the fact itself, the question about certainty."""
        asks_certainty = self.fact is None and fact == foil
        return WhyNotCertain().title(fact, foil) if asks_certainty else f"Why {fact}, rather than {foil}?"


class WhyNotCertain(Question):
    """Ask "Why not P with 100 % confidence?": the cross-entropy toward the predicted class itself, in nats.

    Its heatmap is `sum_c p_c R_c - R_P`: evidence for the competing classes. It fades as the net becomes certain, which
    is the answer.
    """

    @property
    def key(self) -> str:
        """`why_not_certain`."""
        return "why_not_certain"

    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Score `-log p_P`, computed so that its gradient survives `p_P` near 1."""
        fact = _classes("predicted", outputs, truth)
        return Asked(cross_entropy_toward(outputs, fact), fact, fact)

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why not cat with 100 % confidence?"."""
        return f"Why not {fact} with 100 % confidence?"


class WhatIfNot(Question):
    """Ask "What if not P?": the counterfactual question, score `-z_P`; its heatmap shows what speaks against P.

    Args:
        of: The class asked about: `predicted`, `label`, or a class index.
    """

    def __init__(self, of: Literal["predicted", "label"] | int = "predicted") -> None:
        self.of = _class_reference("of", of, ("predicted", "label"))

    @property
    def key(self) -> str:
        """`what_if_not`, `what_if_not_label` or `what_if_not_<index>`."""
        return "what_if_not" if self.of == "predicted" else f"what_if_not_{self.of}"

    def check(self, known: Answerable) -> None:
        """Labels and class indexes must exist."""
        super().check(known)
        _check_class("of", self.of, known)

    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Score `-z_P`."""
        fact = _classes(self.of, outputs, truth)
        return Asked(-_pick(outputs, fact), fact, None)

    def title(self, fact: str, foil: str) -> str:
        """Such as "What if not cat?"."""
        return f"What if not {fact}?"


class WhyValueRatherThan(Question):
    """Ask "Why 0.58, rather than 0.75?": squared error `(y - v)^2` of a regression net toward the value `v`.

    The heatmap is `2 (y - v) R` with `R` that of the predicted value: where the net predicts too low, negative evidence
    lights up.

    Args:
        value: The value held against the prediction, or `target`, each probe's own target.
    """

    task: Task = "regression"

    def __init__(self, value: float | Literal["target"] = "target") -> None:
        if not _is_number(value) and not (isinstance(value, str) and value == "target"):
            raise ConfigurationError(f"Expected `value` to be a finite number or 'target', but got {value!r}.")
        # A plain float compares and prints the same wherever it came from.
        self.value = value if isinstance(value, str) else float(value)

    @property
    def key(self) -> str:
        """`why_value_rather_than_target` or `why_value_rather_than_<value>`."""
        if isinstance(self.value, str):
            return f"why_value_rather_than_{self.value}"
        short = format(self.value, "g")
        # Six digits unless they are not enough: two questions must never share a key.
        return f"why_value_rather_than_{short if float(short) == self.value else repr(self.value)}"

    def check(self, known: Answerable) -> None:
        """`target` needs targets."""
        super().check(known)
        if self.value == "target" and not known.labelled:
            raise ConfigurationError(
                f"Expected probes with `targets` for {self!r}, but got none. Give the probes targets or ask for a "
                "number."
            )

    def ask(self, outputs: Tensor, truth: Tensor | None) -> Asked:
        """Score `(y - v)^2`."""
        predicted = outputs[:, 0]
        if isinstance(self.value, str):
            if truth is None:
                raise ConfigurationError(f"Expected probes with `targets` for {self!r}, but got none.")
            value = truth.to(predicted)
        else:
            value = torch.full_like(predicted, float(self.value), requires_grad=False)
        return Asked((predicted - value) ** 2, None, None, value.detach())

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why 0.58, rather than 0.75?"."""
        return f"Why {fact}, rather than {foil}?"


def default_questions(task: Task) -> tuple[Question, ...]:
    """The questions an audit asks unless told otherwise."""
    if task == "regression":
        return (Why(), WhyValueRatherThan("target"))
    return (Why(), WhyRatherThan(), WhyNotCertain())


def check_questions(questions: Sequence[Question], known: Answerable) -> None:
    """Check a list of questions against what is known.

    Raises:
        ConfigurationError: The list is empty, holds something else, asks the same twice, or one question cannot be
            answered.
    """
    if not questions:
        raise ConfigurationError(
            "Expected `questions` to hold at least one question, but got none. Leave it out for the defaults."
        )
    seen: set[str] = set()
    for question in questions:
        if not isinstance(question, Question):
            raise ConfigurationError(
                f"Expected `questions` to be a list of questions such as Why(), but got {question!r} of type "
                f"{type(question).__name__}."
            )
        if question.key in seen:
            raise ConfigurationError(f"Expected `questions` to differ, but got {question!r} twice. Remove one.")
        seen.add(question.key)
        question.check(known)


def cross_entropy_toward(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy `-log p_c` of logits `(N, K)` toward `classes` `(N,)`, shape `(N,)`, in nats.

    Written as `softplus(logsumexp_{k != c} z_k - z_c)`: equal to the usual form, but its gradient keeps full relative
    precision when `p_c` rounds to 1, where `p - e_c` computed from the softmax is exactly zero.
    """
    chosen = torch.nn.functional.one_hot(classes, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
    # `threshold` bounds the input above which softplus is linear; the default of 20 would cut off the small gradients.
    return torch.nn.functional.softplus(others - _pick(logits, classes), threshold=80.0)


def _pick(outputs: Tensor, classes: Tensor) -> Tensor:
    return outputs.gather(1, classes[:, None])[:, 0]


def _runner_up(outputs: Tensor, fact: Tensor) -> Tensor:
    """The best-scoring class other than the fact."""
    return outputs.detach().scatter(1, fact[:, None], -torch.inf).argmax(dim=1)


def _classes(reference: str | int, outputs: Tensor, truth: Tensor | None) -> Tensor:
    if reference == "predicted":
        return outputs.detach().argmax(dim=1)
    if reference == "label":
        if truth is None:
            raise ConfigurationError("Expected probes with `labels` for a question about the label, but got none.")
        return truth.to(outputs.device)
    return torch.full((outputs.shape[0],), int(reference), dtype=torch.int64, device=outputs.device)


def _class_reference(name: str, value: object, words: tuple[str, ...]) -> str | int:
    if isinstance(value, str) and value in words:
        return value
    index = _index(value)
    if index is not None and index >= 0:
        return index
    options = " or ".join(repr(word) for word in words)
    raise ConfigurationError(f"Expected `{name}` to be {options} or a class index >= 0, but got {value!r}.")


def _is_number(value: object) -> bool:
    """Whether this is a finite real number; those of NumPy are, `True` is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)


def _index(value: object) -> int | None:
    """The whole number, also one of NumPy or torch; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:  # arrays and tensors have `__index__` but not all of them are one whole number
        return None


def _check_class(name: str, reference: str | int, known: Answerable) -> None:
    if reference == "label" and not known.labelled:
        raise ConfigurationError(
            f"Expected probes with `labels` because `{name}` is 'label', but got none. Give the probes labels or ask "
            "about a class index."
        )
    if isinstance(reference, int) and known.num_classes is not None and reference >= known.num_classes:
        raise ConfigurationError(
            f"Expected `{name}` to be a class index below {known.num_classes}, the number of outputs, but got "
            f"{reference}."
        )
