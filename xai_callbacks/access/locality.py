"""Measurements on changed images: whether a feature map lies where it claims to, and whether all goes through it.

The image is changed at some places, one after another, and each cell of the map is asked how much it moved. In a map
that lies on the image as it should, what moved is where the change is, in both axes. Maps that are mirrored, transposed
or of a crop move elsewhere; tokens that are no grid move anywhere. This needs forward passes only, so that it works
where nothing can be differentiated, and it compares nothing but places: a weak or a wide response does no harm.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.access.layouts import FeatureLayout, LayoutName
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Returned, watching

__all__ = ["Locality", "measure", "share_around"]

# Centres of the changed places, the side of the image = 1: each of 16 rows and 16 columns has one, so that every turn
# and mirroring shows, and cells in another order wherever they are.
_COUNT = 16
_CENTRES = tuple(((row + 0.5) / _COUNT, ((5 * row + 3) % _COUNT + 0.5) / _COUNT) for row in range(_COUNT))
# Side of a changed place, side of the image = 1.
_SIDE = 0.2
# A change of so many standard deviations of the images is far outside of what a model has seen, and moves it.
_STRENGTH = 2.0
# A response below this share of the strongest is none.
_FAINT = 0.02

# What a map may be off, and what is added for the width of a cell: a smooth response is pulled inward at the rim, a
# coarse grid rounds places to its cells, and every convolution of stride 2 may sample the upper left of four pixels.
_LEAST_SLOPE, _LEAST_SLOPE_A_CELL = 0.85, -0.9
# Convolutions without padding see all places, and widen the map to the rim; a crop does not see all.
_MOST_SLOPE, _MOST_SLOPE_OF_A_PART = 1.2, 1.12
_EVERYWHERE = 0.95
# From here on people are told.
_WIDENED = 1.08
_OFFSET, _OFFSET_A_CELL = 0.035, 0.5
_DISTANCE, _DISTANCE_A_CELL = 0.04, 1.25
_FARTHEST, _FARTHEST_A_CELL = 0.08, 1.25
# A crop of so much, or a map so far beyond what it may be off, is no matter of doubt.
_CROP = 1.25
_BEYOND = 2.0
_ANSWERED = 0.75
# A map is turned if that brings its responses so much nearer to their places.
_NEARER = 0.5
# At most so many rows and columns are few.
_COARSE = 4
# A token whose response at most places is below this share of its strongest lies at a place.
_LOCAL = 0.2

# Every so many of the places are enough to ask whether outputs move, and not where.
_EVERY = 8
# Outputs that differ by more than this share on the same image are drawn at random.
_ROUNDING = 1e-3


class Locality(NamedTuple):
    """Responses of a map to changes of the image.

    Attributes:
        answered: Share of the places at which the map moves at all.
        distance: Distance between place and response in the image where it is smaller, mean of the worst quarter; the
            side of the image = 1.
        holds: Whether what moved lies where the image was changed.
        elsewhere: Whether it lies elsewhere beyond doubt: turned, of a crop, shifted, or nowhere in a fine grid.
        coarse: Whether it has so few rows and columns that a change at one place moves most of it.
        words: What was seen.
        rim: How far the map is drawn beside its place at the rim, in words; empty where that is little.
    """

    answered: float = 0.0
    distance: float = 1.0
    holds: bool = False
    elsewhere: bool = False
    coarse: bool = False
    words: str = "it does not move when the image is changed"
    rim: str = ""

    @property
    def certain(self) -> bool:
        """Whether most places were answered."""
        return self.answered >= _ANSWERED


@torch.no_grad()
def measure(
    subject: Subject, images: Tensor, layers: Mapping[str, Sequence[FeatureLayout]], *, chunk_size: int
) -> dict[str, dict[FeatureLayout, Locality]]:
    """Measure layers in all their possible layouts on one image or two `(N, C, H, W)`; call inside `undisturbed`.

    Nothing is found for a layer that did not run as expected. Cost: seventeen forward passes for each image, at most
    `chunk_size` images at a time, without gradients.
    """
    found: dict[str, dict[FeatureLayout, Locality]] = {name: {} for name in layers}
    moved: dict[tuple[str, LayoutName], list[Tensor]] = defaultdict(list)
    for index, image in enumerate(subject.images(images)):
        several, placed = _changed_at_places(image, brighter=index % 2 == 0)
        for key, response in _responses(subject, image[None], several, layers, chunk_size).items():
            moved[key].append(response)
    for (name, order), responses in moved.items():
        if len(responses) == len(images):
            alike = [layout for layout in layers[name] if layout.name == order]
            found[name] |= {layout: _locality(torch.stack(responses), placed, layout) for layout in alike}
    return found


def _responses(
    subject: Subject, image: Tensor, several: Tensor, layers: Mapping[str, Sequence[FeatureLayout]], chunk_size: int
) -> dict[tuple[str, LayoutName], Tensor]:
    """How far cells `(P, ...)` are moved by each change of an image, by name and order of axes; on the CPU."""
    before: dict[tuple[str, LayoutName], Tensor] = {}
    moved: dict[tuple[str, LayoutName], list[Tensor]] = defaultdict(list)

    def look(returned: Returned) -> None:
        for name in returned.names:
            for order, layout in {layout.name: layout for layout in layers[name]}.items():
                if not layout.fits(returned.tensor, len(some)):
                    continue
                if some is image:
                    before[name, order] = returned.tensor.clone()
                elif (name, order) in before:
                    away = returned.tensor.float() - before[name, order].float()
                    away = torch.linalg.vector_norm(away, dim=order.index("C"))
                    moved[name, order].append(away.movedim(order.replace("C", "").index("N"), 0).cpu())

    for some in (image, *torch.split(several, chunk_size)):
        with watching(subject.module, look, layers):
            subject.run(some)
    joined = {key: torch.cat(parts) for key, parts in moved.items()}
    return {key: response for key, response in joined.items() if len(response) == len(several)}


@torch.no_grad()
def share_around(subject: Subject, image: Tensor, name: str, layout: FeatureLayout, *, chunk_size: int) -> float:
    """Share of what outputs move with an image `(C, H, W)` that is left when a layer is held as it was.

    It is 0 where everything goes through the layer, and where outputs do not move, or differ at random. It is more
    where a part of the model runs without gradients, is detached or rounds, or where the model keeps the tensor and
    reads it in another place than that of the name. Call inside `undisturbed`. Cost: six forward passes.
    """
    image = subject.images(image)
    images = torch.cat([image[None], _changed_at_places(image, brighter=True)[0][::_EVERY]])
    held: list[Tensor] = []
    axis = layout.name.index("N")

    def keep(returned: Returned) -> None:
        if not held:
            held.append(returned.tensor.narrow(axis, 0, 1).clone())

    def hold(returned: Returned) -> Tensor | None:
        if returned.in_place:
            returned.tensor.copy_(held[0])
            return None
        return held[0].expand_as(returned.tensor).clone()

    runs = []
    for each in (keep, hold):
        parts = []
        for some in torch.split(images, chunk_size):
            with watching(subject.module, each, [name]):  # calls are counted anew in each pass
                parts.append(subject.select(subject.run(some), len(some)))
        runs.append(torch.cat(parts).double())
    free, bound = (run[1:] - run[:1] for run in runs)
    largest = float(runs[0].abs().amax())
    same = bool((runs[0][0] - runs[1][0]).abs().amax() <= _ROUNDING * largest)
    if not same or float(free.abs().amax()) <= _ROUNDING**2 * largest:
        return 0.0
    return float(bound.norm() / free.norm())


def _changed_at_places(image: Tensor, *, brighter: bool) -> tuple[Tensor, Tensor]:
    """Copies `(P, C, H, W)` of an image, each with another place brighter or darker, and the centres `(P, 2)`."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    spread = image.float().std().to(image).clamp_min(1e-3)
    changed = image + spread * _STRENGTH * ((1 if brighter else -1) + noise)
    result = image.expand(_COUNT, -1, -1, -1).clone()
    placed = []
    for each, centre in zip(result, _CENTRES, strict=True):
        spans = []
        for middle, side in zip(centre, image.shape[-2:], strict=True):
            start = round((middle - _SIDE / 2) * side)
            end = max(start + 1, round((middle + _SIDE / 2) * side))
            spans.append((max(0, start), min(side, end)))
        rows, columns = (slice(*span) for span in spans)
        each[:, rows, columns] = changed[:, rows, columns]
        placed.append([sum(span) / 2 / side for span, side in zip(spans, image.shape[-2:], strict=True)])
    return result, torch.tensor(placed)


