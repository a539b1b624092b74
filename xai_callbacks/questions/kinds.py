"""Questions about classes and labels, and about values of regression nets.

Notation: `z` logits, `p` their probabilities (softmax of classes, sigmoid of labels), `P` the fact, `Q` the foil,
`R_c` the heatmap of logit `z_c`. The cross-entropy toward the foil, `J_Q = -log p_Q`, has the gradient `p - e_Q`, so
its heatmap is `sum_c p_c R_c - R_Q`: where the net looks when it moves *away* from Q (Prabhushankar et al., ICIP 2020).
Labels do not exclude each other, so that moving to Q does not move away from P: there it is the cross-entropy toward
"not P, but Q", `-log(1 - p_P) - log p_Q`, with the heatmap `p_P R_P - (1 - p_Q) R_Q`. Both tend to `R_P - R_Q` as the
model becomes certain of P.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from xai_callbacks.errors import ConfigurationError, is_number
from xai_callbacks.questions.base import Posed, Question, check_reference, pick, resolve, to_reference
from xai_callbacks.tasks import Task, in_key

_OF = ("predicted", "label")
_FOIL = ("runner-up", "label")
# Bounds the input above which softplus is linear; the default of 20 would cut off the small gradients.
_LINEAR_ABOVE = 80.0
_VALUES = 4  # of very many, the first few are asked about


@dataclass(frozen=True, eq=False, kw_only=True)
class _Output(Posed):
    sign: int = 1

    def score(self, outputs: Tensor) -> Tensor:
        return self.sign * pick(outputs, self.fact)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Contrast(Posed):
    foil: Tensor
    kind: str  # "difference", or that of the task

    def score(self, outputs: Tensor) -> Tensor:
        if self.kind == "single-label":
            return cross_entropy_toward(outputs, self.foil)
        fact, foil = pick(outputs, self.fact), pick(outputs, self.foil)
        asked = (self.fact >= 0) & (self.foil >= 0)
        if self.kind == "difference":
            return (fact - foil) * asked
        toward, away = softplus(-foil, threshold=_LINEAR_ABOVE), softplus(fact, threshold=_LINEAR_ABOVE)
        return (toward + away * (self.fact != self.foil)) * asked


@dataclass(frozen=True, eq=False, kw_only=True)
class _SquaredError(Posed):
    value: Tensor

    def score(self, outputs: Tensor) -> Tensor:
        return (pick(outputs, self.fact) - self.value.to(outputs)).square()


class Why(Question):
    """Ask "Why P?": the logit of the class or label asked about, or the predicted value of a regression net.

    Args:
        of: `predicted` (the most probable output), `label` (the true class; of several true labels the most probable),
            `top-2`, `top-3` and so on (the second, third most probable class or label of each image), an index, or the
            name of a class, label or value. A net of several values is asked about one of them.
    """

    words = "Why {fact}?"

    def __init__(self, of: str | int = "predicted") -> None:
        self.of = to_reference("of", of, _OF)

    @property
    def key(self) -> str:
        """`why`, `why_label`, `why_top-2`, `why_<index>` or `why_<name>`."""
        return "why" if self.of == "predicted" else f"why_{in_key(self.of)}"

    def check(self, task: Task, *, labelled: bool) -> None:
        """Regression is welcome: the question is then "why this value?"."""
        check_reference("of", self.of, _OF, task, labelled=labelled)

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `z_P`, or the value."""
        return _Output(fact=resolve(self.of, outputs, truth, task))


