"""Which tensor to explain at: found in one traced pass, verified on changed images, and said why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from xai_callbacks.access.layouts import FeatureLayout, LayoutName, possible_layouts
from xai_callbacks.access.locality import Locality, measure, share_around
from xai_callbacks.access.reach import cancels, carries_all, gradients_of, is_reached
from xai_callbacks.access.refusals import nothing_holds, nothing_to_explain
from xai_callbacks.access.subject import find_module
from xai_callbacks.access.trace import Edge, Trace, Value, depends_on_images, leads_to, rearranged
from xai_callbacks.access.watching import Address, module_names
from xai_callbacks.errors import ConfigurationError, TargetLayerError

__all__ = ["Layer", "NoFeatureMapError", "choose_layer", "name_layer"]

# Candidates measured at a time, by the same forward passes; the first batch nearly always holds the layer.
_FIRST, _LATER = 12, 32
# Share of what outputs see of the image that may go around a layer without being seen by gradients.
_AROUND = 0.1
# Branches named in a refusal.
_BRANCHES = 4
# Functions after which a map is no longer at the resolution of the network.
_POOLING = ("pool", "interpolate", "upsample")
_STILL = Locality()


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


@dataclass(eq=False)
class _Candidate:
    """A tensor that may be a grid; once it is measured, `layout` is the best of its layouts.

    `ran` tells whether it was there in every forward pass; None before it is measured.
    """

    value: Value
    name: str
    layouts: tuple[FeatureLayout, ...]
    layout: FeatureLayout
    locality: Locality = _STILL
    ran: bool | None = None


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
    candidates = _candidates(trace)
    if not candidates:
        raise NoFeatureMapError(nothing_to_explain(trace))
    refused: list[str] = []
    for some in _batches(candidates):
        through = [each for each in some if not depends_on_images(trace, around=each.value.edge)]
        if not through:
            continue
        gradients = gradients_of(trace, [each.value for each in through])
        # Tokens through which not everything goes may be the last that all cells go through, see `_refined`.
        _measure(trace, through + [each for each in some if each not in through and len(each.value.shape) == 3])
        for each, before, gradient in zip(through, [*through[1:], None], gradients, strict=True):
            if each.ran:
                objection = _objection(trace, each, before, gradient)
                if not objection:
                    return _layer(trace, each, candidates[: candidates.index(each)])
                refused.append(f"`{each.name}` {each.value.shape}: {objection}")
    branches = [each.name for each in _branches(trace, candidates)]
    raise TargetLayerError(nothing_holds(trace, [each.value for each in candidates], branches, refused))


def name_layer(trace: Trace, target: str | nn.Module, layout: LayoutName | None = None) -> Layer:
    """Look up the layer the user named by its address or as a module, and verify it.

    Its output is read in the given layout; None tries what its shape allows. Raises a `TargetLayerError` where it is
    not part of the model, did not run exactly once, is no grid of more than one cell, or does not lie on the image.
    """
    address = _address(trace, target)
    values, name = trace.at(address), str(address)
    if len(values) != 1:
        raise TargetLayerError(_not_once(trace, address, len(values)))
    named = _candidate(trace, values[0], name, layout)
    if named is None:
        raise TargetLayerError(
            f"Expected `target_layer` to be a feature map of more than one cell, but `{name}` is {values[0].shape} for "
            f"{trace.images.shape[0]} images of {tuple(trace.images.shape[-2:])}. Name an earlier layer, or say how to "
            "read it with `layout=`."
        )
    _measure(trace, [named])
    locality = named.locality
    if not named.ran or locality.elsewhere:
        refuted = locality.words if named.ran else "it is not there in every forward pass"
        raise TargetLayerError(
            f"Expected `{name}` to lie on the image, but {refuted}. A heatmap of it would point at the wrong "
            "place. Name another layer, or leave `target_layer` out to have one found."
        )
    sure = locality.holds and locality.certain
    doubts = ("" if sure else f"; not verified: {locality.words}") + locality.rim
    if depends_on_images(trace, around=named.value.edge):
        doubts += "; the outputs depend on the images around it, too, which its heatmaps do not show"
    reason = f"`{name}`, as named: {_describe(named)}{doubts}"
    return Layer(name, named.layout, sure, reason, cancels(trace, named.value, named.layout))


def _candidates(trace: Trace) -> list[_Candidate]:
    """Tensors that may be grids, the last first; patches as they are embedded come at the very end."""
    made: dict[Edge | None, Value] = {value.edge: value for value in trace.values}
    kept = [value for value in reversed(trace.values) if value.weighted and not _is_pooled(value)]
    found = [_candidate(trace, value) for value in kept if not _is_mere_rearrangement(value, made, trace)]
    candidates = [each for each in found if each is not None]
    return sorted(candidates, key=lambda each: trace.patches and each.value.weighted == 1)


def _candidate(
    trace: Trace, value: Value, name: str | None = None, layout: LayoutName | None = None
) -> _Candidate | None:
    layouts = tuple(possible_layouts(value.shape, trace.images.shape, trace.grids, layout))
    return _Candidate(value, name or trace.address(value), layouts, layouts[0]) if layouts else None


def _is_pooled(value: Value) -> bool:
    return any(word in (value.function or "") for word in _POOLING)


def _is_mere_rearrangement(value: Value, made: Mapping[Edge | None, Value], trace: Trace) -> bool:
    """Whether the values are those of another candidate, in another order or a part of them."""
    edge = rearranged(value.edge)
    while edge is not None:
        origin = made.get(edge)  # none of what is only a step on the way, as an index makes several
        if origin and next(possible_layouts(origin.shape, trace.images.shape, trace.grids), None) is not None:
            return not _is_pooled(origin) or origin.weighted > 0
        edge = rearranged(edge)
    return False


def _batches(candidates: Sequence[_Candidate]) -> Iterator[Sequence[_Candidate]]:
    yield candidates[:_FIRST]
    for start in range(_FIRST, len(candidates), _LATER):
        yield candidates[start : start + _LATER]


def _measure(trace: Trace, candidates: Sequence[_Candidate]) -> None:
    """Find the best layout of each candidate that was not yet measured."""
    new = [each for each in candidates if each.ran is None]
    layers = {each.name: each.layouts for each in new}
    found = measure(trace.subject, trace.images.detach(), layers, chunk_size=trace.chunk_size) if new else {}
    for each in new:
        fits = found[each.name]
        each.ran = bool(fits)
        if fits:
            each.layout, each.locality = min(fits.items(), key=lambda fit: (not fit[1].holds, fit[1].distance))


def _objection(trace: Trace, each: _Candidate, before: _Candidate | None, gradient: Tensor | None) -> str:
    """What speaks against a tensor through which everything seems to go; empty if nothing does."""
    if not (each.locality.holds or _is_no_worse(each, before)):
        return each.locality.words
    if not is_reached(gradient, each.layout):
        return "no gradient of the outputs reaches its cells"
    # What is kept under the outermost name may be read elsewhere, while what made it is read where it is made.
    image = trace.images[0].detach()
    for name in dict.fromkeys((each.name, trace.address(each.value, inner=True))):
        if share_around(trace.subject, image, name, each.layout, chunk_size=trace.chunk_size) <= _AROUND:
            each.name = name
            return ""
    return "the outputs see the image around it, too, where no gradient leads"


def _is_no_worse(each: _Candidate, before: _Candidate | None) -> bool:
    """Whether a map may do although it was not measured to hold.

    Nothing shows it elsewhere, and it is either too coarse to be measured, or an activation or norm of a map that
    holds: two probes may move few of its cells.
    """
    if each.locality.elsewhere or each.locality.answered == 0:
        return False
    if each.locality.coarse or before is None:
        return each.locality.coarse
    cell_by_cell = (each.value.shape, each.value.weighted) == (before.value.shape, before.value.weighted)
    return cell_by_cell and before.locality.holds and before.layout == each.layout


def _refined(trace: Trace, best: _Candidate, later: Sequence[_Candidate]) -> _Candidate:
    """The last tensor of the same grid and width through which all that the cells contribute goes."""
    if "L" not in best.layout.name:
        return best
    alike = [each for each in later if each.value.shape == best.value.shape and best.layout in each.layouts]
    kept = [each for each in alike if carries_all(trace, best.value, each.value, best.layout)][:_FIRST]
    _measure(trace, kept)
    return next((each for each in kept if each.locality.holds and each.layout == best.layout), best)


def _layer(trace: Trace, bottleneck: _Candidate, later: Sequence[_Candidate]) -> Layer:
    chosen = _refined(trace, bottleneck, later)
    if trace.patches and chosen.value.weighted == 1:
        kind = "the embedded patches, since nothing later lies on the image"
    elif chosen is bottleneck:
        kind = "the last feature map before pooling through which everything goes"
    else:
        kind = "the last token grid that the outputs depend on everywhere; later ones pass on the class token alone"
    locality = chosen.locality
    sure = locality.certain and (locality.holds or not locality.coarse)
    doubts = ("" if sure else f"; not verified: {locality.words}") + locality.rim
    coarse = "; so few cells hardly say where" if chosen.layout.cells <= 4 else ""
    reason = f"`{chosen.name}`: {kind} ({_describe(chosen)}{coarse}{doubts})"
    return Layer(chosen.name, chosen.layout, sure, reason, cancels(trace, chosen.value, chosen.layout))


def _describe(each: _Candidate) -> str:
    value, layout = each.value, each.layout
    module = next(iter(value.modules.values()), None)
    made = type(module).__name__ if module is not None else value.function
    extra = layout.prefix + layout.suffix
    beside = f" beside {extra} other token{'s' if extra > 1 else ''}" if extra else ""
    return f"{made}, {layout.channels(value.shape)} channels on {layout.grid[0]} x {layout.grid[1]}{beside}"


def _branches(trace: Trace, candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The last maps side by side that lie on the image; what two were computed from stands for both."""
    kept: list[_Candidate] = []
    for batch in _batches(candidates):
        some = [each for each in batch if len(_made_from(each, kept)) != 1]
        _measure(trace, some)
        for each, gradient in zip(some, gradients_of(trace, [each.value for each in some]), strict=True):
            later = _made_from(each, kept)
            if len(later) != 1 and each.locality.holds and is_reached(gradient, each.layout):
                kept = [other for other in kept if other not in later] + [each]
        if len(kept) >= _BRANCHES:
            break
    return kept[:_BRANCHES]


def _made_from(each: _Candidate, others: Sequence[_Candidate]) -> list[_Candidate]:
    return [other for other in others if leads_to(other.value.edge, each.value.edge)]


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
    modules = module_names(trace.subject.module)
    if isinstance(target, str):
        address = Address(target) if target in modules and target else Address.parse(target)
        if address.module:
            try:
                find_module(trace.subject.module, address.module, "target_layer")
            except ConfigurationError as error:
                raise TargetLayerError(str(error)) from None
        return address
    target = getattr(target, "_orig_mod", target)  # what `torch.compile` wraps
    for name, module in modules.items():
        if module is target and name:
            return Address(name)
    raise TargetLayerError(
        f"Expected `target_layer` to be part of {type(trace.subject.module).__name__}, but got a "
        f"{type(target).__name__} that is not. Pass its dotted name, which survives copying the model."
    )
