"""What heatmaps are read beside: nulls, a reference map, a judgement of signed maps, and the maps before.

Area is the least a share of relevance must beat, and not enough: maps are smooth, objects stand in the middle, edges
and bright colours draw relevance in a net that was never trained. Each null takes one of these explanations away; none
says that a model uses a region. Conventions, axes and what has no answer (NaN) are as in `metrics.localization`.
"""

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.interventions.fills import check_images
from xai_callbacks.metrics.agreement import require_one_shape
from xai_callbacks.metrics.localization import RegionWeights, sum_relevance

# Shares that differ by less are equal. Rounding in a transform of 1000 x 1000 pixels stays below a hundredth of it.
_EQUAL = 1e-10


def shift_p(relevance: Tensor, mask: Tensor, *, reference: float | Tensor = 0.0) -> Tensor:
    """Share of the N circular shifts of a map, its own place among them, with at least its relevance mass.

    In [1 / N, 1]; NaN where the mask covers the image, too. The shifts keep how sparse and how smooth the map is. They
    say nothing of a habit to look at the middle of the image, and independent places are as many as blobs, not as
    pixels: read the share as a rank. Cost: two Fourier transforms, 32 bytes a pixel. Arguments as in `relevance_mass`.
    """
    sums = sum_relevance(relevance.detach(), mask, reference)
    spectrum = torch.fft.rfft2(sums.scaled).conj() * torch.fft.rfft2(mask.double())
    masses = torch.fft.irfft2(spectrum, s=mask.shape[-2:]).flatten(-2) / sums.total[..., None]
    as_much = (masses >= masses[..., :1] - _EQUAL).double().mean(dim=-1)
    return sums.where_valid(torch.where(mask.all(dim=-1).all(dim=-1), torch.nan, as_much))


def permuted_mass(relevance: Tensor, masks: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Mean relevance mass of a map in the regions of the other probes, `(..., N)` in [0, 1].

    Near the relevance mass itself, most of that mass is what any map with this prior of position has. A constant map
    gets the mean area of the other regions. NaN where the probe has no such region, too, and everywhere if no two
    probes have different regions. Arguments are those of `relevance_mass`: maps `(..., N, H, W)`, masks `(N, H, W)`.
    """
    sums, inside = sum_relevance(relevance, masks, reference), RegionWeights.of(masks).inside
    pool = inside[inside.flatten(1).any(dim=1)]
    if len(pool) == 0 or bool((pool == pool[0]).all()):
        return torch.full_like(sums.total, torch.nan)
    # The regions of the others are all regions without the own one.
    elsewhere = (sums.scaled * (pool.sum(dim=0) - inside).clamp(min=0)).sum(dim=(-2, -1))
    return sums.where_valid((elsewhere / (sums.total * (len(pool) - 1))).clamp(max=1))


def sobel_magnitude(images01: Tensor) -> Tensor:
    """Strength of the edges of images, `(N, H, W)` float64 on the CPU: a reference map that knows no model.

    `sqrt(gx^2 + gy^2)` of the mean over channels (not a weighted luminance, as channels need not be colours), with the
    kernel [1, 2, 1] x [-1, 0, 1], not normalised. An image of one colour has no edges, and the mass of its map is NaN.

    Raises a `ConfigurationError` unless `images01` are floats `(N, C, H, W)` in [0, 1], before normalisation.
    """
    from scipy.ndimage import correlate1d

    check_images("images01", images01, "Undo the normalisation first.")
    grey = images01.detach().cpu().double().mean(dim=1).numpy()
    # Differences first: they are exactly zero where an image is constant.
    edges = [correlate1d(correlate1d(grey, [-1, 0, 1], axis), [1, 2, 1], 3 - axis) for axis in (1, 2)]
    return torch.from_numpy(np.hypot(*edges))


def signed_share(heatmap: Tensor, mask: Tensor | RegionWeights, *, reference: float | Tensor = 0.0) -> Tensor:
    """Net evidence inside the mask as a share of all evidence, `sum_M A / sum |A|`, in [-1, 1].

    Of the question "why the class of the cue, rather than the label?", it says how far the pixels of the cue speak for
    its class. 0 where signs balance; a constant map gets the area fraction, with the sign of the map.
    Parts of either sign are enlarged on their own, and count in full side by side. Arguments as in `relevance_mass`.
    """
    sums = sum_relevance(heatmap.abs(), mask, reference)
    net = (sums.scaled * heatmap.sign() * RegionWeights.of(mask).inside).sum(dim=(-2, -1))
    return sums.where_valid((net / sums.total).clamp(-1, 1))


def explanation_drift(before: Tensor, after: Tensor) -> Tensor:
    """Cosine distance of signed heatmaps `(..., h, w)` of the same probes and question, `1 - cos`, in [0, 2].

    0: the same map up to a positive factor; 1: unrelated; 2: the opposite map. No chance level. NaN where either map is
    all zeros or not finite. Raises a `ConfigurationError` for shapes that differ.
    """
    require_one_shape("`before` and `after`", before, after, "Compare maps of one explainer at one layer.")
    flat = [maps.double().flatten(-2) for maps in (before, after)]
    units = [maps / torch.linalg.vector_norm(maps, dim=-1, keepdim=True) for maps in flat]
    # Half the squared distance of the unit maps, which keeps its digits where they are nearly equal.
    squares: Tensor = (units[0] - units[1]).square()
    return (squares.sum(dim=-1) / 2).clamp(max=2)
