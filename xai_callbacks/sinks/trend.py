"""`Trend`: where each probe stood among the others in past audits, by novelty score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.render import keep_frame_indices

__all__ = ["Trend"]


class Trend:
    """A bounded memory of ranks: the first audit, the latest, and evenly spaced ones between.

    Scores of two audits are not in one unit, as the model has changed; what can be compared is which share of the
    probes scores lower.

    Args:
        capacity: Most audits kept, 2 or more.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.capacity = capacity
        self._audits: list[int] = []
        self._steps: list[int] = []
        self._ranks: list[dict[str, Tensor]] = []

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the kept audits, oldest first."""
        return tuple(self._steps)

    def add(self, step: int, scores: Mapping[str, Tensor]) -> None:
        """Add the newest audit; other probes than before begin anew.

        Args:
            step: Step of the audit.
            scores: Novelty scores of the probes, `(N,)` by name.
        """
        ranks = {name: _share_below(values) for name, values in scores.items()}
        sizes = {len(values) for kept in [*self._ranks, ranks] for values in kept.values()}
        number = self._audits[-1] + 1 if self._audits else 0
        if len(sizes) > 1:
            self._audits, self._steps, self._ranks = [], [], []
        audits, steps, kept = [*self._audits, number], [*self._steps, step], [*self._ranks, ranks]
        places = keep_frame_indices(audits, self.capacity)
        self._audits, self._steps, self._ranks = (
            [audits[place] for place in places],
            [steps[place] for place in places],
            [kept[place] for place in places],
        )

    def of(self, name: str, index: int) -> tuple[float, ...]:
        """Share of the probes that scored lower than one probe, in [0, 1], by audit; NaN where it was not scored."""
        return tuple(float(ranks[name][index]) if name in ranks else float("nan") for ranks in self._ranks)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"audits": list(self._audits), "steps": list(self._steps), "ranks": [dict(kept) for kept in self._ranks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self._audits, self._steps = list(state["audits"]), list(state["steps"])
        self._ranks = [dict(kept) for kept in state["ranks"]]


def _share_below(values: Tensor) -> Tensor:
    """Share of the other values that are smaller, ties counting half, `(N,)` float32 in [0, 1]; .5 without others."""
    below = torch.searchsorted(values.sort().values, values, side="left").double()
    up_to = torch.searchsorted(values.sort().values, values, side="right").double()
    others = max(1, len(values) - 1)
    return ((below + up_to - 1) / 2 / others).float() if len(values) > 1 else torch.full((len(values),), 0.5)
