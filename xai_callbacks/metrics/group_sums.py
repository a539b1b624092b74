"""Counts, calibration bins and losses of a batch by group (label, cue): what the judgements of groups are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import AuditError, ConfigurationError, require_integer

__all__ = ["CALIBRATION_BINS", "GroupSums", "group_counts", "group_sums"]

CALIBRATION_BINS = 15
"""Bins of equal width over the confidence [0, 1]; the last one holds 1 itself."""


class GroupSums(NamedTuple):
    """What a batch adds to the state, on the device of its logits.

    Attributes:
        counts: Images, `(K, C, K)` int64.
        bins: `(K * C, 15, 3)` float64: images, sum of confidences, sum of right answers.
        losses: Sum of the cross-entropies in nats, `(K, C)` float64.
        not_finite: Images left out since a logit is NaN or infinite, `()` int64.
        unknown: Images with finite logits left out since their cue is -1, `()` int64.
    """

    counts: Tensor
    bins: Tensor
    losses: Tensor
    not_finite: Tensor
    unknown: Tensor


def group_counts(logits: Tensor, labels: Tensor, cues: Tensor, num_cues: int) -> Tensor:
    """Images by label, cue and prediction, `(K, C, K)` int64, on the device of the logits.

    Args:
        logits: `(N, K)`.
        labels: Integers `(N,)` in [0, K).
        cues: Integers `(N,)` in [0, C); -1 = unknown, left out.
        num_cues: C.

    Raises:
        AuditError: A logit is NaN or infinite; `group_sums` leaves such images out and counts them.
    """
    sums = group_sums(logits, labels, cues, num_cues)
    if sums.not_finite:
        raise AuditError(
            f"Expected `logits` to be finite, but got NaN or infinity for {int(sums.not_finite)} of {len(logits)} "
            "images. Look at what the model makes of them, or use `group_sums`, which counts them."
        )
    return sums.counts


def group_sums(logits: Tensor, labels: Tensor, cues: Tensor, num_cues: int) -> GroupSums:
    """Counts, calibration bins and losses of a batch in one pass; arguments as of `group_counts`.

    Images with a logit that is NaN or infinite are left out and counted.
    """
    _check_batch(logits, labels, cues, num_cues)
    classes, groups = logits.shape[1], logits.shape[1] * num_cues
    finite, known = torch.isfinite(logits).all(dim=1), cues >= 0
    kept = finite & known
    labels = labels[kept].long()
    members = labels * num_cues + cues[kept].long()
    log_probabilities = logits[kept].detach().double().log_softmax(dim=1)
    best, predictions = log_probabilities.max(dim=1)
    confidence = best.exp()
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    once, right = torch.ones_like(confidence), (predictions == labels).double()
    rows = torch.stack([once, confidence, right], dim=1)
    loss = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    return GroupSums(
        _sums(members * classes + predictions, once.long(), groups * classes).view(classes, num_cues, classes),
        _sums(members * CALIBRATION_BINS + bins, rows, groups * CALIBRATION_BINS).view(groups, CALIBRATION_BINS, 3),
        _sums(members, loss, groups).view(classes, num_cues),
        (~finite).sum(),
        (finite & ~known).sum(),
    )


def _sums(index: Tensor, values: Tensor, size: int) -> Tensor:
    # Unlike a weighted bincount, this has a deterministic form on every device.
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, index, values)


def _check_batch(logits: Tensor, labels: Tensor, cues: Tensor, num_cues: int) -> None:
    require_integer("num_cues", num_cues, least=1)
    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ConfigurationError(f"Expected float `logits` (N, K), but got {logits.dtype} {tuple(logits.shape)}.")
    for name, values, low, high in (("labels", labels, 0, logits.shape[1]), ("cues", cues, -1, num_cues)):
        if values.shape != logits.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
            got = f"{values.dtype} {tuple(values.shape)}"
            raise ConfigurationError(f"Expected `{name}` to be integers ({len(logits)},), but got {got}.")
        if bool(((values < low) | (values >= high)).any()):
            got = f"{int(values.min())} to {int(values.max())}"
            raise ConfigurationError(f"Expected `{name}` to be in [{low}, {high}), but got {got}.")
