"""`capture`: cut the graph at a few tensors, so that a forward pass costs no more than inference up to the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from xai_callbacks.access.subject import Subject, find_module
from xai_callbacks.access.watching import Returned, watching
from xai_callbacks.errors import TargetLayerError

__all__ = ["Tapped", "capture", "tap"]


class Tapped(NamedTuple):
    """One call of a tapped module."""

    given: Tensor
    output: Tensor


class Captured(dict[str, list[Tensor]]):
    """Captured tensors by the name of their layer; filled by the forward pass inside the `with`."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; raises a `TargetLayerError` where a layer did not run, or ran several times."""
        for name, found in self.items():
            if len(found) != 1:
                raise TargetLayerError(
                    f"Expected the layer `{name}` to run once in a forward pass, but it ran {len(found)} times. Name a "
                    f"layer that runs once with `target_layer=`, or one of its calls, such as '{name}#0'."
                )
        return {name: tensor for name, (tensor,) in self.items()}


@contextmanager
def capture(subject: Subject, names: Sequence[str]) -> Iterator[Captured]:
    """Record tensors by their names, see `Address`, and the graph from the first of them on.

    Inside, run `subject` under `torch.no_grad()`: everything up to the first tensor then costs what inference costs,
    and gradients are switched on for what follows. The model goes on with copies, so that an in-place operation does
    not change what was captured. Tensors that come later are part of the graph of those before.
    """
    captured = Captured({name: [] for name in names})

    def cut(returned: Returned) -> Tensor:
        tensor = returned.tensor
        kept = tensor.clone() if returned.in_place else tensor
        if not kept.requires_grad:
            kept = kept.detach().requires_grad_(True)
        torch.set_grad_enabled(True)
        for name in returned.names:
            captured[name].append(kept)
        if not returned.in_place:
            return kept.clone()
        # What changed its input in place may have been called for that alone, so the input must carry the graph on. The
        # content stays the same, and what was saved of it for backward passes remains valid.
        with _unsafe_preserve_version_counter(tensor):
            return tensor.copy_(kept)

    grad_mode = torch.is_grad_enabled()
    try:
        with watching(subject.module, cut, names):
            yield captured
    finally:
        torch.set_grad_enabled(grad_mode)


@contextmanager
def tap(subject: Subject, name: str, *, detach: bool = True) -> Iterator[list[Tapped]]:
    """Record copies of what goes into and comes out of a module at every call, off the graph if `detach`."""
    calls: list[Tapped] = []

    def note(_module: nn.Module, given: tuple[object, ...], output: object) -> None:
        before = given[0] if given else None
        if isinstance(before, Tensor) and isinstance(output, Tensor):
            # A copy, since what follows may change either in place.
            calls.append(Tapped(before.detach().clone(), output.detach().clone()) if detach else Tapped(before, output))

    handle = find_module(subject.module, name, "head").register_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
