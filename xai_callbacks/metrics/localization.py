"""Where does the relevance lie? One judgement of a heatmap against a region mask for each probe.

Relevance `R` is the positive part of a heatmap: the total of a signed map can cancel, and a "share" of it mean nothing.
There are N = H W pixels, K of them in the mask M, and a = K / N.

Tensors of relevance are `(..., H, W)`, masks `(..., H, W)` bool, and leading axes broadcast. Sums over pixels of an
enlarged map are sums over the cells of the small one, since enlargement is linear: maps `(..., h, w)` are judged as
they are against `region_weights(mask, (h, w))`, with the same result but for rounding and at a fraction of the cost.
Results are float64 `(...)`, and differentiable in the relevance where the formula is. What has no answer is NaN:

- a degenerate map: not finite, or with a total of at most `eps * N * reference` (eps of float32; `reference` is the
  largest magnitude seen in the run; 0 means only maps of zeros);
- an empty mask, and the lift of a mask that covers the image; chance levels are NaN there, too.

A constant map is valid, and gets the chance level. Errors are `ConfigurationError`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xai_callbacks.errors import ConfigurationError

_EPS = torch.finfo(torch.float32).eps  # below the rounding error of the maps themselves, which are float32
_CHUNK = 16  # masks brought to a grid at a time: in float64 they take eight bytes a pixel


class RegionWeights(NamedTuple):
    """A region on the grid of small maps, all float64."""

    inside: Tensor  # pixels of the region that each cell stands for once maps are enlarged, (..., h, w)
    rows: Tensor  # weights with which a column of cells is enlarged, (H, h)
    columns: Tensor  # the same for a row of cells, (W, w)
    area: Tensor  # pixels of the region, (...)

    @classmethod
    def of(cls, mask: Tensor | RegionWeights) -> RegionWeights:
        """The weights themselves, or those of a mask on its own pixels."""
        if isinstance(mask, RegionWeights):
            return mask
        if mask.dtype != torch.bool or mask.ndim < 2:
            got = f"{mask.dtype} {tuple(mask.shape)}"
            raise ConfigurationError(f"Expected `mask` to be bool (..., H, W), but got {got}.")
        rows, columns = (torch.eye(size, dtype=torch.float64, device=mask.device) for size in mask.shape[-2:])
        return cls(mask.double(), rows, columns, mask.sum(dim=(-2, -1)).double())

    @property
    def pixels(self) -> int:
        """Pixels of the image, N."""
        return len(self.rows) * len(self.columns)


def region_weights(mask: Tensor, grid: tuple[int, int]) -> RegionWeights:
    """Bring masks `(N, H, W)` bool to the grid `(h, w)` of small maps: the adjoint of what `relevance` does."""
    rows, columns = (_enlargement(cells, pixels) for cells, pixels in zip(grid, mask.shape[-2:], strict=True))
    parts = [rows.T @ part.double() @ columns for part in torch.split(mask.cpu(), _CHUNK)]
    return RegionWeights(torch.cat(parts), rows, columns, mask.sum(dim=(-2, -1)).double().cpu())


def _enlargement(cells: int, pixels: int) -> Tensor:
    """Bilinear enlargement of one axis, `(pixels, cells)` float64."""
    one = torch.eye(cells, dtype=torch.float64)[:, None]
    return interpolate(one, size=pixels, mode="linear", align_corners=False)[:, 0].T


def relevance(heatmap: Tensor, size: tuple[int, int]) -> Tensor:
    """Signed heatmaps `(..., h, w)` as relevance on the pixels of the image, `(..., *size)`, at least float32.

    Clips first and enlarges then (bilinear, `align_corners=False`): enlarging first would let neighbours of opposite
    sign cancel. A small grid cannot resolve a small region: an 8x8 map on a 64 px image spreads each cell over more
    than 8x8 pixels. A map that holds NaN or inf does not become finite.
    """
    if heatmap.ndim < 2:
        raise ConfigurationError(f"Expected `heatmap` to be (..., h, w), but got shape {tuple(heatmap.shape)}.")
    maps = heatmap.to(torch.promote_types(heatmap.dtype, torch.float32)).clamp(min=0)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = interpolate(flat, size=size, mode="bilinear", align_corners=False)
    # Rounding leaves the range of the map by an ulp, which would break the ties of a constant map.
    large = large.clamp(flat.amin(dim=(-2, -1), keepdim=True), flat.amax(dim=(-2, -1), keepdim=True))
    return large.reshape(*maps.shape[:-2], *size)


def area_fraction(mask: Tensor | RegionWeights) -> Tensor:
    """Share of the image that a mask covers, a = K / N in (0, 1]; NaN for an empty mask.

    The chance level of `relevance_mass` and `relevance_rank`: what a constant map gets.
    """
    region = RegionWeights.of(mask)
    return torch.where(region.area > 0, region.area / region.pixels, torch.nan)


def lift_chance(mask: Tensor | RegionWeights) -> Tensor:
    """The chance level of `relevance_lift`: 1; NaN for a mask that is empty or covers the image."""
    area = area_fraction(mask)
    return torch.where(area < 1, torch.ones_like(area), torch.nan)


def soft_iou_chance(mask: Tensor | RegionWeights) -> Tensor:
    """The chance level of `soft_iou`, that of a constant map: 4a / (1 + 3a) in (0, 1]; NaN for an empty mask."""
    region = RegionWeights.of(mask)
    return torch.where(region.area > 0, 4 * region.area / (region.pixels + 3 * region.area), torch.nan)


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

    `relevance_mass / area_fraction`, comparable over regions of different size. Arguments as in `relevance_mass`.
    """
    return relevance_mass(relevance, mask, reference=reference) / area_fraction(mask) * lift_chance(mask)


