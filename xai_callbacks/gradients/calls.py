"""Calls of modules, recorded while a model runs, and the axis along which images lie in them; found, not guessed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from xai_callbacks.access.trace import Edge, tensors_in
from xai_callbacks.access.watching import module_names
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.randomness import isolated_rng

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # positional and keyword
Key = tuple[str, int]  # name of a module, empty for the root, and how many times it had run before
_FOLDED = -1  # stands for an axis that grows with the images but is not their number: images and positions in one


@dataclass(eq=False)
class Call:
    """One call of one module, its arguments until released, and the gradients of its outputs as they arrive."""

    key: Key
    module: nn.Module
    arguments: Arguments
    tensors: list[Tensor]  # those among the arguments
    versions: list[int]  # version counter of each, to notice that one is overwritten later
    inputs: frozenset[Node | int]  # places of these in the graph: nodes, and leaves by `id`
    outputs: list[Edge | None]  # places of the tensors that came out; None for one without gradient
    gradients: list[Tensor | None]  # of the summed losses, for each of these

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.key[0]

    def release(self) -> None:
        """Let go of the arguments, so that a backward pass frees memory as it proceeds."""
        self.arguments, self.tensors = ((), {}), []

    def forget(self) -> None:
        """Let go of the graph: its nodes hold hooks that hold this call, a circle that Python cannot see to collect."""
        self.release()
        self.inputs, self.outputs, self.gradients = frozenset(), [], []


class Axes(NamedTuple):
    """Axis of the images in every tensor that goes into a call or comes out of it; None where images share it."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    def clear(self) -> bool:
        """Whether the images can be told apart in everything."""
        return _FOLDED not in self.inputs + self.outputs and any(axis is not None for axis in self.outputs)


def precise(tensor: Tensor) -> Tensor:
    """Float32 at least: squares of half-precision gradients underflow. What is no floating-point tensor stays."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


@contextmanager
def _hooked(
    root: nn.Module, names: set[str], hook: Callable[[Key, nn.Module, Arguments, object], None]
) -> Iterator[None]:
    """Show `hook` every call of the named modules inside, as it returns and before any hook of the user's."""
    counts: Counter[str] = Counter()

    def after(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        hook((name, counts[name]), module, (args, kwargs), output)
        counts[name] += 1

    with ExitStack() as stack:
        for name, module in module_names(root).items():
            # Scripted modules take no hooks: what they hold belongs to the module around them.
            if name in names and not isinstance(module, torch.jit.ScriptModule):
                hooked = module.register_forward_hook(partial(after, name), prepend=True, with_kwargs=True)
                stack.enter_context(hooked)
        yield


def recording(
    root: nn.Module, names: set[str], calls: list[Call], arrive: Callable[[Call, int, Tensor], None]
) -> AbstractContextManager[None]:
    """Record the calls of the named modules in `calls` while the model runs inside; `Call.forget` each in the end.

    Gradients may reach `arrive` after leaving: it is called with each tensor that came out of a call, by its number, as
    its gradient is complete, that of the tensor as the module returned it, whatever was done to it in place.
    """

    def record(key: Key, module: nn.Module, arguments: Arguments, output: object) -> None:
        went_in, came_out = tensors_in(arguments), tensors_in(output)
        versions = [tensor._version for tensor in went_in]
        inputs = frozenset(id(tensor) if tensor.grad_fn is None else tensor.grad_fn for tensor in went_in)
        outputs = [None if each.grad_fn is None else (each.grad_fn, each.output_nr) for each in came_out]
        call = Call(key, module, arguments, went_in, versions, inputs, outputs, [None] * len(came_out))
        calls.append(call)
        for index, tensor in enumerate(came_out):
            if tensor.grad_fn is not None:
                tensor.register_hook(partial(arrive, call, index))  # type: ignore[no-untyped-call]

    return _hooked(root, names, record)


def find_axes(root: nn.Module, call: Callable[[Tensor], object], images: Tensor, names: set[str]) -> dict[Key, Axes]:
    """Run the model on two and on three images and see what grows, at every call of the named modules.

    Raises a `ConfigurationError` if what the model says of an image depends on the images beside it.
    """
    shapes: list[dict[Key, tuple[list[torch.Size], list[torch.Size]]]] = [{}, {}]
    outputs = []
    for count, found in zip((2, 3), shapes, strict=True):

        def note(key: Key, _module: nn.Module, *seen: object, found: dict[Key, Any] = found) -> None:
            found[key] = tuple([each.shape for each in tensors_in(tree)] for tree in seen)

        # A model that draws random numbers must draw the same ones both times. With gradients, as in the pass to come:
        # some modules call no parts of theirs without.
        with isolated_rng(), torch.enable_grad(), _hooked(root, names, note):
            outputs.append(tensors_in(call(images[torch.arange(count, device=images.device) % len(images)])))
    for few, more in zip(*outputs, strict=False):
        comparable = few.dim() > 0 and (len(few), len(more)) == (2, 3) and few.is_floating_point()
        if comparable and not _nearly_same(few.detach(), more.detach()[:2]):
            raise ConfigurationError(
                "Expected the model to treat every image by itself, but what it says of an image changes with the "
                "images beside it, so that no gradient belongs to one image. Normalise by running statistics or within "
                "an image."
            )
    of_two, of_three = shapes
    return {key: Axes(*map(_growing, of_two[key], of_three[key])) for key in of_two.keys() & of_three.keys()}


def _growing(few: list[torch.Size], more: list[torch.Size]) -> tuple[int | None, ...]:
    return tuple(map(_axis, few, more)) if len(few) == len(more) else (_FOLDED,)


def _axis(few: torch.Size, more: torch.Size) -> int | None:
    growing = [axis for axis, sizes in enumerate(zip(few, more, strict=False)) if sizes[0] != sizes[1]]
    if few == more:
        return None
    fits = len(few) == len(more) and [(few[axis], more[axis]) for axis in growing] == [(2, 3)]
    return growing[0] if fits else _FOLDED


def _nearly_same(few: Tensor, more: Tensor) -> bool:
    """Up to what kernels for other batch sizes round differently."""
    largest = more.nan_to_num(0, 0, 0).abs().amax() if more.numel() else 0
    return torch.allclose(few, more, rtol=1e-2, atol=1e-3 * float(largest), equal_nan=True)
