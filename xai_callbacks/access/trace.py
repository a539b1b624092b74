"""One observed forward pass: each tensor that depends on the images, where it came from, and its place in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook

from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Address, Returned, watching
from xai_callbacks.errors import ConfigurationError, is_out_of_memory
from xai_callbacks.tasks import Ending

__all__ = [
    "Edge",
    "HeadCall",
    "Trace",
    "Value",
    "depends_on_images",
    "gradient_edge",
    "leads_to",
    "rearranged",
    "trace_model",
]

Edge = tuple[Node, int]
"""A value in the autograd graph: the node that made it, and which of its results."""

# Names of nodes that change nothing but the shape.
_RESHAPING = frozenset({"Alias", "Clone", "ReshapeAlias", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View"})
# Those that hand values on in another shape or order, or hand on a part of them.
_REARRANGING = _RESHAPING | {
    *("AsStrided", "Chunk", "Expand", "Flip", "Narrow", "Permute", "Roll", "Select", "Slice", "Split"),
    *("SplitWithSizes", "SwapAxes", "T", "Transpose", "Unbind", "Unflatten", "UnsafeSplit"),
}
# Those that put values together from several, or choose among them.
_GATHERING = _REARRANGING | {
    *("Add", "Amax", "Amin", "Cat", "Clamp", "ClampMax", "ClampMin", "Div", "Gather", "Index", "Kthvalue", "Max"),
    *("Maximum", "Mean", "Median", "Min", "Minimum", "Mul", "Prod", "Rsub", "Sort", "Stack", "Sub", "Sum", "Topk"),
}
_ENDINGS: dict[str, Ending] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": None}
# Those that turn logits into probabilities one by one.
_SQUASHING = frozenset({"Sigmoid", "Hardsigmoid"})

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


class HeadCall(NamedTuple):
    """One call of a linear layer: its dotted name, what went in, on the graph, and what came out."""

    name: str
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
        if len(found) != 1 or found[0].given.ndim != 2 or len(found[0].given) != len(self.images):
            return None  # none, or rows that are no images
        return found[0] if sum(call.name == found[0].name for call in self.heads) == 1 else None

    def at(self, address: Address) -> list[Value]:
        """The values at an address: one for each call, and none for what did not run."""
        return [value for value in self.values if any(address.matches(each) for each in value.addresses)]

    def address(self, value: Value, *, inner: bool = False) -> str:
        """The name of a value: of what made it if `inner`, or else of the outermost module around that returns it."""
        best = made = value.addresses[0]
        if not inner:
            modules = [each for each in value.addresses if each.function is None and each.module]
            around = [each for each in modules if f"{made.module}.".startswith(f"{each.module}.")]
            # An outer module that returns a tuple names a value less plainly than an inner one that returns it alone.
            best = ([each for each in around if not each.item] or around or [made])[-1]
        once = self._last[best.module, best.function] == 0
        return str(Address(best.module, best.function, None if once else best.index, best.item or None))

    @cached_property
    def _last(self) -> dict[tuple[str, str | None], int]:
        """The largest index of the calls of each module and function."""
        addresses = sorted(
            (each for value in self.values for each in value.addresses), key=lambda each: each.index or 0
        )
        return {(each.module, each.function): each.index or 0 for each in addresses}


def depends_on_images(trace: Trace, *, around: Edge | None = None) -> bool:
    """Whether a path of the autograd graph leads from the outputs to the images, around a value if one is given."""
    outputs, images = trace.outputs.grad_fn, trace.images.grad_fn
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


def rearranged(edge: Edge) -> Edge | None:
    """What a tensor is a rearrangement or a part of; None if it was computed."""
    node, number = next(iter(edge[0].next_functions), (None, 0))
    return (node, number) if node is not None and _kind(edge[0]) in _REARRANGING else None


def gradient_edge(node: Node, number: int = 0) -> GradientEdge:
    """An output of a node, as `torch.autograd.grad` takes it."""
    # Later releases than the oldest that we support have a third field, which may be None.
    return GradientEdge(node, number, *[None] * (len(GradientEdge._fields) - 2))


def trace_model(subject: Subject, images: Tensor, *, chunk_size: int = 16) -> Trace:
    """Run the model on `images` `(N, C, H, W)` and record what every module and function returns.

    Call inside `undisturbed`. The images require grad, so that the graph exists for frozen models too. A model that
    switches gradients off itself, as wrappers of frozen backbones do, is run a second time with gradients switched on
    again by each module. Cost: one forward pass whose activations are kept. Raises a `ConfigurationError` with the
    cause where the model cannot run on these images.
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
            stack.callback(register_module_forward_pre_hook(_switch_gradients_on).remove)
        stack.enter_context(watching(subject.module, recorder.record))
        try:
            raw = subject.run(images)
        except Exception as error:
            raise ConfigurationError(_cannot_run(images, error)) from error
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


