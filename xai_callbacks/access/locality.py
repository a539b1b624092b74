"""`measure`: whether the cells of a feature map lie where they claim to lie on the image.

The image is changed at some places, one after another, and each cell of the map is asked how much it moved. In a map
that lies on the image as it should, what moved is where the change is, in both axes. Maps that are mirrored, transposed
or of a crop move elsewhere; tokens that are no grid move anywhere. This needs forward passes only, so that it works
where nothing can be differentiated, and it compares nothing but places: a weak or a wide response does no harm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.access.addresses import Address
from xai_callbacks.access.layouts import FeatureLayout, LayoutName
from xai_callbacks.access.subject import Subject
from xai_callbacks.access.watching import Returned, watching

__all__ = ["Locality", "changed_at_places", "measure"]

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


@dataclass(frozen=True)
class Locality:
    """Where a map moves when the image is changed; rows and columns, the side of the image = 1.

    Attributes:
        grid: Height and width of the map in cells.
        answered: Share of the places at which the map moves at all.
        slope: How far the response moves with the place; 1 is right, below 0 is mirrored, above 1 a crop, near 0 no
            place at all.
        offset: Mean distance from place to response, with its sign; 0 is right.
        distance: Distance between place and response in the image where it is smaller, mean of the worst quarter.
        farthest: The largest of these distances.
        turned: Whether the responses lie at their places better when the map is mirrored or transposed.
        coarse: Whether it has so few rows and columns that a change at one place moves most of it.
        beside: Whether tokens beside the grid lie on the image as well, such as those of a second, coarser grid.
    """

    grid: tuple[int, int]
    answered: float
    slope: tuple[float, float]
    offset: tuple[float, float]
    distance: float
    farthest: float
    turned: bool = False
    coarse: bool = False
    beside: bool = False

    @property
    def holds(self) -> bool:
        """Whether what moved lies where the image was changed."""
        return (
            self.answered > 0
            and not self.beside
            and all(self._least(axis) <= self.slope[axis] <= self._most for axis in self._axes)
            and all(abs(self.offset[axis]) <= self._furthest_off(axis) for axis in self._axes)
            and self.distance <= _DISTANCE + _DISTANCE_A_CELL / self._cells + self._at_corners
            and self.farthest <= _FARTHEST + _FARTHEST_A_CELL / self._cells + self._at_corners
        )

    @property
    def elsewhere(self) -> bool:
        """Whether what moved lies elsewhere beyond doubt: turned, of a crop, shifted, or nowhere in a fine grid."""
        nowhere = self.farthest > _BEYOND * (_FARTHEST + _FARTHEST_A_CELL / self._cells) or any(
            self.slope[axis] < self._least(axis) / _BEYOND for axis in self._axes
        )
        return self.answered > 0 and (
            self.turned
            or any(self.slope[axis] > (self._most if self.coarse else _CROP) for axis in self._axes)
            or any(abs(self.offset[axis]) > _BEYOND * self._furthest_off(axis) for axis in self._axes)
            or (nowhere and not self.coarse)
        )

    @property
    def certain(self) -> bool:
        """Whether most places were answered."""
        return self.answered >= _ANSWERED

    @property
    def rim(self) -> str:
        """How far the map is drawn beside its place at the rim, in words; empty where that is little."""
        widest = max((self.slope[axis] for axis in self._axes), default=1.0)
        if not _WIDENED < widest <= self._most:
            return ""
        off = 100 * (widest - 1) / 2
        return f"; cut by convolutions without padding or a crop, so drawn up to {off:.0f} % of the side too far out"

    @property
    def _at_corners(self) -> float:
        """How far convolutions without padding move the corners; 0 where not all places are seen."""
        widest = max(self.slope[axis] for axis in self._axes)
        return max(0.0, widest - 1) / math.sqrt(2) if self.answered >= _EVERYWHERE else 0.0

    @property
    def _axes(self) -> list[int]:
        # An axis of a single cell cannot be wrong.
        return [axis for axis in (0, 1) if self.grid[axis] > 1]

    @property
    def _cells(self) -> int:
        return min(self.grid[axis] for axis in self._axes)

    @property
    def _most(self) -> float:
        return _MOST_SLOPE if self.answered >= _EVERYWHERE else _MOST_SLOPE_OF_A_PART

    def _least(self, axis: int) -> float:
        return _LEAST_SLOPE + _LEAST_SLOPE_A_CELL / self.grid[axis]

    def _furthest_off(self, axis: int) -> float:
        return _OFFSET + _OFFSET_A_CELL / self.grid[axis]

    def __str__(self) -> str:
        slopes = [self.slope[axis] for axis in self._axes]
        if self.answered == 0:
            return "it does not move when the image is changed"
        if self.turned:
            return "it is mirrored or transposed: it moves on another side than the image is changed"
        if max(slopes) > self._most:
            return "it is of a part of the image: it moves further than the place at which the image is changed"
        if self.beside:
            return "tokens beside its grid lie on the image, too, as those of a second grid do, and would be left out"
        if self.farthest > 2 * self.distance:
            return (
                f"at places it moves {100 * self.farthest:.0f} % of the side away from where the image is changed, as "
                "tokens in another order do"
            )
        far = f"{100 * self.distance:.0f} % of the side away from where the image is changed"
        return f"it moves {far}" if self.certain else f"it moves at few places, and {far}"


def measure(
    subject: Subject, images: Tensor, layers: Mapping[str, Sequence[FeatureLayout]], *, chunk_size: int
) -> dict[str, dict[FeatureLayout, Locality]]:
    """Measure several layers by the same forward passes; call inside `undisturbed`.

    Cost: seventeen forward passes for each image, without gradients.

    Args:
        subject: The model.
        images: One image or two, `(N, C, H, W)`.
        layers: Possible layouts by name of the layer.
        chunk_size: Images in one pass.

    Returns:
        By name and layout; a layer that did not run as expected is missing.
    """
    if not layers:
        return {}
    moved: dict[tuple[str, LayoutName], list[Tensor]] = {}
    placed = torch.empty(0)
    for index, image in enumerate(subject.images(images)):
        before = _look(subject, image[None], layers)
        several, placed = changed_at_places(image, brighter=index % 2 == 0)
        for some in torch.split(several, chunk_size):
            for key, response in _look(subject, some, layers, before).items():
                moved.setdefault(key, []).append(response)
    found: dict[str, dict[FeatureLayout, Locality]] = {}
    for (name, order), parts in moved.items():
        response = torch.cat(parts)
        if len(response) == len(images) * _COUNT:
            for layout in layers[name]:
                if layout.name == order:
                    of_image = response.reshape(-1, _COUNT, *response.shape[1:])
                    found.setdefault(name, {})[layout] = _locality(of_image, placed, layout)
    return found


def changed_at_places(image: Tensor, *, brighter: bool) -> tuple[Tensor, Tensor]:
    """The image with another place made brighter or darker and noisy.

    Returns:
        Images `(P, C, H, W)`, and the centres of the places `(P, 2)`, rows and columns, on the CPU.
    """
    height, width = image.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(image.shape, generator=generator).to(image)
    spread = image.float().std().to(image).clamp_min(1e-3)
    shift = spread * _STRENGTH * ((1 if brighter else -1) + noise)
    result = image.expand(_COUNT, -1, -1, -1).clone()
    placed = []
    for each, (row, column) in zip(result, _CENTRES, strict=True):
        top, bottom = _span(row, height)
        left, right = _span(column, width)
        each[:, top:bottom, left:right] += shift[:, top:bottom, left:right]
        placed.append(((top + bottom) / 2 / height, (left + right) / 2 / width))
    return result, torch.tensor(placed)


def _span(centre: float, side: int) -> tuple[int, int]:
    start = round((centre - _SIDE / 2) * side)
    end = max(start + 1, round((centre + _SIDE / 2) * side))
    return max(0, start), min(side, end)


@torch.no_grad()
def _look(
    subject: Subject,
    images: Tensor,
    layers: Mapping[str, Sequence[FeatureLayout]],
    before: Mapping[tuple[str, LayoutName], Tensor] | None = None,
) -> dict[tuple[str, LayoutName], Tensor]:
    """Tensors by name and order of axes; or, given those of one image, how far their cells `(N, ...)` moved from it."""
    addresses = {name: Address.parse(name) for name in layers}
    orders = {name: {layout.name: layout for layout in layouts} for name, layouts in layers.items()}
    found: dict[tuple[str, LayoutName], Tensor] = {}

    def look(returned: Returned) -> None:
        for name, address in addresses.items():
            if not address.matches(returned.address):
                continue
            for order, layout in orders[name].items():
                if not layout.fits(returned.tensor, len(images)):
                    continue
                if before is None:
                    found[name, order] = returned.tensor.clone()
                elif (name, order) in before:
                    found[name, order] = _moved(returned.tensor, before[name, order], order)

    functions = any(address.function is not None for address in addresses.values())
    with watching(subject.module, look, functions=functions):
        subject.run(images)
    return found


def _moved(after: Tensor, before: Tensor, order: LayoutName) -> Tensor:
    """Norm over channels of what changed, images first, on the CPU."""
    away: Tensor = torch.linalg.vector_norm(after.float() - before.float(), dim=order.index("C"))
    return away.movedim(order.replace("C", "").index("N"), 0).cpu()


def _locality(response: Tensor, placed: Tensor, layout: FeatureLayout) -> Locality:
    """From responses `(images, places, ...)` of the cells, or of all tokens."""
    grid, beside = layout.grid, False
    coarse = "H" in layout.name and 1 < min(grid) <= max(grid) <= _COARSE
    if "L" in layout.name:
        first, last = layout.prefix, layout.prefix + layout.cells
        beside = _lie_on_the_image(torch.cat([response[..., :first], response[..., last:]], dim=-1), response)
        response = response[..., first:last].reshape(*response.shape[:2], *grid)
    response = (response - response.median(dim=1, keepdim=True).values).clamp_min(0)
    largest = response.flatten(2).amax(dim=2)
    answered = largest > _FAINT * largest.amax().clamp_min(1e-12)
    if not answered.any():
        return Locality(grid, 0.0, (0.0, 0.0), (0.0, 0.0), 1.0, 1.0, coarse=coarse, beside=beside)
    centres = _centres(response)
    away = centres - placed
    # An axis of a single cell cannot be wrong.
    distances = (away * torch.tensor([side > 1 for side in grid])).norm(dim=2)
    # What lies elsewhere does so in every image; what an image happens to show at a place may outshine the change.
    nearest = distances.masked_fill(~answered, torch.inf).amin(dim=0)[answered.any(dim=0)].sort().values
    away, places = away[answered], placed.expand(len(response), -1, -1)[answered]
    turned = _is_turned(centres[answered], places, grid)
    centred = places - places.mean(dim=0)
    slope = 1 + (centred * away).sum(dim=0) / centred.square().sum(dim=0).clamp_min(1e-12)
    offset = away.mean(dim=0)
    return Locality(
        grid,
        float(answered.float().mean()),
        (float(slope[0]), float(slope[1])),
        (float(offset[0]), float(offset[1])),
        float(nearest[-max(1, len(nearest) // 4) :].mean()),
        float(nearest[-1]),
        turned,
        coarse,
        beside,
    )


def _centres(response: Tensor) -> Tensor:
    """Rows and columns `(..., 2)` of what moved half as much as what moved most, or more."""
    height, width = response.shape[-2:]
    kept = response * (response >= 0.5 * response.amax(dim=(-2, -1), keepdim=True))
    total = kept.sum(dim=(-2, -1)).clamp_min(1e-20)
    rows = (kept.sum(dim=-1) @ ((torch.arange(height) + 0.5) / height)) / total
    columns = (kept.sum(dim=-2) @ ((torch.arange(width) + 0.5) / width)) / total
    return torch.stack([rows, columns], dim=-1)


def _is_turned(centres: Tensor, places: Tensor, grid: tuple[int, int]) -> bool:
    """Whether the centres `(P, 2)` lie nearer to their places in a map that is turned or mirrored, in any of 7 ways."""
    if min(grid) == 1:
        centres = torch.where(torch.tensor([side > 1 for side in grid]), centres, places)
    away = [
        (((turned - 0.5) * torch.tensor(signs) + 0.5) - places).norm(dim=1).mean()
        for turned in (centres, centres.flip(1))
        for signs in itertools.product((1.0, -1.0), repeat=2)
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
