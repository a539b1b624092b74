"""How a tensor lies on the image, and whether it does: what moves in it should lie where the image is changed."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Returned, watching
from xai_callbacks.errors import require_choice

LayoutName = Literal["NCHW", "NHWC", "NLC", "NCL", "LNC"]

# Class, distillation and register tokens: no published vision transformer has more than this beside its patches.
_MOST_EXTRA_TOKENS = 16
# Cells that are so many times longer than wide are no cells of a map; sooner where the map is a single row of them.
_LONGEST, _LONGEST_OF_STRIP = 8.0, 2.0

# All lengths are shares of the side of the image. Each of 16 rows and 16 columns has the centre of one changed place,
# so that every turn and mirroring shows, and cells in another order wherever they are.
_COUNT = 16
_CENTRES = tuple(((row + 0.5) / _COUNT, ((5 * row + 3) % _COUNT + 0.5) / _COUNT) for row in range(_COUNT))
_SIDE = 0.2
# A change of so many standard deviations of the images is far outside of what a model has seen, and moves it.
_STRENGTH = 2.0
_FAINT = 0.02  # a response below this share of the strongest is none

# What a map may be off, and what is added for the width of a cell: a smooth response is pulled inward at the rim, a
# coarse grid rounds places to its cells, and every convolution of stride 2 may sample the upper left of four pixels.
_LEAST_SLOPE, _LEAST_SLOPE_A_CELL = 0.85, -0.9
_OFFSET, _OFFSET_A_CELL = 0.035, 0.5
_DISTANCE, _DISTANCE_A_CELL = 0.04, 1.25
_FARTHEST, _FARTHEST_A_CELL = 0.08, 1.25
# Convolutions without padding see all places, and widen the map to the rim; a crop does not see all.
_MOST_SLOPE, _MOST_SLOPE_OF_A_PART, _EVERYWHERE = 1.2, 1.12, 0.95
_WIDENED = 1.08  # from here on people are told
_CROP, _BEYOND = 1.25, 2.0  # a crop of so much, or a map so far beyond what it may be off, is no matter of doubt
_ANSWERED = 0.75
_NEARER = 0.5  # a map is turned if that brings its responses so much nearer to their places
_COARSE = 4  # at most so many rows and columns are few

_EVERY = 8  # every so many of the places are enough to ask whether outputs move, and not where
_ROUNDING = 1e-3  # outputs that differ by more than this share on the same image are drawn at random


def check_layout(name: object) -> None:
    """Raise a `ConfigurationError` for what is neither the name of a layout nor None."""
    if name is not None:
        require_choice("layout", name, get_args(LayoutName))


@dataclass(frozen=True)
class FeatureLayout:
    """How a tensor is read as a feature map `(N, D, h, w)`."""

    name: LayoutName  # the order of the axes: N images, C channels, H and W rows and columns of cells, L tokens
    grid: tuple[int, int]  # height and width `(h, w)` in cells
    prefix: int = 0  # tokens before the first patch: class, distillation, registers
    suffix: int = 0  # tokens after the last patch

    @property
    def cells(self) -> int:
        """Number of cells h * w."""
        return self.grid[0] * self.grid[1]

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels D of a tensor of this layout."""
        return shape[self.name.index("C")]

    def fits(self, tensor: Tensor, images: int) -> bool:
        """Whether a tensor of so many images has this layout."""
        sides = {"N": images, "H": self.grid[0], "W": self.grid[1], "L": self.prefix + self.cells + self.suffix}
        return tensor.ndim == len(self.name) and all(
            size == sides.get(axis, size) for axis, size in zip(self.name, tensor.shape, strict=True)
        )

    def to_nchw(self, features: Tensor) -> Tensor:
        """Read features, or gradients of the same shape, as `(N, D, h, w)`, without extra tokens; a view if it can."""
        if "H" in self.name:
            return features.permute([self.name.index(axis) for axis in "NCHW"])
        tokens = features.permute([self.name.index(axis) for axis in "NCL"])[:, :, self.prefix :]
        return tokens[:, :, : self.cells].reshape(*tokens.shape[:2], *self.grid)


