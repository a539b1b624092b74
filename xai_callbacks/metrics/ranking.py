"""Are the most relevant pixels those of the region? Judgements of the order of the pixels alone.

They share conventions and the rule for what has no answer (NaN) with `xai_callbacks.metrics.localization`. Equal pixels
are never put in an order by their position: a count over them is the expected one over all orders, and a constant map
gets the chance level to the last bit.

| judgement | chance | question |
|---|---|---|
| `pointing_game` | area of the mask, grown by the radius | is the most relevant pixel in the region? |
| `topk_intersection` | a, and k / N where k > K | how many of the k most relevant pixels are? |
| `confounder_sensitivity` | k / N | how much of the region is among the k most relevant pixels? |
| `pixel_auroc` | .5 | how often is a pixel of the region more relevant than one outside? |
| `pixel_average_precision` | a | how pure is what is picked out first? |

N pixels, K of them in the mask, a = K / N. Each judgement `name` has its chance level as `name_chance`, a function of
the mask. The last two sort the pixels, and take some 70 bytes for each while they run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.localization import area_fraction, count_pixels, sum_relevance

__all__ = [
    "confounder_sensitivity",
    "confounder_sensitivity_chance",
    "pixel_auroc",
    "pixel_auroc_chance",
    "pixel_average_precision",
    "pixel_average_precision_chance",
    "pointing_game",
    "pointing_game_chance",
    "topk_intersection",
    "topk_intersection_chance",
]


def pointing_game(relevance: Tensor, mask: Tensor, radius: int = 0, *, reference: float | Tensor = 0.0) -> Tensor:
    """Whether the most relevant pixel lies in the mask or near it, 0 or 1; of several maxima the share that does.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        radius: How near, in pixels, by Euclidean distance. Published with 15 on photos of some 500 x 375 pixels (Zhang
            et al. 2018); on 64 x 64 pixels or fewer only 0 makes sense.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance, mask, reference)
    values = relevance.flatten(-2)
    highest = values == values.amax(dim=-1, keepdim=True)
    inside = (highest & _grown(mask, radius).flatten(-2)).sum(dim=-1)
    return sums.where_valid(inside.double() / highest.sum(dim=-1))


def pointing_game_chance(mask: Tensor, radius: int = 0) -> Tensor:
    """Area fraction of the mask grown by `radius`, in (0, 1]; NaN for an empty mask."""
    return area_fraction(_grown(mask, radius))


def topk_intersection(relevance: Tensor, mask: Tensor, share: float, *, reference: float | Tensor = 0.0) -> Tensor:
    """How many of the k most relevant pixels lie in the mask, as a share of how many could, in [0, 1].

    `|top-k & M| / min(k, K)`. With k = K it is `relevance_rank`, and with k > K `confounder_sensitivity`.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        share: k / N, in (0, 1]; rounded to whole pixels, one at least.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance, mask, reference)
    size = _top_size(mask, share)
    hits, orders = _expected_hits(relevance, mask, size)
    return sums.where_valid(hits / (sums.area.clamp(max=size) * orders))


def topk_intersection_chance(mask: Tensor, share: float) -> Tensor:
    """`max(K, k) / N` in (0, 1]; NaN for an empty mask."""
    inside, pixels = count_pixels(mask)
    return torch.where(inside > 0, inside.clamp(min=_top_size(mask, share)) / pixels, torch.nan)


def confounder_sensitivity(
    relevance: Tensor, mask: Tensor, share: float = 0.1, *, reference: float | Tensor = 0.0
) -> Tensor:
    """How much of the mask, that of a cue, is among the k most relevant pixels, in [0, min(k / K, 1)].

    `|top-k & M| / K`: the recall to the precision of `topk_intersection`. Source: Sun et al., "Right for the Wrong
    Reason" (MICCAI 2023), who take it on images whose prediction the cue flips.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        share: k / N, in (0, 1]; rounded to whole pixels, one at least.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance, mask, reference)
    hits, orders = _expected_hits(relevance, mask, _top_size(mask, share))
    return sums.where_valid(hits / (sums.area * orders))


def confounder_sensitivity_chance(mask: Tensor, share: float = 0.1) -> Tensor:
    """`k / N`, `share` in whole pixels, in (0, 1]; NaN for an empty mask."""
    inside, pixels = count_pixels(mask)
    return torch.where(inside > 0, torch.full_like(inside, _top_size(mask, share) / pixels), torch.nan)


