"""One observed forward pass: each tensor that depends on the images, where it came from, and its place in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook

from xai_callbacks.access.addresses import Address
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Returned, watching
from xai_callbacks.errors import ConfigurationError, is_out_of_memory
from xai_callbacks.tasks import Ending

__all__ = ["Edge", "HeadCall", "Trace", "Value", "depends_on_images", "gradient_edge", "leads_to", "trace_model"]

Edge = tuple[Node, int]
"""A value in the autograd graph: the node that made it, and which of its results."""

# Names of nodes that hand values on in another shape or order, or hand on a part of them.
_REARRANGING = frozenset(
    {
        *("Alias", "AsStrided", "Clone", "Expand", "Permute", "ReshapeAlias", "Select", "Slice", "Split"),
        *("SplitWithSizes", "Squeeze", "T", "ToCopy", "Transpose", "Unbind", "UnsafeSplit", "UnsafeView", "Unsqueeze"),
        *("Chunk", "Flip", "Roll", "View", "Narrow", "SwapAxes", "Unflatten"),
    }
)
# Those that change nothing but the shape.
_RESHAPING = frozenset({"Alias", "Clone", "ReshapeAlias", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View"})
_ENDINGS: dict[str, Ending] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": None}
# What turns logits into probabilities one by one, and what probabilities may go through and stay such.
_SQUASHING = frozenset({"Sigmoid", "Hardsigmoid"})
_GATHERING = _REARRANGING | {
    *("Add", "Amax", "Amin", "Cat", "Clamp", "ClampMax", "ClampMin", "Div", "Gather", "Index", "Kthvalue", "Max"),
    *("Maximum", "Mean", "Median", "Min", "Minimum", "Mul", "Prod", "Rsub", "Sort", "Stack", "Sub", "Sum", "Topk"),
}

_CONVOLUTIONS = frozenset(f"conv{transpose}{axes}d" for transpose in ("", "_transpose") for axes in (1, 2, 3))
_WEIGHTED = _CONVOLUTIONS | {"linear", "multi_head_attention_forward", "matmul", "bmm", "einsum", "mm", "addmm"}


@dataclass(eq=False)
class Value:
    """One tensor of a traced forward pass; the same tensor under several addresses is one value.

    Attributes:
        edge: Its place in the graph.
        shape: Its shape, with the traced images.
        dtype: Its type.
        function: Name of the function that made it, such as `relu`; None for what came out of a module unseen.
        weighted: How many convolutions, linear layers and matrix products ran before it was there, itself included.
        addresses: Where it was returned before anything was computed from it, first the function, then modules from the
            inside out.
        modules: The modules that returned it, by address.
        used: Whether something was computed from it already. What a module returns after it has read it itself is no
            place to cut the graph.
    """

    edge: Edge
    shape: tuple[int, ...]
    dtype: torch.dtype
    function: str | None
    weighted: int
    addresses: list[Address] = field(default_factory=list)
    modules: dict[Address, nn.Module] = field(default_factory=dict)
    used: bool = False

    @property
    def rearranged(self) -> Edge | None:
        """The value that this one is a rearrangement or a part of; None if it was computed."""
        node = self.edge[0]
        if _kind(node) not in _REARRANGING or not node.next_functions or node.next_functions[0][0] is None:
            return None
        return node.next_functions[0][0], node.next_functions[0][1]


@dataclass(frozen=True, eq=False)
class HeadCall:
    """One call of a linear layer.

    Attributes:
        name: Dotted name of the layer.
        module: The layer.
        given: What went in, on the graph.
        edge: What came out.
    """

    name: str
    module: nn.Linear
    given: Tensor
    edge: Edge


@dataclass(eq=False)
class Trace:
    """A forward pass on a few images with its graph; meant to be looked at and thrown away.

    Attributes:
        subject: The model.
        images: What went in, `(N, C, H, W)`.
        values: Tensors that depend on the images, in the order in which they were made; none of a black box.
        heads: Calls of linear layers.
        grids: Grids `(h, w)` of convolutions, newest first.
        patches: Whether the first weighted layer embeds patches of the image.
        outputs: What came out, `(N, K)`, before it is read.
        chunk_size: Most images in one forward pass of those who run the model again.
        insisted: Whether the model switches gradients off, so that they had to be switched on again by each module.
    """

    subject: Subject
    images: Tensor
    values: tuple[Value, ...]
    heads: tuple[HeadCall, ...]
    grids: tuple[tuple[int, int], ...]
    patches: bool
    outputs: Tensor
    chunk_size: int = 16
    insisted: bool = False

    @property
    def differentiable(self) -> bool:
        """Whether the outputs can be differentiated with respect to the images."""
        return depends_on_images(self)

    def ending(self) -> Ending:
        """The sigmoid or softmax that the outputs come from, of a module or a function.

        Sigmoids may have been clamped, averaged or put side by side; one column of a softmax is as good as a sigmoid.
        """
        last = _kind(_behind(self.outputs.grad_fn, _RESHAPING))
        if last in _ENDINGS:
            return _ENDINGS[last]
        values = self.outputs.detach()
        if not bool(((values >= 0) & (values <= 1)).all()):
            return None
        alone = values.shape[1] == 1
        if self.outputs.grad_fn is None:
            # Nothing shows how they came about. Logits of all labels of both images seldom lie in [0, 1].
            return "sigmoid" if alone or self.subject.task.kind == "multi-label" else None
        sources = _sources(self.outputs.grad_fn)
        return "sigmoid" if sources and sources <= (_SQUASHING | {"Softmax"} if alone else _SQUASHING) else None

    def head(self) -> HeadCall | None:
        """The linear layer whose results are the outputs, up to a sigmoid or softmax; None if there is none."""
        source = _behind(self.outputs.grad_fn, _RESHAPING | _ENDINGS.keys())
        found = [call for call in self.heads if call.edge[0] is source]
        if any(call.given.ndim != 2 or len(call.given) != len(self.images) for call in found):
            return None  # rows that are no images
        times = sum(call.name == found[0].name for call in self.heads) if found else 0
        return found[0] if len(found) == 1 and times == 1 else None

    def at(self, address: Address) -> list[Value]:
        """The values at an address: one for each call, and none for what did not run."""
        return [value for value in self.values if any(address.matches(each) for each in value.addresses)]

    def address(self, value: Value, *, inner: bool = False) -> str:
        """The name of a value: of the outermost module around what made it that returns it, or else of the function.

        Args:
            value: The value.
            inner: Whether to name what made it instead.
        """
        made = value.addresses[0].module
        modules = [each for each in value.addresses if each.function is None and each.module]
        around = [each for each in modules if f"{made}.".startswith(f"{each.module}.")]
        # An outer module that returns a tuple names a value less plainly than an inner one that returns it alone.
        plain = [each for each in around if not each.item]
        best = value.addresses[0] if inner else (plain or around or value.addresses[:1])[-1]
        once = self._counted[best.module, best.function] == 1
        return str(Address(best.module, best.function, None if once else best.index, best.item or None))

    @cached_property
    def _counted(self) -> dict[tuple[str, str | None], int]:
        counted: dict[tuple[str, str | None], int] = {}
        for value in self.values:
            for each in value.addresses:
                key = (each.module, each.function)
                counted[key] = max(counted.get(key, 0), (each.index or 0) + 1)
        return counted


def depends_on_images(trace: Trace, *, around: Edge | None = None) -> bool:
    """Whether a path of the autograd graph leads from the outputs to the images, around a value if one is given."""
    outputs = trace.outputs.grad_fn
    images = trace.images.grad_fn
    return outputs is not None and images is not None and leads_to((outputs, 0), (images, 0), around=around)


def leads_to(start: Edge, goal: Edge, *, around: Edge | None = None) -> bool:
    """Whether a value was computed from another, and not through a third alone."""
    waiting = [start]
    seen: set[Node] = set()
    while waiting:
        node, number = waiting.pop()
        if (node, number) == around:
            continue
        if (node, number) == goal:
            return True
        if node not in seen:
            seen.add(node)
            waiting.extend((after, which) for after, which in node.next_functions if after is not None)
    return False


def trace_model(subject: Subject, images: Tensor, *, chunk_size: int = 16) -> Trace:
    """Run the model on `images` `(N, C, H, W)` and record what every module and function returns.

    Call inside `undisturbed`. The images require grad, so that the graph exists for frozen models too. A model that
    switches gradients off itself, as wrappers of frozen backbones do, is run a second time with gradients switched on
    again by each module. Cost: one forward pass whose activations are kept.

    Raises:
        ConfigurationError: The model cannot run on these images; the cause is chained.
    """
    trace = _run(subject, images, chunk_size)
    if not trace.differentiable:
        # Where the model does not stand this, it stays with what was seen.
        with suppress(ConfigurationError):
            trace = _run(subject, images, chunk_size, insist=True)
    return trace


def _run(subject: Subject, images: Tensor, chunk_size: int, *, insist: bool = False) -> Trace:
    images = subject.images(images).detach().requires_grad_(True).clone()
    recorder = _Recorder()
    with ExitStack() as stack:
        if insist:
            stack.enter_context(_gradients_on())
        stack.enter_context(watching(subject.module, recorder.record))
        try:
            raw = subject.run(images)
        except Exception as error:
            raise _cannot_run(images, error) from error
    return Trace(
        subject,
        images,
        tuple(recorder.values.values()),
        tuple(recorder.heads),
        tuple(dict.fromkeys(reversed(recorder.grids))),
        recorder.patches,
        subject.select(raw, images.shape[0]),
        chunk_size,
        insist,
    )


def _cannot_run(images: Tensor, error: Exception) -> ConfigurationError:
    shape = tuple(images.shape[1:])
    if is_out_of_memory(error):
        return ConfigurationError(
            f"Expected {len(images)} probe images of shape {shape} (C, H, W) to fit into memory with their "
            f"activations, but the device ran out of it: {error}. Lower `chunk_size`, or give probes of a smaller size."
        )
    return ConfigurationError(
        f"Expected the model to run on probe images of shape {shape} (C, H, W), but it raised "
        f"{type(error).__name__}: {error}. Give the probes the size and normalisation of the training images, or say "
        "with `model=` which part classifies images; if it takes a batch, "
        "`model=lambda m: lambda images: m({'image': images})`."
    )


class _Recorder:
    """Keeps what the trace needs of each tensor, and not the tensor itself."""

    def __init__(self) -> None:
        self.values: dict[Edge, Value] = {}
        self.heads: list[HeadCall] = []
        self.grids: list[tuple[int, int]] = []
        self.patches = False
        self._weighted = 0

    def record(self, returned: Returned) -> None:
        tensor, address = returned.tensor, returned.address
        if address.function is not None or isinstance(returned.module, torch.jit.ScriptModule):
            self._mark_used(returned)
        if address.function in _WEIGHTED or _is_scripted_whole(returned):
            self._weigh(returned)
        if tensor.grad_fn is None:
            return
        edge = get_gradient_edge(tensor)
        place = (edge.node, edge.output_nr)
        if place not in self.values:
            self.values[place] = Value(place, tuple(tensor.shape), tensor.dtype, address.function, self._weighted)
        value = self.values[place]
        if value.used and value.addresses:
            return
        value.addresses.append(address)
        if address.function is None:
            value.modules[address] = returned.module
            given = returned.given[0] if returned.given else None
            if isinstance(returned.module, nn.Linear) and isinstance(given, Tensor):
                self.heads.append(HeadCall(address.module, returned.module, given, place))

    def _mark_used(self, returned: Returned) -> None:
        for given in tensors_in(returned.given):
            if given.grad_fn is not None and given is not returned.tensor:
                edge = get_gradient_edge(given)
                value = self.values.get((edge.node, edge.output_nr))
                if value is not None:
                    value.used = True

    def _weigh(self, returned: Returned) -> None:
        # What runs inside of a scripted module is not seen.
        convolves = returned.address.function in _CONVOLUTIONS or returned.address.function is None
        if convolves and returned.tensor.ndim == 4:
            self.grids.append((returned.tensor.shape[2], returned.tensor.shape[3]))
        if self._weighted == 0:
            self.patches = _embeds_patches(returned)
        self._weighted += 1


def tensors_in(given: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among arguments, also in lists and tuples."""
    for each in given:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from tensors_in(each)


