"""`GroupJudge`: every judgement of groups from one set of sums, as estimates by key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics import groups
from xai_callbacks.metrics.group_sums import GroupSums
from xai_callbacks.record import Estimate, Key

__all__ = ["GroupJudge"]

# Key without `group/`, words, smallest and largest value.
_OF_ALL = (
    ("accuracy_all", "accuracy over all images", 0.0, 1.0),
    ("accuracy_balanced", "mean accuracy of the groups", 0.0, 1.0),
    ("wga", "accuracy of the worst group", 0.0, 1.0),
    ("wga_label", "label of the worst group", 0.0, None),
    ("wga_cue", "cue of the worst group", 0.0, None),
    ("average_worst_gap", "average accuracy less that of the worst group", -1.0, 1.0),
    ("n_min", "images in the smallest group", 0.0, None),
    ("excluded", "groups too small to be the worst", 0.0, None),
    ("empty", "groups without an image", 0.0, None),
    ("equalised_odds_gap", "largest difference that the cue makes to how often an answer is given", 0.0, 1.0),
    ("cond_mi", "share of the cue that can be read off the answers, given the label", 0.0, 1.0),
    ("ece_gap", "difference of the calibration errors of the groups", 0.0, 1.0),
    ("not_finite", "images left out for a logit that is NaN or infinite", 0.0, None),
    ("unknown_cue", "images left out for an unknown cue", 0.0, None),
)
_ALIGNED = (
    ("conflict_gap", "accuracy lost where the cue points to another class", -1.0, 1.0),
    ("accuracy_aligned", "accuracy with the label's own cue", 0.0, 1.0),
    ("accuracy_conflicting", "accuracy with any other cue", 0.0, 1.0),
    ("loss_aligned", "cross-entropy with the label's own cue", 0.0, None),
    ("loss_conflicting", "cross-entropy with any other cue", 0.0, None),
)
_TRAINED = (
    ("accuracy_reweighted", "mean accuracy of the groups in the proportions of training", 0.0, 1.0),
    ("average_worst_gap_reweighted", "reweighted accuracy less that of the worst group", -1.0, 1.0),
    ("bias_amplification", "how much more often than is true answers follow the cue of training", -1.0, 1.0),
)
_OF_EACH = (
    ("accuracy/*", "accuracy of one group", 0.0, 1.0),
    ("count/*", "images of one group", 0.0, None),
    ("ece/*", "calibration error of one group", 0.0, 1.0),
)
_UNITS = {
    **dict.fromkeys(("accuracy_all", "accuracy/*"), "share"),
    **dict.fromkeys(("n_min", "not_finite", "unknown_cue", "count/*"), "images"),
    **dict.fromkeys(("excluded", "empty"), "groups"),
    **dict.fromkeys(("loss_aligned", "loss_conflicting"), "nats"),
}
_CHANCES = {"equalised_odds_gap": "0", "cond_mi": "0", "conflict_gap": "0", "bias_amplification": "0"}


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

    def keys(self) -> Sequence[Key]:
        """Declarations of all that `judge` and `judge_each` may give."""
        rows = _OF_ALL + _ALIGNED * (self.aligned is not None) + _TRAINED * (self.train_counts is not None) + _OF_EACH
        return tuple(
            Key(f"group/{key}", words, low, high, _CHANCES.get(key, ""), _UNITS.get(key, ""), "images")
            for key, words, low, high in rows
        )

    def judge(self, sums: GroupSums) -> dict[str, Estimate]:
        """The judgements of all groups together, such as `group/wga`: see `keys`.

        `valid` counts images. A judgement that the images do not allow is NaN, without an interval.

        Raises:
            ConfigurationError: `aligned` or `train_counts` are not those of as many classes and cues.
        """
        images = int(sums.counts.sum())
        found = [*self._accuracies(sums.counts), *self._dependence(sums), *self._conflict(sums)]
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
            found[f"group/accuracy/{name}"] = Estimate(accuracies[group], low, high, valid=size)
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
        yield "not_finite", float(sums.not_finite)
        yield "unknown_cue", float(sums.unknown)

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


def _estimate(value: float, images: int) -> Estimate:
    return Estimate(float(value), valid=images)
