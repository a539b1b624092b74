"""How well do maps foretell where people look? Standard scores of saliency (Bylinskii et al., TPAMI 2019).

`maps` are `(..., H, W)`, `fixated` says which pixels somebody looked at, of the same shape. NaN where a map is the same
everywhere or nobody looked, but for `auc_judd`, which then is .5 and NaN. Only the shape of a map counts.

| score | best | chance |
|---|---|---|
| `nss` | none | 0 |
| `cc` | 1 | 0 |
| `auc_judd` | 1 | .5 |
"""

import torch
from torch import Tensor

from xai_callbacks.metrics.agreement import require_one_shape

_HINT = "Bring maps to the size of the images."


def nss(maps: Tensor, fixated: Tensor) -> Tensor:
    """Normalised scanpath saliency `(...)`: mean over fixated pixels of a map of mean 0 and standard deviation 1."""
    require_one_shape("maps and fixations", maps, fixated, _HINT)
    centred = _centred(maps)
    at_fixations = (centred * fixated).sum(dim=(-2, -1)) / fixated.sum(dim=(-2, -1))
    return at_fixations / centred.square().mean(dim=(-2, -1)).sqrt()


def cc(maps: Tensor, density: Tensor) -> Tensor:
    """Pearson's correlation `(...)` in [-1, 1] of a map with the density of fixations, a blurred count of them."""
    require_one_shape("maps and fixations", maps, density, _HINT)
    first, second = _centred(maps), _centred(density)
    sizes = first.square().sum(dim=(-2, -1)) * second.square().sum(dim=(-2, -1))
    return ((first * second).sum(dim=(-2, -1)) / sizes.sqrt()).clamp(-1, 1)


def auc_judd(maps: Tensor, fixated: Tensor) -> Tensor:
    """Area under the ROC curve `(...)` in [0, 1] of fixated pixels against all others, with thresholds at the former.

    Thresholds lie at the values of the n fixated pixels, and the curve is straight between them: without ties it is the
    plain area plus `f / 2n`, with f the share of the other pixels above the lowest fixated one (Judd et al. 2009).
    """
    require_one_shape("maps and fixations", maps, fixated, _HINT)
    flat = [each.detach().reshape(-1, maps.shape[-2:].numel()) for each in (maps, fixated)]
    found = [_auc_judd(values.double(), chosen.bool()) for values, chosen in zip(*flat, strict=True)]
    return torch.stack(found).reshape(maps.shape[:-2])


def _auc_judd(values: Tensor, fixated: Tensor) -> Tensor:
    thresholds, count = values[fixated].sort(descending=True).values, int(fixated.sum())
    if count in (0, len(values)):
        return values.new_tensor(torch.nan)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    above = len(values) - torch.searchsorted(values.sort().values, thresholds, right=False)
    hits = count - torch.searchsorted(thresholds.flip(0), thresholds, right=False)
    rates = [found.double() / most for found, most in ((hits, count), (above - hits, len(values) - count))]
    true, false = (torch.cat([ends[:1], rate, ends[1:]]) for rate in rates)
    return torch.trapezoid(true, false)


def _centred(maps: Tensor) -> Tensor:
    values = maps.detach().double()
    return values - values.mean(dim=(-2, -1), keepdim=True)
