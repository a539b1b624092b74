"""Which tensor to explain at: found in one traced pass, verified on changed images, and said why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from xai_callbacks.access.layouts import FeatureLayout, LayoutName, Locality, measure, possible_layouts, share_around
from xai_callbacks.access.subject import find_module
from xai_callbacks.access.trace import Trace, Value, is_reached, leads_to, rearranged
from xai_callbacks.access.watching import Address
from xai_callbacks.errors import TargetLayerError

# Candidates measured at a time, by the same forward passes; the first batch nearly always holds the layer.
_FIRST, _LATER = 12, 32
_AROUND = 0.1  # share of what outputs see of the image that may go around a layer without being seen by gradients
_BRANCHES = 4  # branches named in a refusal
# Functions after which a map is no longer at the resolution of the network.
_POOLING = ("pool", "interpolate", "upsample")
_STILL = Locality()
_WITHOUT = "Or explain without a layer, as Occlusion() and IntegratedGradients() do."


class NoFeatureMapError(TargetLayerError):
    """Nothing in the model lies on the image: there are no heatmaps of layers."""


@dataclass(frozen=True)
class Layer:
    """Where heatmaps are computed. Plain data, valid for every model of the same architecture."""

    name: str  # address of the tensor, see `Address`: mostly the dotted name of a module
    layout: FeatureLayout
    verified: bool  # whether the map was seen to move where the image is changed
    reason: str  # one sentence for people, with what is known where it is not verified
    cancels: bool = False  # whether the gradients in its cells add up to 0 in each channel, so that they have no mean


@dataclass(eq=False)
class _Candidate:
    """A tensor that may be a grid; once it is measured, `layout` is the best of its layouts, and `ran` not None."""

    value: Value
    name: str
    layouts: tuple[FeatureLayout, ...]
    layout: FeatureLayout
    locality: Locality = _STILL
    ran: bool | None = None


def choose_layer(trace: Trace) -> Layer:
    """Choose the last feature map before pooling through which everything goes, and verify it.

    Takes, from the outputs back to the images, the first tensor that (1) may be a grid of more than one cell; (2) was
    not made by pooling; (3) is a bottleneck of all paths; (4) receives gradient from the outputs in its cells; (5)
    moves where the image is changed; and (6) holds back the outputs when it is held as it was. Embedded patches are
    taken only where nothing later is left; of tokens of which the outputs read a class token alone, the last of the
    same width that all cells go through, such as the norm before the last attention.

    Cost: some twenty forward passes of each image without gradients, and one or two backward passes. Raises a
    `NoFeatureMapError` where no tensor may be a grid, and a `TargetLayerError` that says why where none passes.
    """
    candidates = _candidates(trace)
    if not candidates:
        kind = type(trace.subject.module).__name__
        raise NoFeatureMapError(
            _folded(trace)
            or f"Expected a feature map between the images and the outputs of {kind}, but no tensor that is seen in it "
            "has rows and columns; plain functions, scripted parts and `inference_mode` are not looked into. Class "
            "activation maps need one; explainers such as Occlusion() and IntegratedGradients() do not."
        )
    refused: list[str] = []
    for some in _batches(candidates):
        through = [each for each in some if not trace.leads_around(each.value.edge)]
        if not through:
            continue
        gradients = trace.gradients_of([each.value for each in through])
        # Tokens through which not everything goes may be the last that all cells go through, see `_refined`.
        _measure(trace, through + [each for each in some if each not in through and len(each.value.shape) == 3])
        for each, before, gradient in zip(through, [*through[1:], None], gradients, strict=True):
            if each.ran:
                objection = _objection(trace, each, before, gradient)
                if not objection:
                    return _chosen(trace, each, candidates[: candidates.index(each)])
                refused.append(f"`{each.name}` {each.value.shape}: {objection}")
    raise TargetLayerError(_nothing_holds(trace, candidates, refused))


def name_layer(trace: Trace, target: str, layout: LayoutName | None = None) -> Layer:
    """Look up the layer the user named by its address, and verify it; `layout` None tries all layouts.

    Raises a `TargetLayerError` where it is not part of the model, did not run exactly once, is no grid of more than one
    cell, or does not lie on the image.
    """
    address = Address.parse(target)
    if address.module:
        find_module(trace.subject.module, address.module, "target_layer", TargetLayerError)
    values, name = trace.at(address), str(address)
    if len(values) != 1:
        raise TargetLayerError(
            f"Expected `target_layer` to run once in a forward pass, but `{name}` runs {len(values)} times, as far "
            f"as is seen. Name one call, such as '{name}#0', or a layer that runs once and returns a tensor."
        )
    named = _candidate(trace, values[0], name, layout)
    if named is None:
        raise TargetLayerError(
            f"Expected `target_layer` to be a feature map of more than one cell, but `{name}` is {values[0].shape} for "
            f"{trace.images.shape[0]} images of {tuple(trace.images.shape[-2:])}. Name an earlier layer, or say how to "
            "read it with `layout=`."
        )
    _measure(trace, [named])
    if not named.ran or named.locality.elsewhere:
        refuted = named.locality.words if named.ran else "it is not there in every forward pass"
        raise TargetLayerError(
            f"Expected `{name}` to lie on the image, but {refuted}. A heatmap of it would point at the wrong "
            "place. Name another layer, or leave `target_layer` out to have one found."
        )
    words = f", as named: {_describe(named)}"
    if trace.leads_around(named.value.edge):
        words += "; the outputs depend on the images around it, too, which its heatmaps do not show"
    return _layer(trace, named, words, named.locality.holds)


def _candidates(trace: Trace) -> list[_Candidate]:
    """Tensors that may be grids, the last first; patches as they are embedded come at the very end."""
    kept = [value for value in reversed(trace.values) if value.weighted and not _is_pooled(value)]
    found = [_candidate(trace, value) for value in kept if not _is_mere_rearrangement(value, trace)]
    candidates = [each for each in found if each is not None]
    return sorted(candidates, key=lambda each: trace.patches and each.value.weighted == 1)


def _candidate(trace: Trace, value: Value, name: str = "", layout: LayoutName | None = None) -> _Candidate | None:
    layouts = tuple(possible_layouts(value.shape, trace.images.shape, trace.grids, layout))
    return _Candidate(value, name or trace.address(value), layouts, layouts[0]) if layouts else None


def _is_pooled(value: Value) -> bool:
    return any(word in (value.function or "") for word in _POOLING)


def _is_mere_rearrangement(value: Value, trace: Trace) -> bool:
    """Whether the values are those of another candidate, in another order or a part of them."""
    edge = rearranged(value.edge)
    while edge is not None:
        origin = trace.made.get(edge)  # none of what is only a step on the way, as an index makes several
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
        if share_around(trace.subject, image, name, each.layout) <= _AROUND:
            each.name = name
            return ""
    return "the outputs see the image around it, too, where no gradient leads"


def _is_no_worse(each: _Candidate, before: _Candidate | None) -> bool:
    """Whether a map may do that does not hold: it is too coarse, or an activation of one that does."""
    if each.locality.elsewhere or not each.locality.answered:
        return False
    if each.locality.coarse or before is None:
        return each.locality.coarse
    cell_by_cell = (each.value.shape, each.value.weighted) == (before.value.shape, before.value.weighted)
    return cell_by_cell and before.locality.holds and before.layout == each.layout


def _chosen(trace: Trace, bottleneck: _Candidate, later: Sequence[_Candidate]) -> Layer:
    chosen = _refined(trace, bottleneck, later)
    if trace.patches and chosen.value.weighted == 1:
        kind = "the embedded patches, since nothing later lies on the image"
    elif chosen is bottleneck:
        kind = "the last feature map before pooling through which everything goes"
    else:
        kind = "the last token grid that the outputs depend on everywhere; later ones pass on the class token alone"
    words = f": {kind} ({_describe(chosen)})" + ("; so few cells hardly say where" if chosen.layout.cells <= 4 else "")
    return _layer(trace, chosen, words, chosen.locality.holds or not chosen.locality.coarse)


def _layer(trace: Trace, each: _Candidate, words: str, fits: bool) -> Layer:
    verified = fits and each.locality.certain
    doubts = "" if verified else f"; not verified: {each.locality.words}"
    reason = f"`{each.name}`{words}{doubts}{each.locality.rim}"
    return Layer(each.name, each.layout, verified, reason, trace.cancels(each.value, each.layout))


def _refined(trace: Trace, best: _Candidate, later: Sequence[_Candidate]) -> _Candidate:
    """The last tensor of the same grid and width through which all that the cells contribute goes."""
    if "L" not in best.layout.name:
        return best
    alike = [each for each in later if each.value.shape == best.value.shape and best.layout in each.layouts]
    kept = [each for each in alike if trace.carries_all(best.value, each.value, best.layout)][:_FIRST]
    _measure(trace, kept)
    return next((each for each in kept if each.locality.holds and each.layout == best.layout), best)


def _describe(each: _Candidate) -> str:
    value, layout = each.value, each.layout
    made = value.function if value.module is None else type(value.module).__name__
    extra = layout.prefix + layout.suffix
    beside = f" beside {extra} other token{'s' if extra > 1 else ''}" if extra else ""
    return f"{made}, {layout.channels(value.shape)} channels on {layout.grid[0]} x {layout.grid[1]}{beside}"


def _branches(trace: Trace, candidates: Sequence[_Candidate]) -> list[str]:
    """Names of the last maps side by side that lie on the image; what two were computed from stands for both."""
    kept: list[_Candidate] = []
    for batch in _batches(candidates):
        some = [each for each in batch if len(_made_from(each, kept)) != 1]
        _measure(trace, some)
        for each, gradient in zip(some, trace.gradients_of([each.value for each in some]), strict=True):
            later = _made_from(each, kept)
            if len(later) != 1 and each.locality.holds and is_reached(gradient, each.layout):
                kept = [other for other in kept if other not in later] + [each]
        if len(kept) >= _BRANCHES:
            break
    return [each.name for each in kept[:_BRANCHES]]


def _made_from(each: _Candidate, others: Sequence[_Candidate]) -> list[_Candidate]:
    return [other for other in others if leads_to(other.value.edge, each.value.edge)]


def _folded(trace: Trace) -> str:
    """What is said of maps that have another number of images; empty if there are none."""
    images = trace.images.shape[0]
    folded = [value for value in trace.values if len(value.shape) == 4 and value.shape[0] != images and value.weighted]
    if not folded:
        return ""
    return (
        f"Expected one feature map an image, but `{trace.address(folded[-1])}` is {folded[-1].shape} for {images} "
        "images: the model looks at them one by one, or folds crops, tiles or frames into the batch. Audit the part "
        "that sees one of them with `model=`, or explain by Occlusion() or IntegratedGradients()."
    )


def _nothing_holds(trace: Trace, candidates: Sequence[_Candidate], refused: Sequence[str]) -> str:
    """The message where no candidate passes; `refused` says why of those through which all paths lead."""
    kind = type(trace.subject.module).__name__
    if not trace.differentiable:
        return (
            f"Expected to differentiate {kind}, but its outputs are detached, rounded or computed without gradients "
            f"after `{trace.address(candidates[0].value)}`. {_WITHOUT}"
        )
    seen = f" Of those through which all paths lead, {'; '.join(refused[:4])}." if refused else ""
    branches = _branches(trace, candidates)
    if not branches:
        # Maps of crops, or of other images beside these, are no candidates.
        folded = "" if any(len(each.value.shape) == 4 for each in candidates) else _folded(trace)
        return folded or f"Expected a feature map of {kind} that lies on the image, but found none.{seen} {_WITHOUT}"
    named = [f"GradCAM({name!r}, name='gradcam_{index}')" for index, name in enumerate(branches, 1)]
    return (
        f"Expected a feature map through which all paths from the images to the outputs of {kind} lead, but there is "
        f"another path around each of {', '.join(f'`{name}`' for name in branches)}.{seen} Its heatmap would be given "
        f"for all. Explain at each, `explainers=[{', '.join(named)}]`. {_WITHOUT}"
    )
