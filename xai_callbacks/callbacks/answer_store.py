"""`AnswerStore`: what is kept of the logits of a whole validation set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.metrics.group_sums import Answers

__all__ = ["AnswerStore", "Judgeable"]

# Logits that wait to be read together, 4 MB: reading each small batch by itself would cost more than all the rest.
_WAITING = 2**20


class Judgeable(NamedTuple):
    """What is kept of images: some 40 bytes each."""

    answers: Answers
    labels: Tensor
    cues: Tensor

    @classmethod
    def joined(cls, parts: list[Judgeable]) -> Judgeable:
        """All of one or more, on the CPU."""
        answers = Answers(*(torch.cat(each).cpu() for each in zip(*(part.answers for part in parts), strict=True)))
        return cls(answers, *(torch.cat(each).cpu() for each in zip(*(part[1:] for part in parts), strict=True)))


class AnswerStore:
    """Takes logits batch by batch, and reads them in large blocks on the device where they are.

    Batches wait in one buffer that stays allocated: small tensors kept here and there while a model runs would have the
    allocator of the CPU return memory to the system and ask for it again at every batch.
    """

    def __init__(self) -> None:
        self._logits = torch.empty(0, 0)
        self._groups = torch.empty(2, 0, dtype=torch.long)
        self._waiting = 0
        self._kept: list[Judgeable] = []

    def add(self, logits: Tensor, labels: Tensor, cues: Tensor) -> None:
        """Copy the logits `(N, K)`, labels and cues `(N,)` of a batch."""
        self._make_room(logits)
        rows = slice(self._waiting, self._waiting + len(logits))
        self._logits[rows] = logits
        self._groups[0, rows] = labels
        self._groups[1, rows] = cues
        self._waiting = rows.stop

    def all(self) -> Judgeable | None:
        """All images, on the CPU; None if there is none."""
        self._condense()
        return Judgeable.joined(self._kept) if self._kept else None

    def clear(self) -> None:
        """Forget all images."""
        self._waiting = 0
        self._kept = []

    def _make_room(self, logits: Tensor) -> None:
        images, classes = logits.shape
        fits = self._logits.shape[1] == classes and self._logits.device == logits.device
        if fits and self._waiting + images <= len(self._logits):
            return
        self._condense()
        if not fits or images > len(self._logits):
            capacity = max(images, _WAITING // classes)
            precision = torch.promote_types(logits.dtype, torch.float32)
            self._logits = torch.empty(capacity, classes, dtype=precision, device=logits.device)
            self._groups = torch.empty(2, capacity, dtype=torch.long, device=logits.device)

    def _condense(self) -> None:
        """Read what waits."""
        if self._waiting:
            labels, cues = self._groups[:, : self._waiting].clone()
            self._kept.append(Judgeable(Answers.of(self._logits[: self._waiting], labels), labels, cues))
        self._waiting = 0
