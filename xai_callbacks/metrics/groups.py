"""Does the model answer by the cue? Judgements of predictions per group (label, cue), no heatmap needed.

All but the calibration error and the losses are functions of `counts`, int64 `(K, C, K)` [label, cue, prediction]; K
classes, C values of the cue, group `g = label * C + cue`. Images whose cue is unknown (-1) are in no group. Counts add
up over batches and processes. Judgements are float64 on the CPU; NaN where no image can tell.

| judgement | range | a model that never uses the cue | question |
|---|---|---|---|
| `worst_group_accuracy` | [0, 1] | near the average | how good is the model where it is worst? |
| `average_worst_gap` | [0, 1] | near 0 | how much of that does the average hide? |
| `conflict_gap` | [-1, 1] | 0 | what does the model lose where the cue points to another class? |
| `equalised_odds_gap` | [0, 1] | 0 | how far does the cue move an answer, the label being equal? |
| `conditional_mutual_information` | [0, 1] | 0 | how much of the cue can be read off the answers, given the label? |
| `group_ece` | [0, 1] | equal in all groups | in which group is the confidence wrong? |
| `bias_amplification` | [-1, 1] | 0 if it is right | does it answer along the training cue more than is true? |

A minimum or maximum over noisy groups is biased away from the middle: compare at equal group sizes, and read the worst
group by its interval, which knows of that.

Errors: `ConfigurationError` for arguments that are not of this form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.summary import Estimate

__all__ = [
    "ConflictGap",
    "GroupECE",
    "WorstGroup",
    "average_worst_gap",
    "bias_amplification",
    "conditional_mutual_information",
    "conflict_gap",
    "conflict_losses",
    "equalised_odds_gap",
    "group_accuracy",
    "group_ece",
    "minimum_interval",
    "reweighted_accuracy",
    "wilson_interval",
    "worst_group_accuracy",
]


class WorstGroup(NamedTuple):
    """The group with the lowest accuracy.

    Attributes:
        estimate: Its accuracy, with the `minimum_interval` over all groups that are large enough; `valid` is its number
            of images. Value NaN, no interval, if all groups are too small.
        label: Its label; None if there is none.
        cue: Its cue; None likewise.
        excluded: Groups with fewer than `min_count` images, but some.
        empty: Groups without an image.
    """

    estimate: Estimate
    label: int | None
    cue: int | None
    excluded: int
    empty: int


class ConflictGap(NamedTuple):
    """Accuracy with the label's own cue (`aligned`), with any other (`conflicting`), and their difference."""

    estimate: Estimate
    aligned: float
    conflicting: float


class GroupECE(NamedTuple):
    """Calibration errors `(G,)`, NaN for small groups; their largest minus smallest, NaN with fewer than two."""

    values: Tensor
    gap: float


def group_accuracy(counts: Tensor) -> Tensor:
    """Share of right answers in each group, `(K, C)`, in [0, 1]; NaN for groups without an image."""
    correct, total = _correct_and_total(counts)
    return correct / total


