"""Where does the relevance lie? One judgement of a heatmap against a region mask for each probe.

Relevance `R` is a heatmap that was made non-negative (`relevance`). A signed map has no share inside a region: its
total can cancel, and the "share" of the map (3, -2, -0.9, 0) on its first pixel would be 30. Letters: N = H W pixels, K
of them in the mask M, a = K / N.

All judgements share one rule for what has no answer, and none of them ever becomes a zero in a mean:

- NaN for a degenerate map: not finite, or with a total of at most `eps * N * reference` (eps of float32; `reference` is
  the largest magnitude seen in the run, so that 0, the default, means only maps of zeros). It knows nothing of this
  region or any other.
- NaN for an empty mask; NaN for the lift of a mask that covers the image. Chance levels are NaN there, too.
- A spatially constant map is valid, and gives the chance level to the last bit.

Tensors of relevance are `(..., H, W)`, masks `(..., H, W)` bool, and leading axes broadcast: `(Q, B, H, W)` against
`(B, H, W)`. Sums over pixels of an enlarged map are sums over the cells of the small one, since enlargement is linear:
maps `(..., h, w)` are judged as they are against `region_weights(mask, (h, w))`, with the same result but for rounding
and at a fraction of the cost. Results are float64 `(...)`, and differentiable in the relevance where the formula is.
Errors are `ConfigurationError`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xai_callbacks.errors import ConfigurationError

__all__ = [
    "Policy",
    "RegionWeights",
    "area_fraction",
    "lift_chance",
    "region_weights",
    "relevance",
    "relevance_lift",
    "relevance_mass",
    "relevance_rank",
    "soft_iou",
    "soft_iou_chance",
]

Policy = Literal["positive", "absolute", "negative"]
"""What counts as relevance: evidence for the answer, evidence of either sign, or evidence against it."""

# Below the rounding error of the maps themselves, which are float32.
_EPS = torch.finfo(torch.float32).eps
# Masks brought to a grid at a time: in float64 they take eight bytes a pixel.
_CHUNK = 16


class RegionWeights(NamedTuple):
    """A region on the grid of small maps.

    Attributes:
        inside: Pixels of the region that each cell stands for once maps are enlarged, `(..., h, w)` float64.
        rows: Weights with which a column of cells is enlarged, `(H, h)` float64.
        columns: The same for a row of cells, `(W, w)`.
        area: Pixels of the region, `(...)` float64.
    """

    inside: Tensor
    rows: Tensor
    columns: Tensor
    area: Tensor


def region_weights(mask: Tensor, grid: tuple[int, int]) -> RegionWeights:
    """Bring masks to the grid of small maps: the adjoint of the enlargement that `relevance` does.

    Args:
        mask: `(N, H, W)` bool.
        grid: Rows and columns of the maps, h and w.
    """
    area, _ = count_pixels(mask)
    rows, columns = (_enlargement(cells, pixels) for cells, pixels in zip(grid, mask.shape[-2:], strict=True))
    parts = [rows.T @ part.double() @ columns for part in torch.split(mask.cpu(), _CHUNK)]
    return RegionWeights(torch.cat(parts), rows, columns, area.cpu())


def _enlargement(cells: int, pixels: int) -> Tensor:
    """Bilinear enlargement of one axis, `(pixels, cells)` float64."""
    one = torch.eye(cells, dtype=torch.float64)[:, None]
    return interpolate(one, size=pixels, mode="linear", align_corners=False)[:, 0].T


def relevance(heatmap: Tensor, size: tuple[int, int], policy: Policy = "positive") -> Tensor:
    """Signed heatmaps as relevance on the pixels of the image.

    Clips first and enlarges then (bilinear, `align_corners=False`): enlarging first would let neighbours of opposite
    sign cancel. A small grid cannot resolve a small region: an 8x8 map on a 64 px image spreads each cell over more
    than 8x8 pixels.

    Args:
        heatmap: Signed maps `(..., h, w)`.
        size: Height and width of the image in pixels.
        policy: What counts as relevance.

    Returns:
        Non-negative `(..., H, W)`, at least float32. A map that holds NaN or inf does not become finite.
    """
    if policy not in get_args(Policy):
        raise ConfigurationError(f"Expected `policy` to be one of {', '.join(get_args(Policy))}, but got {policy!r}.")
    if heatmap.ndim < 2:
        raise ConfigurationError(f"Expected `heatmap` to be (..., h, w), but got shape {tuple(heatmap.shape)}.")
    maps = heatmap.to(torch.promote_types(heatmap.dtype, torch.float32))
    maps = maps.abs() if policy == "absolute" else (maps if policy == "positive" else -maps).clamp(min=0)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = interpolate(flat, size=size, mode="bilinear", align_corners=False)
    # Rounding leaves the range of the map by an ulp, which would break the ties of a constant map.
    large = large.clamp(flat.amin(dim=(-2, -1), keepdim=True), flat.amax(dim=(-2, -1), keepdim=True))
    return large.reshape(*maps.shape[:-2], *size)


def area_fraction(mask: Tensor | RegionWeights) -> Tensor:
    """Share of the image that a mask covers, a = K / N in (0, 1]; NaN for an empty mask.

    The chance level of `relevance_mass` and `relevance_rank`: what a constant map gets.
    """
    inside, pixels = count_pixels(mask)
    return torch.where(inside > 0, inside / pixels, torch.nan)


def lift_chance(mask: Tensor | RegionWeights) -> Tensor:
    """The chance level of `relevance_lift`: 1; NaN for a mask that is empty or covers the image."""
    inside, pixels = count_pixels(mask)
    return torch.where((inside > 0) & (inside < pixels), torch.ones_like(inside), torch.nan)


def soft_iou_chance(mask: Tensor | RegionWeights) -> Tensor:
    """The chance level of `soft_iou`, that of a constant map: 4a / (1 + 3a) in (0, 1]; NaN for an empty mask."""
    inside, pixels = count_pixels(mask)
    return torch.where(inside > 0, 4 * inside / (pixels + 3 * inside), torch.nan)


def relevance_mass(relevance: Tensor, mask: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Share of the relevance that lies inside the mask, in [0, 1]. Chance: `area_fraction`.

    `sum_M R / sum R`; also known as relevance mass accuracy (Arras et al. 2022, CLEVR-XAI) and, for boxes, the
    energy-based pointing game. Says nothing without the area beside it, see `relevance_lift`.

    Args:
        relevance: Non-negative `(..., H, W)`, or `(..., h, w)` on the grid of `mask`.
        mask: `(..., H, W)` bool, or what `region_weights` gives.
        reference: Largest magnitude of a map seen in the run; see the module.
    """
    sums = sum_relevance(relevance, mask, reference)
    return sums.where_valid((sums.inside / sums.total).clamp(max=1))


