"""Does the model answer by the cue? Judgements of predictions per group (label, cue), no heatmap needed.

Most are functions of `counts`, int64 `(K, C, K)` [label, cue, prediction] on the CPU; K classes, C values of the cue.
They give float64, NaN where no image can tell. A minimum over noisy groups is biased: compare at equal group sizes, and
read the worst group by its interval, which knows of that. Intervals are of level .95. `GroupMetrics` checks arguments.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.record import Estimate

_TAIL = 0.025  # chance of an interval to lie on either side of the truth


def group_accuracy(counts: Tensor) -> Tensor:
    """Share of right answers in each group, `(K, C)`, in [0, 1]; NaN for groups without an image."""
    correct, total = _correct_and_total(counts)
    return correct / total


def wilson_interval(correct: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Wilson's score interval in [0, 1] of `correct` of `total` trials, any shape; 0 trials give NaN.

    No continuity correction. Source: Newcombe 1998, method 3.
    """
    correct, total = correct.double(), total.double()
    square = NormalDist().inv_cdf(_TAIL) ** 2
    middle = correct + square / 2
    reach = (square * (correct * (total - correct) / total + square / 4)).sqrt()
    # Rounding alone would leave [0, 1], or the proportion itself at none and all right.
    share = correct / total
    low = ((middle - reach) / (total + square)).clamp(min=0).minimum(share)
    return low, ((middle + reach) / (total + square)).clamp(max=1).maximum(share)


def minimum_interval(correct: Tensor, total: Tensor) -> tuple[float, float] | tuple[None, None]:
    """Exact interval in [0, 1] for the smallest of several true proportions, whichever it is; None without any.

    The smallest count is too low on average: an interval of that proportion alone would often lie below the true
    minimum. The ends are the smallest lower and the smallest upper end of the exact intervals of the single proportions
    (Clopper and Pearson 1934): lower ones with half of the error, since that of the true minimum alone must hold; upper
    ones with the error of Šidák for all of them, since each must hold. Totals are 1 or more.
    """
    from scipy.special import betaincinv

    if not total.numel():
        return None, None
    right, wrong = correct.flatten().double().numpy(), (total - correct).flatten().double().numpy()
    each = 1 - (1 - _TAIL) ** (1 / len(right))
    # Ends of no and of all right are 0 and 1, where the beta distribution has no first or second parameter.
    low = np.where(right > 0, betaincinv(np.maximum(right, 1), wrong + 1, _TAIL), 0.0)
    high = np.where(wrong > 0, betaincinv(right + 1, np.maximum(wrong, 1), 1 - each), 1.0)
    return float(low.min()), float(high.min())


def worst_group_accuracy(counts: Tensor, min_count: int = 20) -> tuple[Estimate, float, float]:
    """Lowest accuracy of the groups with at least `min_count` images, and the label and cue of the first of these.

    Its interval is the `minimum_interval`. NaN if all groups are too small.
    """
    correct, total = _correct_and_total(counts)
    large = total >= min_count
    low, high = minimum_interval(correct[large], total[large])
    if low is None:
        return Estimate(math.nan, valid=0), math.nan, math.nan
    accuracy = torch.where(large, correct / total, math.inf)
    label, cue = divmod(int(accuracy.argmin()), total.shape[1])
    return Estimate(float(accuracy[label, cue]), low, high, valid=int(total[label, cue])), label, cue


def reweighted_accuracy(counts: Tensor, train_counts: Tensor) -> float:
    """Mean accuracy of the groups, each weighted by its share of the training images `(K, C)`; in [0, 1].

    The average that published figures of Waterbirds and CelebA give. Source: Sagawa et al. 2020. NaN if a group of
    training has no image here, or training has none at all.
    """
    used = train_counts > 0
    weights = train_counts[used].double()
    return float(weights @ group_accuracy(counts)[used] / weights.sum()) if len(weights) else math.nan


