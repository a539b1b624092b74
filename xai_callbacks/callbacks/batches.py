"""What a user's validation batch says of its images: labels and cues, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError

BatchReader = int | str | Callable[[Any], object]
"""Where in a batch something is: a key, an index, a dotted path of keys, indexes and attributes, or a function."""

# Names under which batches commonly hold labels, most specific first.
_LABEL_NAMES = ("label", "labels", "target", "targets", "y")


def read_labels(batch: object, label: BatchReader | None) -> Tensor:
    """The labels of a batch, see `read_integers`; without `label`, entry 1 of a tuple or list, or the usual names."""
    if label is None:
        named = _named(batch)
        second = 1 if isinstance(batch, Sequence) and len(batch) >= 2 else None
        label = next((name for name in _LABEL_NAMES if name in named), second)
    if label is None:
        raise ConfigurationError(
            f"Expected a batch with labels at index 1, or under one of {', '.join(_LABEL_NAMES)}, but got "
            f"{_describe(batch)}. Say where they are with `label=`: a key, an index, or a function of the batch."
        )
    return read_integers(batch, label, "label")


def read_integers(batch: object, where: BatchReader, argument: str) -> Tensor:
    """One integer an image, `(N,)` int64, on the device where the batch has them.

    Booleans, whole floats, `(N, 1)` and lists will do. Where there is no such thing, or it is something else, a
    `ConfigurationError` names the `argument` and lists what the batch has.
    """
    found = _found(batch, where, argument)
    try:
        values = found.detach() if isinstance(found, Tensor) else torch.as_tensor(found)
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim != 1 or values.is_complex():
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"Expected `{argument}={where!r}` to lead to one integer an image, (N,), but got {_describe(found)}. Pass "
            "a function of the batch that returns them."
        ) from error
    if values.is_floating_point() and not bool((values == values.trunc()).all()):
        raise ConfigurationError(
            f"Expected `{argument}={where!r}` to lead to whole numbers, but got fractions or NaN. Turn them into "
            "classes with a function of the batch."
        )
    return values.long()


def _found(batch: object, where: BatchReader, argument: str) -> object:
    if callable(where):
        try:
            return where(batch)
        except Exception as error:
            raise ConfigurationError(
                f"Expected `{argument}`, a function, to read a batch, but it raised {type(error).__name__}: {error}. "
                f"The batch is {_describe(batch)}."
            ) from error
    whole = isinstance(where, int) or (isinstance(batch, Mapping) and where in batch)  # a key may hold dots itself
    try:
        return reduce(_entry, [where] if whole else str(where).split("."), batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"Expected `{argument}` to be a key, index or path in the validation batch, but got {where!r} for "
            f"{_describe(batch)}. With several validation dataloaders, `dataloader=` chooses one."
        ) from error


def _entry(found: object, part: str | int) -> object:
    if isinstance(found, Mapping):
        return found[part]
    if isinstance(part, str) and not part.isdecimal():
        return getattr(found, part)
    if isinstance(found, Sequence):
        return found[int(part)]
    raise TypeError  # such as the third image of a tensor, which could pass for something


def _named(batch: object) -> Mapping[Any, object]:
    return batch if isinstance(batch, Mapping) else batch._asdict() if hasattr(batch, "_asdict") else {}


def _describe(item: object) -> str:
    kind = type(item).__name__
    if isinstance(item, Tensor):
        return f"a tensor {tuple(item.shape)}"
    if named := _named(item):
        return f"a {kind} of {{{', '.join(f'{key}: {_describe(value)}' for key, value in named.items())}}}"
    if isinstance(item, (list, tuple)):
        return f"a {kind} of [{', '.join([*map(_describe, item[:6]), *(['...'] if len(item) > 6 else [])])}]"
    return repr(item) if item is None or isinstance(item, (str, int, float)) else f"a {kind}"
