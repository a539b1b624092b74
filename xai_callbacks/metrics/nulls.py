"""What a share of relevance is read beside: nulls, a reference map, and two judgements of signed maps.

Area is the least a share must beat, and not enough: maps are smooth, objects stand in the middle, edges and bright
colours draw relevance in a net that was never trained. Each number here takes one of these explanations away.

| number | what it holds against the relevance in a region |
|---|---|
| `shift_null` | the same map, moved to every other place: smooth or sparse maps hit a region by luck |
| `permuted_mask_null` | the same map, read with the regions of other probes: all objects stand in one place |
| `sobel_magnitude` | a map without a model: edges draw relevance |
| `signed_share` | evidence of both signs, for and against, where a share of the positive part says more than is true |
| `explanation_ncc` | the map of the same image without the cue: an explanation that reacts to the cue changes |

Conventions, axes and the rule for what has no answer (NaN) are those of `xai_callbacks.metrics.localization`. None of
these numbers says that a model uses a region: relevance is a hint, and the effect of an edit is evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.localization import count_pixels, relevance, sum_relevance

__all__ = ["ShiftNull", "explanation_ncc", "permuted_mask_null", "shift_null", "signed_share", "sobel_magnitude"]

# Shares that differ by less are equal. Rounding in a transform of 1000 x 1000 pixels stays below a hundredth of it.
_EQUAL = 1e-10


class ShiftNull(NamedTuple):
    """The relevance mass of a map at all places, float64 `(...)` each.

    Attributes:
        p: Share of the shifts, the map's own place among them, that have at least its mass; in [1 / N, 1]. NaN where
            the mask covers the image, too.
        mean: Mean mass of the shifts; the area fraction, up to rounding.
        quantile95: Smallest mass that at least 95 % of the shifts do not exceed.
    """

    p: Tensor
    mean: Tensor
    quantile95: Tensor


def shift_null(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> ShiftNull:
    """Relevance mass of all N circular shifts of a map: how unusual is its place?

    The shifts keep how sparse and how smooth the map is, which shuffled pixels do not. They say nothing of a habit to
    look at the middle of the image, and their number of independent places is that of blobs, not of pixels: read `p` as
    a rank among places. A mask that spans the width ties with its shifts along it, so that `p` is no less than W / N.

    One pair of Fourier transforms in float64; takes 32 bytes a pixel while it runs.

    Args:
        relevance: Non-negative `(..., H, W)`.
        mask: `(..., H, W)` bool.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    sums = sum_relevance(relevance.detach(), mask, reference)
    places = mask.shape[-2:]
    spectrum = torch.fft.rfft2(_scaled(relevance.detach())).conj() * torch.fft.rfft2(mask.double())
    masses = torch.fft.irfft2(spectrum, s=places).flatten(-2) / sums.total[..., None]
    masses = masses.clamp(0, 1)
    count = masses.shape[-1]
    as_much = (masses >= masses[..., :1] - _EQUAL).sum(dim=-1).double() / count
    # In whole numbers: 19 of 20 are 95 %, whatever 0.95 is in binary.
    quantile = masses.kthvalue(-(-19 * count // 20), dim=-1).values
    return ShiftNull(
        p=sums.where_valid(torch.where(sums.area < count, as_much, torch.nan)),
        mean=sums.where_valid(masses.mean(dim=-1)),
        quantile95=sums.where_valid(quantile),
    )


def permuted_mask_null(
    relevance: Tensor, masks: Tensor, *, pool: Tensor | None = None, reference: float | Tensor = 0.0
) -> Tensor:
    """Mean relevance mass of a map in the regions of the other probes, in [0, 1].

    Near the relevance mass itself, most of that mass is what any map with this prior of position has. A constant map
    gets the mean area of the other regions.

    Args:
        relevance: Non-negative `(..., N, H, W)`.
        masks: Region of each probe, `(N, H, W)` bool.
        pool: The regions of all probes, `(M, H, W)` bool, where `masks` are a part of them; by default they are all.
            With it, maps may come in chunks.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.

    Returns:
        Float64 `(..., N)`. NaN where the map is degenerate or the probe has no such region, and everywhere if no two
        probes have different regions.
    """
    sums = sum_relevance(relevance, masks, reference)
    pool = _check_pool(masks, masks if pool is None else pool)
    pool = pool[pool.flatten(1).any(dim=1)]
    if len(pool) == 0 or bool((pool == pool[0]).all()):
        return torch.full_like(sums.total, torch.nan)
    covered = torch.zeros(masks.shape[-2:], dtype=torch.float64, device=masks.device)
    for mask in pool:  # a sum over a stack of masks takes eight bytes a pixel
        covered += mask
    # The regions of the others are all regions without the own one: whole numbers, nothing cancels.
    elsewhere = (_scaled(relevance) * (covered - masks.double())).sum(dim=(-2, -1))
    return sums.where_valid(elsewhere / (sums.total * (len(pool) - 1)))


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


def signed_share(heatmap: Tensor, mask: Tensor, size: tuple[int, int], *, reference: float | Tensor = 0.0) -> Tensor:
    """Net evidence inside the mask as a share of all evidence, in [-1, 1].

    `sum_M A / sum |A|`. Meant for the question "why the class of the cue, rather than the label?" on probes where the
    two conflict, with the mask of the cue: there it is how far the cue's pixels speak for the cue's class. 0 where
    signs balance, as they do on average in a map as often negative as positive; a constant map gets the area fraction,
    with the sign of the map.

    Small maps are enlarged by their positive and their negative part, as `relevance` does it: next to each other,
    opposite signs count in full.

    Args:
        heatmap: Signed maps `(..., h, w)`.
        mask: `(..., H, W)` bool.
        size: Height and width of the masks, H and W.
        reference: Largest magnitude of a map seen in the run; see `xai_callbacks.metrics.localization`.
    """
    evidence, against = relevance(heatmap, size).double(), relevance(heatmap, size, "negative").double()
    total = evidence + against
    sums = sum_relevance(total, mask, reference)
    net = torch.where(mask, _scaled(evidence - against, by=total), 0.0).sum(dim=(-2, -1))
    return sums.where_valid(net / sums.total)


def explanation_ncc(one: Tensor, other: Tensor) -> Tensor:
    """Zero-mean normalised cross-correlation of two maps, in [-1, 1]: Pearson's correlation over pixels.

    Of the maps of an image with and without a cue, where the cue flips the prediction: low where the explanation
    reacted to the cue. Source: Sun et al., "Right for the Wrong Reason" (MICCAI 2023). Has no chance level.

    Args:
        one: `(..., h, w)`.
        other: The same shape.

    Returns:
        Float64 `(...)`; NaN where either map is constant or not finite.

    Raises:
        ConfigurationError: The shapes differ or have no two last axes.
    """
    if one.shape != other.shape or one.ndim < 2:
        raise ConfigurationError(
            f"Expected `one` and `other` to have one shape (..., h, w), but got {tuple(one.shape)} and "
            f"{tuple(other.shape)}. Compare maps of one explainer at one layer."
        )
    return (_standardised(one) * _standardised(other)).sum(dim=-1).clamp(-1, 1)


def _standardised(maps: Tensor) -> Tensor:
    """Maps as vectors `(..., h w)` of mean 0 and length 1; NaN for constant maps and those that are not finite."""
    flat = maps.double().flatten(-2)
    # No square over- or underflows, and a constant map is all ones, whose mean is exactly one: 0 / 0 below.
    scaled = flat / flat.abs().amax(dim=-1, keepdim=True)
    centred = scaled - scaled.mean(dim=-1, keepdim=True)
    unit: Tensor = centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return unit


def _scaled(maps: Tensor, by: Tensor | None = None) -> Tensor:
    """Maps in float64 divided by their own largest value, or that of others; maps of zeros as they are.

    On the scale of `sum_relevance`, whose sums are exact for constant maps.
    """
    exact = maps.double()
    peak = (exact if by is None else by).amax(dim=(-2, -1), keepdim=True)
    return exact / torch.where(peak > 0, peak, torch.ones_like(peak))


def _check_pool(masks: Tensor, pool: Tensor) -> Tensor:
    count_pixels(pool)  # refuses what is not bool
    if masks.ndim != 3 or pool.ndim != 3 or pool.shape[-2:] != masks.shape[-2:]:
        raise ConfigurationError(
            f"Expected `masks` and `pool` to be (N, H, W) and (M, H, W), but got {tuple(masks.shape)} and "
            f"{tuple(pool.shape)}. Pass one region of each probe, of one size."
        )
    return pool
