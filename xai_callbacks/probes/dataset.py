"""A reproducible probe set from a map-style dataset: stratified by class, label or group, or spread over targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.display import warn_user
from xai_callbacks.probes.items import Answer, Fields, Item, parse_fields, read_item, whole
from xai_callbacks.probes.probe_set import ProbeSet
from xai_callbacks.probes.sources import (
    Column,
    known_class_names,
    known_column,
    known_normalisation,
    length,
)
from xai_callbacks.randomness import isolated_rng, seed_generators
from xai_callbacks.tasks import UNKNOWN

__all__ = ["build_from_dataset"]

# Beyond, a length is a lie, such as `sys.maxsize` of an endless dataset; to shuffle it would take all memory.
MOST_ITEMS = 10**8
# Regression: probes for each "class" asked for, and how many items are read where only items tell the targets.
PROBES_PER_CLASS_REGRESSION = 10
MIN_SCANNED, SCANNED_PER_PROBE = 1000, 25

Kind = Literal["single-label", "multi-label", "regression"]
Names = tuple[str, ...] | None
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Plan:
    """All that decides the choice, the two columns that the dataset may tell without reading items, and a kept item."""

    dataset: Any
    fields: Fields
    per_class: int
    by: str
    seed: int
    class_names: Names
    group_names: Names
    answers: Column | None = None
    groups: Column | None = None
    kept: dict[int, Item] = field(default_factory=dict)

    def read(self, index: int) -> Item:
        """Read an item such that it depends on seed and index alone, not on what was read before."""
        if index in self.kept:
            return self.kept[index]
        seed_generators(self.seed, index)
        return read_item(self.dataset, index, self.fields)


@dataclass(frozen=True)
class _Choice:
    """Chosen indexes and items, the kind of their answers, and how many there are of each stratum, if there are any."""

    items: list[tuple[int, Item]]
    kind: Kind
    counts: Counter[int] | None = None


def build_from_dataset(
    dataset: Any,
    per_class: int,
    *,
    by: str,
    seed: int,
    fields: Mapping[str, Any] | None,
    names: Mapping[str, Sequence[str] | None],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ProbeSet:
    """Choose and read the probes; the contract is that of `ProbeSet.from_dataset`, `names` are its three kinds."""
    parsed = parse_fields(fields)
    _check_arguments(per_class, by, seed, parsed)
    classes, groups, values = (to_texts(names[what], what) for what in ("class_names", "group_names", "target_names"))
    # Everything that runs code of the dataset is inside: a property may draw random numbers as well as an item.
    with isolated_rng():
        count = _count(dataset)
        if classes is None and parsed.target is None:
            classes = known_class_names(dataset)
        plan = _Plan(dataset, parsed, per_class, by, seed, classes, groups)
        choice = _choose(plan, count)
        if mean is None and std is None:
            found = known_normalisation(dataset)
            channels = choice.items[0][1].image.shape[0]
            if found is not None and {len(found[0]), len(found[1])} <= {1, channels} and min(found[1]) > 0:
                mean, std = found
    probes = _assembled(plan, choice, values, mean, std)
    _warn_of_shortfall(plan, choice)
    targets = probes.targets if parsed.target is None else None
    if targets is not None and bool(((targets == 0) | (targets == 1)).all()):
        warn_user(
            "All labels are 0 or 1 but floats, and float labels are read as values of a regression (`targets`). If "
            "they are classes, pass `class_names=`, or whole numbers; if they are values, say so: fields={'target': 1}."
        )
    return probes


def _count(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ProbeSetError(
            f"Expected `dataset` to be map-style (with `__getitem__` and `__len__`), but got {type(dataset).__name__}. "
            "Take some items of a stream yourself, e.g. `list(itertools.islice(dataset, 500))`, and pass that list."
        )
    count = length(dataset)
    if count is None or count > MOST_ITEMS:
        got = "fails" if count is None else f"says {count:,}"
        raise ProbeSetError(
            f"Expected `dataset` to have a length of at most {MOST_ITEMS:,}, but `len` of the {type(dataset).__name__} "
            f"{got}. Pass a `torch.utils.data.Subset` of it, or a list of items."
        )
    if count == 0:
        raise ProbeSetError("Expected `dataset` to have items, but it is empty. Check its path and split.")
    return count


def _check_arguments(per_class: Any, by: Any, seed: Any, fields: Fields) -> None:
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ProbeSetError(f"Expected `per_class` to be a whole number from 1, but got {per_class!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ProbeSetError(f"Expected `seed` to be a whole number from 0 to 2**32 - 1, but got {seed!r}.")
    if not isinstance(by, str) or by not in ("label", "group"):
        raise ProbeSetError(f"Expected `by` to be 'label' or 'group', but got {by!r}.")
    if by == "group" and fields.group is None:
        raise ProbeSetError(
            "Expected `fields` to say where the group is, as by='group'. Write e.g. fields={'group': 2}."
        )


def _choose(plan: _Plan, count: int) -> _Choice:
    """Choose by what the dataset says of itself; should its items disagree with that, by the items."""
    # RandomState is frozen by numpy's compatibility policy: the same seed gives the same probes in every version.
    order: Order = np.random.RandomState(plan.seed).permutation(count)
    answers = known_column(plan.dataset, plan.fields.answer, ("targets", "labels"))
    if plan.class_names is not None and plan.fields.target is None:
        answers = _whole_only(answers, (1, 2))
    groups = None if plan.fields.group is None else known_column(plan.dataset, plan.fields.group, ("groups",))
    groups = _whole_only(groups, (1,))
    choice = _choose_once(replace(plan, answers=answers, groups=groups), order)
    if not all(
        _agrees(answers, index, item.answer) and _agrees(groups, index, item.group) for index, item in choice.items
    ):
        choice = _choose_once(plan, order)
    first, item = choice.items[0]
    for index, other in choice.items:
        if _width(other.answer) != _width(item.answer):
            raise ProbeSetError(
                f"Expected all items to have as many labels or values as item {first}, which has "
                f"{str(item.answer)[:60]}, but item {index} has {str(other.answer)[:60]}."
            )
    return choice


def _whole_only(column: Column | None, ranks: tuple[int, ...]) -> Column | None:
    """A column, unless it cannot be that of classes, labels or groups."""
    if column is None or column.ndim not in ranks:
        return None
    numbers = column.astype(np.float64)
    return column if bool(((np.trunc(numbers) == numbers) & (np.abs(numbers) < 2**63)).all()) else None


def _agrees(column: Column | None, index: int, value: Answer | None) -> bool:
    if column is None or value is None:
        return True
    with np.errstate(over="ignore"):
        # In float32, as items are often tensors and columns lists. NaN agrees with NaN and is refused later, by name.
        one, other = (np.asarray(each, dtype=np.float32) for each in (column[index], value))
    return bool(np.array_equal(one, other, equal_nan=True))


def _width(answer: Answer) -> int:
    """Number of labels or values of an item; 0 where it has but one."""
    return len(answer) if isinstance(answer, tuple) else 0


def _choose_once(plan: _Plan, order: Order) -> _Choice:
    kind = _kind(plan, int(order[0]))
    return _spread(plan, order) if kind == "regression" and plan.by == "label" else _stratified(plan, order, kind)


def _kind(plan: _Plan, index: int) -> Kind:
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


def _stratified(plan: _Plan, order: Order, kind: Kind) -> _Choice:
    """Take the first `per_class` items of each stratum in seeded order, each once, then sort by stratum and index.

    Strata are classes, groups, or labels: then an item is in that of each label it has, or in one more if it has none.
    """
    known = plan.group_names if plan.by == "group" else plan.class_names
    wanting = None if known is None else set(range(len(known)))
    width = None
    counts: Counter[int] = Counter()
    taken: list[tuple[int, int, Item | None]] = []
    for index, value, item in _candidates(plan, order):
        if plan.by == "group" or kind != "multi-label":
            stratum = whole(value, plan.by, index)
            strata = [] if stratum == UNKNOWN and plan.by == "group" else [stratum]
        else:
            if width is None:
                width = np.size(value)
                wanting = set(range(width + 1))
            strata = _labels(value, width, index)
        if any(counts[stratum] < plan.per_class for stratum in strata):
            taken.append((strata[0], index, item))
            counts.update(strata)
        if wanting is not None:
            wanting -= {stratum for stratum in strata if counts[stratum] >= plan.per_class}
            if not wanting:
                break
    if not taken:
        what = "of a known group, but all groups" if plan.by == "group" else "with a known label, but all"
        raise ProbeSetError(f"Expected at least one item {what} are {UNKNOWN} (unknown).")
    ranked = sorted(taken, key=lambda one: one[:2])
    items = [(index, plan.read(index) if item is None else item) for _, index, item in ranked]
    if width is not None:
        del counts[width]
    return _Choice(items, kind, counts)


def _labels(value: Any, width: int, index: int) -> list[int]:
    """Labels that an item has, or `width` if it has none; nothing if all are unknown."""
    labels = np.asarray(value)
    if labels.shape != (width,):
        raise ProbeSetError(
            f"Expected every item to have {width} labels, as the first, but item {index} has {str(value)[:60]}."
        )
    present: list[int] = (labels == 1).nonzero()[0].tolist()
    return present or ([width] if (labels != UNKNOWN).any() else [])


def _candidates(plan: _Plan, order: Order) -> Iterator[tuple[int, Any, Item | None]]:
    """Yield index, group or answer and, where it had to be read to know that, the item."""
    column = plan.groups if plan.by == "group" else plan.answers
    for index in map(int, order):
        if column is not None:
            yield index, column[index], None
        else:
            item = plan.read(index)
            yield index, item.group if plan.by == "group" else item.answer, item


def _spread(plan: _Plan, order: Order) -> _Choice:
    """Take probes at even ranks of the sorted targets, of several values the first, both ends included."""
    wanted = plan.per_class * PROBES_PER_CLASS_REGRESSION
    if plan.answers is None:
        order = order[: max(MIN_SCANNED, SCANNED_PER_PROBE * wanted)]
    told = plan.answers
    answers = ((index, plan.read(index).answer if told is None else told[index]) for index in map(int, order))
    values = {index: float(np.ravel(answer)[0]) for index, answer in answers}
    # NaN sorts last, so that one is sure to be chosen and refused by name. Ties keep the seeded order.
    ranked = sorted(values, key=lambda index: (values[index] != values[index], values[index]))
    ranks = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
    return _Choice([(ranked[rank], plan.read(ranked[rank])) for rank in ranks], "regression")


def _assembled(
    plan: _Plan, choice: _Choice, target_names: Names, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ProbeSet:
    items = [item for _, item in choice.items]
    labels = targets = None
    if choice.kind == "regression":
        targets = torch.tensor([item.answer for item in items], dtype=torch.float32)
    elif choice.kind == "multi-label":
        labels = torch.tensor([item.answer for item in items])
    else:
        labels = torch.tensor([whole(item.answer, "label", index) for index, item in choice.items])
    return ProbeSet(
        [item.image for item in items],
        labels,
        targets=targets,
        names=[_name(plan, index, item) if item.name is None else item.name for index, item in choice.items],
        groups=None if plan.fields.group is None else [-1 if item.group is None else item.group for item in items],
        masks={region: [item.masks[region] for item in items] for region in plan.fields.masks},
        class_names=plan.class_names,
        target_names=target_names,
        group_names=plan.group_names,
        mean=mean,
        std=std,
    )


def _name(plan: _Plan, index: int, item: Item) -> str:
    """Name a probe after its class and index, or after its index alone."""
    answer = item.answer
    if isinstance(answer, tuple) or (isinstance(answer, float) and plan.class_names is None):
        return f"item_{index:05d}"
    return f"{_named(plan.class_names, int(answer), f'class{int(answer)}')}_{index:05d}"


def _named(names: Names, index: int, default: str) -> str:
    return names[index] if names is not None and 0 <= index < len(names) else default


def _warn_of_shortfall(plan: _Plan, choice: _Choice) -> None:
    if choice.counts is None:
        return
    names = plan.group_names if plan.by == "group" else plan.class_names
    width = _width(choice.items[0][1].answer) if plan.by == "label" else 0
    expected = sorted({*choice.counts, *range(max(len(names or ()), width))})
    short = [stratum for stratum in expected if choice.counts[stratum] < plan.per_class]
    if not short:
        return
    what = "group" if plan.by == "group" else "label" if width else "class"
    told = ", ".join(f"{what} {_named(names, each, str(each))!r} has {choice.counts[each]}" for each in short[:5])
    more = f" and {len(short) - 5} more are short" if len(short) > 5 else ""
    warn_user(f"Fewer probes than per_class={plan.per_class}: {told}{more}. All that there are were taken.")
