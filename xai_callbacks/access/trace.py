"""One observed forward pass: each tensor that depends on the images, where it came from, and its place in the graph."""

from collections.abc import Container, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves  # private; torch.func itself speaks in these trees

from xai_callbacks.access.layouts import FeatureLayout
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Address, Returned, watching
from xai_callbacks.errors import ConfigurationError, in_words, is_out_of_memory
from xai_callbacks.tasks import Ending

Edge = tuple[Node, int]  # a value in the autograd graph: the node that made it, and which of its results

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
_SQUASHING = frozenset({"Sigmoid", "Hardsigmoid"})  # those that turn logits into probabilities one by one

_CONVOLUTIONS = frozenset(f"conv{transpose}{axes}d" for transpose in ("", "_transpose") for axes in (1, 2, 3))
_WEIGHTED = _CONVOLUTIONS | {"linear", "multi_head_attention_forward", "matmul", "bmm", "einsum", "mm", "addmm"}

_DOES_NOT_RUN = (
    "Give the probes the size and normalisation of the training images, or say with `model=` which part classifies "
    "images; if it takes a batch, `model=lambda m: lambda images: m({'image': images})`."
)
# Share of the cells that a gradient must reach. Of a token grid of which the class token alone is read, none is.
_REACHED = 0.5
_ROUNDING = 1e-3  # two ways of adding up the same gradient differ by rounding


@dataclass(eq=False)
class Value:
    """One tensor of a traced forward pass; the same tensor under several addresses is one value."""

    edge: Edge
    shape: tuple[int, ...]  # with the traced images
    function: str | None  # that made it, such as `relu`; None for what came out of a module unseen
    weighted: int  # convolutions, linear layers and matrix products that ran before it was there, itself included
    module: nn.Module | None = None  # the innermost that returned it
    # Where it was returned before anything was computed from it, first the function, then modules from the inside out.
    addresses: list[Address] = field(default_factory=list)
    # What a module returns after it has read it itself is no place to cut the graph.
    used: bool = False


class HeadCall(NamedTuple):
    """One call of a linear layer: its dotted name, what went in, on the graph, and what came out."""

    name: str
    given: Tensor
    edge: Edge


