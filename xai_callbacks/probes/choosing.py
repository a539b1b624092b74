"""Which items of a dataset become probes: stratified by class, label or group, or spread over targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.fields import Answer, Fields, Item, read_item
from xai_callbacks.probes.sources import Column, known_column
from xai_callbacks.randomness import seed_generators
from xai_callbacks.tasks import UNKNOWN

__all__ = ["Choice", "Kind", "Plan", "choose", "whole"]

# Regression: probes for each "class" asked for, and how many items are read where only items tell the targets.
PROBES_PER_CLASS_REGRESSION = 10
MIN_SCANNED, SCANNED_PER_PROBE = 1000, 25

Kind = Literal["single-label", "multi-label", "regression"]
Order = npt.NDArray[np.int64]
Chosen = list[tuple[int, Item]]


@dataclass(frozen=True)
class Plan:
    """All that decides the choice, the two columns that the dataset may tell without reading items, and a kept item."""

    dataset: Any
    count: int
    fields: Fields
    per_class: int
    by: str
    seed: int
    class_names: tuple[str, ...] | None
    group_names: tuple[str, ...] | None
    answers: Column | None = None
    groups: Column | None = None
    kept: dict[int, Item] = field(default_factory=dict)

    def read(self, index: int) -> Item:
        """Read an item such that it depends on seed and index alone, not on what was read before."""
        if index in self.kept:
            return self.kept[index]
        seed_generators(self.seed, index)
        return read_item(self.dataset, index, self.fields)

    @property
    def strata(self) -> Column | None:
        """The known column that decides the stratum."""
        return self.groups if self.by == "group" else self.answers

    @property
    def stratum_names(self) -> tuple[str, ...] | None:
        """Names of the strata, by index."""
        return self.group_names if self.by == "group" else self.class_names


@dataclass(frozen=True)
class Choice:
    """What was chosen: indexes and items, and what their answers are."""

    items: Chosen
    kind: Kind


def choose(plan: Plan) -> Choice:
    """Choose by what the dataset says of itself; should its items disagree with that, by the items.

    Raises:
        ProbeSetError: An item cannot be read or is unlike others; the message names it.
    """
    # RandomState is frozen by numpy's compatibility policy: the same seed gives the same probes in every version.
    order: Order = np.random.RandomState(plan.seed).permutation(plan.count)
    told = replace(plan, answers=_told_answers(plan), groups=_told_groups(plan))
    choice = _choose_once(told, order)
    for index, item in choice.items:
        if not (_agrees(told.answers, index, item.answer) and _agrees(told.groups, index, item.group)):
            choice = _choose_once(plan, order)
            break
    _check_alike(choice.items)
    return choice


def whole(value: Any, what: str, index: int) -> int:
    """Read the class or group of an item.

    Raises:
        ProbeSetError: It is no whole number of 64 bits.
    """
    if isinstance(value, tuple):
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be one number, as that of other items, but got {str(value)[:60]}."
        )
    if value is None or not float(value).is_integer():
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be a whole number, but got {value!r}. For regression on a dataset "
            "with class names, say where the value is: fields={'target': 1}."
        )
    if not -(2**63) <= int(value) < 2**63:
        raise ProbeSetError(f"Expected the {what} of item {index} to fit into 64 bits, but got {float(value):.3e}.")
    return int(value)


def _told_answers(plan: Plan) -> Column | None:
    """The known column of answers, unless it cannot be what the items hold, so that they decide."""
    column = known_column(plan.dataset, plan.fields.answer, ("targets", "labels"))
    if column is None or plan.fields.target is not None:
        return column
    if column.ndim == 2:
        return column if bool(np.isin(column, (0, 1, UNKNOWN)).all()) else None
    return column if plan.class_names is None else _whole_only(column)


def _told_groups(plan: Plan) -> Column | None:
    if plan.fields.group is None:
        return None
    column = known_column(plan.dataset, plan.fields.group, ("groups",))
    return None if column is None or column.ndim == 2 else _whole_only(column)


def _whole_only(column: Column) -> Column | None:
    numbers = column.astype(np.float64)
    return column if bool(((np.trunc(numbers) == numbers) & (np.abs(numbers) < 2**63)).all()) else None


def _agrees(column: Column | None, index: int, value: Answer | None) -> bool:
    if column is None or value is None:
        return True
    with np.errstate(over="ignore"):
        # In float32, as items are often tensors and columns lists. NaN agrees with NaN and is refused later, by name.
        one, other = (np.asarray(each, dtype=np.float32) for each in (column[index], value))
    return bool(np.array_equal(one, other, equal_nan=True))


def _check_alike(chosen: Chosen) -> None:
    """Refuse answers of which some are vectors and some not, or that differ in length."""
    first, item = chosen[0]
    for index, other in chosen:
        if _width(other.answer) != _width(item.answer):
            raise ProbeSetError(
                f"Expected all items to have as many labels or values as item {first}, which has "
                f"{str(item.answer)[:60]}, but item {index} has {str(other.answer)[:60]}."
            )


def _width(answer: Answer) -> int | None:
    return len(answer) if isinstance(answer, tuple) else None


def _choose_once(plan: Plan, order: Order) -> Choice:
    kind = _kind(plan, int(order[0]))
    if plan.by == "group" or kind == "single-label":
        return Choice(_stratified(plan, order), kind)
    return Choice(_by_label(plan, order) if kind == "multi-label" else _spread(plan, order), kind)


def _kind(plan: Plan, index: int) -> Kind:
    if plan.fields.target is not None:
        return "regression"
    answer = None
    if plan.answers is None:
        plan.kept[index] = plan.read(index)
        answer = plan.kept[index].answer
    if isinstance(answer, tuple) or (plan.answers is not None and plan.answers.ndim == 2):
        return "multi-label"
    if plan.class_names is not None:
        return "single-label"
    floats = isinstance(answer, float) if plan.answers is None else plan.answers.dtype.kind == "f"
    return "regression" if floats else "single-label"


def _stratified(plan: Plan, order: Order) -> Chosen:
    """Take the first `per_class` items of each stratum in seeded order, then sort by stratum and index."""
    names = plan.stratum_names
    strata: dict[int, list[tuple[int, Item | None]]] = {}
    full = 0
    for index, value, item in _candidates(plan, order):
        stratum = whole(value, plan.by, index)
        if stratum == -1 and plan.by == "group":
            continue
        members = strata.setdefault(stratum, [])
        if len(members) < plan.per_class:
            members.append((index, item))
            full += len(members) == plan.per_class and (names is None or 0 <= stratum < len(names))
        if names is not None and full >= len(names):
            break
    if not strata:
        raise ProbeSetError("Expected at least one item of a known group, but all groups are -1 (unknown).")
    ranked = [pair for stratum in sorted(strata) for pair in sorted(strata[stratum], key=lambda pair: pair[0])]
    return [(index, plan.read(index) if item is None else item) for index, item in ranked]


def _by_label(plan: Plan, order: Order) -> Chosen:
    """Take the first `per_class` items that have each label, and the first that have none; each once.

    They are sorted by their first label and index. An item of which no label is known is passed over.
    """
    taken: list[tuple[int, int, Item | None]] = []
    counts = np.zeros(0, dtype=np.int64)
    for index, value, item in _candidates(plan, order):
        labels = np.asarray(value)
        if not len(counts):
            counts = np.zeros(labels.size + 1, dtype=np.int64)
        if labels.shape != (len(counts) - 1,):
            raise ProbeSetError(
                f"Expected every item to have {len(counts) - 1} labels, as item {int(order[0])}, but item {index} has "
                f"{str(value)[:60]}."
            )
        present = (labels == 1).nonzero()[0] if (labels == 1).any() else np.array([labels.size])
        if (labels != UNKNOWN).any() and (counts[present] < plan.per_class).any():
            taken.append((int(present[0]), index, item))
            counts[present] += 1
        if (counts >= plan.per_class).all():
            break
    if not taken:
        raise ProbeSetError(f"Expected at least one item with a known label, but all are {UNKNOWN} (unknown).")
    ranked = sorted(taken, key=lambda one: one[:2])
    return [(index, plan.read(index) if item is None else item) for _, index, item in ranked]


def _candidates(plan: Plan, order: Order) -> Iterator[tuple[int, Any, Item | None]]:
    """Yield index, group or answer and, where it had to be read to know that, the item."""
    for index in map(int, order):
        if plan.strata is not None:
            yield index, plan.strata[index], None
            continue
        item = plan.read(index)
        yield index, item.group if plan.by == "group" else item.answer, item


def _spread(plan: Plan, order: Order) -> Chosen:
    """Take probes at even ranks of the sorted targets, of several values the first, both ends included."""
    wanted = plan.per_class * PROBES_PER_CLASS_REGRESSION
    if plan.answers is not None:
        values = {int(index): _first(plan.answers[index]) for index in order}
    else:
        scanned = order[: max(MIN_SCANNED, SCANNED_PER_PROBE * wanted)]
        values = {int(index): _first(plan.read(int(index)).answer) for index in scanned}
    # NaN sorts last, so that one is sure to be chosen and refused by name. Ties keep the seeded order.
    ranked = sorted(values, key=lambda index: (values[index] != values[index], values[index]))
    ranks = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
    return [(ranked[rank], plan.read(ranked[rank])) for rank in ranks]


def _first(answer: Any) -> float:
    return float(np.ravel(answer)[0])
