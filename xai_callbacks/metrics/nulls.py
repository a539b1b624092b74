"""What a share of relevance is read beside: nulls, a reference map, and a judgement of signed maps.

Area is the least a share must beat, and not enough: maps are smooth, objects stand in the middle, edges and bright
colours draw relevance in a net that was never trained. Each number here takes one of these explanations away.

| number | what it holds against the relevance in a region |
|---|---|
| `shift_p` | the same map, moved to every other place: smooth or sparse maps hit a region by luck |
| `permuted_mass` | the same map, read with the regions of other probes: all objects stand in one place |
| `sobel_magnitude` | a map without a model: edges draw relevance |
| `signed_share` | evidence of both signs, for and against, where a share of the positive part says more than is true |

Conventions, axes and the rule for what has no answer (NaN) are those of `xai_callbacks.metrics.localization`. None of
these numbers says that a model uses a region: relevance is a hint, and the effect of an edit is evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.localization import RegionWeights, sum_relevance

__all__ = ["permuted_mass", "shift_p", "signed_share", "sobel_magnitude"]

# Shares that differ by less are equal. Rounding in a transform of 1000 x 1000 pixels stays below a hundredth of it.
_EQUAL = 1e-10


def shift_p(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """Share of the N circular shifts of a map, its own place among them, with at least its relevance mass.

    The shifts keep how sparse and how smooth the map is, which shuffled pixels do not. They say nothing of a habit to
    look at the middle of the image. Independent places are as many as blobs, not as pixels: read the share as a rank.
    One pair of Fourier transforms in float64; takes 32 bytes a pixel while it runs.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.

    Returns:
        Float64 `(...)` in [1 / N, 1]; NaN where the mask covers the image, too.
    """
    sums = sum_relevance(relevance.detach(), mask, reference)
    spectrum = torch.fft.rfft2(sums.scaled).conj() * torch.fft.rfft2(mask.double())
    masses = torch.fft.irfft2(spectrum, s=mask.shape[-2:]).flatten(-2) / sums.total[..., None]
    as_much = (masses >= masses[..., :1] - _EQUAL).double().mean(dim=-1)
    return sums.where_valid(torch.where(mask.all(dim=-1).all(dim=-1), torch.nan, as_much))


def permuted_mass(relevance: Tensor, masks: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Mean relevance mass of a map in the regions of the other probes, in [0, 1].

    Near the relevance mass itself, most of that mass is what any map with this prior of position has. A constant map
    gets the mean area of the other regions.

    Args:
        relevance: Non-negative `(..., N, H, W)`, or on the grid of `masks`.
        masks: Region of each probe, `(N, H, W)` bool, or what `region_weights` gives.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.

    Returns:
        Float64 `(..., N)`. NaN where the map is degenerate or the probe has no such region, and everywhere if no two
        probes have different regions.
    """
    sums = sum_relevance(relevance, masks, reference)
    inside = masks.inside if isinstance(masks, RegionWeights) else masks
    given = inside.flatten(1).any(dim=1)
    pool = inside[given]
    if len(pool) == 0 or bool((pool == pool[0]).all()):
        return torch.full_like(sums.total, torch.nan)
    # The regions of the others are all regions without the own one.
    others = (pool.sum(dim=0, dtype=torch.float64) - inside.double()).clamp(min=0)
    elsewhere = (sums.scaled * others).sum(dim=(-2, -1))
    return sums.where_valid((elsewhere / (sums.total * (len(pool) - 1))).clamp(max=1))


def sobel_magnitude(images01: Tensor) -> Tensor:
    """Strength of the edges of images, a reference map that knows no model: `relevance_mass` of it is the edge's share.

    `sqrt(gx^2 + gy^2)` of the mean over channels (not a weighted luminance, as channels need not be colours), with the
    kernel [1, 2, 1] x [-1, 0, 1], not normalised; the pixels at the border are repeated beyond it, SciPy's `reflect`.
    An image of one colour has no edges, and the mass of its map is NaN.

    Args:
        images01: `(N, C, H, W)` floats in [0, 1], before normalisation.

    Returns:
        Non-negative `(N, H, W)`, at least float32.

    Raises:
        ConfigurationError: The shape or type is another.
    """
    if images01.ndim != 4 or not images01.is_floating_point():
        raise ConfigurationError(
            f"Expected `images01` to be floats (N, C, H, W), but got {images01.dtype} {tuple(images01.shape)}. "
            "Divide uint8 pixels by 255."
        )
    grey = images01.to(torch.promote_types(images01.dtype, torch.float32)).mean(dim=1, keepdim=True)
    padded = pad(grey, (1, 1, 1, 1), mode="replicate")[:, 0]
    # Differences first: they are exactly zero where an image is constant.
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[:, 2:] - padded[:, :-2]
    return torch.hypot(
        across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:], down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    )


def signed_share(heatmap: Tensor, mask: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Net evidence inside the mask as a share of all evidence, in [-1, 1].

    `sum_M A / sum |A|`. Meant for the question "why the class of the cue, rather than the label?" on probes where the
    two conflict, with the mask of the cue: there it is how far the cue's pixels speak for the cue's class. 0 where
    signs balance, as they do on average in a map as often negative as positive; a constant map gets the area fraction,
    with the sign of the map. Positive and negative part are enlarged each on its own, as `relevance` does it: next to
    each other, opposite signs count in full.

    Args:
        heatmap: Signed maps `(..., H, W)`, or `(..., h, w)` on the grid of `mask`.
        mask: `(..., H, W)` bool, or what `region_weights` gives.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(heatmap.abs(), mask, reference)
    inside = mask.inside if isinstance(mask, RegionWeights) else mask
    net = (sums.scaled * heatmap.sign() * inside).sum(dim=(-2, -1))
    return sums.where_valid((net / sums.total).clamp(-1, 1))