def _is_scripted_whole(returned: Returned) -> bool:
    return isinstance(returned.module, torch.jit.ScriptModule) and any(True for _ in returned.module.parameters())


def _embeds_patches(returned: Returned) -> bool:
    """Whether a first layer cuts the image into patches: a convolution of stride = kernel >= 4, or tokens."""
    if returned.address.function != "conv2d":
        return returned.tensor.ndim == 3
    image, weight = returned.given[:2]
    cut = [side // kernel for side, kernel in zip(image.shape[-2:], weight.shape[-2:], strict=True)]
    return max(weight.shape[-2:]) >= 4 and cut == list(returned.tensor.shape[-2:])


@contextmanager
def _gradients_on() -> Iterator[None]:
    def switch_on(_module: nn.Module, _given: tuple[Any, ...]) -> None:
        # Leaving the `no_grad` that this undoes switches back to what was before it.
        torch.set_grad_enabled(True)

    handle = register_module_forward_pre_hook(switch_on)
    try:
        yield
    finally:
        handle.remove()


def gradient_edge(value: Value) -> GradientEdge:
    """The value as `torch.autograd.grad` takes it."""
    return GradientEdge(*value.edge, None)


def _behind(node: Node | None, passed: frozenset[str]) -> Node | None:
    """The first node, seen from the outputs, whose kind is not among those to be passed."""
    while node is not None and _kind(node) in passed and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _sources(node: Node | None) -> set[str]:
    """Kinds of nodes that results were put together from; constants are none."""
    waiting, seen, found = [node], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _kind(node) in _GATHERING:
            waiting.extend(after for after, _ in node.next_functions)
        else:
            found.add(_kind(node))
    return found


def _kind(node: Node | None) -> str:
    """Such as "Sigmoid" for `SigmoidBackward0`."""
    return "" if node is None else node.name().rpartition("Backward")[0]
