"""Which cells of a tensor the outputs depend on, read off gradients of one traced pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from xai_callbacks.access.layouts import FeatureLayout
from xai_callbacks.access.trace import Trace, Value, gradient_edge
from xai_callbacks.errors import ConfigurationError

__all__ = ["cancels", "carries_all", "gradients_of", "is_reached"]

# Share of the cells that a gradient must reach. Of a token grid of which the class token alone is read, none is.
_REACHED = 0.5
# Tensors before the outputs that are tried where a part of the head is all zeros.
_BEFORE_ZEROS = 40
# Two ways of adding up the same gradient differ by rounding.
_ROUNDING = 1e-3


def gradients_of(trace: Trace, values: Sequence[Value]) -> list[Tensor | None]:
    """Gradients of what is read out with respect to values; None where a value does not matter.

    What is read out is a fixed random projection of the outputs and of the input of the head: a head that starts at
    zero, as in fine-tuning, would otherwise hide every layer. Where zeros elsewhere keep gradients from the images, it
    is a projection of the last tensor for each value from which gradients reach it. Raises a `ConfigurationError` where
    the model cannot be differentiated.
    """
    if not values or not trace.outputs.requires_grad:
        return [None] * len(values)
    head = trace.head()
    generator = torch.Generator().manual_seed(0)
    projected = [
        (source.float() * torch.randn(source.shape, generator=generator).to(source.device)).sum()
        for source in ([trace.outputs] if head is None else [trace.outputs, head.given])
        if source.requires_grad
    ]
    scalar = torch.stack(projected).sum()
    found = _differentiated(trace, scalar, values)
    if all(_is_any(gradient) for gradient in found) or not _is_constant(trace, scalar):
        return found
    for source in reversed(trace.values[-_BEFORE_ZEROS:]):
        direction = torch.randn(source.shape, generator=generator).to(scalar.device, source.dtype)
        before = _differentiated(trace, gradient_edge(*source.edge), values, direction)
        found = [one if _is_any(one) else other for one, other in zip(found, before, strict=True)]
        if all(_is_any(gradient) for gradient in found):
            break
    return found


def is_reached(gradient: Tensor | None, layout: FeatureLayout) -> bool:
    """Whether a gradient reaches the cells of a map.

    It reaches half of them in the mean; or, as after global max pooling, few, but others in each channel or image.
    """
    if gradient is None:
        return False
    reached = layout.to_nchw(gradient) != 0
    if float(reached.any(dim=1).float().mean()) >= _REACHED:
        return True
    chosen = reached.flatten(2).flatten(0, 1)
    chosen = chosen[chosen.any(dim=1)]
    return len(chosen) > 1 and bool((chosen != chosen[:1]).any())


def cancels(trace: Trace, value: Value, layout: FeatureLayout) -> bool:
    """Whether the gradients of the cells of each channel add up to 0, as those of global max minus min pooling do."""
    (gradient,) = gradients_of(trace, [value])
    if gradient is None:
        return False
    cells = layout.to_nchw(gradient).float()
    return bool(cells.mean(dim=(2, 3)).abs().amax() <= _ROUNDING * cells.abs().mean(dim=(2, 3)).amax())


def carries_all(trace: Trace, before: Value, after: Value, layout: FeatureLayout) -> bool:
    """Whether all that the cells of one value contribute to the outputs goes through those of a later one."""
    total, later = gradients_of(trace, [before, after])
    if total is None or later is None or not is_reached(later, layout):
        return False
    (through,) = _gradients(gradient_edge(*after.edge), [before], later)
    if through is None:
        return False
    cells, all_of_them = layout.to_nchw(through).float(), layout.to_nchw(total).float()
    return bool((cells - all_of_them).abs().amax() <= _ROUNDING * all_of_them.abs().amax())


def _is_any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _is_constant(trace: Trace, scalar: Tensor) -> bool:
    """Whether the graph leads to the images, but no gradient reaches them."""
    node = trace.images.grad_fn
    if node is None or not trace.differentiable:
        return False
    try:
        (gradient,) = torch.autograd.grad(scalar, [gradient_edge(node)], retain_graph=True, allow_unused=True)
    except RuntimeError:
        return False
    return not _is_any(gradient)


def _differentiated(
    trace: Trace, source: Tensor | GradientEdge, values: Sequence[Value], direction: Tensor | None = None
) -> list[Tensor | None]:
    try:
        return _gradients(source, values, direction)
    except RuntimeError as error:
        # What comes before a part that cannot be differentiated must not hide what comes after.
        found: list[Tensor | None] = []
        for value in values:
            try:
                found += _gradients(source, [value], direction)
            except RuntimeError:
                found.append(None)
        if any(gradient is not None for gradient in found):
            return found
        raise ConfigurationError(
            f"Expected to differentiate {type(trace.subject.module).__name__}, but autograd said: {error}. Name a "
            "layer with `target_layer=` after which the model is differentiable, or explain by Occlusion(), which "
            "needs no gradients."
        ) from error


def _gradients(source: Tensor | GradientEdge, values: Sequence[Value], direction: Tensor | None) -> list[Tensor | None]:
    edges = [gradient_edge(*value.edge) for value in values]
    return list(torch.autograd.grad([source], edges, direction, retain_graph=True, allow_unused=True))  # type: ignore[arg-type]
