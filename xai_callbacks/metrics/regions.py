"""Judgements of answers to images of which a part was changed."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_callbacks.metrics.summary import FEWEST_FOR_INTERVAL, Estimate, resampled_means

__all__ = ["correct", "relative_sensitivity", "spread"]

# Outside, the formula divides by next to nothing.
_LEAST, _MOST = 0.05, 0.95


def correct(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 where logits `(N, K)` are largest for the label, else 0; NaN where a logit is not finite. `(N,)` float64."""
    right = (outputs.argmax(dim=1) == labels).double()
    return right.where(outputs.isfinite().all(dim=1), torch.nan)


def spread(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """How far answers to several versions `(F, N, K)` of N images lie apart; both `(N,)` float64, in [0, 1].

    Mean total variation distance from their mean; and 1 where not all give the same class, else 0. NaN where a logit is
    not finite.
    """
    probabilities = outputs.double().softmax(dim=2)
    distance = (probabilities - probabilities.mean(dim=0)).abs().sum(dim=2).mean(dim=0) / 2
    answers = outputs.argmax(dim=2)
    disagree = (answers != answers[0]).any(dim=0).double()
    finite = outputs.isfinite().all(dim=2).all(dim=0)
    return distance.where(finite, torch.nan), disagree.where(finite, torch.nan)


def relative_sensitivity(inside: Tensor, outside: Tensor, has: Tensor) -> Estimate:
    """Relative foreground sensitivity, `(a_out - a_in) / (2 min(a, 1 - a))` in [-1, 1], a their mean; chance 0.

    NaN unless .05 < a < .95. The interval is that of a paired bootstrap over probes.

    Args:
        inside: Share of right answers under noise on the object, `(N,)` in [0, 1]; NaN where there is none.
        outside: Under noise around it, likewise.
        has: Which probes have an object, `(N,)` bool.
    """
    valid = has & inside.isfinite() & outside.isfinite()
    count = int(valid.sum())
    pairs = torch.stack([inside, outside])
    value = _sensitivity(pairs[:, valid].mean(dim=1))
    low, high = None, None
    if count >= FEWEST_FOR_INTERVAL and not bool(value.isnan()):
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.nanquantile(_sensitivity(resampled_means(pairs, valid)), ends).tolist()
    return Estimate(float(value), low, high, 0.0, count, int(has.sum()) - count)


def _sensitivity(accuracies: Tensor) -> Tensor:
    """`(2, ...)` accuracies [inside, outside]."""
    middle = accuracies.mean(dim=0)
    value = (accuracies[1] - accuracies[0]) / (2 * torch.minimum(middle, 1 - middle))
    return value.where((middle > _LEAST) & (middle < _MOST), torch.nan)
