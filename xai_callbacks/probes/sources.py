"""Knowledge of a dataset about itself, so that images need not be decoded to learn it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

__all__ = ["Column", "known_class_names", "known_column", "known_normalisation", "length"]

T = TypeVar("T")
Column = npt.NDArray[Any]

# A transform that contains itself must not hang us; real ones nest two or three levels.
MAX_DEPTH = 8
# Classes that normalise and tell `mean` and `std`; by name, so that transforms of other libraries count too.
NORMALISERS = ("Normalize", "ImageClassification")


def length(dataset: Any) -> int | None:
    """Return the number of items; None where the dataset cannot say it."""
    try:
        return len(dataset)
    except Exception:  # whatever a foreign `__len__` raises
        return None


def known_column(dataset: Any, key: int | str, attributes: Sequence[str]) -> Column | None:
    """Return one number for each item `(N,)`, or a vector `(N, K)`, if the dataset tells it without reading items.

    Args:
        dataset: `TensorDataset`s, datasets with one of `attributes`, and `Subset`s and `ConcatDataset`s of such.
        key: Place of the number in an item (for `TensorDataset`).
        attributes: Names under which datasets keep the column.
    """
    if isinstance(dataset, Subset):
        base = known_column(dataset.dataset, key, attributes)
        try:
            rows = np.asarray(dataset.indices)
            return None if base is None or rows.ndim != 1 or rows.dtype.kind not in "iu" else base[rows]
        except (IndexError, ValueError):
            return None  # the items tell what is wrong
    if isinstance(dataset, ConcatDataset):
        parts = [known_column(part, key, attributes) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        alike = len(known) == len(parts) and len({part.shape[1:] for part in known}) == 1
        return np.concatenate(known) if alike else None
    if isinstance(dataset, TensorDataset):
        inside = isinstance(key, int) and -len(dataset.tensors) <= key < len(dataset.tensors)
        return _numbers(dataset.tensors[int(key)], len(dataset)) if inside else None
    for attribute in attributes:
        column = _numbers(_attribute(dataset, attribute), length(dataset))
        if column is not None:
            return column
    return None


def known_class_names(dataset: Any) -> tuple[str, ...] | None:
    """`dataset.classes`, also through `Subset` and `ConcatDataset`; of synonyms the first.

    A dataset with a `target_transform` may give its labels another meaning, so its names are not used.
    """
    if (parts := _parts(dataset)) is not None:
        return _unanimous([known_class_names(part) for part in parts])
    classes = _attribute(dataset, "classes")
    if _attribute(dataset, "target_transform") is not None or not isinstance(classes, (list, tuple)):
        return None
    names = tuple(name[0] if isinstance(name, (list, tuple)) and name else name for name in classes)
    usable = all(isinstance(name, str) and name.strip() and name.isprintable() for name in names)
    return names if names and usable else None


def known_normalisation(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the one `Normalize` in the transform of the dataset; None if none or several."""
    if (parts := _parts(dataset)) is not None:
        return _unanimous([known_normalisation(part) for part in parts])
    transforms = (_attribute(dataset, "transform"), _attribute(dataset, "transforms"))
    found = {pair for transform in transforms for pair in _normalisations(transform, MAX_DEPTH)}
    return found.pop() if len(found) == 1 else None


def _parts(dataset: Any) -> Sequence[Any] | None:
    """Datasets that a `Subset` or a `ConcatDataset` is made of; None for any other."""
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    return dataset.datasets if isinstance(dataset, ConcatDataset) else None


def _attribute(thing: Any, name: str) -> Any:
    """Return an attribute; None where there is none, or a property fails: the items tell what it would have told."""
    try:
        return getattr(thing, name, None)
    except Exception:  # whatever a foreign property raises
        return None


def _normalisations(transform: Any, depth: int) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    if transform is None or depth == 0:
        return
    if type(transform).__name__ in NORMALISERS:
        mean, std = _floats(_attribute(transform, "mean")), _floats(_attribute(transform, "std"))
        if mean and std:
            yield mean, std
        return
    parts = _attribute(transform, "transforms")
    children = list(parts) if isinstance(parts, (list, tuple, nn.ModuleList)) else []
    children.append(_attribute(transform, "transform"))
    if isinstance(transform, nn.Sequential):
        children.extend(transform)
    for child in children:
        yield from _normalisations(child, depth - 1)


def _floats(values: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(value) for value in (values if np.ndim(values) else [values]))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _numbers(column: Any, count: int | None) -> Column | None:
    if not isinstance(column, (list, tuple, np.ndarray, Tensor)):
        return None
    try:
        array = column.detach().cpu().numpy() if isinstance(column, Tensor) else np.asarray(column)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    if array.shape == (count, 1):
        array = array[:, 0]
    usable = array.ndim in (1, 2) and len(array) == count and array.size and array.dtype.kind in "biuf"
    return array if usable else None


def _unanimous(answers: list[T | None]) -> T | None:
    first = answers[0] if answers else None
    return first if all(answer == first for answer in answers) else None
