"""`Film`: a bounded memory of past audits, evenly spaced, for filmstrips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.record import AuditRecord
from xai_callbacks.render import keep_frame_indices

__all__ = ["Film", "FilmFrame"]


@dataclass(frozen=True, eq=False)
class FilmFrame:
    """One audit of the probes that are drawn.

    Attributes:
        audit: Number of the audit, from 0.
        step: Step of the audit.
        captions: What the model answered for each drawn probe.
        heatmaps: Signed `(Q, P, h, w)` float32 of one explainer, for the P drawn probes.
        kind: What must be equal for two audits to be side by side, see `MapSet.kind`.
    """

    audit: int
    step: int
    captions: tuple[str, ...]
    heatmaps: Tensor
    kind: tuple[str, str, tuple[int, int]]


class Film:
    """Keeps the first audit, the latest, and evenly spaced ones between, never more than `capacity`.

    Args:
        capacity: Most audits kept, 2 or more.
    """

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self._audits = 0
        self._drawn: list[int] = []
        self._frames: list[FilmFrame] = []

    @property
    def frames(self) -> tuple[FilmFrame, ...]:
        """Kept audits, oldest first."""
        return tuple(self._frames)

    def add(self, record: AuditRecord, drawn: list[int], captions: tuple[str, ...]) -> None:
        """Add the newest audit, reduced to the `drawn` probes.

        Shown are the heatmaps of the explainer that was shown before, or else of the first. Where the probes, the
        explainer or its layer are others than before, begin anew. An audit without heatmaps is no frame.
        """
        answers = [maps for maps in record.maps.values() if maps.about == "question"]
        if not answers:
            return
        before = self._frames[-1].kind if self._frames else None
        given = next((maps for maps in answers if maps.kind == before), answers[0])
        if drawn != self._drawn or before not in (None, given.kind):
            self._drawn, self._frames = list(drawn), []
        frame = FilmFrame(self._audits, record.step, captions, given.heatmaps[:, drawn].clone(), given.kind)
        frames = [*self._frames, frame]
        self._frames = [frames[index] for index in keep_frame_indices([frame.audit for frame in frames], self.capacity)]
        self._audits += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "audits": self._audits,
            "drawn": list(self._drawn),
            "frames": [{**vars(frame), "captions": list(frame.captions)} for frame in self._frames],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self._audits, self._drawn = state["audits"], list(state["drawn"])
        self._frames = [
            FilmFrame(f["audit"], f["step"], tuple(f["captions"]), torch.as_tensor(f["heatmaps"]), f["kind"])
            for f in state["frames"]
        ]