def pixel_auroc(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """How often a pixel of the mask is more relevant than one outside, ties counting half; in [0, 1]. Chance: .5.

    The area under the ROC curve of relevance as a detector of the mask. NaN for a mask that covers the image.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance, mask, reference)
    inside, below, up_to = _ascending(relevance, mask, sums.valid.shape)
    count, pixels = count_pixels(mask)
    # Twice the sum of the mean ranks of the mask, less what it is for the lowest ranks: whole numbers below 2**53.
    wins = torch.where(inside, below + up_to + 1, 0).sum(dim=-1).double() - count * (count + 1)
    return sums.where_valid(wins / (2 * count * (pixels - count)))  # 0 / 0 for a full mask


def pixel_auroc_chance(mask: Tensor) -> Tensor:
    """The chance level of `pixel_auroc`: .5; NaN for a mask that is empty or covers the image."""
    inside, pixels = count_pixels(mask)
    return torch.where((inside > 0) & (inside < pixels), torch.full_like(inside, 0.5), torch.nan)


def pixel_average_precision(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """Average precision of relevance as a detector of the mask, in (0, 1]. Chance: K / N.

    Step-wise, `sum (recall step) * precision` over distinct values, not by trapezoids. NaN for a mask that covers the
    image. The chance level is that of a constant map; maps of noise get `(1 - a) (H - 1) / (N - 1)` more on average,
    with `H = 1 + 1/2 + ... + 1/N`: on 32 x 32 pixels .0062, a quarter of the chance level of a mask of 5 x 5.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance, mask, reference)
    inside, below, up_to = _ascending(relevance, mask, sums.valid.shape)
    count, pixels = count_pixels(mask)
    places = torch.arange(pixels, device=inside.device)
    passed = pad(inside.cumsum(dim=-1), (1, 0))
    step = passed.gather(-1, up_to) - passed[..., :-1]
    hits, picked = passed[..., -1:] - passed[..., :-1], pixels - places
    # Each group of equal values once, at its first place; one division, so that a constant map gets K / N exactly.
    terms = torch.where(below == places, (step * hits).double() / (picked * count[..., None]), 0.0)
    return sums.where_valid(torch.where(count < pixels, terms.sum(dim=-1), torch.nan))


def pixel_average_precision_chance(mask: Tensor) -> Tensor:
    """The chance level of `pixel_average_precision`: K / N; NaN for a mask that is empty or covers the image."""
    inside, pixels = count_pixels(mask)
    return torch.where((inside > 0) & (inside < pixels), inside / pixels, torch.nan)


def _top_size(mask: Tensor, share: float) -> int:
    """k, in pixels."""
    if not 0 < share <= 1:
        raise ConfigurationError(f"Expected `share` to be in (0, 1], but got {share}. 0.05 is 5 % of the pixels.")
    return max(1, round(share * mask.shape[-2] * mask.shape[-1]))


def _expected_hits(relevance: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pixels of the mask among the `size` most relevant, expected over all orders of equal ones, as a fraction.

    Numerator and denominator, float64 `(...)` whole numbers: `|G & M| |E| + (k - |G|) |E & M|` and `|E|`, with G the
    pixels above the k-th largest value and E those equal to it.
    """
    values, inside = relevance.flatten(-2), mask.flatten(-2)
    threshold = values.kthvalue(values.shape[-1] - size + 1, dim=-1, keepdim=True).values
    above, equal = values > threshold, values == threshold
    above_inside, equal_inside = ((part & inside).sum(dim=-1) for part in (above, equal))
    orders = equal.sum(dim=-1)
    hits = above_inside * orders + (size - above.sum(dim=-1)) * equal_inside
    return hits.double(), orders.double()


def _ascending(relevance: Tensor, mask: Tensor, leading: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels in ascending order `(..., N)`: inside the mask or not, how many are smaller, how many no larger."""
    shape = (*leading, *mask.shape[-2:])
    values, order = relevance.expand(shape).flatten(-2).sort(dim=-1)
    inside = mask.expand(shape).flatten(-2).gather(-1, order)
    return inside, torch.searchsorted(values, values), torch.searchsorted(values, values, right=True)


def _grown(mask: Tensor, radius: int) -> Tensor:
    """All pixels no further than `radius` from the mask."""
    require_integer("radius", radius, minimum=0)
    if radius == 0:
        return mask
    steps = torch.arange(-radius, radius + 1, device=mask.device)
    ball = (steps[:, None].square() + steps.square() <= radius**2).float()
    near = conv2d(mask.reshape(-1, 1, *mask.shape[-2:]).float(), ball[None, None], padding=radius)
    return (near > 0.5).reshape(mask.shape)
