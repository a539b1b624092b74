"""Calls of modules, recorded while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves  # private; torch.func itself speaks in these trees

from xai_callbacks.access.watching import module_names

__all__ = ["Arguments", "Call", "Edge", "Key", "hooked", "precise", "recording", "tensors_in"]

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments."""

Edge = tuple[Node, int]
"""Where a tensor stands in the autograd graph: a node, and which of its outputs."""

Key = tuple[str, int]
"""Name of a module, empty for the root, and how many times it had run before."""


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        key: Name of the module, and which of its calls.
        module: The module.
        arguments: What went in; empty once released.
        tensors: The tensors among the arguments; none once released.
        versions: Version counter of each, to notice that one is overwritten later.
        inputs: Where these stand in the graph: nodes, and leaves by `id`.
        outputs: Where each tensor that came out stands in the graph; None for one without gradient.
        gradients: Gradient of the summed losses for each tensor that came out, as they arrive.
    """

    key: Key
    module: nn.Module
    arguments: Arguments
    tensors: list[Tensor]
    versions: tuple[int, ...]
    inputs: frozenset[Node | int]
    outputs: tuple[Edge | None, ...]
    gradients: list[Tensor | None]

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.key[0]

    def overwritten(self) -> bool:
        """Whether an argument was changed in place since."""
        return tuple(tensor._version for tensor in self.tensors) != self.versions

    def local_name(self, parameter: Tensor) -> str:
        """The name of a parameter as seen from the module."""
        return next(name for name, each in self.module.named_parameters(remove_duplicate=False) if each is parameter)

    def release(self) -> None:
        """Let go of the arguments, so that a backward pass frees memory as it proceeds."""
        self.arguments, self.tensors = ((), {}), []

    def forget(self) -> None:
        """Let go of the graph: its nodes hold hooks that hold this call, a circle that Python cannot see to collect."""
        self.release()
        self.inputs, self.outputs, self.gradients = frozenset(), (), []


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):  # what most layers return, and worth a way of its own
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def precise(tensor: Tensor) -> Tensor:
    """Float32 at least: squares of half-precision gradients underflow. What is no floating-point tensor stays."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


@contextmanager
def hooked(
    root: nn.Module, names: set[str], hook: Callable[[Key, nn.Module, Arguments, object], None]
) -> Iterator[None]:
    """Show `hook` every call of the named modules inside, as it returns and before any hook of the user's.

    Scripted modules take no hooks: what they hold belongs to the module around them.
    """
    counts: Counter[str] = Counter()

    def after(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        hook((name, counts[name]), module, (args, kwargs), output)
        counts[name] += 1

    with ExitStack() as stack:
        for name, module in module_names(root).items():
            if name in names and not isinstance(module, torch.jit.ScriptModule):
                handle = module.register_forward_hook(partial(after, name), prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
        yield


@contextmanager
def recording(
    root: nn.Module, names: set[str], calls: list[Call], arrive: Callable[[Call, int, Tensor], None]
) -> Iterator[None]:
    """Record the calls of the named modules in `calls` while the model runs inside.

    Gradients may reach `arrive` after leaving: it is called with each tensor that came out of a call, by its number,
    as its gradient is complete. In-place operations that follow do not matter: the gradient is that of the tensor as
    the module returned it. `Call.forget` each in the end.
    """

    def record(key: Key, module: nn.Module, arguments: Arguments, output: object) -> None:
        args, kwargs = arguments
        went_in = tensors_in(args[0] if len(args) == 1 and not kwargs else arguments)
        came_out = tensors_in(output)
        call = Call(
            key,
            module,
            arguments,
            went_in,
            tuple(tensor._version for tensor in went_in),
            frozenset(id(tensor) if tensor.grad_fn is None else tensor.grad_fn for tensor in went_in),
            tuple(None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr) for tensor in came_out),
            [None] * len(came_out),
        )
        calls.append(call)
        for index, tensor in enumerate(came_out):
            if tensor.grad_fn is not None:
                tensor.register_hook(partial(arrive, call, index))  # type: ignore[no-untyped-call]

    with hooked(root, names, record):
        yield
