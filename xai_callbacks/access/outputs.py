"""What a model returns, read as one float tensor `(N, K)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from xai_callbacks.errors import OutputError

__all__ = ["OutputSelector", "binary_logits", "looks_like_probabilities", "select_output"]

OutputSelector = str | int | Callable[[object], Tensor]

# Names under which classifiers commonly return their logits, most specific first.
_USUAL_NAMES = ("logits", "out", "output", "outputs", "pred", "preds", "prediction", "predictions", "y_hat", "scores")


def select_output(raw: object, output: OutputSelector | None, batch: int) -> Tensor:
    """Find the outputs in what a model returned.

    Args:
        raw: A tensor, tuple, list, mapping, dataclass, or object with attributes (such as a Hugging Face
            `ModelOutput`).
        output: A key, attribute or index, or a callable from `raw` to the tensor; None chooses: the tensor itself, the
            usual names (`logits` first), or else the only tensor of shape `(N, K)` or `(N,)`; of a tuple or list, the
            first such tensor.
        batch: Number of images N that went in.

    Returns:
        Shape `(N, K)`, float32, on the graph of the model; `(N,)` becomes `(N, 1)`.

    Raises:
        OutputError: Nothing fits; the message lists what the model returned.
    """
    found = _automatic(raw, batch) if output is None else _chosen(raw, output)
    if not isinstance(found, Tensor):
        raise OutputError(
            f"Expected `output` to lead to a tensor of shape (N, K), but {_how(output)} led to {_describe(found)} in "
            f"{_describe(raw)}. Pass `output=` as a key, an index, or a callable."
        )
    if found.ndim == 1 and found.shape[0] == batch:
        found = found[:, None]
    if found.ndim != 2 or found.shape[0] != batch or found.shape[1] == 0:
        raise OutputError(
            f"Expected the model outputs to have shape (N, K) with N = {batch}, but {_how(output)} gave "
            f"{tuple(found.shape)} in {_describe(raw)}. Pass `output=` as a key, an index, or a callable that returns "
            "the logits."
        )
    return found.float()


def binary_logits(logit: Tensor) -> Tensor:
    """Two logits `(-s/2, s/2)` for one sigmoid logit `s`, shape `(N, 1)` to `(N, 2)`.

    Their softmax is `(1 - sigmoid(s), sigmoid(s))` and their difference is `s`, so every question keeps its meaning and
    both classes can be asked about.
    """
    return torch.cat([-logit, logit], dim=1) / 2


def looks_like_probabilities(outputs: Tensor, precision: torch.dtype = torch.float32) -> bool:
    """Whether every row of `(N, K)`, K >= 2, is a distribution: non-negative and summing to 1.

    The sum may be off by 1e-3, or by one unit in the last place of `precision`, the type the model computes in.
    """
    values = outputs.detach()
    if values.shape[1] < 2 or not bool((values >= 0).all()):
        return False
    return bool(((values.sum(dim=1) - 1).abs() < max(1e-3, torch.finfo(precision).eps)).all())


def _automatic(raw: object, batch: int) -> object:
    if isinstance(raw, Tensor):
        return raw
    if isinstance(raw, Sequence) and not isinstance(raw, str) and not hasattr(raw, "_fields"):
        return next((item for item in raw if _fits(item, batch)), None)
    named = _named(raw)
    for name in _USUAL_NAMES:
        if _fits(named.get(name), batch):
            return named[name]
    fitting = [item for item in named.values() if _fits(item, batch)]
    return fitting[0] if len(fitting) == 1 else None


def _chosen(raw: object, output: OutputSelector) -> object:
    if callable(output):
        return output(raw)
    if isinstance(raw, Tensor):
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


def _fits(item: object, batch: int) -> bool:
    return isinstance(item, Tensor) and item.ndim in (1, 2) and item.shape[0] == batch and item.is_floating_point()


def _named(raw: object) -> dict[str, object]:
    if isinstance(raw, Mapping):
        return {str(key): value for key, value in raw.items()}
    if hasattr(raw, "_asdict"):
        return dict(raw._asdict())
    if is_dataclass(raw) and not isinstance(raw, type):
        return {field.name: getattr(raw, field.name) for field in fields(raw)}
    return dict(getattr(raw, "__dict__", {}))


def _how(output: OutputSelector | None) -> str:
    return "the automatic choice" if output is None else f"`output={output!r}`"


def _describe(item: object) -> str:
    if isinstance(item, Tensor):
        return f"a tensor of shape {tuple(item.shape)}"
    if isinstance(item, Sequence) and not isinstance(item, str) and not hasattr(item, "_fields"):
        return f"a {type(item).__name__} of [{', '.join(_describe(part) for part in item)}]"
    if named := _named(item):
        parts = ", ".join(f"{key}: {_describe(value)}" for key, value in named.items())
        return f"a {type(item).__name__} with {{{parts}}}"
    return f"{item!r}" if item is None or isinstance(item, (str, int, float)) else f"a {type(item).__name__}"
