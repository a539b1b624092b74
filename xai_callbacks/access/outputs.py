"""What a model returns, read as one float tensor `(N, K)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import OutputError
from xai_callbacks.tasks import Task

__all__ = ["OutputSelector", "select_output"]

OutputSelector = str | int | Callable[[object], Tensor]

# The one name that tells logits from whatever stands beside them.
_LOGITS = "logits"


def select_output(raw: object, output: OutputSelector | None, batch: int, task: Task) -> Tensor:
    """Find the outputs in what a model returned.

    Args:
        raw: A tensor, array, tuple, list, mapping, dataclass, or object with attributes (such as a Hugging Face
            `ModelOutput`).
        output: A key, attribute or index, or a callable from `raw` to the tensor; None chooses: the tensor itself, the
            only tensor of shape `(N, K)` or `(N,)`, of several the only one of a width that the probes accept, or the
            one named `logits`.
        batch: Number of images N that went in.
        task: What the probes say of the outputs.

    Returns:
        Shape `(N, K)`, float32, on the graph of the model; `(N,)` becomes `(N, 1)`.

    Raises:
        OutputError: Nothing fits, or several things do; the message lists what the model returned.
    """
    found = _automatic(raw, batch, task) if output is None else _chosen(raw, output)
    how = "the automatic choice" if output is None else f"`output={output!r}`"
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if not isinstance(found, Tensor):
        raise OutputError(
            f"Expected `output` to lead to a tensor of shape (N, K), but {how} led to {_describe(found)} in "
            f"{_describe(raw)}. Pass `output=` as a key, an index, or a callable."
        )
    if not found.is_floating_point():
        raise OutputError(
            f"Expected the model outputs to be logits, probabilities or values, but {how} gave {found.dtype} "
            f"in {_describe(raw)}, as class numbers are. Let the model return what it chooses them by."
        )
    if found.ndim == 0 and batch == 1:  # of a single image, all axes may have been squeezed away
        found = found[None]
    if found.ndim == 1 and found.shape[0] == batch:
        found = found[:, None]
    if found.ndim != 2 or found.shape[0] != batch or found.shape[1] == 0:
        raise OutputError(
            f"Expected the model outputs to have shape (N, K) with N = {batch}, but {how} gave "
            f"{tuple(found.shape)} in {_describe(raw)}. Pass `output=` as a key, an index, or a callable that returns "
            "the logits; `model=` says which part of the model classifies images."
        )
    return found.float()


def _automatic(raw: object, batch: int, task: Task) -> object:
    if isinstance(raw, (Tensor, np.ndarray)):
        return raw
    fitting = {key: item for key, item in _parts(raw).items() if isinstance(item, Tensor) and _fits(item, batch)}
    accepted = {key: item for key, item in fitting.items() if task.accepts(item.shape[1:].numel())}
    for some in (fitting, accepted):
        if len(some) == 1:
            return next(iter(some.values()))
    if _LOGITS in accepted or not fitting:
        return accepted.get(_LOGITS)
    several = " and ".join(f"{tuple(item.shape)} at {key!r}" for key, item in list(fitting.items())[:4])
    fits = f"{'none' if not accepted else 'more than one'} of them fits {task.wanted}"
    keys = " or ".join(f"`output={key!r}`" for key in list(accepted or fitting)[:4])
    raise OutputError(
        f"Expected one tensor of outputs (N, K), but the model returns {several}, and {fits}. Say which holds the "
        f"outputs that the probes are about: {keys}."
    )


def _fits(item: Tensor, batch: int) -> bool:
    return item.ndim in (1, 2) and item.shape[0] == batch and item.is_floating_point() and item.numel() > 0


def _chosen(raw: object, output: OutputSelector) -> object:
    if callable(output):
        return output(raw)
    if isinstance(raw, (Tensor, np.ndarray)):
        # `raw[1]` would be the second image of the batch, which could pass for one value an image.
        raise OutputError(
            f"Expected `output` to be left out, or a callable, for a model that returns a tensor, but got {output!r} "
            f"for {_describe(raw)}."
        )
    try:
        if isinstance(output, str) and not isinstance(raw, Mapping):
            return getattr(raw, output)
        return raw[output]  # type: ignore[index]  # any subscript the user's type accepts
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise OutputError(
            f"Expected `output` to be a key, attribute or index of what the model returns, but got {output!r} for "
            f"{_describe(raw)}."
        ) from error


def _is_row(raw: object) -> bool:
    return isinstance(raw, Sequence) and not isinstance(raw, str) and not hasattr(raw, "_fields")


def _parts(raw: Any) -> dict[Any, object]:
    """The parts of what was returned, by the `output=` that leads to each."""
    if _is_row(raw):
        return dict(enumerate(raw))
    if isinstance(raw, Mapping):
        return dict(raw.items())
    if hasattr(raw, "_asdict"):
        return dict(raw._asdict())
    if is_dataclass(raw) and not isinstance(raw, type):
        return {field.name: getattr(raw, field.name) for field in fields(raw)}
    return dict(getattr(raw, "__dict__", {}))


def _describe(item: object) -> str:
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{'a tensor' if isinstance(item, Tensor) else 'an array'} of shape {tuple(item.shape)}"
    if item is None or isinstance(item, (str, int, float)):
        return repr(item)
    parts = {key: _describe(value) for key, value in _parts(item).items()}
    if _is_row(item):
        return f"a {type(item).__name__} of [{', '.join(parts.values())}]"
    listed = ", ".join(f"{key}: {part}" for key, part in parts.items())
    return f"a {type(item).__name__} with {{{listed}}}" if parts else f"a {type(item).__name__}"
