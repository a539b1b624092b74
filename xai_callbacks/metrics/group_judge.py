"""`GroupJudge`: every judgement of groups from one set of sums, as estimates by key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics import groups
from xai_callbacks.metrics.group_sums import GroupSums
from xai_callbacks.metrics.summary import Estimate

__all__ = ["GroupJudge"]


class GroupJudge:
    """What is known of the groups beside the images, and the judgements that it allows.

    Args:
        aligned: For each label, the cue that goes with it in training; None leaves out what needs it.
        train_counts: Training images by label and cue, integers `(K, C)`; None likewise.
        min_count: Fewest images of a group that may be the worst, or be compared for equalised odds.
        min_count_ece: Fewest images of a group that is given a calibration error.
        confidence: Level of the intervals, in (0, 1).
    """

    def __init__(
        self,
        aligned: Sequence[int] | None = None,
        train_counts: Tensor | None = None,
        *,
        min_count: int = 20,
        min_count_ece: int = 100,
        confidence: float = 0.95,
    ) -> None:
        require_integer("min_count", min_count, minimum=1)
        require_integer("min_count_ece", min_count_ece, minimum=1)
        if not 0 < confidence < 1:
            raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
        self.aligned = None if aligned is None else tuple(aligned)
        self.train_counts = train_counts
        self.min_count, self.min_count_ece, self.confidence = min_count, min_count_ece, confidence

    def judge(self, sums: GroupSums) -> dict[str, Estimate]:
        """The judgements of all groups together, such as `group/wga`: see the table of `GroupMetrics`.

        `valid` counts images. A judgement that the images do not allow is NaN, without an interval.

        Raises:
            ConfigurationError: `aligned` or `train_counts` are not those of as many classes and cues.
        """
        images = int(sums.counts.sum())
        found = [*self._accuracies(sums.counts), *self._dependence(sums), *self._conflict(sums), *_left_out(sums)]
        return {
            f"group/{key}": value if isinstance(value, Estimate) else _estimate(value, images) for key, value in found
        }

    def judge_each(self, sums: GroupSums, names: Sequence[str] | None = None) -> dict[str, Estimate]:
        """Accuracy with Wilson's interval, number of images and calibration error of each group.

        Args:
            sums: The sums.
            names: Names of the groups, label by label; None for `<label>_<cue>`.
        """
        sizes = sums.counts.sum(dim=2)
        cues = sizes.shape[1]
        names = [f"{group // cues}_{group % cues}" for group in range(sizes.numel())] if names is None else names
        correct = sums.counts.diagonal(dim1=0, dim2=2).T
        ends = torch.stack(groups.wilson_interval(correct, sizes, self.confidence), dim=2).view(-1, 2).tolist()
        accuracies = groups.group_accuracy(sums.counts).flatten().tolist()
        errors = groups.group_ece(sums.bins, self.min_count_ece).values.tolist()
        found = {}
        for group, (name, size) in enumerate(zip(names, sizes.flatten().tolist(), strict=True)):
            low, high = ends[group] if size else (None, None)
            found[f"group/accuracy/{name}"] = Estimate(accuracies[group], low, high, None, size, 0)
            found[f"group/count/{name}"] = _estimate(size, size)
            found[f"group/ece/{name}"] = _estimate(errors[group], size)
        return found

    def _accuracies(self, counts: Tensor) -> Iterator[tuple[str, Estimate | float]]:
        sizes = counts.sum(dim=2)
        worst = groups.worst_group_accuracy(counts, self.min_count, confidence=self.confidence)
        yield "accuracy_all", float(counts.diagonal(dim1=0, dim2=2).sum() / sizes.sum())
        yield "accuracy_balanced", float(groups.group_accuracy(counts).nanmean())
        yield "wga", worst.estimate
        yield "wga_label", math.nan if worst.label is None else worst.label
        yield "wga_cue", math.nan if worst.cue is None else worst.cue
        yield "average_worst_gap", groups.average_worst_gap(counts, min_count=self.min_count)
        if self.train_counts is not None:
            yield "accuracy_reweighted", groups.reweighted_accuracy(counts, self.train_counts)
            yield "average_worst_gap_reweighted", groups.average_worst_gap(counts, self.train_counts, self.min_count)
        yield "n_min", float(sizes[sizes > 0].min()) if sizes.any() else math.nan
        yield "excluded", worst.excluded
        yield "empty", worst.empty

    def _dependence(self, sums: GroupSums) -> Iterator[tuple[str, Estimate | float]]:
        yield "equalised_odds_gap", groups.equalised_odds_gap(sums.counts, self.min_count)
        yield "cond_mi", groups.conditional_mutual_information(sums.counts)
        yield "ece_gap", groups.group_ece(sums.bins, self.min_count_ece).gap
        if self.train_counts is not None:
            yield "bias_amplification", groups.bias_amplification(sums.counts, self.train_counts)

    def _conflict(self, sums: GroupSums) -> Iterator[tuple[str, Estimate | float]]:
        if self.aligned is None:
            return
        gap = groups.conflict_gap(sums.counts, self.aligned, confidence=self.confidence)
        yield "conflict_gap", gap.estimate
        yield "accuracy_aligned", gap.aligned
        yield "accuracy_conflicting", gap.conflicting
        losses = groups.conflict_losses(sums.losses, sums.counts, self.aligned)
        yield "loss_aligned", losses[0]
        yield "loss_conflicting", losses[1]


def _left_out(sums: GroupSums) -> Iterator[tuple[str, float]]:
    yield "not_finite", float(sums.not_finite)
    yield "unknown_cue", float(sums.unknown)


def _estimate(value: float, images: int) -> Estimate:
    return Estimate(float(value), None, None, None, images, 0)
