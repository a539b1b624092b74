"""Which layer to explain at: found by looking at one forward and one backward pass, and said why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from xai_callbacks.access.layouts import FeatureLayout, LayoutName, infer_layout
from xai_callbacks.access.subject import find_module, plain_name
from xai_callbacks.access.trace import Call, Trace, depends_on_images
from xai_callbacks.errors import ConfigurationError, TargetLayerError

__all__ = ["TargetLayer", "choose_layer", "name_layer"]

# Share of the grid that the gradient of the outputs must reach. A token grid of which only the class token is read has
# 1 of 197.
_REACHED = 0.5

_WEIGHTED = (nn.Linear, nn.MultiheadAttention, nn.modules.conv._ConvNd)
_RESHAPING = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)
_WORDS = ("pool", "permute", "dropout")


@dataclass(frozen=True)
class TargetLayer:
    """Where heatmaps are computed. Plain data, valid for every model of the same architecture.

    Attributes:
        name: Dotted name within the model.
        layout: How its output is read as `(N, D, h, w)`.
        chosen: `automatic` or `named`.
        reason: One sentence for people.
    """

    name: str
    layout: FeatureLayout
    chosen: Literal["automatic", "named"]
    reason: str


@dataclass(frozen=True, eq=False)
class _Candidate:
    call: Call
    layout: FeatureLayout


def choose_layer(trace: Trace) -> TargetLayer:
    """Choose the last feature map before pooling that the outputs depend on everywhere.

    Looks backwards through every tensor that modules handed on, and takes the first that (1) is a grid of more than one
    cell, convolutional `(N, D, h, w)` or `(N, h, w, D)`, or tokens `(N, L, D)`; (2) was not made by pooling or
    reshaping; (3) belongs to a module that ran once; (4) is not a patch embedding; (5) receives gradient from the
    outputs in at least half of its cells, in the mean over the traced images; and (6), unless it is a token grid, is a
    bottleneck: everything the outputs know of the images went through it, so it is no mere branch. Of several modules
    that hand on the same tensor, the outermost is named.

    Cost: one backward pass over the trace.

    Raises:
        TargetLayerError: No such layer; the message says what was seen and what to pass.
    """
    candidates = _candidates(trace)
    gradients = _reached(trace, [candidate.call.output for candidate in candidates])
    found = [
        candidate
        for candidate, gradient in zip(candidates, gradients, strict=True)
        if gradient is not None and _share_reached(gradient, candidate.layout) >= _REACHED
    ]
    if found:
        best = found[-1] if found[-1].layout.name == "NLC" else _last_bottleneck(trace, found)
        return TargetLayer(
            best.call.name, best.layout, "automatic", _reason(best, passed_over=best is not candidates[-1])
        )
    seen = (
        ", ".join(f"`{c.call.name}` {tuple(c.call.output.shape)}" for c in candidates[-4:]) or "no feature map at all"
    )
    raise TargetLayerError(
        f"Expected a feature map between the images and the outputs of {type(trace.subject.module).__name__}, but "
        f"found none that the outputs depend on: saw {seen}. Pass `target_layer=` with the name of the last layer "
        "whose output keeps the image's layout; if its gradients vanish because the head is all zeros, train a step "
        "first."
    )


def name_layer(trace: Trace, target: str | nn.Module, layout: LayoutName | None = None) -> TargetLayer:
    """Use the layer the user named.

    Args:
        trace: A forward pass.
        target: Dotted name, or the module itself.
        layout: How to read its output, if it cannot be told from the shape.

    Raises:
        TargetLayerError: It is not part of the model, did not run exactly once, or its output is no grid of more than
            one cell.
    """
    name = _name_of(trace, target)
    calls = [call for call in trace.calls if call.name == name]
    if len(calls) != 1:
        how = "never runs" if not calls else f"runs {len(calls)} times"
        raise TargetLayerError(
            f"Expected `target_layer` to run once in a forward pass and return a tensor, but `{name}` {how}. Name a "
            "layer that runs once, such as the block around it."
        )
    call = calls[0]
    found = infer_layout(call.output.shape, trace.images.shape[-2:], _conv_grids(trace), layout)
    if found is None or found.cells < 2:
        raise TargetLayerError(
            f"Expected `target_layer` to return a feature map of more than one cell, but `{name}` returns "
            f"{tuple(call.output.shape)} for images of {tuple(trace.images.shape[-2:])}. Name an earlier layer, or say "
            "how to read it with `layout=`."
        )
    return TargetLayer(name, found, "named", f"`{name}`, as named: {_describe(call, found)}")


def _candidates(trace: Trace) -> list[_Candidate]:
    """One candidate a tensor, in the order in which the tensors were last handed on."""
    times, grids = trace.times_called(), _conv_grids(trace)
    producer: dict[int, Call] = {}
    carriers: dict[int, Call] = {}
    weighted = 0
    embedding = True
    for call in trace.calls:
        key = id(call.output)
        producer.setdefault(key, call)
        weighted += isinstance(call.module, _WEIGHTED)
        embedding = embedding and (weighted == 0 or (weighted == 1 and _is_patch_embedding(trace)))
        if embedding or not call.name or times[call.name] > 1 or _reshapes(producer[key].module):
            continue
        carriers.pop(key, None)
        carriers[key] = call
    found = []
    for call in carriers.values():
        layout = infer_layout(call.output.shape, trace.images.shape[-2:], grids)
        if layout is not None and layout.cells > 1 and call.output.requires_grad:
            found.append(_Candidate(call, layout))
    return found


def _reshapes(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return isinstance(module, _RESHAPING) or any(word in name for word in _WORDS)


def _is_patch_embedding(trace: Trace) -> bool:
    """Whether the first weighted layer cuts the image into patches: a convolution of stride = kernel >= 4."""
    first = next(call.module for call in trace.calls if isinstance(call.module, _WEIGHTED))
    return (
        isinstance(first, nn.modules.conv._ConvNd) and first.stride == first.kernel_size and max(first.kernel_size) >= 4
    )


def _conv_grids(trace: Trace) -> list[tuple[int, int]]:
    """Grids `(h, w)` of all convolutions, newest first: the layouts that tokens may have come from."""
    grids = [
        (call.output.shape[2], call.output.shape[3])
        for call in trace.calls
        if isinstance(call.module, nn.modules.conv._ConvNd) and call.output.ndim == 4
    ]
    return list(dict.fromkeys(reversed(grids)))


def _reached(trace: Trace, tensors: list[Tensor]) -> list[Tensor | None]:
    """Gradients of what is read out, `None` where a tensor does not matter.

    What is read out is a fixed random projection of the outputs and of the input of the head: a head that starts at
    zero, as in fine-tuning, would otherwise hide every layer.
    """
    if not tensors or not trace.outputs.requires_grad:
        return [None] * len(tensors)
    head = trace.head()
    sources = [trace.outputs] + ([head.given] if head is not None and head.given is not None else [])
    generator = torch.Generator().manual_seed(0)
    projected = [
        (source.float() * torch.randn(source.shape, generator=generator).to(source.device)).sum()
        for source in sources
        if source.requires_grad
    ]
    total = torch.stack(projected).sum()
    try:
        return list(torch.autograd.grad(total, tensors, allow_unused=True))
    except RuntimeError as error:
        raise ConfigurationError(
            f"Expected to differentiate {type(trace.subject.module).__name__}, but autograd said: {error}. Name a "
            "layer with `target_layer=` after which the model is differentiable."
        ) from error


def _last_bottleneck(trace: Trace, found: list[_Candidate]) -> _Candidate:
    """The last candidate through which every path of the graph leads; the last of all if there is none."""
    return next((candidate for candidate in reversed(found) if _is_bottleneck(trace, candidate.call.output)), found[-1])


def _is_bottleneck(trace: Trace, tensor: Tensor) -> bool:
    """Whether everything the outputs know of the images went through `tensor`."""
    return not depends_on_images(trace, around=tensor)


def _share_reached(gradient: Tensor, layout: FeatureLayout) -> float:
    return float((layout.to_nchw(gradient) != 0).any(dim=1).float().mean())


def _reason(candidate: _Candidate, *, passed_over: bool) -> str:
    described = _describe(candidate.call, candidate.layout)
    if candidate.layout.name == "NLC":
        later = "; later layers pass on the class token alone" if passed_over else ""
        return (
            f"`{candidate.call.name}`: the last token grid that the outputs depend on everywhere ({described}){later}"
        )
    kind = "the last feature map before pooling that the outputs depend on everywhere"
    return f"`{candidate.call.name}`: {kind} ({described})"


def _describe(call: Call, layout: FeatureLayout) -> str:
    height, width = layout.grid
    prefix = f" after {layout.prefix} prefix token{'s' if layout.prefix > 1 else ''}" if layout.prefix else ""
    return f"{type(call.module).__name__}, {layout.channels(call.output.shape)} channels on {height} x {width}{prefix}"


def _name_of(trace: Trace, target: str | nn.Module) -> str:
    root = trace.subject.module
    if isinstance(target, str):
        try:
            find_module(root, target, "target_layer")
        except ConfigurationError as error:
            raise TargetLayerError(str(error)) from None
        return plain_name(target)
    for name, module in root.named_modules():
        if module is target:
            return plain_name(name)
    raise TargetLayerError(
        f"Expected `target_layer` to be part of {type(root).__name__}, but got a {type(target).__name__} that is not. "
        "Pass its dotted name, which survives copying the model."
    )
