"""Images of groups, for the tests of group metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch

from xai_callbacks.metrics.group_metrics import GroupMetrics

K, C = 3, 2


class Sums(NamedTuple):
    """The state of a metric, taken apart."""

    counts: torch.Tensor
    bins: torch.Tensor
    losses: torch.Tensor
    not_finite: int
    unknown: int


def sums_of(metric: GroupMetrics) -> Sums:
    sums = metric.sums
    counts, bins = sums[..., : metric.num_classes].long(), sums[..., metric.num_classes : -1].reshape(-1, 15, 3)
    return Sums(counts, bins, sums[..., -1], *metric.left_out.int().tolist())


def group_sums(
    logits: torch.Tensor, labels: torch.Tensor, cues: torch.Tensor, num_cues: int, num_classes: int = K
) -> Sums:
    metric = GroupMetrics(num_classes, num_cues)
    metric.update(logits, labels, cues)
    return sums_of(metric)


def batch(count: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (count,), generator=generator)
    cues = torch.randint(C, (count,), generator=generator)
    logits = torch.randn(count, K, generator=generator)
    logits[torch.arange(count), labels] += 0.8
    logits[torch.arange(count), cues] += 0.7  # leans on the cue
    return logits, labels, cues


def table(*rows: list[list[int]]) -> torch.Tensor:
    """Counts [label][cue][prediction]."""
    return torch.tensor(rows)


def cue_reader(size: int = 50) -> torch.Tensor:
    """Two labels, two cues, all groups equal, and the answer is the cue."""
    return table(*[[[size, 0], [0, size]]] * 2)
