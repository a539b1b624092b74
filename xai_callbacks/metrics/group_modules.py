"""The group metrics as one `torchmetrics.Metric`, for a user's own validation loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.group_judge import GroupJudge
from xai_callbacks.metrics.group_sums import GroupSums, group_sums

__all__ = ["GroupMetrics"]

# Judgements whose interval has keys of its own.
_WITH_ENDS = ("group/wga", "group/conflict_gap")


class GroupMetrics(Metric):
    """All judgements of `xai_callbacks.metrics.groups` from one state of fixed size.

    The state is `K * K * C` integers and `46 * K * C` floats, summed over processes; images are not kept.

    A logit that is NaN or infinite leaves its image out of every judgement but `group/not_finite`, which counts it: log
    that number, since the others then speak for fewer images. Images with cue -1 are in `group/unknown_cue` alone. A
    judgement that the images do not allow is NaN, never 0.

    `compute` gives the keys of `GroupJudge.keys`, with `<label>_<cue>` for the name of a group, and `group/wga_low`,
    `group/wga_high`, `group/conflict_gap_low` and `group/conflict_gap_high`, the ends of their intervals.

    Args:
        num_classes: K, 2 or more.
        num_cues: C, the number of values of the cue.
        aligned: For each label, the cue that goes with it in training. The most frequent one is not a safe guess: a cue
            on a third of the images of one class, and nowhere else, is a shortcut without being in the majority.
        train_counts: Training images by label and cue, integers `(K, C)`.
        min_count: Fewest images of a group that may be the worst, or be compared for equalised odds.
        min_count_ece: Fewest images of a group that is given a calibration error.
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

    def __init__(
        self,
        num_classes: int,
        num_cues: int,
        aligned: Sequence[int] | None = None,
        train_counts: Tensor | None = None,
        *,
        min_count: int = 20,
        min_count_ece: int = 100,
        confidence: float = 0.95,
        per_group: bool = True,
    ) -> None:
        super().__init__()
        require_integer("num_classes", num_classes, minimum=2)
        require_integer("num_cues", num_cues, minimum=1)
        self.num_classes, self.num_cues = num_classes, num_cues
        self.per_group = per_group
        self._judge = GroupJudge(
            aligned, train_counts, min_count=min_count, min_count_ece=min_count_ece, confidence=confidence
        )
        for name, zeros in GroupSums.zeros(num_classes, num_cues)._asdict().items():
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
        for name, added in sums._asdict().items():
            setattr(self, name, getattr(self, name) + added)

    def compute(self) -> dict[str, float]:
        """The judgements by key."""
        return self._values()

    def _values(self) -> dict[str, float]:
        sums = GroupSums(*(getattr(self, name).cpu() for name in GroupSums._fields))
        values = {}
        for key, estimate in self._judge.judge(sums).items():
            values[key] = estimate.value
            if key in _WITH_ENDS:
                low, high = (math.nan if end is None else end for end in (estimate.low, estimate.high))
                values |= {f"{key}_low": low, f"{key}_high": high}
        if self.per_group:
            values |= {key: estimate.value for key, estimate in self._judge.judge_each(sums).items()}
        return values