class Trace:
    """A forward pass on a few images with its graph; meant to be looked at and thrown away. See `trace_model`."""

    def __init__(self, subject: Subject, images: Tensor, chunk_size: int, *, insisted: bool = False) -> None:
        self.subject = subject
        self.images = subject.images(images).detach().requires_grad_(True).clone()
        self.chunk_size = chunk_size  # most images in one forward pass of those who run the model again
        self.insisted = insisted  # whether the model switches gradients off, so that each module switched them on again
        self.made: dict[Edge, Value] = {}  # `values` by their place in the graph
        self.heads: list[HeadCall] = []
        self.grids: list[tuple[int, int]] = []  # `(h, w)` of convolutions, newest first
        self.patches = False  # whether the first weighted layer embeds patches of the image
        self._weighted = 0
        self.outputs = subject.select(self._run(), len(images))  # `(N, K)`, before they are read

    @property
    def values(self) -> list[Value]:
        """Tensors that depend on the images, in the order in which they were made; none of a black box."""
        return list(self.made.values())

    def _run(self) -> object:
        with watching(self.subject.module, self._record), ExitStack() as stack:
            if self.insisted:
                # Leaving the `no_grad` that this undoes switches back to what was before it. A hook must return None.
                stack.enter_context(register_module_forward_pre_hook(lambda *_: torch._C._set_grad_enabled(True)))
            try:
                return self.subject.run(self.images)
            except Exception as error:
                raise ConfigurationError(
                    f"Expected the model to run on probe images of shape {tuple(self.images.shape[1:])} (C, H, W), but "
                    f"it raised {in_words(error)} "
                    f"{'Lower `chunk_size`.' if is_out_of_memory(error) else _DOES_NOT_RUN}"
                ) from error

    def _record(self, returned: Returned) -> None:
        """Note what is needed of each tensor, and not the tensor itself."""
        tensor, address, module = returned.tensor, returned.address, returned.module
        scripted = isinstance(module, torch.jit.ScriptModule)  # what runs inside of it is not seen
        if address.function is not None or scripted:
            for each in tensors_in(returned.given):
                if each.grad_fn is not None and each is not tensor and get_gradient_edge(each)[:2] in self.made:
                    self.made[get_gradient_edge(each)[:2]].used = True
        whole = scripted and address.function is None
        if address.function in _WEIGHTED or (whole and any(True for _ in module.parameters())):
            if tensor.ndim == 4 and (address.function in _CONVOLUTIONS or address.function is None):
                grid = (tensor.shape[2], tensor.shape[3])
                self.grids = [grid, *(each for each in self.grids if each != grid)]
            self.patches = _embeds_patches(returned) if self._weighted == 0 else self.patches
            self._weighted += 1
        if tensor.grad_fn is None:
            return
        edge = get_gradient_edge(tensor)[:2]
        value = self.made.setdefault(edge, Value(edge, tuple(tensor.shape), address.function, self._weighted))
        if value.used and value.addresses:
            return
        value.addresses.append(address)
        if address.function is None:
            value.module = value.module or module
            given = returned.given[0] if returned.given else None
            if isinstance(module, nn.Linear) and isinstance(given, Tensor):
                self.heads.append(HeadCall(address.module, given, edge))

    @property
    def differentiable(self) -> bool:
        """Whether the outputs can be differentiated with respect to the images."""
        return self.leads_around(None)

    def leads_around(self, edge: Edge | None) -> bool:
        """Whether a path of the graph leads from the outputs to the images, around a value if one is given."""
        outputs, images = self.outputs.grad_fn, self.images.grad_fn
        return outputs is not None and images is not None and leads_to((outputs, 0), (images, 0), around=edge)

    def ending(self) -> Ending:
        """The sigmoid or softmax that the outputs come from, perhaps clamped, averaged or put side by side."""
        last = {kind_of(node) for node in _sources(self.outputs.grad_fn, _RESHAPING)}
        if last & _ENDINGS.keys():
            return _ENDINGS[last.pop()]
        values = self.outputs.detach()
        if not bool(((values >= 0) & (values <= 1)).all()):
            return None
        alone = values.shape[1] == 1  # one column of a softmax is as good as a sigmoid
        if self.outputs.grad_fn is None:
            # Nothing shows how they came about. Logits of all labels of both images seldom lie in [0, 1].
            return "sigmoid" if alone or self.subject.task.kind == "multi-label" else None
        sources = {kind_of(node) for node in _sources(self.outputs.grad_fn, _GATHERING)}
        return "sigmoid" if sources and sources <= (_SQUASHING | {"Softmax"} if alone else _SQUASHING) else None

    def head(self) -> HeadCall | None:
        """The linear layer whose results are the outputs, up to a sigmoid or softmax; None if there is none."""
        sources = _sources(self.outputs.grad_fn, _RESHAPING | _ENDINGS.keys())
        found = [call for call in self.heads if call.edge[0] in sources]
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
        index = best.index if (best.module, best.function) in self._repeated else None
        return str(Address(best.module, best.function, index, best.item or None))

    @cached_property
    def _repeated(self) -> set[tuple[str, str | None]]:
        """Modules and functions that were called several times."""
        addresses = (each for value in self.values for each in value.addresses)
        return {(each.module, each.function) for each in addresses if each.index}

    def gradients_of(self, values: Sequence[Value]) -> list[Tensor | None]:
        """Gradients of what is read out with respect to values; None where one does not matter, or autograd refuses.

        What is read out is a fixed random projection of the outputs and of the input of the head: a head that starts at
        zero, as in fine-tuning, would otherwise hide every layer.
        """
        if not values or not self.outputs.requires_grad:
            return [None] * len(values)
        head = self.head()
        generator = torch.Generator().manual_seed(0)
        projected = [
            (source.float() * torch.randn(source.shape, generator=generator).to(source.device)).sum()
            for source in ([self.outputs] if head is None else [self.outputs, head.given])
            if source.requires_grad
        ]
        edges = [gradient_edge(*value.edge) for value in values]
        try:
            found = torch.autograd.grad([torch.stack(projected).sum()], edges, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # What comes before a part that cannot be differentiated must not hide what comes after.
            return [None] if len(values) == 1 else [self.gradients_of([value])[0] for value in values]
        return list(found)

    def cancels(self, value: Value, layout: FeatureLayout) -> bool:
        """Whether the gradients of the cells of each channel add up to 0, as after global max minus min pooling."""
        (gradient,) = self.gradients_of([value])
        if gradient is None:
            return False
        cells = layout.to_nchw(gradient).float()
        return bool(cells.mean(dim=(2, 3)).abs().amax() <= _ROUNDING * cells.abs().mean(dim=(2, 3)).amax())

    def carries_all(self, before: Value, after: Value, layout: FeatureLayout) -> bool:
        """Whether all that the cells of one value contribute to the outputs goes through those of a later one."""
        total, later = self.gradients_of([before, after])
        if total is None or later is None or not is_reached(later, layout):
            return False
        edges = [gradient_edge(*value.edge) for value in (after, before)]
        (through,) = torch.autograd.grad(edges[:1], edges[1:], later, retain_graph=True, allow_unused=True)
        if through is None:  # as of positions of tokens
            return False  # type: ignore[unreachable]
        cells, all_of_them = layout.to_nchw(through).float(), layout.to_nchw(total).float()
        return bool((cells - all_of_them).abs().amax() <= _ROUNDING * all_of_them.abs().amax())


def nodes_before(start: Node | None, passed: Container[str] | None = None) -> set[Node]:
    """A node and all that its result was made of, no further back than to kinds not `passed`; constants are none."""
    waiting, seen = [start], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if passed is None or kind_of(node) in passed:
                waiting += [after for after, _ in node.next_functions]
    return seen


def kind_of(node: Node) -> str:
    """Such as "Sigmoid" for `SigmoidBackward0`."""
    return node.name().rpartition("Backward")[0]


def leads_to(start: Edge, goal: Edge, *, around: Edge | None = None) -> bool:
    """Whether a value was computed from another, and not through a third alone, in a way that has gradients."""
    waiting, seen = [start], set[Node]()
    while waiting:
        edge = waiting.pop()
        if edge == around or edge[0].name().endswith("NotImplemented"):  # as of quantised layers
            continue
        if edge == goal:
            return True
        if edge[0] not in seen:
            seen.add(edge[0])
            waiting += [(after, which) for after, which in edge[0].next_functions if after is not None]
    return False


def rearranged(edge: Edge) -> Edge | None:
    """What a tensor is a rearrangement or a part of; None if it was computed."""
    node, number = next(iter(edge[0].next_functions), (None, 0))
    return (node, number) if node is not None and kind_of(edge[0]) in _REARRANGING else None


def gradient_edge(node: Node, number: int = 0) -> GradientEdge:
    """An output of a node, as `torch.autograd.grad` takes it."""
    # Later releases than the oldest that we support have a third field, which may be None.
    return GradientEdge(node, number, *[None] * (len(GradientEdge._fields) - 2))


def trace_model(subject: Subject, images: Tensor, *, chunk_size: int = 16) -> Trace:
    """Run the model on `images` `(N, C, H, W)` and record what every module and function returns.

    Call inside `undisturbed`. A model that switches gradients off itself, as wrappers of frozen backbones do, is run a
    second time with gradients switched on again by each module. Cost: one forward pass whose activations are kept.
    Raises a `ConfigurationError` with the cause where the model cannot run on these images.
    """
    trace = Trace(subject, images, chunk_size)
    if not trace.differentiable:
        # Where the model does not stand this, it stays with what was seen.
        with suppress(ConfigurationError):
            trace = Trace(subject, images, chunk_size, insisted=True)
    return trace


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _embeds_patches(returned: Returned) -> bool:
    """Whether a first layer cuts the image into patches: a convolution of stride = kernel >= 4, or tokens."""
    if returned.address.function != "conv2d":
        return returned.tensor.ndim == 3
    image, weight = returned.given[:2]
    cut = [side // kernel for side, kernel in zip(image.shape[-2:], weight.shape[-2:], strict=True)]
    return max(weight.shape[-2:]) >= 4 and cut == list(returned.tensor.shape[-2:])


def _sources(node: Node | None, passed: Container[str]) -> set[Node]:
    """The nodes that results were made of by nodes of some kinds."""
    return {each for each in nodes_before(node, passed) if kind_of(each) not in passed}


def is_reached(gradient: Tensor | None, layout: FeatureLayout) -> bool:
    """Whether a gradient reaches half of the cells of a map; or few, but others in each channel, as of max pooling."""
    if gradient is None:
        return False
    reached = layout.to_nchw(gradient) != 0
    if float(reached.any(dim=1).float().mean()) >= _REACHED:
        return True
    chosen = reached.flatten(2).flatten(0, 1)
    chosen = chosen[chosen.any(dim=1)]
    return len(chosen) > 1 and bool((chosen != chosen[:1]).any())