def _switch_gradients_on(_module: nn.Module, _given: tuple[Any, ...]) -> None:
    # Leaving the `no_grad` that this undoes switches back to what was before it.
    torch.set_grad_enabled(True)


def _cannot_run(images: Tensor, error: Exception) -> str:
    shape = tuple(images.shape[1:])
    if is_out_of_memory(error):
        return (
            f"Expected {len(images)} probe images of shape {shape} (C, H, W) to fit into memory with their "
            f"activations, but the device ran out of it: {error}. Lower `chunk_size`, or give probes of a smaller size."
        )
    return (
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
        """Note one tensor."""
        tensor, address, module = returned.tensor, returned.address, returned.module
        scripted = isinstance(module, torch.jit.ScriptModule)  # what runs inside of it is not seen
        if address.function is not None or scripted:
            for each in _tensors_in(returned.given):
                used = self.values.get(_edge(each)) if each.grad_fn is not None and each is not tensor else None
                if used is not None:
                    used.used = True
        if address.function in _WEIGHTED or (scripted and any(True for _ in module.parameters())):
            self._weigh(returned)
        if tensor.grad_fn is None:
            return
        edge = _edge(tensor)
        new = Value(edge, tuple(tensor.shape), tensor.dtype, address.function, self._weighted)
        value = self.values.setdefault(edge, new)
        if value.used and value.addresses:
            return
        value.addresses.append(address)
        if address.function is None:
            value.modules[address] = module
            given = returned.given[0] if returned.given else None
            if isinstance(module, nn.Linear) and isinstance(given, Tensor):
                self.heads.append(HeadCall(address.module, given, edge))

    def _weigh(self, returned: Returned) -> None:
        function, shape = returned.address.function, returned.tensor.shape
        if len(shape) == 4 and (function in _CONVOLUTIONS or function is None):
            self.grids.append((shape[2], shape[3]))
        if self._weighted == 0:
            self.patches = _embeds_patches(returned)
        self._weighted += 1


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _tensors_in(given: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among arguments, also in lists and tuples."""
    for each in given:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _tensors_in(each)


def _embeds_patches(returned: Returned) -> bool:
    """Whether a first layer cuts the image into patches: a convolution of stride = kernel >= 4, or tokens."""
    if returned.address.function != "conv2d":
        return returned.tensor.ndim == 3
    image, weight = returned.given[:2]
    cut = [side // kernel for side, kernel in zip(image.shape[-2:], weight.shape[-2:], strict=True)]
    return max(weight.shape[-2:]) >= 4 and cut == list(returned.tensor.shape[-2:])


def _behind(node: Node | None, passed: frozenset[str]) -> Node | None:
    """The first node, seen from the outputs, whose kind is not among those to be passed."""
    while node is not None and _kind(node) in passed and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _sources(node: Node) -> set[str]:
    """Kinds of nodes that results were put together from; constants are none."""
    waiting, seen, found = [node], set(), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _kind(node) in _GATHERING:
            waiting.extend(after for after, _ in node.next_functions if after is not None)
        else:
            found.add(_kind(node))
    return found


def _kind(node: Node | None) -> str:
    """Such as "Sigmoid" for `SigmoidBackward0`."""
    return "" if node is None else node.name().rpartition("Backward")[0]
