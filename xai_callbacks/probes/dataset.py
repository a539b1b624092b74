"""A reproducible probe set from a map-style dataset: stratified by class, label or group, or spread over targets."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.display import warn_user
from xai_callbacks.probes.items import Fields, Item, parse_fields, read_item, whole
from xai_callbacks.probes.probe_set import ProbeSet
from xai_callbacks.probes.sources import Column, known_class_names, known_column, known_normalisation, told
from xai_callbacks.randomness import isolated_rng, seed_generators
from xai_callbacks.tasks import UNKNOWN

# Regression: probes for each "class" asked for, and how many items are read where only items tell the targets.
PROBES_PER_CLASS_REGRESSION = 10
MIN_SCANNED, SCANNED_PER_PROBE = 1000, 25

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

    @property
    def stratum_names(self) -> Names:
        return self.group_names if self.by == "group" else self.class_names

    def read(self, index: int) -> Item:
        """Read an item such that it depends on seed and index alone, not on what was read before."""
        if index in self.kept:
            return self.kept[index]
        seed_generators(self.seed, index)
        return read_item(self.dataset, index, self.fields)


@dataclass(frozen=True)
class _Choice:
    """Chosen indexes and items, the kind of task, and how many there are of each stratum, if there are any."""

    items: list[tuple[int, Item]]
    kind: str
    counts: Counter[int] | None = None


def build_from_dataset(
    dataset: Any, per_class: int, by: str, seed: int, fields: Mapping[str, Any] | None, facts: dict[str, Any]
) -> ProbeSet:
    """Choose and read the probes; the contract is that of `ProbeSet.from_dataset`, `facts` are names, mean and std."""
    parsed = parse_fields(fields)
    for argument in ("class_names", "group_names", "target_names"):
        facts[argument] = to_texts(facts[argument], argument)
    _check_arguments(dataset, per_class, by, seed, parsed)
    # Everything that runs code of the dataset is inside: a property may draw random numbers as well as an item.
    with isolated_rng():
        if facts["class_names"] is None and parsed.target is None:
            facts["class_names"] = told(known_class_names, dataset)
        plan = _Plan(dataset, parsed, per_class, by, seed, facts["class_names"], facts["group_names"])
        choice = _choose(plan, len(dataset))
        if facts["mean"] is None and facts["std"] is None and (found := told(known_normalisation, dataset)):
            channels = choice.items[0][1].image.shape[0]
            if {len(found[0]), len(found[1])} <= {1, channels} and min(found[1]) > 0:
                facts["mean"], facts["std"] = found
    probes = _assembled(plan, choice, facts)
    _warn_of_shortfall(plan, choice)
    targets = probes.targets if parsed.target is None else None
    if targets is not None and bool(((targets == 0) | (targets == 1)).all()):
        warn_user(
            "All labels are 0 or 1 but floats, and float labels are read as values of a regression (`targets`). If "
            "they are classes, pass `class_names=`, or whole numbers; if they are values, say so: fields={'target': 1}."
        )
    return probes


def _check_arguments(dataset: Any, per_class: Any, by: Any, seed: Any, fields: Fields) -> None:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ProbeSetError(
            f"Expected `dataset` to be map-style (with `__getitem__` and `__len__`), but got {type(dataset).__name__}. "
            "Take some items of a stream yourself, e.g. `list(itertools.islice(dataset, 500))`, and pass that list."
        )
    if type(per_class) is not int or per_class < 1:
        raise ProbeSetError(f"Expected `per_class` to be a whole number from 1, but got {per_class!r}.")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ProbeSetError(f"Expected `seed` to be a whole number from 0 to 2**32 - 1, but got {seed!r}.")
    if by != "label" and (by != "group" or fields.group is None):
        raise ProbeSetError(
            "Expected `by` to be 'label', or 'group' with `fields` that say where the group is, e.g. "
            f"fields={{'group': 2}}, but got {by!r}."
        )


def _choose(plan: _Plan, count: int) -> _Choice:
    """Choose by what the dataset says of itself; should its items disagree with that, by the items."""
    if count == 0:
        raise ProbeSetError("Expected `dataset` to have items, but it is empty. Check its path and split.")
    # RandomState is frozen by numpy's compatibility policy: the same seed gives the same probes in every version.
    order: Order = np.random.RandomState(plan.seed).permutation(count)
    answers = told(known_column, plan.dataset, plan.fields.answer, ("targets", "labels"))
    groups = None if plan.fields.group is None else told(known_column, plan.dataset, plan.fields.group, ("groups",))
    if answers is not None or groups is not None:
        with suppress(ProbeSetError):
            choice = _choose_once(replace(plan, answers=answers, groups=groups), order)
            if all(_agrees(answers, at, one.answer) and _agrees(groups, at, one.group) for at, one in choice.items):
                return choice
    return _choose_once(plan, order)


def _agrees(column: Column | None, index: int, value: Any) -> bool:
    # In float32, as items are often tensors and columns lists. NaN agrees with NaN and is refused later, by name.
    return column is None or np.array_equal(np.float32(column[index]), np.float32(value), equal_nan=True)


def _choose_once(plan: _Plan, order: Order) -> _Choice:
    kind = _kind(plan, int(order[0]))
    return _spread(plan, order) if kind == "regression" and plan.by == "label" else _stratified(plan, order, kind)


def _kind(plan: _Plan, index: int) -> str:
    if plan.fields.target is not None:
        return "regression"
    if plan.answers is None:
        plan.kept[index] = plan.read(index)
        answer = np.asarray(plan.kept[index].answer)
    else:
        answer = plan.answers[index]
    if np.ndim(answer):
        return "multi-label"
    return "regression" if answer.dtype.kind == "f" and plan.class_names is None else "single-label"


def _stratified(plan: _Plan, order: Order, kind: str) -> _Choice:
    """Take the first `per_class` items of each stratum in seeded order, each once, then sort by stratum and index.

    Strata are classes, groups, or labels: then an item is in that of each label it has, or in one more if it has none.
    """
    several = kind == "multi-label" and plan.by == "label"
    wanting = None if plan.stratum_names is None else set(range(len(plan.stratum_names)))
    none = -1  # the stratum of items without labels, once their number is known
    counts: Counter[int] = Counter()
    taken: list[tuple[int, int, Item | None]] = []
    column: Any = plan.groups if plan.by == "group" else plan.answers
    for index in map(int, order):
        item = plan.read(index) if column is None else None
        value: Any = column[index] if item is None else item.group if plan.by == "group" else item.answer
        if several and none < 0:
            none = np.size(value)
            wanting = set(range(none + 1))
        strata = _labels(value, none) if several else [whole(value, plan.by, index)]
        if plan.by == "group" and strata == [UNKNOWN]:
            continue
        if any(counts[stratum] < plan.per_class for stratum in strata):
            taken.append((strata[0], index, item))
            counts.update(strata)
        if wanting is not None:
            wanting -= {stratum for stratum in strata if counts[stratum] >= plan.per_class}
            if not wanting:
                break
    if not taken:
        raise ProbeSetError(f"Expected at least one item with a known {plan.by}, but all {plan.by}s are {UNKNOWN}.")
    ranked = sorted(taken, key=lambda one: one[:2])
    items = [(index, plan.read(index) if item is None else item) for _, index, item in ranked]
    del counts[none]
    return _Choice(items, kind, counts)


def _labels(value: Any, none: int) -> list[int]:
    """Labels that an item has, or `none` if it has none; nothing if all are unknown."""
    labels = np.ravel(value)
    present: list[int] = (labels == 1).nonzero()[0].tolist()
    return present or ([none] if (labels != UNKNOWN).any() else [])


def _spread(plan: _Plan, order: Order) -> _Choice:
    """Take probes at even ranks of the sorted targets, of several values the first, both ends included."""
    wanted = plan.per_class * PROBES_PER_CLASS_REGRESSION
    if plan.answers is None:
        order = order[: max(MIN_SCANNED, SCANNED_PER_PROBE * wanted)]
    column = plan.answers
    answers = ((index, plan.read(index).answer if column is None else column[index]) for index in map(int, order))
    values = {index: float(np.ravel(answer)[0]) for index, answer in answers}
    # NaN sorts last, so that one is sure to be chosen and refused by name. Ties keep the seeded order.
    ranked = sorted(values, key=lambda index: (values[index] != values[index], values[index]))
    ranks = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
    return _Choice([(ranked[rank], plan.read(ranked[rank])) for rank in ranks], "regression")


def _assembled(plan: _Plan, choice: _Choice, facts: dict[str, Any]) -> ProbeSet:
    items = [item for _, item in choice.items]
    answers: list[Any] = [item.answer for item in items]
    if choice.kind == "single-label":
        answers = [whole(item.answer, "label", index) for index, item in choice.items]
    return ProbeSet.from_tensors(
        [item.image for item in items],
        None if choice.kind == "regression" else answers,
        targets=answers if choice.kind == "regression" else None,
        names=[_name(plan, index, item) if item.name is None else item.name for index, item in choice.items],
        groups=None if plan.fields.group is None else [-1 if item.group is None else item.group for item in items],
        masks={region: [item.masks[region] for item in items] for region in plan.fields.masks},
        **facts,
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
    labels = np.size(choice.items[0][1].answer) if plan.by == "label" and choice.kind == "multi-label" else 0
    expected = sorted({*choice.counts, *range(max(len(plan.stratum_names or ()), labels))})
    short = [stratum for stratum in expected if choice.counts[stratum] < plan.per_class]
    if not short:
        return
    what = "label" if labels else "group" if plan.by == "group" else "class"
    each = (f"{what} {_named(plan.stratum_names, one, str(one))!r} has {choice.counts[one]}" for one in short[:5])
    more = f" and {len(short) - 5} more are short" if len(short) > 5 else ""
    warn_user(f"Fewer probes than per_class={plan.per_class}: {', '.join(each)}{more}. All that there are were taken.")