def _locality(response: Tensor, placed: Tensor, layout: FeatureLayout) -> Locality:
    """From responses `(images, places, ...)` of the cells, or of all tokens."""
    grid, beside = layout.grid, False
    axes = [axis for axis in (0, 1) if grid[axis] > 1]  # an axis of a single cell cannot be wrong
    coarse = "H" in layout.name and 1 < min(grid) <= max(grid) <= _COARSE
    if "L" in layout.name:
        first, last = layout.prefix, layout.prefix + layout.cells
        beside = _lie_on_the_image(torch.cat([response[..., :first], response[..., last:]], dim=-1), response)
        response = response[..., first:last].reshape(*response.shape[:2], *grid)
    response = (response - response.median(dim=1, keepdim=True).values).clamp_min(0)
    largest = response.flatten(2).amax(dim=2)
    answered = largest > _FAINT * largest.amax().clamp_min(1e-12)
    if not answered.any():
        return Locality(coarse=coarse)
    centres, placed = _centres(response)[..., axes], placed[:, axes]
    # What lies elsewhere does so in every image; what an image happens to show at a place may outshine the change.
    distances = (centres - placed).norm(dim=2).masked_fill(~answered, torch.inf)
    nearest = distances.amin(dim=0)[answered.any(dim=0)].sort().values
    centres, places = centres[answered], placed.expand(len(response), -1, -1)[answered]
    share, turned = float(answered.float().mean()), _is_turned(centres, places)
    return _judged(share, centres, places, nearest, torch.tensor(grid)[axes], turned, coarse=coarse, beside=beside)


