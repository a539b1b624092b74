"""May a heatmap be believed? Does it change with the model, and does the score change with what it marks?

A map that random weights draw as well shows the image, not what was learnt (Adebayo et al., "Sanity Checks for Saliency
Maps", NeurIPS 2018). A map that marks what matters lowers the score sooner when it is hidden than any other place does
(deletion), and keeps it when all else is hidden (insertion; Petsiuk et al., "RISE", BMVC 2018).

Maps are signed, `(..., h, w)`, on any grid. `coarse` brings those of the pixels to the grid on which they are drawn:
single pixels of a gradient differ wildly, and hiding scattered pixels harms a net more than hiding one patch, whatever
they show. What has no answer, such as maps of one value or not finite, is NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from xai_callbacks.metrics.agreement import require_one_shape

SHARES = (0.05, 0.1, 0.2, 0.4)  # of the pixels, hidden or kept: the first of them tell good maps from bad ones
_FINEST = 16  # cells a side on which maps of pixels are judged, as they are drawn
_BLURRED = 4  # cells a side of which a blurred image is made


def coarse(maps: Tensor) -> Tensor:
    """Maps `(..., h, w)` on at most 16 cells a side: the mean over what lies in each."""
    height, width = maps.shape[-2:]
    grid = (min(height, _FINEST), min(width, _FINEST))
    if grid == (height, width):
        return maps
    return adaptive_avg_pool2d(maps.reshape(-1, 1, *maps.shape[-2:]), grid).reshape(*maps.shape[:-2], *grid)


def map_similarity(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of the cells of two maps, `(...)` float64 in [-1, 1]; 1: the same order of places.

    Maps are `(..., h, w)`; equal cells share their mean rank. Give magnitudes to see whether maps agree but for their
    signs: the sign may follow the weights while the outlines follow the image alone.
    """
    first, second = _unit_ranks(maps, others)
    return (first * second).sum(dim=-1).clamp(-1, 1)


def chance_similarity(maps: Tensor, others: Tensor) -> Tensor:
    """Mean `map_similarity` of each map to those of all other images in `others`, `(..., N)`: a habit of place.

    What two maps share that have nothing to do with each other, as both favour the middle, or shun the border. Maps are
    `(..., N, h, w)`. NaN where no other image has a map.
    """
    first, second = _unit_ranks(maps, others)
    known = second.isfinite().all(dim=-1)
    filled = second.where(known[..., None], torch.zeros_like(second))
    rest = filled.sum(dim=-2, keepdim=True) - filled
    count = known.sum(dim=-1, keepdim=True) - known.long()
    return ((first * rest).sum(dim=-1) / count).clamp(-1, 1)  # 0 / 0 where there is no other


def _unit_ranks(maps: Tensor, others: Tensor) -> list[Tensor]:
    """Ranks of the cells of each map, centred and of length 1, `(..., cells)`; NaN where they have no order."""
    from scipy.stats import rankdata

    require_one_shape("maps", maps, others)
    found = []
    for each in (maps, others):
        cells = each.detach().cpu().double().flatten(-2)
        ranks = torch.from_numpy(np.asarray(rankdata(cells.numpy(), axis=-1)))
        ranks = ranks - ranks.mean(dim=-1, keepdim=True)
        ranks = ranks.where(cells.isfinite().all(dim=-1, keepdim=True), torch.nan)
        found.append(ranks / torch.linalg.vector_norm(ranks, dim=-1, keepdim=True))  # 0 / 0 for one value
    return found


def permuted_maps(maps: Tensor, seed: int) -> Tensor:
    """The cells of each map `(..., h, w)` in random order: a map that marks as much, and knows nothing."""
    order = torch.rand(*maps.shape[:-2], maps.shape[-2] * maps.shape[-1], generator=_seeded(seed)).argsort(dim=-1)
    return maps.flatten(-2).gather(-1, order.to(maps.device)).view_as(maps)


def shifted_maps(maps: Tensor, seed: int) -> Tensor:
    """Each map `(..., h, w)` moved to a random place, around the borders: as smooth as before, and in the wrong place.

    Every place but its own is equally likely.
    """
    height, width = maps.shape[-2:]
    by = torch.randint(1, max(2, height * width), maps.shape[:-2], generator=_seeded(seed))[..., None]
    rows = (torch.arange(height) + by // width)[..., :, None] % height
    places = (rows * width + (torch.arange(width) + by % width)[..., None, :] % width).flatten(-2)
    return maps.flatten(-2).gather(-1, places.to(maps.device)).view_as(maps)


def marked(maps: Tensor, size: tuple[int, int], share: float, seed: int = 0) -> Tensor:
    """The `share` of the pixels at which maps `(N, h, w)` are largest, `(N, *size)` bool; at least one.

    Maps are enlarged bilinearly; of equal pixels some are drawn by `seed`.
    """
    large = interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False).flatten(1)
    shuffled = torch.rand(large.shape[1], generator=_seeded(seed)).argsort().to(large.device)
    order = shuffled[large[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    count = max(1, round(share * large.shape[1]))
    return torch.zeros_like(large, dtype=torch.bool).scatter(1, order[:, :count], True).view(-1, *size)


def blurred(images: Tensor) -> Tensor:
    """Images `(N, C, H, W)` without detail: means of 4 x 4 parts, enlarged; a blur of some H / 8."""
    parts = adaptive_avg_pool2d(images, _BLURRED)
    return interpolate(parts, images.shape[-2:], mode="bilinear", align_corners=False)


def deletion_curve(
    score: Callable[[Tensor], Tensor], images: Tensor, maps: Tensor, *, fill: Tensor, shares: Sequence[float] = SHARES
) -> Tensor:
    """Scores as more and more of what is marked most is hidden, `(S, ...)`; lower is better.

    Cost: one call of `score`, of as many images, for each share.

    Args:
        score: Scores of altered images `(N, C, H, W)`, such as `(N,)`, or `(Q, N)` of several questions.
        images: The images.
        maps: Maps `(N, h, w)`; the largest values are hidden first.
        fill: What hides them, `(N, C, H, W)`, such as the images `blurred`.
        shares: Shares of the pixels.
    """
    return _curve(score, images, fill, maps, shares)


def insertion_curve(
    score: Callable[[Tensor], Tensor], images: Tensor, maps: Tensor, *, fill: Tensor, shares: Sequence[float] = SHARES
) -> Tensor:
    """Scores as more and more of what is marked most is all that is shown, `(S, ...)`; higher is better.

    Arguments and cost as of `deletion_curve`.
    """
    return _curve(score, fill, images, maps, shares)


def area_under(curve: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """Mean height of curves `(S, ...)` between the first and the last share, by trapezoids; in units of the score."""
    if len(shares) == 1:
        return curve[0]
    places = torch.tensor(shares, dtype=curve.dtype, device=curve.device)
    area: Tensor = torch.trapezoid(curve, places, dim=0)
    return area / (places[-1] - places[0])


def _curve(
    score: Callable[[Tensor], Tensor], before: Tensor, after: Tensor, maps: Tensor, shares: Sequence[float]
) -> Tensor:
    size = (before.shape[-2], before.shape[-1])
    masks = (marked(maps.to(before.device), size, share)[:, None] for share in shares)
    return torch.stack([score(torch.where(mask, after, before)) for mask in masks])


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
