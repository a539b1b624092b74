"""Choosing a stratified, reproducible probe set from a map-style dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.fields import Fields, Item, parse_fields, read_item
from xai_callbacks.probes.notices import warn_user
from xai_callbacks.probes.probe_set import ProbeSet
from xai_callbacks.probes.sources import known_class_names, known_column, known_normalisation
from xai_callbacks.randomness import isolated_rng, seed_generators

__all__ = ["build_from_dataset"]

# Regression: probes for each "class" asked for, and how many items are read where only items tell the targets.
PROBES_PER_CLASS_REGRESSION = 10
MIN_SCANNED, SCANNED_PER_PROBE = 1000, 25

Column = npt.NDArray[Any] | None
Chosen = list[tuple[int, Item]]


@dataclass(frozen=True)
class _Plan:
    """All that decides the choice, with the two columns that the dataset may tell without reading items."""

    dataset: Any
    fields: Fields
    per_class: int
    by: str
    seed: int
    class_names: tuple[str, ...] | None
    group_names: tuple[str, ...] | None
    answers: Column = None
    groups: Column = None

    def read(self, index: int) -> Item:
        """Read an item such that it depends on seed and index alone, not on what was read before."""
        seed_generators(self.seed, index)
        return read_item(self.dataset, index, self.fields)

    @property
    def strata(self) -> Column:
        """The known column that decides the stratum."""
        return self.groups if self.by == "group" else self.answers

    @property
    def stratum_names(self) -> tuple[str, ...] | None:
        return self.group_names if self.by == "group" else self.class_names


def build_from_dataset(
    dataset: Any,
    per_class: int,
    *,
    by: str,
    seed: int,
    fields: Mapping[str, Any] | None,
    class_names: Sequence[str] | None,
    group_names: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ProbeSet:
    """Choose and read the probes; the contract is that of `ProbeSet.from_dataset`."""
    parsed = parse_fields(fields)
    _check_arguments(dataset, per_class, by, seed, parsed)
    classes = to_texts(class_names, "class_names")
    # Everything that runs code of the dataset is inside: a property may draw random numbers as well as an item.
    with isolated_rng():
        plan = _Plan(
            dataset,
            parsed,
            per_class,
            by,
            seed,
            class_names=classes if classes is not None or parsed.target is not None else known_class_names(dataset),
            group_names=to_texts(group_names, "group_names"),
        )
        chosen, regression = _choose(plan)
        if mean is None and std is None:
            mean, std = _found_normalisation(dataset, channels=chosen[0][1].image.shape[0])
    probes = _assembled(plan, chosen, regression, mean, std)
    if not regression or by == "group":
        _warn_of_shortfall(plan, Counter(_stratum(plan, index, item) for index, item in chosen))
    return probes


def _check_arguments(dataset: Any, per_class: Any, by: str, seed: Any, fields: Fields) -> None:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ProbeSetError(
            f"Expected `dataset` to be map-style (with `__getitem__` and `__len__`), but got {type(dataset).__name__}. "
            "Take some items of a stream yourself, e.g. `list(itertools.islice(dataset, 500))`, and pass that list."
        )
    if len(dataset) == 0:
        raise ProbeSetError("Expected `dataset` to have items, but it is empty. Check its path and split.")
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ProbeSetError(f"Expected `per_class` to be a whole number from 1, but got {per_class!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ProbeSetError(f"Expected `seed` to be a whole number from 0 to 2**32 - 1, but got {seed!r}.")
    if by not in ("label", "group"):
        raise ProbeSetError(f"Expected `by` to be 'label' or 'group', but got {by!r}.")
    if by == "group" and fields.group is None:
        raise ProbeSetError(
            "Expected `fields` to say where the group of an item is, as by='group', but it does not. "
            "Write e.g. fields={'group': 2}."
        )


def _choose(plan: _Plan) -> tuple[Chosen, bool]:
    """Choose by what the dataset says of itself; should its items disagree with that, by the items."""
    # RandomState is frozen by numpy's compatibility policy: the same seed gives the same probes in every version.
    order = [int(index) for index in np.random.RandomState(plan.seed).permutation(len(plan.dataset))]
    told = replace(plan, answers=_told_answers(plan), groups=_told_groups(plan))
    chosen, regression = _choose_once(told, order)
    if all(_agrees(told.answers, i, item.answer) and _agrees(told.groups, i, item.group) for i, item in chosen):
        return chosen, regression
    return _choose_once(plan, order)


def _told_answers(plan: _Plan) -> Column:
    column = known_column(plan.dataset, plan.fields.answer, ("targets", "labels"))
    return column if plan.class_names is None else _whole_only(column)


def _told_groups(plan: _Plan) -> Column:
    return (
        None if plan.fields.group is None else _whole_only(known_column(plan.dataset, plan.fields.group, ("groups",)))
    )


def _whole_only(column: Column) -> Column:
    """Drop a column that cannot be class or group indexes, so that the items decide."""
    return column if column is not None and bool((np.mod(column.astype(np.float64), 1) == 0).all()) else None


def _choose_once(plan: _Plan, order: list[int]) -> tuple[Chosen, bool]:
    regression = _is_regression(plan, order[0])
    if regression and plan.by == "label":
        return _spread(plan, order), True
    return _stratified(plan, order), regression


def _agrees(column: Column, index: int, value: int | float | None) -> bool:
    if column is None or value is None:
        return True
    # In float32, as items are often tensors and columns lists. NaN agrees with NaN and is refused later, by name.
    return bool(np.array_equal(np.float32(column[index]), np.float32(value), equal_nan=True))


def _is_regression(plan: _Plan, index: int) -> bool:
    if plan.fields.target is not None:
        return True
    if plan.class_names is not None:
        return False
    if plan.answers is not None:
        return bool(plan.answers.dtype.kind == "f")
    return isinstance(plan.read(index).answer, float)


def _stratified(plan: _Plan, order: list[int]) -> Chosen:
    """Take the first `per_class` items of each stratum in seeded order, then sort by stratum and index."""
    names = plan.stratum_names
    strata: dict[int, list[tuple[int, Item | None]]] = {}
    full = 0
    for index, stratum, item in _candidates(plan, order):
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


def _candidates(plan: _Plan, order: list[int]) -> Iterable[tuple[int, int, Item | None]]:
    """Yield index, stratum and, where it had to be read to know the stratum, the item."""
    for index in order:
        if plan.strata is not None:
            yield index, _whole(plan.strata[index], plan.by, index), None
            continue
        item = plan.read(index)
        yield index, _stratum(plan, index, item), item


def _stratum(plan: _Plan, index: int, item: Item) -> int:
    return _whole(item.group if plan.by == "group" else item.answer, plan.by, index)


def _whole(value: Any, what: str, index: int) -> int:
    if value is None or not float(value).is_integer():
        raise ProbeSetError(
            f"Expected the {what} of item {index} to be a whole number, but got {value!r}. For regression on a dataset "
            "with class names, say where the value is: fields={'target': 1}."
        )
    return int(value)


def _warn_of_shortfall(plan: _Plan, counts: Mapping[int, int]) -> None:
    names = plan.stratum_names
    what = "group" if plan.by == "group" else "class"
    expected = sorted({*counts, *range(len(names or ()))})
    short = [(stratum, counts.get(stratum, 0)) for stratum in expected if counts.get(stratum, 0) < plan.per_class]
    if not short:
        return
    told = ", ".join(f"{what} {_stratum_name(names, stratum)!r} has {count}" for stratum, count in short[:5])
    more = f" and {len(short) - 5} more are short" if len(short) > 5 else ""
    warn_user(f"Fewer probes than per_class={plan.per_class}: {told}{more}. All that there are were taken.")


def _stratum_name(names: tuple[str, ...] | None, stratum: int) -> str:
    return names[stratum] if names is not None and 0 <= stratum < len(names) else str(stratum)


def _spread(plan: _Plan, order: list[int]) -> Chosen:
    """Take probes at even ranks of the sorted targets, both ends included."""
    wanted = plan.per_class * PROBES_PER_CLASS_REGRESSION
    if plan.answers is not None:
        values = {index: float(plan.answers[index]) for index in order}
    else:
        scanned = order[: max(MIN_SCANNED, SCANNED_PER_PROBE * wanted)]
        values = {index: float(plan.read(index).answer) for index in scanned}
    # NaN sorts last, so that one is sure to be chosen and refused by name. Ties keep the seeded order.
    ranked = sorted(values, key=lambda index: (values[index] != values[index], values[index]))
    ranks = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
    return [(ranked[rank], plan.read(ranked[rank])) for rank in ranks]


def _found_normalisation(
    dataset: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    found = known_normalisation(dataset)
    if found is None or any(len(values) not in (1, channels) for values in found) or min(found[1]) <= 0:
        return None, None
    return found


def _assembled(
    plan: _Plan, chosen: Chosen, regression: bool, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ProbeSet:
    items = [item for _, item in chosen]
    answers = [float(item.answer) if regression else _whole(item.answer, "label", index) for index, item in chosen]
    return ProbeSet(
        [item.image for item in items],
        None if regression else torch.tensor(answers, dtype=torch.int64),
        targets=torch.tensor(answers, dtype=torch.float32) if regression else None,
        names=[item.name if item.name is not None else _name(plan, index, item, regression) for index, item in chosen],
        groups=None if plan.fields.group is None else [item.group if item.group is not None else -1 for item in items],
        masks={region: [item.masks[region] for item in items] for region in plan.fields.masks},
        class_names=plan.class_names,
        group_names=plan.group_names,
        mean=mean,
        std=std,
    )


def _name(plan: _Plan, index: int, item: Item, regression: bool) -> str:
    if regression:
        return f"item_{index:05d}"
    known = plan.class_names is not None and 0 <= item.answer < len(plan.class_names)
    label = _stratum_name(plan.class_names, int(item.answer)) if known else f"class{int(item.answer)}"
    return f"{label}_{index:05d}"
