"""What is known of probes in numbers: labels, targets and groups; every fault names the probe it is in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import as_tensor, own, probe_ref, refuse, to_texts
from xai_callbacks.tasks import UNKNOWN, in_key

__all__ = ["check_truth", "to_groups", "to_labels", "to_target_names", "to_targets"]


def check_truth(labels: object, targets: object, class_names: object, target_names: object) -> None:
    """Refuse labels beside targets, and names of what is not given.

    Raises:
        ProbeSetError: They contradict each other.
    """
    if labels is not None and targets is not None:
        raise ProbeSetError("Expected `labels` or `targets`, but got both. Targets are for regression only.")
    if targets is not None and class_names is not None:
        raise ProbeSetError(
            "Expected `class_names` to come with `labels`, but got `targets`. Leave `class_names` out; `target_names` "
            "names values."
        )
    if targets is None and target_names is not None:
        raise ProbeSetError(
            "Expected `target_names` to come with `targets`, but got none. Leave `target_names` out; `class_names` "
            "names classes and labels."
        )


def to_labels(labels: Any, names: tuple[str, ...], class_names: tuple[str, ...] | None) -> Tensor | None:
    """Return int64 class indexes `(N,)`, or labels `(N, K)` of 0, 1 and -1; named by `class_names` where known."""
    if labels is None:
        return None
    table = _table(labels, "labels", names)
    return _classes(table, names, class_names) if table.ndim == 1 else _multi_hot(table, names, class_names)


def to_targets(targets: Any, names: tuple[str, ...]) -> Tensor | None:
    """Return regression targets `(N,)` or, of several values, `(N, V)`; float32, all finite."""
    if targets is None:
        return None
    result = own(_table(targets, "targets", names), torch.float32)
    refuse(
        ~torch.isfinite(result.view(len(result), -1)).all(dim=1),
        names,
        "Expected `targets` to be finite, but {probe} has target {value}. Mend or drop it.",
        result,
    )
    return result[:, 0].contiguous() if result.ndim == 2 and result.shape[1] == 1 else result


def to_target_names(target_names: Any, targets: Tensor | None) -> tuple[str, ...] | None:
    """Check one name for each value."""
    given = to_texts(target_names, "target_names")
    if given is not None and targets is not None:
        values = 1 if targets.ndim == 1 else targets.shape[1]
        if len(given) != values:
            raise ProbeSetError(
                f"Expected `target_names` to name each of {values} values, the columns of `targets`, but got "
                f"{len(given)}."
            )
    if given is not None and len({in_key(name) for name in given}) < len(given):
        raise ProbeSetError(
            f"Expected `target_names` to differ in letters and digits, which make keys, but got {given!r}."
        )
    return given


def to_groups(groups: Any, names: tuple[str, ...], group_names: tuple[str, ...] | None) -> Tensor | None:
    """Return group indexes `(N,)` int64; -1 is unknown."""
    if groups is None:
        return None
    vector = _table(groups, "groups", names)
    if vector.is_floating_point() or vector.ndim != 1:
        raise ProbeSetError(
            f"Expected `groups` to be ({len(names)},) whole numbers (-1 = unknown), but got {tuple(vector.shape)} "
            f"{vector.dtype}."
        )
    result = own(vector, torch.int64)
    refuse(result < -1, names, "Expected `groups` to be -1 (unknown) or more, but {probe} has group {value}.", result)
    if group_names is not None:
        refuse(
            result >= len(group_names),
            names,
            f"Expected `groups` to be below {len(group_names)}, the number of `group_names`, but "
            "{probe} has group {value}.",
            result,
        )
    return result


def _classes(vector: Tensor, names: tuple[str, ...], class_names: tuple[str, ...] | None) -> Tensor:
    if vector.is_floating_point():
        raise ProbeSetError(
            f"Expected `labels` to be whole numbers (class indexes), but got {vector.dtype}. "
            "For regression pass the values as `targets=`."
        )
    result = own(vector, torch.int64)
    refuse(result < 0, names, "Expected `labels` to be 0 or more, but {probe} has label {value}.", result)
    if class_names is not None:
        refuse(
            result >= len(class_names),
            names,
            f"Expected `labels` to be below {len(class_names)}, the number of `class_names`, but "
            "{probe} has label {value}. Pass `class_names=` for all classes of the model, in index order.",
            result,
        )
    return result


def _multi_hot(table: Tensor, names: tuple[str, ...], class_names: tuple[str, ...] | None) -> Tensor:
    count = table.shape[1]
    plain = own(table, table.dtype if table.is_floating_point() else torch.int64)
    wrong = (plain != 0) & (plain != 1) & (plain != UNKNOWN)
    hint = (
        "Class indexes have shape (N,): pass `labels[:, 0]`."
        if count == 1
        else "Class indexes have shape (N,); values are `targets`."
    )
    refuse(
        wrong.any(dim=1),
        names,
        f"Expected `labels` of shape (N, K) to be 1 where a probe has a label, 0 where it has not and {UNKNOWN} where "
        f"that is unknown, but {{probe}} has {{value}}. {hint}",
        plain.gather(1, wrong.int().argmax(dim=1, keepdim=True))[:, 0],
    )
    if class_names is not None and len(class_names) != count:
        raise ProbeSetError(
            f"Expected `class_names` to name each of {count} labels, the columns of `labels`, but got "
            f"{len(class_names)}."
        )
    return plain.to(torch.int64)


def _table(values: Any, what: str, names: tuple[str, ...]) -> Tensor:
    """Numbers `(N,)` or `(N, columns)`."""
    if isinstance(values, (list, tuple)):
        values = _rows(values[: len(names) + 1], what, names)
    table = as_tensor(values, what)
    if table.ndim not in (1, 2) or len(table) != len(names) or 0 in table.shape or table.is_complex():
        raise ProbeSetError(
            f"Expected `{what}` to be ({len(names)},), one number a probe, or ({len(names)}, columns), but got "
            f"{tuple(table.shape)} {table.dtype}. Give one for each probe, in the order of the images."
        )
    return table


def _rows(values: list[Any] | tuple[Any, ...], what: str, names: tuple[str, ...]) -> list[Any]:
    """Plain numbers, or lists of as many for each probe."""
    rows = [as_tensor(row, what).tolist() if isinstance(row, (Tensor, np.ndarray)) else row for row in values]
    for index, row in enumerate(rows[: len(names)]):
        ref = probe_ref(index, names)
        for number in row if isinstance(row, (list, tuple)) else [row]:
            _check_number(number, what, ref)
        if _width(row) != _width(rows[0]):
            raise ProbeSetError(
                f"Expected `{what}` to be as many for every probe as for {probe_ref(0, names)}, which has {rows[0]}, "
                f"but {ref} has {row}."
            )
    return rows


def _width(row: Any) -> int | None:
    return len(row) if isinstance(row, (list, tuple)) else None


def _check_number(value: Any, what: str, ref: str) -> None:
    advice = " Pass class indexes, not names." if what == "labels" else ""
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ProbeSetError(f"Expected `{what}` to be numbers, but {ref} has {value!r}.{advice}") from error
    if isinstance(value, (str, bytes)):
        raise ProbeSetError(f"Expected `{what}` to be numbers, but {ref} has the text {value!r}.{advice}")
