"""Images of groups, for the tests of group metrics."""

from __future__ import annotations

import torch

K, C = 3, 2


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
