"""The group metrics as one `torchmetrics.Metric`, for a user's own validation loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics import groups
from xai_callbacks.metrics.group_sums import CALIBRATION_BINS, group_sums
from xai_callbacks.metrics.summary import Estimate

__all__ = ["GroupMetrics"]


class GroupMetrics(Metric):
    """All judgements of `xai_callbacks.metrics.groups` from one state of fixed size.

    The state is `K * K * C` integers and `46 * K * C` floats, summed over processes; images are not kept.

    A logit that is NaN or infinite leaves its image out of every judgement but `group/not_finite`, which counts it: log
    that number, since the others then speak for fewer images. Images with cue -1 are in `group/unknown_cue` alone. A
    judgement that the images do not allow is NaN, never 0.

    `compute` gives, with `<y>_<c>` for label and cue:

    | key | value |
    |---|---|
    | `group/accuracy/<y>_<c>`, `group/count/<y>_<c>`, `group/ece/<y>_<c>` | of one group |
    | `group/accuracy_all`, `group/accuracy_balanced` | over images; mean over groups that have some |
    | `group/wga`, `group/wga_low`, `group/wga_high` | worst group with at least `least` images, and its interval |
    | `group/wga_label`, `group/wga_cue` | which one it is |
    | `group/n_min`, `group/excluded`, `group/empty` | images of the smallest group; groups below `least`; without any |
    | `group/equalised_odds_gap`, `group/cond_mi`, `group/ece_gap` | how far the cue moves answers and confidence |
    | `group/conflict_gap`, `_low`, `_high`, `group/accuracy_aligned`, `_conflicting`, `group/loss_aligned`, \
`_conflicting` | with `aligned` |
    | `group/bias_amplification` | with `train_counts` |
    | `group/not_finite`, `group/unknown_cue` | images left out |

    Args:
        num_classes: K, 2 or more.
        num_cues: C, the number of values of the cue.
        aligned: For each label, the cue that goes with it in training. The most frequent one is not a safe guess: a cue
            on a third of the images of one class, and nowhere else, is a shortcut without being in the majority.
        train_counts: Training images by label and cue, integers `(K, C)`.
        least: Fewest images of a group that may be the worst, or be compared for equalised odds.
        least_ece: Fewest images of a group that is given a calibration error.
        confidence: Level of the intervals, in (0, 1).
        per_group: Give the values of single groups; they are `3 * K * C` keys.

    Example:
        >>> import torch
        >>> from xai_callbacks.metrics.group_modules import GroupMetrics
        >>> metric = GroupMetrics(num_classes=2, num_cues=2, aligned=[0, 1])
        >>> metric.update(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
        >>> metric.compute()["group/conflict_gap"]
        1.0
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False

    counts: Tensor
    bins: Tensor
    losses: Tensor
    not_finite: Tensor
    unknown: Tensor

    def __init__(
        self,
        num_classes: int,
        num_cues: int,
        aligned: Sequence[int] | None = None,
        train_counts: Tensor | None = None,
        *,
        least: int = 20,
        least_ece: int = 100,
        confidence: float = 0.95,
        per_group: bool = True,
    ) -> None:
        super().__init__()
        require_integer("num_classes", num_classes, least=2)
        require_integer("num_cues", num_cues, least=1)
        self.num_classes, self.num_cues = num_classes, num_cues
        self.aligned = None if aligned is None else tuple(aligned)
        self.train_counts = train_counts
        self.least, self.least_ece, self.confidence, self.per_group = least, least_ece, confidence, per_group
        shape = (num_classes, num_cues)
        states = {
            "counts": torch.zeros(*shape, num_classes, dtype=torch.long),
            "bins": torch.zeros(num_classes * num_cues, CALIBRATION_BINS, 3, dtype=torch.float64),
            "losses": torch.zeros(shape, dtype=torch.float64),
            "not_finite": torch.zeros((), dtype=torch.long),
            "unknown": torch.zeros((), dtype=torch.long),
        }
        for name, zeros in states.items():
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self._values()  # says what is wrong with the arguments now, and not after the first epoch

    def update(self, logits: Tensor, labels: Tensor, cues: Tensor) -> None:
        """Add images.

        Args:
            logits: `(N, K)`.
            labels: Integers `(N,)` in [0, K).
            cues: Integers `(N,)` in [0, C); -1 = unknown.

        Raises:
            ConfigurationError: Shapes, types or ranges are not these; nothing is added.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ConfigurationError(
                f"Expected `logits` to be (N, {self.num_classes}), but got {tuple(logits.shape)}. "
                "Give `num_classes` the number of logits of the model."
            )
        sums = group_sums(logits, labels, cues, self.num_cues)
        self.counts = self.counts + sums.counts
        self.bins = self.bins + sums.bins
        self.losses = self.losses + sums.losses
        self.not_finite = self.not_finite + sums.not_finite
        self.unknown = self.unknown + sums.unknown

    def compute(self) -> dict[str, float]:
        """The judgements, see the table above."""
        return {f"group/{name}": float(value) for name, value in self._values().items()}

    def _values(self) -> dict[str, float]:
        counts = self.counts.cpu()
        ece = groups.group_ece(self.bins, self.least_ece)
        values = {
            **self._accuracies(counts),
            "equalised_odds_gap": groups.equalised_odds_gap(counts, self.least),
            "cond_mi": groups.conditional_mutual_information(counts),
            "ece_gap": ece.gap,
            "not_finite": float(self.not_finite),
            "unknown_cue": float(self.unknown),
        }
        if self.aligned is not None:
            values |= self._conflict(counts, self.aligned)
        if self.train_counts is not None:
            values["bias_amplification"] = groups.bias_amplification(counts, self.train_counts)
        if self.per_group:
            tables = {"accuracy": groups.group_accuracy(counts), "count": counts.sum(dim=2), "ece": ece.values}
            for name, table in tables.items():
                for group, value in enumerate(table.flatten().tolist()):
                    label, cue = divmod(group, self.num_cues)
                    values[f"{name}/{label}_{cue}"] = value
        return values

    def _accuracies(self, counts: Tensor) -> dict[str, float]:
        worst = groups.worst_group_accuracy(counts, self.least, confidence=self.confidence)
        sizes = counts.sum(dim=2)
        right = counts.diagonal(dim1=0, dim2=2).sum()
        return {
            "accuracy_all": float(right / sizes.sum()),
            "accuracy_balanced": float(groups.group_accuracy(counts).nanmean()),
            **_with_ends("wga", worst.estimate),
            "wga_label": math.nan if worst.label is None else worst.label,
            "wga_cue": math.nan if worst.cue is None else worst.cue,
            "n_min": float(sizes[sizes > 0].min()) if sizes.any() else math.nan,
            "excluded": worst.excluded,
            "empty": worst.empty,
        }

    def _conflict(self, counts: Tensor, aligned: Sequence[int]) -> dict[str, float]:
        gap = groups.conflict_gap(counts, aligned, confidence=self.confidence)
        losses = groups.conflict_losses(self.losses, counts, aligned)
        return {
            **_with_ends("conflict_gap", gap.estimate),
            "accuracy_aligned": gap.aligned,
            "accuracy_conflicting": gap.conflicting,
            "loss_aligned": losses[0],
            "loss_conflicting": losses[1],
        }


def _with_ends(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate and its interval as three numbers; NaN for an interval that there is not."""
    low, high = (math.nan if end is None else end for end in (estimate.low, estimate.high))
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
