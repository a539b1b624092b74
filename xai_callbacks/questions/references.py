"""How questions name outputs: by a word such as `predicted`, by index, or by the name of a class, label or value."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.tasks import Task

__all__ = ["Reference", "check_reference", "resolve", "to_reference"]

Reference = str | int
"""A word, an index, or a name."""


def to_reference(argument: str, value: object, words: Collection[str]) -> Reference:
    """Check the kind of a reference at construction.

    Raises:
        ConfigurationError: It is neither an index nor a word or name.
    """
    if isinstance(value, str) and value.strip():
        return value
    index = whole_number(value)
    if index is not None and index >= 0:
        return index
    options = ", ".join(repr(word) for word in words)
    raise ConfigurationError(
        f"Expected `{argument}` to be {options}, an index >= 0, or the name of a class, label or value, but got "
        f"{value!r}."
    )


def check_reference(argument: str, reference: Reference, words: Collection[str], task: Task, *, labelled: bool) -> None:
    """Check a reference against a task.

    Raises:
        ConfigurationError: There is no such output, or no labels.
    """
    if reference == "label" and not labelled:
        raise ConfigurationError(
            f"Expected probes with `labels` because `{argument}` is 'label', but got none. Give the probes labels or "
            f"ask about a {task.noun} by index or name."
        )
    if reference in words:
        return
    try:
        task.index(argument, reference)
    except ConfigurationError as error:
        options = f" Or write {' or '.join(repr(word) for word in words)}." if isinstance(reference, str) else ""
        raise ConfigurationError(f"{error}{options}") from None


def resolve(reference: Reference, outputs: Tensor, truth: Tensor | None, task: Task) -> Tensor:
    """The output that a reference means for each image, `(N,)` int64, -1 for none."""
    if reference == "predicted":
        return task.most_probable(outputs)
    if reference == "label":
        if truth is None:
            raise ConfigurationError("Expected probes with `labels` for a question about the label, but got none.")
        return task.truth_of(truth, outputs)
    index = task.index("of", reference)
    return torch.full((outputs.shape[0],), index, dtype=torch.int64, device=outputs.device)


def whole_number(value: object) -> int | None:
    """The whole number, also one of NumPy or torch; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:  # arrays and tensors have `__index__` but not all of them are one whole number
        return None
