"""How far do the heatmaps of two models agree about the same images? Maps are signed, `(..., h, w)`, of equal shape.

| function | range | the same | chance |
|---|---|---|---|
| `nulls.explanation_drift` (cosine distance) | [0, 2] | 0 | 1 |
| `trust.map_similarity` (rank correlation) | [-1, 1] | 1 | 0 |
| `ssim` | [-1, 1] | 1 | |
| `top_overlap` | [0, 1] | 1 | the share |

Chance is that of unrelated maps; two that both favour the middle of images agree by more.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from xai_callbacks.errors import ConfigurationError, require_number

_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of the definition, for a data range of 2
_FINE = 16  # cells on the shorter side from which SSIM looks through windows of 7 x 7 cells, as is usual, and not 3 x 3


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of two maps, `(...)` float64 in [-1, 1], after division by the largest magnitude of both.

    The mean over uniform windows around each cell, of 7 x 7 cells, or 3 x 3 where the shorter side has less than 16,
    with reflected borders (Wang et al. 2004; data range 2, as torchmetrics computes it). A map and its half differ,
    unlike by rank. 1 for two maps of zeros; NaN where a side has less than 3 cells, or a map is not finite.
    """
    require_one_shape("maps", maps, others)
    shape = maps.shape[:-2]
    first, second = (each.double().reshape(-1, 1, *maps.shape[-2:]) for each in (maps, others))
    if min(maps.shape[-2:]) < 3 or not len(first):
        return torch.full(shape, torch.nan, dtype=torch.float64)
    peak = torch.maximum(first.abs(), second.abs()).amax(dim=(-2, -1), keepdim=True)
    first, second = (each / peak.where(peak > 0, torch.ones_like(peak)) for each in (first, second))
    window = 7 if min(maps.shape[-2:]) >= _FINE else 3
    around = (window // 2,) * 4
    # The library that has it takes seconds to import.
    x, y = (pad(each, around, mode="reflect") for each in (first, second))
    products = (x, y, x * x, y * y, x * y)
    mean_x, mean_y, square_x, square_y, both = (avg_pool2d(each, window, stride=1) for each in products)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    variances = (square_x - mean_x**2).clamp_min(0) + (square_y - mean_y**2).clamp_min(0)
    contrast = (2 * (both - mean_x * mean_y) + _C2) / (variances + _C2)
    return (luminance * contrast).mean(dim=(-3, -2, -1)).reshape(shape).clamp(-1, 1)


def top_overlap(maps: Tensor, others: Tensor, share: float = 0.1) -> Tensor:
    """Share of the most positive cells of one map that are among those of the other, `(...)` float64 in [0, 1].

    Of `share` of the cells, one at least; of equal cells at the margin the first count. Chance: `share`. NaN where a
    map has no positive cell, or is not finite.
    """
    require_one_shape("maps", maps, others)
    require_number("share", share, 0, 1, ends="(]")
    cells = maps.shape[-2] * maps.shape[-1]
    count = max(1, round(share * cells))
    chosen, known = [], torch.ones(maps.shape[:-2], dtype=torch.bool, device=maps.device)
    for each in (maps.flatten(-2), others.flatten(-2)):
        order = each.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        chosen.append(torch.zeros_like(each, dtype=torch.bool).scatter(-1, order, value=True))
        known &= each.isfinite().all(dim=-1) & (each > 0).any(dim=-1)
    shared = (chosen[0] & chosen[1]).sum(dim=-1).double() / count
    return shared.where(known, torch.nan)


def resampled(maps: Tensor, grid: tuple[int, int], units: str = "score") -> Tensor:
    """Maps `(..., h, w)` on another grid, with the same sums, or with the means of `relative` values.

    Each cell of the new grid gets what lies in it; a cell that lies in two is divided by area.
    """
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    rows, columns = (_shares(*sides).to(maps) for sides in zip(maps.shape[-2:], grid, strict=True))
    if units == "relative":
        rows, columns = (each / each.sum(dim=1, keepdim=True) for each in (rows, columns))
    return rows @ maps @ columns.T


def _shares(before: int, after: int) -> Tensor:
    """Share of each cell of a side in each cell of the new one, `(after, before)`; columns add up to 1."""
    edges = torch.arange(before + 1, dtype=torch.float64) * after / before
    bounds = torch.arange(after, dtype=torch.float64)[:, None]
    low, high = edges[:-1].clamp(bounds, bounds + 1), edges[1:].clamp(bounds, bounds + 1)
    return (high - low) * before / after


def require_one_shape(what: str, first: Tensor, second: Tensor, hint: str = "") -> None:
    """Raise a `ConfigurationError` unless two tensors, named in words, are maps `(..., h, w)` of one shape."""
    if first.shape != second.shape or first.ndim < 2:
        raise ConfigurationError(
            f"Expected {what} to have one shape (..., h, w), but got {tuple(first.shape)} and {tuple(second.shape)}."
            f" {hint}".rstrip()
        )
