"""Questions about values of regression nets."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.questions.base import Posed, Question, pick, refuse_task
from xai_callbacks.questions.classes import check_value
from xai_callbacks.questions.references import resolve, to_reference
from xai_callbacks.tasks import Task, in_key

__all__ = ["WhyValueRatherThan"]


@dataclass(frozen=True, eq=False, kw_only=True)
class _SquaredError(Posed):
    value: Tensor

    def score(self, outputs: Tensor) -> Tensor:
        return (pick(outputs, self.fact) - self.value.to(outputs)).square()


class WhyValueRatherThan(Question):
    """Ask "Why 0.58, rather than 0.75?": squared error `(y - v)^2` of a regression net toward the value `v`.

    The heatmap is `2 (y - v) R` with `R` that of the predicted value: where the net predicts too low, negative evidence
    lights up.

    Args:
        value: The value held against the prediction, or `target`, each probe's own target.
        of: Which value, by index or name, where the net predicts several; `predicted` is the only one.
    """

    def __init__(
        self, value: float | Literal["target"] = "target", of: Literal["predicted"] | str | int = "predicted"
    ) -> None:
        if not _is_number(value) and not (isinstance(value, str) and value == "target"):
            raise ConfigurationError(f"Expected `value` to be a finite number or 'target', but got {value!r}.")
        # A plain float compares and prints the same wherever it came from.
        self.value = value if isinstance(value, str) else float(value)
        self.of = to_reference("of", of, ("predicted",))

    @property
    def key(self) -> str:
        """`why_value_rather_than_target` or `why_value_rather_than_<value>`; `why_<of>_rather_than_...` of several."""
        asked = "value" if self.of == "predicted" else in_key(self.of)
        if isinstance(self.value, str):
            return f"why_{asked}_rather_than_{self.value}"
        short = format(self.value, "g")
        # Six digits unless they are not enough: two questions must never share a key.
        return f"why_{asked}_rather_than_{short if float(short) == self.value else repr(self.value)}"

    def check(self, task: Task, *, labelled: bool) -> None:
        """`target` needs targets."""
        if task.classifies:
            refuse_task(self, task, "values")
        if self.value == "target" and not labelled:
            raise ConfigurationError(
                f"Expected probes with `targets` for {self!r}, but got none. Give the probes targets or ask for a "
                "number."
            )
        check_value("of", self.of, task)

    def pose(self, outputs: Tensor, truth: Tensor | None, task: Task) -> Posed:
        """Score `(y - v)^2`."""
        fact = resolve(self.of, outputs, truth, task)
        if not isinstance(self.value, str):
            value = torch.full_like(outputs.detach()[:, 0], self.value)
        elif truth is None:
            raise ConfigurationError(f"Expected probes with `targets` for {self!r}, but got none.")
        else:
            targets = truth.to(outputs.detach())
            value = targets if targets.ndim == 1 else pick(targets, fact)
        return _SquaredError(fact=fact, value=value)

    def title(self, fact: str, foil: str) -> str:
        """Such as "Why 0.58, rather than 0.75?"."""
        return f"Why {fact}, rather than {foil}?"


def _is_number(value: object) -> bool:
    """Whether this is a finite real number; those of NumPy are, `True` is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)