def _judged(
    answered: float,
    centres: Tensor,
    places: Tensor,
    nearest: Tensor,
    sides: Tensor,
    turned: bool,
    *,
    coarse: bool,
    beside: bool,
) -> Locality:
    """From centres `(M, axes)` of responses and their places, sorted distances, and cells `(axes,)`.

    `turned` tells that the map is mirrored or transposed, `beside` that tokens beside it lie on the image as well, such
    as those of a second, coarser grid.
    """
    centred, away = places - places.mean(dim=0), centres - places
    # How far the response moves with the place: 1 is right, below 0 mirrored, above 1 a crop, near 0 no place at all.
    slope = 1 + (centred * away).sum(dim=0) / centred.square().sum(dim=0).clamp_min(1e-12)
    shift = away.mean(dim=0).abs() / (_OFFSET + _OFFSET_A_CELL / sides)
    least, widest = _LEAST_SLOPE + _LEAST_SLOPE_A_CELL / sides, float(slope.max())
    everywhere, cell = answered >= _EVERYWHERE, 1 / int(sides.min())
    most = _MOST_SLOPE if everywhere else _MOST_SLOPE_OF_A_PART
    near, far = _DISTANCE + _DISTANCE_A_CELL * cell, _FARTHEST + _FARTHEST_A_CELL * cell
    distance, farthest = float(nearest[-max(1, len(nearest) // 4) :].mean()), float(nearest[-1])
    corners = max(0.0, widest - 1) / math.sqrt(2) if everywhere else 0.0  # moved by convolutions without padding
    right = widest <= most and bool((slope >= least).all()) and bool((shift <= 1).all())
    holds = right and not beside and distance <= near + corners and farthest <= far + corners
    nowhere = farthest > _BEYOND * far or bool((slope < least / _BEYOND).any())
    crop = widest > (most if coarse else _CROP)
    elsewhere = turned or crop or bool((shift > _BEYOND).any()) or (nowhere and not coarse)
    if turned:
        words = "it is mirrored or transposed: it moves on another side than the image is changed"
    elif widest > most:
        words = "it is of a part of the image: it moves further than the place at which the image is changed"
    elif beside:
        words = "tokens beside its grid lie on the image, too, as those of a second grid do, and would be left out"
    elif farthest > 2 * distance:
        words = f"at places it moves {_percent(farthest)}, as tokens in another order do"
    else:
        words = f"it moves {'' if answered >= _ANSWERED else 'at few places, and '}{_percent(distance)}"
    rim = ""
    if _WIDENED < widest <= most:
        off = 100 * (widest - 1) / 2
        rim = f"; cut by convolutions without padding or a crop, so drawn up to {off:.0f} % of the side too far out"
    return Locality(answered, distance, holds, elsewhere, coarse, words, rim)


def _percent(distance: float) -> str:
    return f"{100 * distance:.0f} % of the side away from where the image is changed"


def _centres(response: Tensor) -> Tensor:
    """Rows and columns `(..., 2)` of what moved half as much as what moved most, or more."""
    height, width = response.shape[-2:]
    kept = response * (response >= 0.5 * response.amax(dim=(-2, -1), keepdim=True))
    total = kept.sum(dim=(-2, -1)).clamp_min(1e-20)
    rows = (kept.sum(dim=-1) @ ((torch.arange(height) + 0.5) / height)) / total
    columns = (kept.sum(dim=-2) @ ((torch.arange(width) + 0.5) / width)) / total
    return torch.stack([rows, columns], dim=-1)


def _is_turned(centres: Tensor, places: Tensor) -> bool:
    """Whether centres `(P, axes)` lie nearer to their places in a map that is turned or mirrored, in any way."""
    axes = centres.shape[1]
    away = [
        (((turned - 0.5) * torch.tensor(signs) + 0.5) - places).norm(dim=1).mean()
        for turned in (centres, centres.flip(1))[:axes]
        for signs in itertools.product((1.0, -1.0), repeat=axes)
    ]
    return bool(min(away[1:]) < _NEARER * away[0])


def _lie_on_the_image(others: Tensor, everything: Tensor) -> bool:
    """Whether most of the tokens beside a grid move, and at few places; class tokens and registers move at all."""
    if others.shape[-1] < 2:
        return False
    largest = others.amax(dim=1)
    local = others.median(dim=1).values < _LOCAL * largest
    strong = largest > _LOCAL * everything.amax(dim=(1, 2))[:, None]
    return bool((local & strong).float().mean() > 0.5)