class WhatIfNot(Why):
    """Ask "What if not P?": the counterfactual question, score `-z_P`; its heatmap shows what speaks against P."""

    words = "What if not {fact}?"

    @property
    def key(self) -> str:
        """`what_if_not`, `what_if_not_label`, `what_if_not_<index>` or `what_if_not_<name>`."""
        return super().key.replace("why", "what_if_not", 1)

    def check(self, task: Task, *, labelled: bool) -> None:
        """Labels and classes must exist."""
        _require(self, task, logits=True)
        super().check(task, labelled=labelled)

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `-z_P`."""
        return _Output(fact=resolve(self.of, outputs, truth, task), sign=-1)


class WhatHinders(Why):
    """Ask "What hinders P?", of the true class unless told otherwise: score `z_P`, and negative cells are the answer.

    Meant for `UndesirablePixels()`, which looks for nothing else; of other explainers the map is that of `Why(of)`.
    """

    words = "What hinders {fact}?"

    def __init__(self, of: str | int = "label") -> None:
        super().__init__(of)

    @property
    def key(self) -> str:
        """`what_hinders`, `what_hinders_label`, `what_hinders_<index>` or `what_hinders_<name>`."""
        return super().key.replace("why", "what_hinders", 1)

    def check(self, task: Task, *, labelled: bool) -> None:
        """Labels and classes must exist."""
        _require(self, task, logits=True)
        super().check(task, labelled=labelled)


class WhyRatherThan(Question):
    """Ask "Why P, rather than Q?": a contrast.

    Without `fact`, the score is the cross-entropy toward the foil, in nats; the fact is the predicted class and enters
    through its probability alone. With `fact`, it is the logit difference `z_P - z_Q`, the limit for `p_P` near 1.

    Args:
        foil: What is held against the fact: `runner-up` (the most probable other one), `label`, `top-3` or another
            rank, an index or a name.
        fact: None, `predicted`, `label`, a rank, an index or a name.
    """

    words = "Why {fact}, rather than {foil}?"

    def __init__(self, foil: str | int = "runner-up", fact: str | int | None = None) -> None:
        self.foil = to_reference("foil", foil, _FOIL)
        self.fact = None if fact is None else to_reference("fact", fact, _OF)
        # The most probable output has two names.
        if self.foil == self.fact or {self.foil, self.fact} == {"top-1", "predicted"}:
            raise ConfigurationError(
                f"Expected `foil` and `fact` to differ, but got {foil!r} for both. Ask WhyNotCertain() instead."
            )

    @property
    def key(self) -> str:
        """`why_rather_than`, with the foil and fact where they are not the default."""
        foil = "" if self.foil == "runner-up" else f"_{in_key(self.foil)}"
        return f"why_{in_key(self.fact)}_rather_than{foil}" if self.fact is not None else f"why_rather_than{foil}"

    def check(self, task: Task, *, labelled: bool) -> None:
        """Labels and classes must exist."""
        _require(self, task, logits=True)
        check_reference("foil", self.foil, _FOIL, task, labelled=labelled)
        if self.fact is not None:
            check_reference("fact", self.fact, _OF, task, labelled=labelled)
        if task.width == 1:
            raise ConfigurationError(
                f"Expected `questions` to suit a model of one label, but got {self!r}, which needs two. Ask Why()."
            )

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `-log p_Q`, or `z_P - z_Q` where a fact was named."""
        fact = resolve(self.fact if self.fact is not None else "predicted", outputs, truth, task)
        foil = _runner_up(outputs, fact) if self.foil == "runner-up" else resolve(self.foil, outputs, truth, task)
        return _Contrast(fact=fact, foil=foil, kind=task.kind if self.fact is None else "difference")

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why cat, rather than dog?"; where the foil is the fact itself, the question about certainty."""
        certain = self.fact is None and fact == foil
        return WhyNotCertain().title(fact, foil) if certain else super().title(fact, foil)