def wilson_interval(correct: Tensor, total: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson's score interval of a proportion, in [0, 1]; no continuity correction. Source: Newcombe 1998, method 3.

    `correct` of `total` trials, any shape; 0 trials give NaN. `confidence` is the level, in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
    correct, total = correct.double(), total.double()
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = correct + square / 2
    reach = (square * (correct * (total - correct) / total + square / 4)).sqrt()
    # Rounding alone would leave [0, 1], or the proportion itself at none and all right.
    share = correct / total
    low = ((middle - reach) / (total + square)).clamp(min=0).minimum(share)
    return low, ((middle + reach) / (total + square)).clamp(max=1).maximum(share)


def minimum_interval(
    correct: Tensor, total: Tensor, confidence: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Exact interval in [0, 1] for the smallest of several true proportions, whichever it is; None without any.

    The smallest count is too low on average: an interval of that proportion alone would often lie below the true
    minimum. This one holds the true minimum with a probability of at least `confidence`, whatever the proportions and
    however few the trials. Its ends are the smallest lower and the smallest upper end of the exact intervals of the
    single proportions (Clopper and Pearson 1934): lower ones with the error `(1 - confidence) / 2`, since that of the
    true minimum alone must hold; upper ones with the error of Šidák for all of them, since each must hold.

    `correct` of `total` trials, any shape, each total 1 or more. `confidence` is the level, in (0, 1).
    """
    from scipy.special import betaincinv

    if not 0 < confidence < 1:
        raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
    if not total.numel():
        return None, None
    right, wrong = correct.flatten().double().numpy(), (total - correct).flatten().double().numpy()
    error = (1 - confidence) / 2
    each = 1 - (1 - error) ** (1 / len(right))
    # Ends of no and of all right are 0 and 1, where the beta distribution has no first or second parameter.
    low = np.where(right > 0, betaincinv(np.maximum(right, 1), wrong + 1, error), 0.0)
    high = np.where(wrong > 0, betaincinv(right + 1, np.maximum(wrong, 1), 1 - each), 1.0)
    return float(low.min()), float(high.min())


def worst_group_accuracy(counts: Tensor, min_count: int = 20, *, confidence: float = 0.95) -> WorstGroup:
    """Lowest accuracy of the groups with at least `min_count` images; of equal ones the first group.

    The minimum of noisy accuracies is too low on average, the more groups the lower. The interval allows for that, and
    is one for the accuracy of the truly worst group, whichever it is.
    """
    require_integer("min_count", min_count, minimum=1)
    correct, total = _correct_and_total(counts)
    large = total >= min_count
    excluded, empty = int(((total > 0) & ~large).sum()), int((total == 0).sum())
    low, high = minimum_interval(correct[large], total[large], confidence)
    if low is None:
        return WorstGroup(Estimate(math.nan, valid=0), None, None, excluded, empty)
    accuracy = torch.where(large, correct / total, math.inf)
    label, cue = divmod(int(accuracy.argmin()), total.shape[1])
    estimate = Estimate(float(accuracy[label, cue]), low, high, valid=int(total[label, cue]))
    return WorstGroup(estimate, label, cue, excluded, empty)


def reweighted_accuracy(counts: Tensor, train_counts: Tensor) -> float:
    """Mean of the group accuracies, each weighted by the share of its group in training; in [0, 1].

    What the average accuracy would be if the images were distributed as those of training: the average that published
    figures of Waterbirds and CelebA give. Source: Sagawa et al. 2020. NaN if a group of training has no image here, or
    training has none at all.

    `train_counts` are the training images by label and cue, integers `(K, C)`.
    """
    correct, total = _correct_and_total(counts)
    train = _checked_training(train_counts, total.shape)
    used = train > 0
    weights = train[used].double()
    return float(weights @ (correct / total)[used] / weights.sum()) if len(weights) else math.nan


def average_worst_gap(counts: Tensor, train_counts: Tensor | None = None, min_count: int = 20) -> float:
    """Average accuracy less that of the worst group: what the average hides; 0 if all groups are alike.

    The average is over the images in `counts`, or `reweighted_accuracy` with `train_counts`. Below 0 only if the groups
    with fewer than `min_count` images, which cannot be the worst, are bad.
    """
    require_integer("min_count", min_count, minimum=1)
    correct, total = _correct_and_total(counts)
    average = float(correct.sum() / total.sum()) if train_counts is None else reweighted_accuracy(counts, train_counts)
    accuracies = (correct / total)[total >= min_count]
    return average - float(accuracies.min()) if len(accuracies) else math.nan


def conflict_gap(counts: Tensor, aligned: Sequence[int], *, confidence: float = 0.95) -> ConflictGap:
    """What the model loses where the cue points to another class; 1 for a model that reads the cue alone.

    Images are pooled on each side, so a difference in the mix of labels is part of the gap. The interval is Newcombe's
    for a difference of independent proportions (1998, method 10), and covers the choice of images only. NaN, without
    an interval, if a side is empty.

    `aligned` is, for each label, the cue that goes with it in training, `(K,)`.
    """
    correct, total = _sides(torch.stack(_correct_and_total(counts)), aligned)
    shares = correct / total
    low, high = wilson_interval(correct, total, confidence)
    gap, below, above = float(shares[0] - shares[1]), shares - low, high - shares
    ends: tuple[float | None, float | None] = (None, None)
    if not math.isnan(gap):
        ends = (gap - float(below[0].hypot(above[1])), gap + float(above[0].hypot(below[1])))
    return ConflictGap(Estimate(gap, *ends, 0.0, int(total.sum()), 0), float(shares[0]), float(shares[1]))


def conflict_losses(losses: Tensor, counts: Tensor, aligned: Sequence[int]) -> tuple[float, float]:
    """Mean cross-entropy in nats with the label's own cue and with any other; NaN for a side without images.

    `losses` are the sums per group, `(K, C)`, of the images in `counts`; `aligned` is that of `conflict_gap`.
    """
    total = _correct_and_total(counts)[1]
    if losses.shape != total.shape:
        raise ConfigurationError(f"Expected `losses` to be (K, C) {tuple(total.shape)}, but got {tuple(losses.shape)}.")
    summed, images = _sides(torch.stack([losses.detach().to("cpu", torch.float64), total]), aligned)
    return float(summed[0] / images[0]), float(summed[1] / images[1])


def _sides(values: Tensor, aligned: Sequence[int]) -> Tensor:
    """Sums over the aligned and the conflicting groups of `(2, K, C)`, `(2, 2)` [value, side]."""
    classes, cues = values.shape[1:]
    if len(aligned) != classes or not all(0 <= cue < cues for cue in aligned):
        raise ConfigurationError(
            f"Expected `aligned` to be one cue in [0, {cues}) for each of {classes} labels, but got {list(aligned)}."
        )
    own = torch.zeros(classes, cues, dtype=torch.bool)
    own[torch.arange(classes), torch.tensor(aligned)] = True
    return torch.stack([values[:, own].sum(dim=1), values[:, ~own].sum(dim=1)], dim=1)


def equalised_odds_gap(counts: Tensor, min_count: int = 20) -> float:
    """Largest difference, over labels and answers, that the cue makes to how often the answer is given; in [0, 1].

    Groups with fewer than `min_count` images are left out; NaN if no label has two groups.
    """
    require_integer("min_count", min_count, minimum=1)
    counts = _checked(counts)
    total = counts.sum(dim=2, keepdim=True)
    # Integers are divided in float32.
    used, shares = total >= min_count, counts.double() / total
    most = torch.where(used, shares, -math.inf).amax(dim=1)
    fewest = torch.where(used, shares, math.inf).amin(dim=1)
    gaps = (most - fewest)[used.sum(dim=(1, 2)) >= 2]
    return float(gaps.max()) if len(gaps) else math.nan


def conditional_mutual_information(counts: Tensor, correct_bias: bool = True) -> float:
    """I(prediction; cue | label) / H(cue | label), in [0, 1]; 0 if and only if equalised odds hold exactly.

    Args:
        counts: `(K, C, K)`.
        correct_bias: Subtract what independence alone would give, `sum_y (P_y - 1)(C_y - 1) / 2n` nats with the P_y
            answers and C_y cues seen with label y (Miller and Madow). What falls below 0 is set to 0, and a model that
            answers by the cue stays a little below 1. False: the plug-in value, 1 for that model.

    Returns:
        NaN if no label is seen with two cues.
    """
    counts = _checked(counts)
    shared = _shared_nats(counts).sum()
    if correct_bias:
        answers, cues = ((counts.sum(dim=axis) > 0).sum(dim=1).double() for axis in (1, 2))
        shared -= (answers - 1).clamp(min=0) @ (cues - 1).clamp(min=0) / 2
    return float((shared / _cue_nats(counts)).clamp(0, 1))


def _shared_nats(tables: Tensor) -> Tensor:
    """Images times mutual information of `(..., C, K)` tables, `(...)`, in nats."""
    inner = _n_log_n(tables).sum(dim=(-2, -1)) + _n_log_n(tables.sum(dim=(-2, -1)))
    return (inner - _n_log_n(tables.sum(dim=-1)).sum(dim=-1) - _n_log_n(tables.sum(dim=-2)).sum(dim=-1)).clamp(min=0)


def _cue_nats(counts: Tensor) -> Tensor:
    """Images times H(cue | label), `()`, in nats; NaN for 0, by which nothing can be divided."""
    groups = counts.sum(dim=2)
    if not bool(((groups > 0).sum(dim=1) >= 2).any()):
        return torch.tensor(math.nan, dtype=torch.float64)
    return _n_log_n(groups.sum(dim=1)).sum() - _n_log_n(groups).sum()


def _n_log_n(numbers: Tensor) -> Tensor:
    nats: Tensor = torch.special.xlogy(numbers.double(), numbers.double())
    return nats


def group_ece(bins: Tensor, min_count: int = 100) -> GroupECE:
    """Expected calibration error of each group: mean distance of confidence and accuracy over the bins.

    Too large on average in small groups: compare groups of equal size.

    Args:
        bins: `(G, B, 3)` [images, sum of confidences, sum of right answers].
        min_count: Groups with fewer images get NaN.
    """
    require_integer("min_count", min_count, minimum=1)
    if bins.ndim != 3 or bins.shape[2] != 3:
        raise ConfigurationError(f"Expected `bins` to be (G, B, 3), but got shape {tuple(bins.shape)}.")
    images, confidence, correct = bins.detach().to("cpu", torch.float64).unbind(dim=2)
    total = images.sum(dim=1)
    values = torch.where(total >= min_count, (confidence - correct).abs().sum(dim=1) / total, math.nan)
    valid = values[~values.isnan()]
    return GroupECE(values, float(valid.max() - valid.min()) if len(valid) >= 2 else math.nan)


def bias_amplification(counts: Tensor, train_counts: Tensor) -> float:
    """How much more often than is true the model answers what went with the cue in training; in [-1, 1].

    Mean over labels t and cues a of `s (P(answer t | a) - P(label t | a))`, s the sign of
    `P(label t | a) - P(label t)` in training. Source: Wang and Russakovsky 2021, direction A -> T; s = 0 for equal
    probabilities here. Cues without an image are left out; NaN if there are only such.

    `train_counts` are the training images by label and cue, integers `(K, C)`.
    """
    counts = _checked(counts)
    groups = counts.sum(dim=2)
    train = _checked_training(train_counts, groups.shape)
    # In whole numbers: equal probabilities must give 0, whatever their quotients are in binary.
    signs = (train * train.sum() - train.sum(dim=1, keepdim=True) * train.sum(dim=0)).sign()
    seen = groups.sum(dim=0) > 0
    change = (counts.sum(dim=0).T - groups).double() / groups.sum(dim=0)
    return float((signs * change)[:, seen].mean())


def _correct_and_total(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Right answers and images of each group, both `(K, C)` float64."""
    counts = _checked(counts)
    return counts.diagonal(dim1=0, dim2=2).T.double(), counts.sum(dim=2).double()


def _checked(counts: Tensor) -> Tensor:
    shape = tuple(counts.shape)
    if counts.dtype != torch.long or len(shape) != 3 or shape[0] != shape[2] or not counts.numel():
        raise ConfigurationError(f"Expected `counts` to be int64 (K, C, K), but got {counts.dtype} {shape}.")
    counts = counts.detach().to("cpu")
    if int(counts.min()) < 0:
        raise ConfigurationError(f"Expected `counts` to be 0 or more, but got {int(counts.min())}.")
    return counts


def _checked_training(train_counts: Tensor, shape: torch.Size) -> Tensor:
    if train_counts.shape != shape or train_counts.is_floating_point():
        got = f"{train_counts.dtype} {tuple(train_counts.shape)}"
        raise ConfigurationError(f"Expected `train_counts` to be integers (K, C) {tuple(shape)}, but got {got}.")
    return train_counts.to("cpu", torch.long)
