"""`Expectation`: what must hold of a metric, as plain values, and its one way of being written."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import KW_ONLY, dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple, get_args

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["KEYWORDS", "OPERATORS", "WORD", "Expectation", "Operator", "Target", "Unit"]

Operator = Literal["<", "<=", ">", ">="]
"""How a value is held against the bound."""

Unit = Literal["probes", "images", "nothing"]
"""What a metric is estimated from."""

OPERATORS: tuple[Operator, ...] = get_args(Operator)

KEYWORDS = ("under", "of", "for", "class", "group", "from", "until", "epoch")
"""Words of the language; a name that is one of them is written in quotes."""

WORD = r"""[^\s<>=≤≥\[\]"'`][^\s<>=≤≥\[\]]*"""
"""What may stand for a name without quotes."""


class Target(NamedTuple):
    """Where in a record the value of an expectation is found, and how it is to be read.

    Attributes:
        key: Key of the metric.
        complement: The value is 1 minus the metric.
        share: Each probe says yes (1) or no (0).
        unit: What the metric is estimated from: `probes`, and it should have an interval; `images` of the validation
            set; or `nothing`, as a count or a state is no estimate.
        class_index: Only probes of this class count; None for all.
        members: Which probes belong to the group meant, N booleans; None for all.
    """

    key: str
    complement: bool = False
    share: bool = False
    unit: Unit = "probes"
    class_index: int | None = None
    members: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Expectation:
    """What must hold of one metric.

    `str` gives the sentence, in the language of `xai_callbacks.expectations.language`.

    Attributes:
        metric: Name of the metric as in a sentence, such as `relevance_mass[core]`, or a key in backquotes.
        operator: One of `<`, `<=`, `>`, `>=`.
        bound: What the value is held against.
        under: The trial, for metrics such as `top1_stable`.
        of: Key of the question; None for the first.
        for_class: Only probes of this class, by name or index.
        for_group: Only probes of this group, by name or index.
        from_epoch: First epoch that counts, from 0.
        until_epoch: Last epoch that counts.
        name: What the expectation is called in tables; None for its sentence.
        target: Where its value is found; None until `parse_expectations` has looked it up.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.

    Example:
        >>> str(Expectation("relevance_mass[core]", ">", 0.5, for_class="grey wolf", from_epoch=5))
        "relevance_mass[core] > 0.5 for class 'grey wolf' from epoch 5"
    """

    metric: str
    operator: Operator
    bound: float
    _: KW_ONLY
    under: str | None = None
    of: str | None = None
    for_class: str | int | None = None
    for_group: str | int | None = None
    from_epoch: int | None = None
    until_epoch: int | None = None
    name: str | None = None
    target: Target | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_text("metric", self.metric)
        if self.operator not in OPERATORS:
            raise ConfigurationError(
                f"Expected `operator` to be one of {', '.join(OPERATORS)}, but got {self.operator!r}."
            )
        if not _is_finite_number(self.bound):
            raise ConfigurationError(f"Expected `bound` to be a finite number, but got {self.bound!r}.")
        # 0.0 for -0.0, and a float for an int, so that equal expectations are written alike.
        object.__setattr__(self, "bound", float(self.bound) + 0.0)
        for argument in ("under", "of", "name"):
            if getattr(self, argument) is not None:
                _require_text(argument, getattr(self, argument))
        for argument in ("for_class", "for_group"):
            given = getattr(self, argument)
            if isinstance(given, int):
                require_integer(argument, given, minimum=0)
            elif given is not None:
                _require_text(argument, given)
        self._check_epochs()

    def _check_epochs(self) -> None:
        for argument in ("from_epoch", "until_epoch"):
            if getattr(self, argument) is not None:
                require_integer(argument, getattr(self, argument), minimum=0)
        if self.from_epoch is not None and self.until_epoch is not None and self.until_epoch < self.from_epoch:
            raise ConfigurationError(
                f"Expected `until_epoch` to be {self.from_epoch} or later, as `from_epoch` is, but got "
                f"{self.until_epoch}."
            )

    @property
    def label(self) -> str:
        """The name, or the sentence where there is none."""
        return self.name or str(self)

    @property
    def comparison(self) -> str:
        """Operator and bound, such as `> 0.5`."""
        text = format(Decimal(repr(self.bound)), "f")
        return f"{self.operator} {text.rstrip('0').rstrip('.') if '.' in text else text}"

    def at(self, target: Target) -> Expectation:
        """The same expectation, looked up."""
        found = copy.copy(self)
        object.__setattr__(found, "target", target)
        return found

    def is_due(self, epoch: int) -> bool:
        """Whether the expectation counts in an epoch."""
        return (self.from_epoch or 0) <= epoch and (self.until_epoch is None or epoch <= self.until_epoch)

    def __str__(self) -> str:
        """The sentence."""
        before = [self.metric]
        before += [f"under {_written(self.under)}"] if self.under is not None else []
        before += [f"of {_written(self.of)}"] if self.of is not None else []
        after = [
            f"{words} {_written(value)}"
            for words, value in (
                ("for class", self.for_class),
                ("for group", self.for_group),
                ("from epoch", self.from_epoch),
                ("until epoch", self.until_epoch),
            )
            if value is not None
        ]
        return " ".join([*before, self.comparison, *after])


def _written(value: str | int) -> str:
    """A name or number as the language has it; a name in quotes where it would be misread."""
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(WORD, value) and value not in KEYWORDS and not re.fullmatch("[0-9]+", value):
        return value
    mark = next((mark for mark in "'\"`" if mark not in value), "'")
    return f"{mark}{value}{mark}"


def _require_text(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigurationError(f"Expected `{argument}` to be readable text on one line, but got {value!r}.")


def _is_finite_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False
