"""Counts, calibration bins and losses by group (label, cue): what the judgements of groups are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["CALIBRATION_BINS", "Answers", "GroupSums", "check_groups", "group_sums", "sum_answers"]

CALIBRATION_BINS = 15
"""Bins of equal width over the confidence [0, 1]; the last one holds 1 itself."""


class Answers(NamedTuple):
    """All that is kept of what a model says of N images, on the device of its logits.

    Attributes:
        predictions: `(N,)` int64.
        confidences: Largest probability, `(N,)` float64; float32 on devices without it.
        losses: Cross-entropies with the labels in nats, `(N,)` likewise.
        finite: Whether all logits of an image are, `(N,)` bool; if not, the rest says nothing.
    """

    predictions: Tensor
    confidences: Tensor
    losses: Tensor
    finite: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Answers:
        """Read logits `(N, K)` beside labels `(N,)`; nothing here waits for an accelerator.

        The loss of a label outside [0, K) is that of another label: see `check_groups`.
        """
        precise = torch.float32 if logits.device.type == "mps" else torch.float64
        log_probabilities = logits.detach().to(precise).log_softmax(dim=1)
        best, predictions = log_probabilities.max(dim=1)
        # An index out of range would stop an accelerator for good.
        rows = labels.long().clamp(0, logits.shape[1] - 1)[:, None]
        losses = -log_probabilities.gather(1, rows).squeeze(1)
        return cls(predictions, best.exp(), losses, torch.isfinite(logits).all(dim=1))


class GroupSums(NamedTuple):
    """What images add to the state.

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

    @classmethod
    def zeros(cls, num_classes: int, num_cues: int) -> GroupSums:
        """No image, for K classes and C values of the cue."""
        return cls(
            torch.zeros(num_classes, num_cues, num_classes, dtype=torch.long),
            torch.zeros(num_classes * num_cues, CALIBRATION_BINS, 3, dtype=torch.float64),
            torch.zeros(num_classes, num_cues, dtype=torch.float64),
            torch.zeros((), dtype=torch.long),
            torch.zeros((), dtype=torch.long),
        )


def group_sums(logits: Tensor, labels: Tensor, cues: Tensor, num_cues: int) -> GroupSums:
    """Counts, calibration bins and losses of a batch in one pass, on the device of the logits.

    Images with a logit that is NaN or infinite are left out and counted.

    Args:
        logits: `(N, K)`.
        labels: Integers `(N,)` in [0, K).
        cues: Integers `(N,)` in [0, C); -1 = unknown, left out.
        num_cues: C.

    Raises:
        ConfigurationError: A shape, a type or a range is another.
    """
    require_integer("num_cues", num_cues, minimum=1)
    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ConfigurationError(f"Expected float `logits` (N, K), but got {logits.dtype} {tuple(logits.shape)}.")
    for name, values in (("labels", labels), ("cues", cues)):
        if values.shape != logits.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
            got = f"{values.dtype} {tuple(values.shape)}"
            raise ConfigurationError(f"Expected `{name}` to be integers ({len(logits)},), but got {got}.")
    check_groups(labels, cues, logits.shape[1], num_cues)
    return sum_answers(Answers.of(logits, labels), labels.long(), cues.long(), logits.shape[1], num_cues)


def check_groups(labels: Tensor, cues: Tensor, num_classes: int, num_cues: int) -> None:
    """Check that labels `(N,)` are in [0, K) and cues `(N,)` in [-1, C).

    Raises:
        ConfigurationError: One is not.
    """
    for name, values, low, high in (("labels", labels, 0, num_classes), ("cues", cues, -1, num_cues)):
        if bool(((values < low) | (values >= high)).any()):
            got = f"{int(values.min())} to {int(values.max())}"
            raise ConfigurationError(f"Expected `{name}` to be in [{low}, {high}), but got {got}.")


def sum_answers(answers: Answers, labels: Tensor, cues: Tensor, num_classes: int, num_cues: int) -> GroupSums:
    """Add up answers by group; labels and cues are int64 `(N,)` that pass `check_groups`, on the same device."""
    known = cues >= 0
    kept = answers.finite & known
    labels, predictions, confidences, losses = (
        values[kept] for values in (labels, answers.predictions, answers.confidences, answers.losses)
    )
    groups = num_classes * num_cues
    members = labels * num_cues + cues[kept]
    bins = (confidences * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    once, right = torch.ones_like(confidences), (predictions == labels).to(confidences.dtype)
    rows = torch.stack([once, confidences, right], dim=1)
    return GroupSums(
        _sums(members * num_classes + predictions, once.long(), groups * num_classes).view(
            num_classes, num_cues, num_classes
        ),
        _sums(members * CALIBRATION_BINS + bins, rows, groups * CALIBRATION_BINS).view(groups, CALIBRATION_BINS, 3),
        _sums(members, losses, groups).view(num_classes, num_cues),
        (~answers.finite).sum(),
        (answers.finite & ~known).sum(),
    )


def _sums(index: Tensor, values: Tensor, size: int) -> Tensor:
    # Unlike a weighted bincount, this has a deterministic form on every device.
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, index, values)
