"""A reproducible probe set from a map-style dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.choosing import Choice, Plan, choose, whole
from xai_callbacks.probes.fields import Fields, Item, parse_fields
from xai_callbacks.probes.notices import warn_user
from xai_callbacks.probes.probe_set import ProbeSet
from xai_callbacks.probes.sources import check_subsets, known_class_names, known_normalisation, length
from xai_callbacks.randomness import isolated_rng

__all__ = ["build_from_dataset"]

# Beyond, a length is a lie, such as `sys.maxsize` of an endless dataset; to shuffle it would take all memory.
MOST_ITEMS = 10**8


def build_from_dataset(
    dataset: Any,
    per_class: int,
    *,
    by: str,
    seed: int,
    fields: Mapping[str, Any] | None,
    class_names: Sequence[str] | None,
    target_names: Sequence[str] | None,
    group_names: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ProbeSet:
    """Choose and read the probes; the contract is that of `ProbeSet.from_dataset`."""
    parsed = parse_fields(fields)
    _check_arguments(per_class, by, seed, parsed)
    classes, groups = to_texts(class_names, "class_names"), to_texts(group_names, "group_names")
    named = to_texts(target_names, "target_names")
    # Everything that runs code of the dataset is inside: a property may draw random numbers as well as an item.
    with isolated_rng():
        count = _count(dataset)
        check_subsets(dataset)
        if classes is None and parsed.target is None:
            classes = known_class_names(dataset)
        plan = Plan(dataset, count, parsed, per_class, by, seed, classes, groups)
        choice = choose(plan)
        if mean is None and std is None:
            mean, std = _found_normalisation(dataset, channels=choice.items[0][1].image.shape[0])
    probes = _assembled(plan, choice, named, mean, std)
    _warn_of_shortfall(plan, choice)
    values = probes.targets if parsed.target is None else None
    if values is not None and bool(((values == 0) | (values == 1)).all()):
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
            "Expected `fields` to say where the group of an item is, as by='group', but it does not. "
            "Write e.g. fields={'group': 2}."
        )


def _found_normalisation(
    dataset: Any, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    found = known_normalisation(dataset)
    if found is None or any(len(values) not in (1, channels) for values in found) or min(found[1]) <= 0:
        return None, None
    return found


def _assembled(
    plan: Plan,
    choice: Choice,
    target_names: tuple[str, ...] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
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
        names=[item.name if item.name is not None else _name(plan, index, item) for index, item in choice.items],
        groups=None if plan.fields.group is None else [item.group if item.group is not None else -1 for item in items],
        masks={region: [item.masks[region] for item in items] for region in plan.fields.masks},
        class_names=plan.class_names,
        target_names=target_names,
        group_names=plan.group_names,
        mean=mean,
        std=std,
    )


def _name(plan: Plan, index: int, item: Item) -> str:
    """Name a probe after its class and index, or after its index alone."""
    answer = item.answer
    if isinstance(answer, tuple) or (isinstance(answer, float) and plan.class_names is None):
        return f"item_{index:05d}"
    known = plan.class_names is not None and 0 <= answer < len(plan.class_names)
    label = _stratum_name(plan.class_names, int(answer)) if known else f"class{int(answer)}"
    return f"{label}_{index:05d}"


def _warn_of_shortfall(plan: Plan, choice: Choice) -> None:
    if plan.by == "label" and choice.kind == "regression":
        return
    counts = Counter(stratum for index, item in choice.items for stratum in _strata(plan, index, item))
    names, width = plan.stratum_names, _width(choice) if plan.by == "label" else 0
    expected = sorted({*counts, *range(max(len(names or ()), width))})
    short = [(stratum, counts[stratum]) for stratum in expected if counts[stratum] < plan.per_class]
    if not short:
        return
    what = "group" if plan.by == "group" else "label" if width else "class"
    told = ", ".join(f"{what} {_stratum_name(names, stratum)!r} has {count}" for stratum, count in short[:5])
    more = f" and {len(short) - 5} more are short" if len(short) > 5 else ""
    warn_user(f"Fewer probes than per_class={plan.per_class}: {told}{more}. All that there are were taken.")


def _width(choice: Choice) -> int:
    """Number of labels an item has or has not; 0 where it is of one class."""
    answer = choice.items[0][1].answer
    return len(answer) if isinstance(answer, tuple) else 0


def _strata(plan: Plan, index: int, item: Item) -> list[int]:
    """Group, class, or labels of an item."""
    if plan.by == "label" and isinstance(item.answer, tuple):
        return [label for label, has in enumerate(item.answer) if has == 1]
    return [whole(item.group if plan.by == "group" else item.answer, plan.by, index)]


def _stratum_name(names: tuple[str, ...] | None, stratum: int) -> str:
    return names[stratum] if names is not None and 0 <= stratum < len(names) else str(stratum)
