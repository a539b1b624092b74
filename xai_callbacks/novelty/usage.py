"""Which call of which module uses which parameter, and along which axis its images lie.

Nothing is guessed. The axis of the images is the one that grows when the model gets three images instead of two. Every
edge of the autograd graph that leads to a parameter must lie between what went into a call and what came out of it;
where it does not, as for weights that several modules share or that a parent uses in their stead, the next larger
module that does contain it is asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves  # private; torch.func itself speaks in these trees
from torch.utils.hooks import RemovableHandle

from xai_callbacks.access.subject import plain_name
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.randomness import isolated_rng

__all__ = ["FOLDED", "Axes", "Use", "assign_uses", "find_axes", "recording", "tensors_in"]

FOLDED = -1
"""Stands for an axis that grows with the images but is not their number: images and positions in one."""

Given = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(eq=False)
class Use:
    """One call of one module.

    Attributes:
        name: Name of the module; empty for the root.
        module: The module.
        turn: How many times the module had run before.
        given: Positional and keyword arguments.
        versions: Version counter of every tensor among them, to notice that one is overwritten later.
        sources: Where each tensor that came out stands in the graph: a node and the number of its output; None for one
            without gradient.
        ends: Where the tensors that went in stand in the graph: nodes, and leaves by `id`.
        gradients: Gradient of the summed losses for each tensor that came out, as they arrive.
    """

    name: str
    module: nn.Module
    turn: int
    given: Given
    versions: tuple[int, ...]
    sources: tuple[tuple[Node, int] | None, ...]
    ends: frozenset[Node | int]
    gradients: list[Tensor | None] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """The tensors among what went in."""
        return tensors_in(self.given)

    def release(self) -> None:
        """Let go of what went in, so that a backward pass frees memory as it proceeds."""
        self.given = ((), {})

    def forget(self) -> None:
        """Let go of the graph: its nodes hold hooks that hold this call, a circle that Python cannot see to collect."""
        self.release()
        self.sources, self.ends, self.gradients = (), frozenset(), []


@dataclass(frozen=True)
class Axes:
    """For every tensor that went into a call, and every one that came out, the axis of the images.

    None: all images share the tensor. `FOLDED`: images and something else lie on one axis.
    """

    given: tuple[int | None, ...]
    came_out: tuple[int | None, ...]

    def clear(self) -> bool:
        """Whether the images can be told apart in everything."""
        return FOLDED not in self.given + self.came_out and any(axis is not None for axis in self.came_out)


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):  # what most layers return, and worth a way of its own
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def recording(
    root: nn.Module, arrived: Callable[[Use, int, Tensor], None], names: set[str], uses: list[Use]
) -> Iterator[None]:
    """Record the calls of the named modules in `uses` while the model runs inside.

    Gradients may reach `arrived` after leaving: it is called with each tensor that came out of a call, by its number,
    as its gradient is complete. In-place operations that follow do not matter: the gradient is that of the tensor as
    the module returned it. `Use.forget` each in the end.
    """
    recorder = _Recorder(arrived, uses)
    handles: list[RemovableHandle] = []
    try:
        for name, module in root.named_modules():
            if plain_name(name) in names:
                hook = partial(recorder.record, plain_name(name))
                handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """Notes calls as they return."""

    def __init__(self, arrived: Callable[[Use, int, Tensor], None], uses: list[Use]) -> None:
        self._arrived = arrived
        self._uses = uses
        self._turns: Counter[str] = Counter()

    def record(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        """Hook of one module."""
        went_in = tensors_in(args[0] if len(args) == 1 and not kwargs else (args, kwargs))
        came_out = tensors_in(output)
        use = Use(
            name,
            module,
            self._turns[name],
            (args, kwargs),
            tuple(tensor._version for tensor in went_in),
            tuple(None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr) for tensor in came_out),
            frozenset(id(tensor) if tensor.grad_fn is None else tensor.grad_fn for tensor in went_in),
            [None] * len(came_out),
        )
        self._turns[name] += 1
        self._uses.append(use)
        for index, tensor in enumerate(came_out):
            if tensor.grad_fn is not None:
                tensor.register_hook(partial(self._arrived, use, index))  # type: ignore[no-untyped-call]


def find_axes(root: nn.Module, call: Callable[[Tensor], object], images: Tensor) -> dict[tuple[str, int], Axes]:
    """Run the model on two and on three images and see what grows.

    Raises:
        ConfigurationError: What the model says of an image depends on the images beside it.
    """
    # A model that draws random numbers must draw the same ones both times.
    with isolated_rng():
        few = _shapes(root, call, images, 2)
    with isolated_rng():
        more = _shapes(root, call, images, 3)
    _check_independence(few.output, more.output)
    return {
        key: Axes(_growing(few.given[key], more.given[key]), _growing(few.came_out[key], more.came_out[key]))
        for key in few.given.keys() & more.given.keys()
    }


Shapes = dict[tuple[str, int], list[torch.Size]]


@dataclass(frozen=True)
class _Shapes:
    given: Shapes
    came_out: Shapes
    output: object


@torch.no_grad()
def _shapes(root: nn.Module, call: Callable[[Tensor], object], images: Tensor, count: int) -> _Shapes:
    given: Shapes = {}
    came_out: Shapes = {}
    turns: Counter[str] = Counter()

    def note(name: str, _module: nn.Module, args: object, kwargs: object, output: object) -> None:
        given[name, turns[name]] = [tensor.shape for tensor in tensors_in((args, kwargs))]
        came_out[name, turns[name]] = [tensor.shape for tensor in tensors_in(output)]
        turns[name] += 1

    handles = [
        module.register_forward_hook(partial(note, plain_name(name)), prepend=True, with_kwargs=True)
        for name, module in root.named_modules()
    ]
    try:
        output = call(images[torch.arange(count, device=images.device) % images.shape[0]])
    finally:
        for handle in handles:
            handle.remove()
    return _Shapes(given, came_out, output)


def _growing(few: list[torch.Size], more: list[torch.Size]) -> tuple[int | None, ...]:
    if len(few) != len(more):
        return (FOLDED,)
    return tuple(_axis(a, b) for a, b in zip(few, more, strict=True))


def _axis(few: torch.Size, more: torch.Size) -> int | None:
    if len(few) != len(more):
        return FOLDED
    growing = [axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
    if not growing:
        return None
    fits = len(growing) == 1 and (few[growing[0]], more[growing[0]]) == (2, 3)
    return growing[0] if fits else FOLDED


def _check_independence(few: object, more: object) -> None:
    for a, b in zip(tensors_in(few), tensors_in(more), strict=False):
        comparable = a.dim() > 0 and a.shape[0] == 2 and b.shape[0] == 3 and a.is_floating_point()
        if comparable and not _nearly_same(a, b[:2]):
            raise ConfigurationError(
                "Expected the model to treat every image by itself, but what it says of an image changes with the "
                "images beside it, so that no gradient belongs to one image. Normalise by running statistics or within "
                "an image."
            )


def _nearly_same(few: Tensor, more: Tensor) -> bool:
    """Up to what kernels for other batch sizes round differently; NaN and inf are for others to judge."""
    both = few.isfinite() & more.isfinite()
    few, more = few[both], more[both]
    largest = float(more.abs().amax()) if more.numel() else 0.0
    return torch.allclose(few, more, rtol=1e-2, atol=1e-3 * largest)


def assign_uses(
    root: nn.Module, chosen: Mapping[str, Tensor], uses: list[Use], axes: Mapping[tuple[str, int], Axes], end: Tensor
) -> dict[str, list[Use]]:
    """For every parameter the calls that use it, each of which contains all of its edges; empty if it is unused.

    Args:
        root: The model.
        chosen: The parameters of interest by name.
        uses: The calls of one forward pass.
        axes: As `find_axes` gives them.
        end: The losses, at the end of the graph.

    Raises:
        ConfigurationError: A parameter is used where no call contains it.
    """
    names = {id(parameter): plain_name(name) for name, parameter in root.named_parameters()}
    total = Counter(_edges([end.grad_fn] if end.grad_fn else [], frozenset(), names))
    owners = _owners(root, chosen)
    by_module: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_module[use.name].append(use)
    within: dict[Use, Counter[str | None]] = {}
    assigned: dict[str, list[Use]] = {}
    for name in chosen:
        assigned[name] = []
        if total[name]:
            assigned[name] = _containing(name, total[name], _candidates(owners[name], by_module), axes, within, names)
    return assigned


def _containing(
    name: str,
    edges: int,
    candidates: Iterator[list[Use]],
    axes: Mapping[tuple[str, int], Axes],
    within: dict[Use, Counter[str | None]],
    names: Mapping[int, str],
) -> list[Use]:
    for group in candidates:
        if not group or not all((use.name, use.turn) in axes and axes[use.name, use.turn].clear() for use in group):
            continue
        for use in group:
            if use not in within:
                within[use] = Counter(_edges([edge[0] for edge in use.sources if edge], use.ends, names))
        # A foreign leaf means that something came in on another way than as an argument.
        if sum(within[use][name] for use in group) == edges and not any(_foreign(use, within[use]) for use in group):
            return [use for use in group if within[use][name]]
    raise ConfigurationError(
        f"Expected every use of the parameter `{name}` to lie within the forward pass of one module whose images can "
        "be told apart, but it is used elsewhere, for example in the loss. Leave it out with `parameters=`."
    )


def _foreign(use: Use, edges: Counter[str | None]) -> bool:
    local = use.module.named_parameters(remove_duplicate=False)
    own = {plain_name(f"{use.name}.{name}".lstrip(".")) for name, _ in local}
    return any(name is None or name not in own for name in edges)


def _owners(root: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the modules that hold each parameter as their own."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    owners: dict[str, list[str]] = defaultdict(list)
    for module_name, module in root.named_modules():
        for parameter in module._parameters.values():
            if id(parameter) in names:
                owners[names[id(parameter)]].append(plain_name(module_name))
    return owners


def _candidates(owners: list[str], by_module: Mapping[str, list[Use]]) -> Iterator[list[Use]]:
    """Calls that may contain all uses of a parameter, smallest modules first."""
    yield [use for owner in owners for use in by_module.get(owner, [])]
    parts = [owner.split(".") for owner in owners]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    for length in range(shared, -1, -1):
        yield by_module.get(".".join(parts[0][:length]), [])


def _edges(starts: list[Node], ends: frozenset[Node | int], names: Mapping[int, str]) -> Iterator[str | None]:
    """The parameter at every edge that leads to a leaf, by name; None for a leaf that is none of them."""
    seen: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node in seen or node in ends:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                if id(following.variable) not in ends:
                    yield names.get(id(following.variable))
            elif following is not None:
                waiting.append(following)
