"""Knowledge of a dataset about itself, so that images need not be decoded to learn it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

T = TypeVar("T")
Column = npt.NDArray[Any]
Channels = tuple[float, ...]

MAX_DEPTH = 8  # so that a transform that contains itself does not hang us
# Classes that normalise and tell `mean` and `std`; by name, so that transforms of other libraries count too.
NORMALISERS = ("Normalize", "ImageClassification")


def told(ask: Callable[..., T | None], dataset: Any, *arguments: Any) -> T | None:
    """What a dataset tells; None where it fails, such as on a property that raises: the items tell what is wrong."""
    try:
        return ask(dataset, *arguments)
    except Exception:  # whatever foreign code raises
        return None


def known_column(dataset: Any, key: int | str, attributes: Sequence[str]) -> Column | None:
    """Return numbers `(N,)` or `(N, K)` that a dataset keeps under `attributes`, or has at `key` of tensors."""
    if isinstance(dataset, Subset):
        base = known_column(dataset.dataset, key, attributes)
        return None if base is None else base[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_column(part, key, attributes) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    found = [getattr(dataset, attribute, None) for attribute in attributes]
    if isinstance(dataset, TensorDataset):
        found = [dataset.tensors[key]] if isinstance(key, int) else []
    columns = (_numbers(each, len(dataset)) for each in found if each is not None)
    return next((column for column in columns if column is not None), None)


def known_class_names(dataset: Any) -> tuple[str, ...] | None:
    """`dataset.classes`, also through `Subset` and `ConcatDataset`; of synonyms the first.

    A dataset with a `target_transform` may give its labels another meaning, so its names are not used.
    """
    if isinstance(dataset, (Subset, ConcatDataset)):
        parts = [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets
        found = {known_class_names(part) for part in parts}
        return found.pop() if len(found) == 1 else None
    classes = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is not None or not isinstance(classes, (list, tuple)):
        return None
    names = tuple(name[0] if isinstance(name, (list, tuple)) and name else name for name in classes)
    usable = all(isinstance(name, str) and name.strip() and name.isprintable() for name in names)
    return names if names and usable else None


def known_normalisation(dataset: Any) -> tuple[Channels, Channels] | None:
    """Return mean and std of the one `Normalize` in the transforms of the dataset; None if none or several."""
    found = set(_normalisations(dataset, MAX_DEPTH))
    return found.pop() if len(found) == 1 else None


def _normalisations(thing: Any, depth: int) -> Iterator[tuple[Channels, Channels]]:
    """Mean and std of each transform that normalises, within a transform or a dataset and what these are made of."""
    if type(thing).__name__ in NORMALISERS:
        yield tuple(map(float, np.ravel(thing.mean))), tuple(map(float, np.ravel(thing.std)))
    elif depth > 0:
        parts: list[Any] = list(thing) if isinstance(thing, nn.Sequential) else []
        for name in ("dataset", "datasets", "transform", "transforms"):
            part = getattr(thing, name, None)
            parts += part if isinstance(part, (list, tuple, nn.ModuleList)) else [part]
        for part in parts:
            yield from _normalisations(part, depth - 1)


def _numbers(column: Any, count: int) -> Column | None:
    if not isinstance(column, (list, tuple, np.ndarray, Tensor)):
        return None
    array = column.detach().cpu().numpy() if isinstance(column, Tensor) else np.asarray(column)
    if array.shape == (count, 1):
        array = array[:, 0]
    usable = array.ndim in (1, 2) and len(array) == count and array.size and array.dtype.kind in "biuf"
    return array if usable else None
