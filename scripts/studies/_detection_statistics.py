"""Statistics of `_detection_figures.py`: exact intervals, AUROC with its interval, rank correlation, slopes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai_callbacks.metrics import novelty_auroc, rank_correlation

__all__ = ["SIGMAS", "auroc", "auroc_interval", "clopper_pearson", "perfect_auroc", "slopes_on", "spearman"]

SIGMAS = 1.96
"""Standard errors to either side of a 95 % interval."""

_RESAMPLES = 2000


def clopper_pearson(hits: int, trials: int) -> list[float]:
    """Exact 95 % interval of a share; bisection on the binomial tails."""

    def tail(share: float, counts: range) -> float:
        return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in counts)

    def solve(counts: range, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            below = tail(middle, counts) < 0.025
            low, high = (middle, high) if below == rising else (low, middle)
        return (low + high) / 2

    lower = 0.0 if hits == 0 else solve(range(hits, trials + 1), rising=True)
    return [lower, 1.0 if hits == trials else solve(range(hits + 1), rising=False)]


def auroc(negative: Tensor, positive: Tensor) -> float | None:
    negative, positive = negative[negative.isfinite()], positive[positive.isfinite()]
    return float(novelty_auroc(negative, positive)) if len(negative) and len(positive) else None


def auroc_interval(negative: Tensor, positive: Tensor) -> list[float] | None:
    """Percentile bootstrap over nets; where every resample is perfect, Newcombe's score interval (2006, method 5)."""
    negative, positive = negative[negative.isfinite()], positive[positive.isfinite()]
    if not len(negative) or not len(positive):
        return None
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [
            novelty_auroc(*(side[torch.randint(len(side), (len(side),), generator=generator)] for side in pair))
            for pair in [(negative, positive)] * _RESAMPLES
        ]
    ).double()
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    if low == 1.0:
        # No resample has an error, which does not mean that there is none to come.
        low = perfect_auroc(len(negative), len(positive))
    return [low, high]


def perfect_auroc(negatives: int, positives: int) -> float:
    """Lower end of an AUROC of 1: the smallest that lies within 1.96 of its own standard errors of 1."""
    half = (negatives + positives) / 2 - 1
    low, high = 0.5, 1.0
    for _ in range(60):
        area = (low + high) / 2
        spread = 1 + half * (1 - area) / (2 - area) + half * area / (1 + area)
        error = math.sqrt(area * (1 - area) * spread / (negatives * positives))
        low, high = (low, area) if 1 - area <= SIGMAS * error else (area, high)
    return high


def spearman(one: Tensor, other: Tensor) -> float | None:
    valid = one.isfinite() & other.isfinite()
    return float(rank_correlation(one[valid], other[valid])) if int(valid.sum()) > 2 else None


def slopes_on(values: Tensor, *causes: Tensor) -> list[float] | None:
    """Standardised slopes on each cause; None for a metric that is the same for all nets, or known for few."""
    known = values.isfinite()
    columns = torch.stack([_standard(cause[known]) for cause in causes], dim=1)
    aim = _standard(values[known])
    if len(aim) <= len(causes) or not bool(torch.cat([columns.flatten(), aim]).isfinite().all()):
        return None
    return [float(slope) for slope in torch.linalg.lstsq(columns, aim[:, None]).solution[:, 0]]


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()