def possible_layouts(
    shape: Sequence[int], images: Sequence[int], grids: Sequence[tuple[int, int]] = (), name: LayoutName | None = None
) -> Iterator[FeatureLayout]:
    """Every way in which a tensor of a shape could lie on images `(N, C, H, W)`, the likeliest first.

    The grid of tokens is the first that fits of those `(h, w)` of convolutions that ran before (the patch embedding),
    or one with the aspect ratio of the image; up to 16 extra tokens may stand before or behind the patches. Grids of
    long cells are rows, columns or channels, of which no map is made unless the user says so by `name`.
    """
    check_layout(name)
    names: dict[int, tuple[LayoutName, ...]] = {4: ("NCHW", "NHWC"), 3: ("NLC", "LNC", "NCL")}
    for each in names.get(len(shape), ()):
        if name not in (None, each) or shape[each.index("N")] != images[0]:
            continue
        if "H" in each:
            grid = shape[each.index("H")], shape[each.index("W")]
            if grid[0] * grid[1] > 1 and (name is not None or not _is_strip(grid, images)):
                yield FeatureLayout(each, grid)
            continue
        length = shape[each.index("L")]
        known = [grid for grid in grids if 1 < math.prod(grid) <= length <= math.prod(grid) + _MOST_EXTRA_TOKENS]
        for grid in known or _grids_of_aspect(length, images):
            extra = length - math.prod(grid)
            yield from (FeatureLayout(each, grid, extra - suffix, suffix) for suffix in range(extra + 1))


def _is_strip(grid: tuple[int, int], images: Sequence[int]) -> bool:
    """Whether the cells are too long to say where along them."""
    height, width = (side / cells for side, cells in zip(images[-2:], grid, strict=True))
    longest = _LONGEST_OF_STRIP if min(grid) == 1 else _LONGEST
    return max(height, width) >= longest * min(height, width)


