"""What a dataset says of itself, so that images need not be decoded to learn it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

__all__ = ["known_class_names", "known_column", "known_normalisation"]

T = TypeVar("T")

# A transform that contains itself must not hang us; real ones nest two or three levels.
MAX_DEPTH = 8
# Classes that normalise and tell `mean` and `std`; by name, so that transforms of other libraries count too.
NORMALISERS = ("Normalize", "ImageClassification")


def known_column(dataset: Any, key: int | str, attributes: Sequence[str]) -> npt.NDArray[Any] | None:
    """Return one number for each item, `(N,)`, if the dataset tells it without reading items.

    Args:
        dataset: `TensorDataset`s, datasets with one of `attributes`, and `Subset`s and `ConcatDataset`s of such.
        key: Where the number is in an item (for `TensorDataset`).
        attributes: Names under which datasets keep the column.
    """
    if isinstance(dataset, Subset):
        base = known_column(dataset.dataset, key, attributes)
        return None if base is None else base[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_column(part, key, attributes) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        inside = isinstance(key, int) and -len(dataset.tensors) <= key < len(dataset.tensors)
        return _numbers(dataset.tensors[int(key)], len(dataset)) if inside else None
    for attribute in attributes:
        column = _numbers(getattr(dataset, attribute, None), len(dataset))
        if column is not None:
            return column
    return None


def known_class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return `dataset.classes`, also through `Subset` and `ConcatDataset`; of synonyms the first.

    A dataset with a `target_transform` may give its labels another meaning, so its names are not used.
    """
    if isinstance(dataset, Subset):
        return known_class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _unanimous([known_class_names(part) for part in dataset.datasets])
    classes = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is not None or not isinstance(classes, (list, tuple)):
        return None
    names = tuple(name[0] if isinstance(name, (list, tuple)) and name else name for name in classes)
    usable = all(isinstance(name, str) and name.strip() and name.isprintable() for name in names)
    return names if names and usable else None


def known_normalisation(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the one `Normalize` in the transform of the dataset; None if none or several."""
    if isinstance(dataset, Subset):
        return known_normalisation(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _unanimous([known_normalisation(part) for part in dataset.datasets])
    transforms = (getattr(dataset, "transform", None), getattr(dataset, "transforms", None))
    found = {pair for transform in transforms for pair in _normalisations(transform, MAX_DEPTH)}
    return found.pop() if len(found) == 1 else None


def _normalisations(transform: Any, depth: int) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    if transform is None or depth == 0:
        return
    if type(transform).__name__ in NORMALISERS:
        mean, std = _floats(getattr(transform, "mean", None)), _floats(getattr(transform, "std", None))
        if mean and std:
            yield mean, std
        return
    parts = getattr(transform, "transforms", None)
    children = list(parts) if isinstance(parts, (list, tuple, nn.ModuleList)) else []
    children.append(getattr(transform, "transform", None))
    if isinstance(transform, nn.Sequential):
        children.extend(transform)
    for child in children:
        yield from _normalisations(child, depth - 1)


def _floats(values: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(value) for value in (values if np.ndim(values) else [values]))
    except (TypeError, ValueError):
        return None


def _numbers(column: Any, count: int) -> npt.NDArray[Any] | None:
    if not isinstance(column, (list, tuple, np.ndarray, Tensor)):
        return None
    try:
        array = column.detach().cpu().numpy() if isinstance(column, Tensor) else np.asarray(column)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.shape == (count, 1):
        array = array[:, 0]
    return array if array.shape == (count,) and array.dtype.kind in "biuf" else None


def _unanimous(answers: list[T | None]) -> T | None:
    first = answers[0] if answers else None
    return first if all(answer == first for answer in answers) else None
