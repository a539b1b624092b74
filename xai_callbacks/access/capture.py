"""`capture`: cut the graph at one layer, so that a forward pass costs no more than without gradients up to there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xai_callbacks.access.subject import Subject, find_module
from xai_callbacks.access.trace import first_tensor, with_first_tensor
from xai_callbacks.errors import TargetLayerError

__all__ = ["Captured", "Tapped", "capture", "tap"]


@dataclass
class Captured:
    """What a hooked layer saw; filled by the forward pass inside the `with`."""

    tensors: list[Tensor] = field(default_factory=list)

    def only(self, name: str) -> Tensor:
        """The one tensor captured.

        Raises:
            TargetLayerError: The layer did not run, or ran several times.
        """
        if len(self.tensors) != 1:
            raise TargetLayerError(
                f"Expected the layer `{name}` to run once in a forward pass, but it ran {len(self.tensors)} times. "
                "Name a layer that runs once with `target_layer=`."
            )
        return self.tensors[0]


class Tapped(NamedTuple):
    """One call of a tapped module."""

    given: Tensor
    output: Tensor


@contextmanager
def capture(subject: Subject, name: str) -> Iterator[Captured]:
    """Replace the output of a layer by a new leaf of the graph, and record from there on.

    Inside, run `subject` under `torch.no_grad()`: everything up to the layer then costs what inference costs, and the
    hook switches gradients on for what follows. The model goes on with a clone of the leaf, so that an in-place
    operation on it does not change what was captured.

    Args:
        subject: The model.
        name: Dotted name of the layer.
    """
    captured = Captured()

    def cut(_module: nn.Module, _given: tuple[object, ...], output: object) -> object:
        tensor = first_tensor(output)
        if tensor is None:
            raise TargetLayerError(
                f"Expected the layer `{name}` to return a tensor, or a tuple or list that begins with one, but got "
                f"{type(output).__name__}."
            )
        leaf = tensor.detach().requires_grad_(True)
        captured.tensors.append(leaf)
        torch.set_grad_enabled(True)
        return with_first_tensor(output, leaf.clone())

    handle = find_module(subject.module, name, "target_layer").register_forward_hook(cut)
    grad_mode = torch.is_grad_enabled()
    try:
        yield captured
    finally:
        handle.remove()
        torch.set_grad_enabled(grad_mode)


@contextmanager
def tap(subject: Subject, name: str, *, detach: bool = True) -> Iterator[list[Tapped]]:
    """Record what goes into and comes out of a module at every call, without changing anything.

    Args:
        subject: The model.
        name: Dotted name of the module.
        detach: Whether to cut what is recorded off the graph.
    """
    calls: list[Tapped] = []

    def note(_module: nn.Module, given: tuple[object, ...], output: object) -> None:
        before, after = first_tensor(given), first_tensor(output)
        if before is not None and after is not None:
            # A copy, since what follows may change either in place.
            calls.append(Tapped(before.detach().clone(), after.detach().clone()) if detach else Tapped(before, after))

    handle = find_module(subject.module, name, "head").register_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