def _grids_of_aspect(length: int, images: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Grids of up to so many cells with the aspect ratio of the image, fewest extra tokens first."""
    height, width = images[-2:]
    for extra in range(min(_MOST_EXTRA_TOKENS, length - 2) + 1):
        rows = math.isqrt(round((length - extra) * height / width))
        for h in (rows, rows + 1):
            if h > 0 and (length - extra) % h == 0 and h * width == (length - extra) // h * height:
                yield h, (length - extra) // h


class Locality(NamedTuple):
    """Responses of a map to changes of the image."""

    answered: bool = False  # whether it moves at all
    certain: bool = False  # whether it moves at most places
    distance: float = 1.0  # between place and response, in the image where it is smaller, mean of the worst quarter
    holds: bool = False  # whether what moved lies where the image was changed
    elsewhere: bool = False  # whether it lies elsewhere beyond doubt: turned, of a crop, shifted, or nowhere
    coarse: bool = False  # whether it has so few rows and columns that a change at one place moves most of it
    words: str = "it does not move when the image is changed"
    rim: str = ""  # how far the map is drawn beside its place at the rim, where that is much


@torch.no_grad()
def measure(
    subject: Subject, images: Tensor, layers: Mapping[str, Sequence[FeatureLayout]], *, chunk_size: int
) -> dict[str, dict[FeatureLayout, Locality]]:
    """Measure layers in all possible layouts on one or two images `(N, C, H, W)`; call inside `undisturbed`.

    Nothing is found for a layer that did not run as expected. Cost: seventeen forward passes of each image.
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
def share_around(subject: Subject, image: Tensor, name: str, layout: FeatureLayout) -> float:
    """Share of what outputs move with an image `(C, H, W)` that is left when a layer is held as it was.

    It is 0 where everything goes through the layer, and where outputs do not move, or differ at random. It is more
    where a part of the model runs without gradients, is detached or rounds, or where the model keeps the tensor and
    reads it in another place than that of the name. Call inside `undisturbed`. Cost: two forward passes of 3 images.
    """
    image = subject.images(image)
    images = torch.cat([image[None], _changed_at_places(image, brighter=True)[0][::_EVERY]])

    def hold(returned: Returned) -> Tensor:
        held = returned.tensor.narrow(layout.name.index("N"), 0, 1).expand_as(returned.tensor).clone()
        return returned.tensor.copy_(held) if returned.in_place else held

    free = subject.select(subject.run(images), len(images)).double()
    with watching(subject.module, hold, [name]):
        bound = subject.select(subject.run(images), len(images)).double()
    largest = float(free.abs().amax())
    same = bool((free[0] - bound[0]).abs().amax() <= _ROUNDING * largest)
    free, bound = (outputs[1:] - outputs[:1] for outputs in (free, bound))
    if not same or float(free.abs().amax()) <= _ROUNDING**2 * largest:
        return 0.0
    return float(bound.norm() / free.norm())


def _changed_at_places(image: Tensor, *, brighter: bool) -> tuple[Tensor, Tensor]:
    """Copies `(P, C, H, W)` of an image, each with another place brighter or darker, and the centres `(P, 2)`."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    spread = image.float().std().to(image).clamp_min(1e-3)
    changed = image + spread * _STRENGTH * ((1 if brighter else -1) + noise)
    result = image.expand(_COUNT, -1, -1, -1).clone()
    placed = torch.empty(_COUNT, 2)
    for each, centre, place in zip(result, _CENTRES, placed, strict=True):
        spans = []
        for axis, side in enumerate(image.shape[-2:]):
            start = round((centre[axis] - _SIDE / 2) * side)
            end = max(start + 1, round((centre[axis] + _SIDE / 2) * side))
            spans.append(slice(max(0, start), min(side, end)))
            place[axis] = (spans[axis].start + spans[axis].stop) / 2 / side
        rows, columns = spans
        each[:, rows, columns] = changed[:, rows, columns]
    return result, placed


def _locality(response: Tensor, placed: Tensor, layout: FeatureLayout) -> Locality:
    """From responses `(images, places, ...)` of the cells, or of all tokens."""
    grid = layout.grid
    axes = [axis for axis in (0, 1) if grid[axis] > 1]  # an axis of a single cell cannot be wrong
    coarse = "H" in layout.name and 1 < min(grid) <= max(grid) <= _COARSE
    if "L" in layout.name:
        response = response[..., layout.prefix : layout.prefix + layout.cells].reshape(*response.shape[:2], *grid)
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
    return _judged(float(answered.float().mean()), centres, places, nearest, torch.tensor(grid)[axes], coarse=coarse)


def _judged(
    answered: float, centres: Tensor, places: Tensor, nearest: Tensor, sides: Tensor, *, coarse: bool
) -> Locality:
    """From centres `(M, axes)` of responses and their places, sorted distances, and cells `(axes,)`."""
    centred, away = places - places.mean(dim=0), centres - places
    # How far the response moves with the place: 1 is right, below 0 mirrored, above 1 a crop, near 0 no place at all.
    slope = 1 + (centred * away).sum(dim=0) / centred.square().sum(dim=0).clamp_min(1e-12)
    shift = away.mean(dim=0).abs() / (_OFFSET + _OFFSET_A_CELL / sides)
    least, widest = _LEAST_SLOPE + _LEAST_SLOPE_A_CELL / sides, float(slope.max())
    certain, everywhere, cell = answered >= _ANSWERED, answered >= _EVERYWHERE, 1 / int(sides.min())
    most = _MOST_SLOPE if everywhere else _MOST_SLOPE_OF_A_PART
    near, far = _DISTANCE + _DISTANCE_A_CELL * cell, _FARTHEST + _FARTHEST_A_CELL * cell
    distance, farthest = float(nearest[-max(1, len(nearest) // 4) :].mean()), float(nearest[-1])
    corners = max(0.0, widest - 1) / math.sqrt(2) if everywhere else 0.0  # moved by convolutions without padding
    right = widest <= most and bool((slope >= least).all()) and bool((shift <= 1).all())
    holds = right and distance <= near + corners and farthest <= far + corners
    nowhere = farthest > _BEYOND * far or bool((slope < least / _BEYOND).any())
    turned, crop = _is_turned(centres, places), widest > (most if coarse else _CROP)
    elsewhere = turned or crop or bool((shift > _BEYOND).any()) or (nowhere and not coarse)
    if turned:
        words = "it is mirrored or transposed: it moves on another side than the image is changed"
    elif widest > most:
        words = "it is of a part of the image: it moves further than the place at which the image is changed"
    else:
        few = "" if certain else "at few places, and "
        worst = f"up to {100 * farthest:.0f}" if farthest > 2 * distance else f"{100 * distance:.0f}"
        words = f"it moves {few}{worst} % of the side away from where the image is changed"
    off = f"; drawn up to {50 * (widest - 1):.0f} % of the side too far out, by convolutions without padding or a crop"
    rim = off if _WIDENED < widest <= most else ""
    return Locality(True, certain, distance, holds, elsewhere, coarse, words, rim)


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
