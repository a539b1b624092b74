"""Calls of modules, recorded while a model runs, and the axis along which images lie in them; found, not guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves  # private; torch.func itself speaks in these trees

from xai_callbacks.access.watching import module_names
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.randomness import isolated_rng

__all__ = ["Arguments", "Axes", "Call", "Edge", "Key", "find_axes", "precise", "recording", "tensors_in"]

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments."""

Edge = tuple[Node, int]
"""A place of a tensor in the autograd graph: a node, and which of its outputs."""

Key = tuple[str, int]
"""Name of a module, empty for the root, and how many times it had run before."""

_Shapes = list[torch.Size]

# Stands for an axis that grows with the images but is not their number: images and positions in one.
_FOLDED = -1


@dataclass(eq=False)
class Call:
    """One call of one module, its arguments until released, and the gradients of its outputs as they arrive."""

    key: Key
    module: nn.Module
    arguments: Arguments
    tensors: list[Tensor]  # those among the arguments
    versions: tuple[int, ...]  # version counter of each, to notice that one is overwritten later
    inputs: frozenset[Node | int]  # places of these in the graph: nodes, and leaves by `id`
    outputs: tuple[Edge | None, ...]  # places of the tensors that came out; None for one without gradient
    gradients: list[Tensor | None]  # of the summed losses, for each of these

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.key[0]

    def overwritten(self) -> bool:
        """Whether an argument was changed in place since."""
        return tuple(tensor._version for tensor in self.tensors) != self.versions

    def release(self) -> None:
        """Let go of the arguments, so that a backward pass frees memory as it proceeds."""
        self.arguments, self.tensors = ((), {}), []

    def forget(self) -> None:
        """Let go of the graph: its nodes hold hooks that hold this call, a circle that Python cannot see to collect."""
        self.release()
        self.inputs, self.outputs, self.gradients = frozenset(), (), []


class Axes(NamedTuple):
    """Axis of the images in every tensor that goes into a call or comes out of it; None where images share it."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    def clear(self) -> bool:
        """Whether the images can be told apart in everything."""
        return _FOLDED not in self.inputs + self.outputs and any(axis is not None for axis in self.outputs)


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):  # what most layers return, and worth a way of its own
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def precise(tensor: Tensor) -> Tensor:
    """Float32 at least: squares of half-precision gradients underflow. What is no floating-point tensor stays."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


@contextmanager
def _hooked(
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
    """Record the calls of the named modules in `calls` while the model runs inside; `Call.forget` each in the end.

    Gradients may reach `arrive` after leaving: it is called with each tensor that came out of a call, by its number, as
    its gradient is complete, that of the tensor as the module returned it, whatever was done to it in place.
    """

    def record(key: Key, module: nn.Module, arguments: Arguments, output: object) -> None:
        args, kwargs = arguments
        went_in = tensors_in(args[0] if len(args) == 1 and not kwargs else arguments)
        came_out = tensors_in(output)
        versions = tuple(tensor._version for tensor in went_in)
        inputs = frozenset(id(tensor) if tensor.grad_fn is None else tensor.grad_fn for tensor in went_in)
        outputs = tuple(None if each.grad_fn is None else (each.grad_fn, each.output_nr) for each in came_out)
        call = Call(key, module, arguments, went_in, versions, inputs, outputs, [None] * len(came_out))
        calls.append(call)
        for index, tensor in enumerate(came_out):
            if tensor.grad_fn is not None:
                tensor.register_hook(partial(arrive, call, index))  # type: ignore[no-untyped-call]

    with _hooked(root, names, record):
        yield


def find_axes(root: nn.Module, call: Callable[[Tensor], object], images: Tensor, names: set[str]) -> dict[Key, Axes]:
    """Run the model on two and on three images and see what grows, at every call of the named modules.

    Raises:
        ConfigurationError: What the model says of an image depends on the images beside it.
    """
    few, few_outputs = _shapes(root, call, images, 2, names)
    more, more_outputs = _shapes(root, call, images, 3, names)
    for a, b in zip(tensors_in(few_outputs), tensors_in(more_outputs), strict=False):
        comparable = a.dim() > 0 and a.shape[0] == 2 and b.shape[0] == 3 and a.is_floating_point()
        if comparable and not _nearly_same(a.detach(), b.detach()[:2]):
            raise ConfigurationError(
                "Expected the model to treat every image by itself, but what it says of an image changes with the "
                "images beside it, so that no gradient belongs to one image. Normalise by running statistics or within "
                "an image."
            )
    return {key: Axes(*map(_growing, few[key], more[key])) for key in few.keys() & more.keys()}


def _shapes(
    root: nn.Module, call: Callable[[Tensor], object], images: Tensor, count: int, names: set[str]
) -> tuple[dict[Key, tuple[_Shapes, _Shapes]], object]:
    """Shapes of what goes in and comes out, by call, and what the model returns."""
    found: dict[Key, tuple[_Shapes, _Shapes]] = {}

    def note(key: Key, _module: nn.Module, arguments: Arguments, output: object) -> None:
        found[key] = ([each.shape for each in tensors_in(arguments)], [each.shape for each in tensors_in(output)])

    # A model that draws random numbers must draw the same ones both times. With gradients, as in the pass to come: some
    # modules call no parts of theirs without.
    with isolated_rng(), torch.enable_grad(), _hooked(root, names, note):
        outputs = call(images[torch.arange(count, device=images.device) % images.shape[0]])
    return found, outputs


def _growing(few: _Shapes, more: _Shapes) -> tuple[int | None, ...]:
    return tuple(map(_axis, few, more)) if len(few) == len(more) else (_FOLDED,)


def _axis(few: torch.Size, more: torch.Size) -> int | None:
    if few == more:
        return None
    growing = [axis for axis, sizes in enumerate(zip(few, more, strict=False)) if sizes[0] != sizes[1]]
    fits = len(few) == len(more) and len(growing) == 1 and (few[growing[0]], more[growing[0]]) == (2, 3)
    return growing[0] if fits else _FOLDED


def _nearly_same(few: Tensor, more: Tensor) -> bool:
    """Up to what kernels for other batch sizes round differently; NaN and inf are for others to judge."""
    both = few.isfinite() & more.isfinite()
    few, more = few[both], more[both]
    largest = float(more.abs().amax()) if more.numel() else 0.0
    return torch.allclose(few, more, rtol=1e-2, atol=1e-3 * largest)