def conflict_gap(counts: Tensor, aligned: Sequence[int]) -> tuple[Estimate, float, float]:
    """Accuracy lost where the cue points to another class, in [-1, 1], chance 0; that with the own cue; with others.

    Images are pooled on each side, so a difference in the mix of labels is part of the gap. The interval is Newcombe's
    for a difference of independent proportions (1998, method 10). NaN, without an interval, if a side is empty.
    `aligned` is, for each label, the cue that goes with it in training, `(K,)`.
    """
    correct, total = (on_sides(each, aligned) for each in _correct_and_total(counts))
    shares = correct / total
    low, high = wilson_interval(correct, total)
    gap, below, above = float(shares[0] - shares[1]), shares - low, high - shares
    ends: tuple[float | None, float | None] = (None, None)
    if not math.isnan(gap):
        ends = (gap - float(below[0].hypot(above[1])), gap + float(above[0].hypot(below[1])))
    return Estimate(gap, *ends, 0.0, int(total.sum())), float(shares[0]), float(shares[1])


def on_sides(values: Tensor, aligned: Sequence[int]) -> Tensor:
    """Sums of `(K, C)` values over the groups with the label's own cue, and over those with any other; `(2,)`."""
    own = values[range(len(aligned)), list(aligned)].sum()
    return torch.stack([own, values.sum() - own])


def conditional_mutual_information(counts: Tensor, correct_bias: bool = True) -> float:
    """I(prediction; cue | label) / H(cue | label), in [0, 1]; 0 if and only if equalised odds hold exactly.

    What independence alone would give is subtracted, `sum_y (P_y - 1)(C_y - 1) / 2n` nats with the P_y answers and C_y
    cues seen with label y (Miller and Madow), so that a model that answers by the cue stays a little below 1; without
    `correct_bias` the plug-in value, 1 for that model. NaN if no label is seen with two cues.
    """
    groups, answers = counts.sum(dim=2), counts.sum(dim=1)
    if not bool(((groups > 0).sum(dim=1) >= 2).any()):
        return math.nan
    # Both are multiplied by the number of images.
    alone = _n_log_n(groups.sum(dim=1)) - _n_log_n(groups)
    shared = _n_log_n(counts) + _n_log_n(groups.sum(dim=1)) - _n_log_n(groups) - _n_log_n(answers)
    if correct_bias:
        seen = [((each > 0).sum(dim=1) - 1).clamp(min=0).double() for each in (answers, groups)]
        shared -= seen[0] @ seen[1] / 2
    return float((shared / alone).clamp(0, 1))


def _n_log_n(numbers: Tensor) -> Tensor:
    nats: Tensor = torch.special.xlogy(numbers.double(), numbers.double())
    return nats.sum()


def group_ece(bins: Tensor, min_count: int = 100) -> Tensor:
    """Expected calibration error of each group, `(G,)` in [0, 1]: mean distance of confidence and accuracy over bins.

    `bins` are `(G, B, 3)` [images, sum of confidences, sum of right answers] float64. Too large on average in small
    groups: those with fewer than `min_count` images get NaN, and others are best compared at equal size.
    """
    images, confidence, correct = bins.unbind(dim=2)
    total = images.sum(dim=1)
    return torch.where(total >= min_count, (confidence - correct).abs().sum(dim=1) / total, math.nan)


def bias_amplification(counts: Tensor, train_counts: Tensor) -> float:
    """How much more often than is true the model answers what went with the cue in training; in [-1, 1]. Chance: 0.

    Mean over labels t and cues a of `s (P(answer t | a) - P(label t | a))`, s the sign of
    `P(label t | a) - P(label t)` in training, images `train_counts`, int64 `(K, C)`; 0 for equal ones. Source: Wang and
    Russakovsky 2021, direction A -> T. Cues without an image are left out; NaN if there are only such.
    """
    groups, train = counts.sum(dim=2), train_counts
    # In whole numbers: equal probabilities must give 0, whatever their quotients are in binary.
    signs = (train * train.sum() - train.sum(dim=1, keepdim=True) * train.sum(dim=0)).sign()
    seen = groups.sum(dim=0) > 0
    change = (counts.sum(dim=0).T - groups).double() / groups.sum(dim=0)
    return float((signs * change)[:, seen].mean())


def _correct_and_total(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Right answers and images of each group, both `(K, C)` float64."""
    return counts.diagonal(dim1=0, dim2=2).T.double(), counts.sum(dim=2).double()