def relevance_lift(relevance: Tensor, mask: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """How many times more relevance the mask holds than its area, in [0, 1 / a]. Chance: 1.

    `relevance_mass / area_fraction`, comparable over regions of different size. NaN for a mask that covers the image.
    Arguments are those of `relevance_mass`.
    """
    mass = relevance_mass(relevance, mask, reference=reference)
    inside, pixels = count_pixels(mask)
    return torch.where(inside < pixels, mass / (inside / pixels), torch.nan)


def relevance_rank(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """Share of the K most relevant pixels that lie in the mask of K pixels, in [0, 1]. Chance: `area_fraction`.

    Relevance rank accuracy (Arras et al. 2022) with ties resolved by their expectation: with v the K-th largest value,
    G the pixels above and E those equal to it, `(|G & M| + (K - |G|) |E & M| / |E|) / K`. Breaking ties by position, as
    sorting does, scores a map of zeros 1.0 or 0.0 depending on where the mask lies. The intersection over union of mask
    and K most relevant pixels is `rank / (2 - rank)`. Arguments are those of `relevance_mass`, but pixels only.
    """
    sums = sum_relevance(relevance, mask, reference)
    shape = (*sums.valid.shape, *mask.shape[-2:])
    values, inside = relevance.expand(shape).flatten(-2), mask.expand(shape).flatten(-2)
    size = inside.sum(dim=-1, keepdim=True)
    threshold = values.sort(dim=-1, descending=True).values.gather(-1, (size - 1).clamp(min=0))
    above, equal = values > threshold, values == threshold
    # One division of whole numbers, all below 2**53: a constant map gets exactly K / N.
    above_inside, equal_inside = ((part & inside).sum(dim=-1) for part in (above, equal))
    drawn = size.squeeze(-1) - above.sum(dim=-1)
    hits = above_inside * equal.sum(dim=-1) + drawn * equal_inside
    return sums.where_valid(hits.double() / (size.squeeze(-1) * equal.sum(dim=-1)).double())


def soft_iou(relevance: Tensor, mask: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Overlap of relevance and mask as distributions, in [0, 1]; 1 only for relevance spread evenly over the mask.

    `sum r m / sum ((r + m) / 2)^2` with `r = R / sum R` and `m = M / K` (Attention-IoU, Serianni et al. 2025). No
    threshold; punishes relevance that is right but sits on one spot. Chance: `soft_iou_chance`. Arguments are those of
    `relevance_mass`.
    """
    sums = sum_relevance(relevance, mask, reference)
    alike = sums.scaled  # sum over pixels of R^2, for an enlarged map a quadratic form of its cells
    if isinstance(mask, RegionWeights):
        alike = mask.rows.T @ mask.rows @ alike @ mask.columns.T @ mask.columns
    squares = (sums.scaled * alike).sum(dim=(-2, -1))
    # The formula multiplied by (sum R)^2 K: no division before the last, so that a constant map gets chance exactly.
    overlap = sums.inside * sums.total
    value = 4 * overlap / (count_pixels(mask)[0] * squares + 2 * overlap + sums.total.square())
    return sums.where_valid(value.clamp(max=1))


class Sums(NamedTuple):
    """Sums over the pixels of maps divided by their largest value, all float64 `(...)`."""

    scaled: Tensor  # the maps themselves, `(..., h, w)`
    total: Tensor
    inside: Tensor
    valid: Tensor  # bool

    def where_valid(self, values: Tensor) -> Tensor:
        return torch.where(self.valid, values, torch.nan)


def sum_relevance(relevance: Tensor, mask: Tensor | RegionWeights, reference: float | Tensor) -> Sums:
    """Total relevance and that in a region, and which maps have an answer."""
    inside = mask.inside if isinstance(mask, RegionWeights) else mask
    _check(relevance, inside)
    exact = relevance.double()
    peak = exact.amax(dim=(-2, -1), keepdim=True)
    # A constant map becomes all ones, and sums of ones are exact; no map over- or underflows in a square.
    scaled = exact / torch.where(peak > 0, peak, torch.ones_like(peak))
    total, peak = _total(scaled, mask), peak[..., 0, 0]
    area, pixels = count_pixels(mask)
    # False for maps of zeros, and for those with NaN or inf, whose scaled total is NaN.
    enough = total * peak > _EPS * pixels * reference
    return Sums(scaled, total, (scaled * inside).sum(dim=(-2, -1)), enough & (area > 0))


def _total(maps: Tensor, mask: Tensor | RegionWeights) -> Tensor:
    """Sum of maps over the pixels of the image."""
    if isinstance(mask, RegionWeights):
        maps = maps * torch.outer(mask.rows.sum(dim=0), mask.columns.sum(dim=0))
    return maps.sum(dim=(-2, -1))


def count_pixels(mask: Tensor | RegionWeights) -> tuple[Tensor, int]:
    """Pixels of each mask, float64 `(...)`, and of the image."""
    if isinstance(mask, RegionWeights):
        return mask.area, len(mask.rows) * len(mask.columns)
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ConfigurationError(f"Expected `mask` to be bool (..., H, W), but got {mask.dtype} {tuple(mask.shape)}.")
    return mask.sum(dim=(-2, -1)).double(), mask.shape[-2] * mask.shape[-1]


def _check(relevance: Tensor, inside: Tensor) -> None:
    if relevance.shape[-2:] != inside.shape[-2:]:
        raise ConfigurationError(
            f"Expected `relevance` and `mask` to have the same height and width, but got {tuple(relevance.shape)} and "
            f"{tuple(inside.shape)}. Enlarge heatmaps with `relevance(heatmap, size)`, or use `region_weights`."
        )
    if bool((relevance < 0).any()):
        raise ConfigurationError(
            f"Expected `relevance` to be non-negative, but got a smallest value of {float(relevance.min()):.3g}. "
            "Pass a signed heatmap through `relevance(heatmap, size, policy)` first."
        )