def relevance_rank(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """Share of the K most relevant pixels that lie in the mask of K pixels, in [0, 1]. Chance: `area_fraction`.

    Relevance rank accuracy (Arras et al. 2022) with ties resolved by their expectation: with v the K-th largest value,
    G the pixels above and E those equal to it, `(|G & M| + (K - |G|) |E & M| / |E|) / K`. Their intersection over
    union is `rank / (2 - rank)`. Arguments are those of `relevance_mass`, but pixels only.
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
    threshold; punishes right relevance on one spot. Chance: `soft_iou_chance`. Arguments as in `relevance_mass`.
    """
    sums, region = sum_relevance(relevance, mask, reference), RegionWeights.of(mask)
    # The sum over pixels of R^2 is a quadratic form of the cells.
    alike = region.rows.T @ region.rows @ sums.scaled @ region.columns.T @ region.columns
    squares = (sums.scaled * alike).sum(dim=(-2, -1))
    # The formula multiplied by (sum R)^2 K: no division before the last, so that a constant map gets chance exactly.
    overlap = sums.inside * sums.total
    return sums.where_valid((4 * overlap / (region.area * squares + 2 * overlap + sums.total.square())).clamp(max=1))


class Sums(NamedTuple):
    """Sums over the pixels of maps divided by their largest value, all float64 `(...)`."""

    scaled: Tensor  # the maps themselves, `(..., h, w)`
    total: Tensor
    inside: Tensor
    valid: Tensor  # bool

    def where_valid(self, values: Tensor) -> Tensor:
        """The values, NaN where a map or a mask has none."""
        return torch.where(self.valid, values, torch.nan)


def sum_relevance(relevance: Tensor, mask: Tensor | RegionWeights, reference: float | Tensor) -> Sums:
    """Total relevance and that in a region, and which maps have an answer."""
    region = RegionWeights.of(mask)
    if relevance.shape[-2:] != region.inside.shape[-2:]:
        raise ConfigurationError(
            f"Expected `relevance` and `mask` to have the same height and width, but got {tuple(relevance.shape)} and "
            f"{tuple(region.inside.shape)}. Enlarge heatmaps with `relevance(heatmap, size)`, or use `region_weights`."
        )
    if bool((relevance < 0).any()):
        raise ConfigurationError(
            f"Expected `relevance` to be non-negative, but got a smallest value of {float(relevance.min()):.3g}. "
            "Pass a signed heatmap through `relevance(heatmap, size)` first."
        )
    exact = relevance.double()
    peak = exact.amax(dim=(-2, -1), keepdim=True)
    # A constant map becomes all ones, and sums of ones are exact; no map over- or underflows in a square.
    scaled = exact / torch.where(peak > 0, peak, torch.ones_like(peak))
    total = (scaled * torch.outer(region.rows.sum(dim=0), region.columns.sum(dim=0))).sum(dim=(-2, -1))
    # False for maps of zeros, and for those with NaN or inf, whose scaled total is NaN.
    enough = total * peak[..., 0, 0] > _EPS * region.pixels * reference
    return Sums(scaled, total, (scaled * region.inside).sum(dim=(-2, -1)), enough & (region.area > 0))
