"""Which tensor to explain at: found in one traced pass, verified on changed images, and said why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn

from xai_callbacks.access.addresses import Address
from xai_callbacks.access.around import share_around
from xai_callbacks.access.layouts import FeatureLayout, LayoutName, possible_layouts
from xai_callbacks.access.locality import Locality, measure
from xai_callbacks.access.reach import cancels, carries_all, gradients_of, is_reached
from xai_callbacks.access.refusals import nothing_holds, nothing_to_explain
from xai_callbacks.access.subject import find_module
from xai_callbacks.access.trace import Edge, Trace, Value, depends_on_images, leads_to
from xai_callbacks.access.watching import module_names
from xai_callbacks.errors import ConfigurationError, TargetLayerError

__all__ = ["Layer", "NoFeatureMapError", "choose_layer", "name_layer"]

# Candidates measured at a time, by the same forward passes; the first batch nearly always holds the layer.
_AT_ONCE = (12, 32)
# Share of what outputs see of the image that may go around a layer without being seen by gradients.
_AROUND = 0.1
# Branches named in a refusal.
_BRANCHES = 4
# Functions after which a map is no longer at the resolution of the network.
_POOLING = ("pool", "interpolate", "upsample")


class NoFeatureMapError(TargetLayerError):
    """Nothing in the model lies on the image: there are no heatmaps of layers."""


@dataclass(frozen=True)
class Layer:
    """Where heatmaps are computed. Plain data, valid for every model of the same architecture.

    Attributes:
        name: Address of the tensor, see `Address`: mostly the dotted name of a module.
        layout: How the tensor is read as `(N, D, h, w)`.
        verified: Whether the map was seen to move where the image is changed; where False, `reason` says what is known.
        reason: One sentence for people.
        cancels: Whether the gradients in its cells add up to 0 in each channel, so that their mean says nothing.
    """

    name: str
    layout: FeatureLayout
    verified: bool
    reason: str
    cancels: bool = False


@dataclass(frozen=True, eq=False)
class _Candidate:
    value: Value
    name: str
    layouts: tuple[FeatureLayout, ...]


@dataclass(frozen=True, eq=False)
class _Measured:
    candidate: _Candidate
    layout: FeatureLayout
    locality: Locality


def choose_layer(trace: Trace) -> Layer:
    """Choose the last feature map before pooling through which everything goes, and verify it.

    Looks backwards through every tensor that modules and functions returned, and takes the first that (1) may be a grid
    of more than one cell: channels first or last, or tokens; (2) was not made by pooling; (3) is a bottleneck:
    everything the outputs know of the images went through it, so that it is no mere branch or member; (4) receives
    gradient from the outputs in its cells; (5) moves where the image is changed, see `locality`; and (6) holds back the
    outputs when it is held as it was, see `share_around`. The embedding of patches is taken only where nothing later
    is left. Of tokens of which the outputs read a class token alone, the last tensor of the same width that all cells
    go through is taken, such as the norm before the last attention.

    Cost: seventeen forward passes for each traced image without gradients, six more for one of them, and one or two
    backward passes.

    Raises:
        NoFeatureMapError: No tensor may be a grid.
        TargetLayerError: None passes; the message says what was seen, why it was refused, and what to do.
    """
    candidates = list(_candidates(trace))
    if not candidates:
        raise NoFeatureMapError(nothing_to_explain(trace))
    refused: list[str] = []
    measured: dict[str, _Measured | None] = {}
    for some in _batches(iter(candidates)):
        through = [each for each in some if not depends_on_images(trace, around=each.value.edge)]
        if not through:
            continue
        gradients = gradients_of(trace, [each.value for each in through])
        # Tokens through which not everything goes may be the last that all cells go through, see `_refined`.
        tokens = [each for each in some if each not in through and len(each.value.shape) == 3]
        measured |= _measured(trace, through + tokens)
        for index, (each, gradient) in enumerate(zip(through, gradients, strict=True)):
            best = measured[each.name]
            if best is None:
                continue
            before = measured[through[index + 1].name] if index + 1 < len(through) else None
            if not (best.locality.holds or _is_no_worse(best, before)):
                objection = str(best.locality)
            elif not is_reached(gradient, best.layout):
                objection = "no gradient of the outputs reaches its cells"
            elif (found := _carrying(trace, best)) is None:
                objection = "the outputs see the image around it, too, where no gradient leads"
            else:
                return _layer(trace, _refined(trace, found, candidates, measured), found)
            refused.append(f"`{each.name}` {each.value.shape}: {objection}")
    branches = [each.candidate.name for each in _branches(trace, candidates)]
    raise TargetLayerError(nothing_holds(trace, [each.value for each in candidates], branches, refused))


def name_layer(trace: Trace, target: str | nn.Module, layout: LayoutName | None = None) -> Layer:
    """Look up the layer the user named, and verify it.

    Args:
        trace: A forward pass of the model.
        target: Address of a tensor, such as the dotted name of a module, or the module itself.
        layout: How its output is read; None tries what its shape allows.

    Raises:
        TargetLayerError: It is not part of the model, did not run exactly once, is no grid of more than one cell, or
            does not lie on the image.
    """
    address = _address(trace, target)
    name = str(address)
    values = trace.at(address)
    if len(values) != 1:
        raise TargetLayerError(_not_once(trace, address, len(values)))
    value = values[0]
    layouts = tuple(possible_layouts(value.shape, trace.images.shape, trace.grids, layout))
    if not layouts:
        raise TargetLayerError(
            f"Expected `target_layer` to be a feature map of more than one cell, but `{name}` is {value.shape} for "
            f"{trace.images.shape[0]} images of {tuple(trace.images.shape[-2:])}. Name an earlier layer, or say how to "
            "read it with `layout=`."
        )
    best = _measured(trace, [_Candidate(value, name, layouts)])[name]
    if best is None or best.locality.elsewhere:
        raise TargetLayerError(
            f"Expected `{name}` to lie on the image, but {_refuted(best)}. A heatmap of it would point at the wrong "
            "place. Name another layer, or leave `target_layer` out to have one found."
        )
    sure = best.locality.holds and best.locality.certain
    doubts = ("" if sure else f"; not verified: {best.locality}") + best.locality.rim
    if depends_on_images(trace, around=value.edge):
        doubts += "; the outputs depend on the images around it, too, which its heatmaps do not show"
    reason = f"`{name}`, as named: {_describe(best)}{doubts}"
    cancelled = cancels(trace, value, best.layout)
    return Layer(name, best.layout, sure, reason, cancelled)


def _candidates(trace: Trace) -> Iterator[_Candidate]:
    """Tensors that may be grids, the last first; patches as they are embedded come at the very end."""
    embedded: list[_Candidate] = []
    made = {value.edge: value for value in trace.values}
    for value in reversed(trace.values):
        layouts = tuple(possible_layouts(value.shape, trace.images.shape, trace.grids))
        if not layouts or value.weighted == 0 or _is_pooled(value) or _is_mere_rearrangement(value, made, trace):
            continue
        candidate = _Candidate(value, trace.address(value), layouts)
        if trace.patches and value.weighted == 1:
            embedded.append(candidate)
        else:
            yield candidate
    yield from embedded


def _is_pooled(value: Value) -> bool:
    return any(word in (value.function or "") for word in _POOLING)


def _is_mere_rearrangement(value: Value, made: Mapping[Edge, Value], trace: Trace) -> bool:
    """Whether the values are those of another candidate, in another order or a part of them."""
    source = value.rearranged
    while source is not None and source in made:
        origin = made[source]
        if next(possible_layouts(origin.shape, trace.images.shape, trace.grids), None) is not None:
            return not _is_pooled(origin) or origin.weighted > 0
        source = origin.rearranged
    return False


def _batches(candidates: Iterator[_Candidate]) -> Iterator[list[_Candidate]]:
    first, later = _AT_ONCE
    size = first
    while some := list(islice(candidates, size)):
        yield some
        size = later


def _measured(trace: Trace, candidates: Sequence[_Candidate]) -> dict[str, _Measured | None]:
    """The best layout of each candidate; None where it did not run as it was traced."""
    found = measure(
        trace.subject,
        trace.images.detach(),
        {each.name: each.layouts for each in candidates},
        chunk_size=trace.chunk_size,
    )
    best: dict[str, _Measured | None] = {}
    for each in candidates:
        fits = found.get(each.name, {})
        layout = min(fits, key=lambda layout: (not fits[layout].holds, fits[layout].distance), default=None)
        best[each.name] = None if layout is None else _Measured(each, layout, fits[layout])
    return best


def _is_no_worse(best: _Measured, before: _Measured | None) -> bool:
    """Whether a map may do although it was not measured to hold.

    Nothing shows it elsewhere, and it is either too coarse to be measured, or an activation or norm of a map that
    holds: two probes may move few of its cells.
    """
    if best.locality.elsewhere or best.locality.answered == 0:
        return False
    if best.locality.coarse or before is None:
        return best.locality.coarse
    value, made_of = best.candidate.value, before.candidate.value
    cell_by_cell = (value.shape, value.weighted) == (made_of.shape, made_of.weighted)
    return cell_by_cell and before.locality.holds and before.layout == best.layout


def _carrying(trace: Trace, best: _Measured) -> _Measured | None:
    """The tensor under the name by which everything goes through it; None where outputs see the image around it."""
    value = best.candidate.value
    for name in dict.fromkeys((best.candidate.name, trace.address(value, inner=True))):
        image = trace.images[0].detach()
        if share_around(trace.subject, image, name, best.layout, chunk_size=trace.chunk_size) <= _AROUND:
            return replace(best, candidate=replace(best.candidate, name=name))
    return None


def _refined(
    trace: Trace,
    best: _Measured,
    candidates: Sequence[_Candidate],
    known: Mapping[str, _Measured | None],
) -> _Measured:
    """The last tensor of the same grid and width through which all that the cells contribute goes."""
    order = {value.edge: index for index, value in enumerate(trace.values)}
    later = [
        each
        for each in candidates
        if order[each.value.edge] > order[best.candidate.value.edge]
        and each.value.shape == best.candidate.value.shape
        and best.layout in each.layouts
    ]
    if "L" not in best.layout.name or not later:
        return best
    kept = [each for each in later if carries_all(trace, best.candidate.value, each.value, best.layout)]
    kept = kept[: _AT_ONCE[0]]
    measured = {**known, **_measured(trace, [each for each in kept if each.name not in known])}
    for each in kept:
        found = measured[each.name]
        if found is not None and found.locality.holds and found.layout == best.layout:
            return found
    return best


def _layer(trace: Trace, chosen: _Measured, bottleneck: _Measured) -> Layer:
    if chosen is bottleneck:
        kind = "the last feature map before pooling through which everything goes"
    else:
        kind = "the last token grid that the outputs depend on everywhere; later ones pass on the class token alone"
    if trace.patches and chosen.candidate.value.weighted == 1:
        kind = "the embedded patches, since nothing later lies on the image"
    sure = chosen.locality.certain and (chosen.locality.holds or not chosen.locality.coarse)
    doubts = "" if sure else f"; not verified: {chosen.locality}"
    doubts += chosen.locality.rim
    coarse = "; so few cells hardly say where" if chosen.layout.cells <= 4 else ""
    name = chosen.candidate.name
    reason = f"`{name}`: {kind} ({_describe(chosen)}{coarse}{doubts})"
    cancelled = cancels(trace, chosen.candidate.value, chosen.layout)
    return Layer(name, chosen.layout, sure, reason, cancelled)


def _describe(measured: _Measured) -> str:
    value, layout = measured.candidate.value, measured.layout
    module = next((value.modules[each] for each in value.addresses if each in value.modules), None)
    made = type(module).__name__ if module is not None else value.function
    extra = layout.prefix + layout.suffix
    beside = f" beside {extra} other token{'s' if extra > 1 else ''}" if extra else ""
    return f"{made}, {layout.channels(value.shape)} channels on {layout.grid[0]} x {layout.grid[1]}{beside}"


def _refuted(best: _Measured | None) -> str:
    return "it is not there in every forward pass" if best is None else str(best.locality)


def _branches(trace: Trace, candidates: Sequence[_Candidate]) -> list[_Measured]:
    """The last maps side by side that lie on the image; what two were computed from stands for both."""
    kept: list[_Measured] = []

    def later_than(each: _Candidate) -> list[_Measured]:
        return [other for other in kept if leads_to(other.candidate.value.edge, each.value.edge)]

    for some in _batches(each for each in candidates if len(later_than(each)) != 1):
        gradients = gradients_of(trace, [each.value for each in some])
        measured = _measured(trace, some)
        for each, gradient in zip(some, gradients, strict=True):
            best, later = measured[each.name], later_than(each)
            if best is None or len(later) == 1 or not best.locality.holds or not is_reached(gradient, best.layout):
                continue
            kept = [other for other in kept if other not in later] + [best]
        if len(kept) >= _BRANCHES:
            break
    return kept[:_BRANCHES]


def _not_once(trace: Trace, address: Address, values: int) -> str:
    if values == 0:
        how = "never returns a tensor that depends on the images"
        if not any(each.module == address.module for value in trace.values for each in value.addresses):
            how = "never runs, or runs where it cannot be watched, as inside of a scripted module"
        return f"Expected `target_layer` to run in a forward pass, but `{address}` {how}. Name another layer."
    return (
        f"Expected `target_layer` to run once in a forward pass, but `{address}` runs {values} times. Name one call, "
        f"such as '{address}#{values - 1}', or a layer that runs once."
    )


def _address(trace: Trace, target: str | nn.Module) -> Address:
    root = trace.subject.module
    if isinstance(target, str):
        address = Address(target) if target in module_names(root) and target else Address.parse(target)
        if address.module:
            try:
                find_module(root, address.module, "target_layer")
            except ConfigurationError as error:
                raise TargetLayerError(str(error)) from None
        return address
    target = getattr(target, "_orig_mod", target)  # what `torch.compile` wraps
    for name, module in module_names(root).items():
        if module is target and name:
            return Address(name)
    raise TargetLayerError(
        f"Expected `target_layer` to be part of {type(root).__name__}, but got a {type(target).__name__} that is not. "
        "Pass its dotted name, which survives copying the model."
    )