class WhyNotCertain(Question):
    """Ask "Why not P with 100 % confidence?": the cross-entropy toward the predicted class or label itself, in nats.

    Its heatmap is `sum_c p_c R_c - R_P`, evidence for the competing classes; of a label, `-(1 - p_P) R_P`, evidence
    against it. It fades as the net becomes certain, which is the answer.
    """

    key = "why_not_certain"
    words = "Why not {fact} with 100 % confidence?"

    def check(self, task: Task, *, labelled: bool) -> None:
        """Values have no confidence."""
        _require(self, task, logits=True)

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `-log p_P`, computed so that its gradient survives `p_P` near 1."""
        fact = task.most_probable(outputs)
        return _Contrast(fact=fact, foil=fact, kind=task.kind)


class WhyValueRatherThan(Question):
    """Ask "Why 0.58, rather than 0.75?": squared error `(y - v)^2` of a regression net toward the value `v`.

    The heatmap is `2 (y - v) R` with `R` that of the predicted value: where the net predicts too low, negative evidence
    lights up.

    Args:
        value: The value held against the prediction, or `target`, each probe's own target.
        of: Which value, by index or name, where the net predicts several; `predicted` is the only one.
    """

    words = "Why {fact}, rather than {foil}?"

    def __init__(self, value: float | Literal["target"] = "target", of: str | int = "predicted") -> None:
        if not is_number(value) and not (isinstance(value, str) and value == "target"):
            raise ConfigurationError(f"Expected `value` to be a finite number or 'target', but got {value!r}.")
        self.value = value
        self.of = to_reference("of", of, _OF[:1])

    @property
    def key(self) -> str:
        """`why_value_rather_than_target` or `why_value_rather_than_<value>`; `why_<of>_rather_than_...` of several."""
        asked = "value" if self.of == "predicted" else in_key(self.of)
        return f"why_{asked}_rather_than_{self.value if isinstance(self.value, str) else format(self.value, '.12g')}"

    def check(self, task: Task, *, labelled: bool) -> None:
        """`target` needs targets."""
        _require(self, task, logits=False)
        if self.value == "target" and not labelled:
            raise ConfigurationError(f"Expected probes with `targets` for {self!r}, but got none. Ask for a number.")
        check_reference("of", self.of, _OF[:1], task, labelled=labelled)

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `(y - v)^2`."""
        fact = resolve(self.of, outputs, truth, task)
        if not isinstance(self.value, str):
            return _SquaredError(fact=fact, value=torch.full_like(outputs.detach()[:, 0], self.value))
        if truth is None:
            raise ConfigurationError(f"Expected probes with `targets` for {self!r}, but got none.")
        targets = truth.to(outputs.detach())
        return _SquaredError(fact=fact, value=targets if targets.ndim == 1 else pick(targets, fact))


def default_questions(task: Task) -> tuple[Question, ...]:
    """The questions an audit asks unless told otherwise."""
    if task.classifies:
        return (Why(), WhyNotCertain()) if task.width == 1 else (Why(), WhyRatherThan(), WhyNotCertain())
    if task.width in (None, 1):
        return (Why(), WhyValueRatherThan("target"))
    values = (task.names or range(task.width or 1))[:_VALUES]
    return tuple(question for value in values for question in (Why(value), WhyValueRatherThan("target", of=value)))


def cross_entropy_toward(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy `-log p_c` of logits `(N, K)` toward `classes` `(N,)`, shape `(N,)`, in nats.

    Written as `softplus(logsumexp_{k != c} z_k - z_c)`: equal to the usual form, but its gradient keeps full relative
    precision when `p_c` rounds to 1, where `p - e_c` computed from the softmax is exactly zero.
    """
    chosen = one_hot(classes, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
    return softplus(others - pick(logits, classes), threshold=_LINEAR_ABOVE)


def _require(question: Question, task: Task, *, logits: bool) -> None:
    """Refuse a task whose outputs are values for a question about logits, or the reverse."""
    if task.classifies != logits:
        raise ConfigurationError(
            f"Expected `questions` to suit {task.kind} probes, but got {question!r}, which asks about "
            f"{'classes or labels' if logits else 'values'}. `targets` make regression probes, `labels` do not."
        )


def _runner_up(outputs: Tensor, fact: Tensor) -> Tensor:
    """The most probable output other than the fact."""
    others = outputs.detach().scatter(1, fact.clamp_min(0)[:, None], -torch.inf)
    return torch.where(fact < 0, outputs.detach().argmax(dim=1), others.argmax(dim=1))
