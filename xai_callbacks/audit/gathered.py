"""Results of the chunks of one audit, collected in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.explainers import Explanation
from xai_callbacks.questions import Asked

__all__ = ["Gathered", "Observed"]


@dataclass(frozen=True, eq=False)
class Observed:
    """Everything one pass over the probes gave, stacked over chunks and on the CPU."""

    outputs: Tensor
    heatmaps: Tensor
    asked: tuple[Asked, ...]
    scores: dict[str, Tensor]
    novelty_maps: dict[str, Tensor]
    layer_shares: dict[str, Tensor]


class Gathered:
    """Results of all chunks, in tensors on the CPU made when the first chunk comes.

    Collecting small results in lists would leave them between large temporary ones and fragment the heap, so that the
    memory of an audit would grow with the number of probes after all.
    """

    def __init__(self, probes: int) -> None:
        self._probes = probes
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._questions = 0

    def put(self, key: tuple[str, str], values: Tensor, chunk: slice) -> None:
        """Store values `(n, ...)` of one chunk."""
        if key not in self._tensors:
            self._tensors[key] = torch.empty(self._probes, *values.shape[1:], dtype=values.dtype)
        self._tensors[key][chunk] = values.to("cpu")

    def put_explanation(self, explanation: Explanation, chunk: slice) -> None:
        """Store outputs, heatmaps and what was asked."""
        self.put(("explanation", "outputs"), explanation.outputs, chunk)
        self.put(("explanation", "heatmaps"), explanation.heatmaps.transpose(0, 1), chunk)
        self._questions = len(explanation.asked)
        for index, asked in enumerate(explanation.asked):
            for name, values in asked._asdict().items():
                if values is not None:
                    self.put((f"asked {index}", name), values, chunk)

    def observed(self) -> Observed:
        """Everything, stacked."""
        asked = [
            {name: self._tensors.get((f"asked {index}", name)) for name in Asked._fields}
            for index in range(self._questions)
        ]
        return Observed(
            outputs=self._tensors["explanation", "outputs"],
            heatmaps=self._tensors["explanation", "heatmaps"].transpose(0, 1).contiguous(),
            asked=tuple(Asked(**fields) for fields in asked),  # type: ignore[arg-type]  # a score there always is
            scores=self._of_kind("score"),
            novelty_maps=self._of_kind("map"),
            layer_shares=self._of_kind("layer"),
        )

    def _of_kind(self, wanted: str) -> dict[str, Tensor]:
        return {name: values for (kind, name), values in self._tensors.items() if kind == wanted}
