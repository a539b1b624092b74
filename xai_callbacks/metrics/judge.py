"""`Judge`: all metrics of one audit, and the little it must remember to compare audits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.metrics.drift import explanation_drift
from xai_callbacks.metrics.localization import (
    area_fraction,
    lift_chance,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    soft_iou,
    soft_iou_chance,
)
from xai_callbacks.metrics.summary import PerProbe
from xai_callbacks.probes import ProbeSet

__all__ = ["Judge"]

# Metric and its chance level.
_LOCALIZATION = {
    "relevance_mass": (relevance_mass, area_fraction),
    "relevance_lift": (relevance_lift, lift_chance),
    "relevance_rank": (relevance_rank, area_fraction),
    "soft_iou": (soft_iou, soft_iou_chance),
}


class Judge:
    """Judges predictions and heatmaps of one probe set, audit after audit.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `accuracy` | share of probes classified as labelled | [0, 1] | 1 / K |
    | `absolute_error` | mean absolute error (regression) | [0, inf) | - |
    | `confidence` | mean largest probability | [0, 1] | - |
    | `switched` | share of probes predicted differently than at the previous audit | [0, 1] | - |
    | `<question>/relevance_mass/<region>` | share of positive relevance in the region | [0, 1] | area |
    | `<question>/relevance_lift/<region>` | relevance mass / area | [0, inf) | 1 |
    | `<question>/relevance_rank/<region>` | share of the region's size among the most relevant pixels | [0, 1] | area |
    | `<question>/soft_iou/<region>` | soft intersection over union | [0, 1] | 4a / (1 + 3a), a the area |
    | `<question>/drift` | cosine distance of each map to that of the previous audit | [0, 2] | - |

    Args:
        probes: The probe set.
        questions: Keys of the questions, in the order of the heatmaps.
    """

    def __init__(self, probes: ProbeSet, questions: tuple[str, ...]) -> None:
        self.probes = probes
        self.questions = questions
        self._previous: tuple[Tensor, Tensor] | None = None
        self._peaks = torch.zeros(len(questions), dtype=torch.float64)
        self._size = (probes.images.shape[-2], probes.images.shape[-1])
        self._chances = {region: _chances(mask) for region, mask in probes.masks.items()}

    def judge(self, outputs: Tensor, truth: Tensor | None, heatmaps: Tensor, chunk_size: int) -> dict[str, PerProbe]:
        """All metrics of one audit; remembers this audit for the next.

        Args:
            outputs: Logits `(N, K)`, or values `(N, 1)`.
            truth: Labels or target values `(N,)`, or None.
            heatmaps: Signed `(Q, N, h, w)`.
            chunk_size: Heatmaps enlarged to the size of the images at a time.
        """
        self._peaks = torch.maximum(self._peaks, _peaks(heatmaps))
        judged = dict(self._predictions(outputs, truth))
        for index, question in enumerate(self.questions):
            for name, values, chance in self._localization(heatmaps[index], float(self._peaks[index]), chunk_size):
                judged[f"{question}/{name}"] = PerProbe(values, chance)
        judged.update(self._changes(outputs, heatmaps))
        self._previous = (heatmaps, _answers(outputs))
        return judged

    def forget(self) -> None:
        """Begin anew, as if nothing had been judged."""
        self._previous = None
        self._peaks = torch.zeros_like(self._peaks)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        state: dict[str, Any] = {
            "fingerprint": self.probes.fingerprint,
            "questions": list(self.questions),
            "peaks": self._peaks,
        }
        if self._previous is not None:
            state["heatmaps"], state["answers"] = self._previous
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes or questions is ignored."""
        if state.get("fingerprint") != self.probes.fingerprint or state.get("questions") != list(self.questions):
            return
        self._peaks = state["peaks"]
        if "heatmaps" in state:
            self._previous = (state["heatmaps"], state["answers"])

    def _predictions(self, outputs: Tensor, truth: Tensor | None) -> Iterator[tuple[str, PerProbe]]:
        if self.probes.task == "regression":
            if truth is not None:
                yield "absolute_error", PerProbe((outputs[:, 0] - truth).abs().double())
            return
        probabilities = outputs.double().softmax(dim=1)
        if truth is not None:
            chance = torch.full((len(outputs),), 1 / outputs.shape[1], dtype=torch.float64)
            yield "accuracy", PerProbe((outputs.argmax(dim=1) == truth).double(), chance)
        yield "confidence", PerProbe(probabilities.amax(dim=1))

    def _localization(self, heatmaps: Tensor, peak: float, chunk_size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, values `(N,)` and chance levels `(N,)` of each metric and region, for maps `(N, h, w)`."""
        # Results go into tensors made before: small ones kept between large temporary ones would fragment the heap.
        values = {region: _empty(len(heatmaps)) for region in self.probes.masks}
        for start in range(0, len(heatmaps), chunk_size):
            chunk = slice(start, start + chunk_size)
            positive = relevance(heatmaps[chunk], self._size)
            for region, mask in self.probes.masks.items():
                for row, (metric, _) in enumerate(_LOCALIZATION.values()):
                    values[region][row, chunk] = metric(positive, mask[chunk], reference=peak)
        for region in self.probes.masks:
            for row, name in enumerate(_LOCALIZATION):
                yield f"{name}/{region}", values[region][row], self._chances[region][row]

    def _changes(self, outputs: Tensor, heatmaps: Tensor) -> Iterator[tuple[str, PerProbe]]:
        if self._previous is None or self._previous[0].shape != heatmaps.shape:
            return
        before, answers = self._previous
        for index, question in enumerate(self.questions):
            yield f"{question}/drift", PerProbe(explanation_drift(before[index], heatmaps[index]))
        if self.probes.task == "classification":
            yield "switched", PerProbe((_answers(outputs) != answers).double())


def _empty(probes: int) -> Tensor:
    return torch.empty(len(_LOCALIZATION), probes, dtype=torch.float64)


def _chances(mask: Tensor) -> Tensor:
    """Chance level of each metric, `(metrics, N)`; probe by probe, as a sum over a mask takes eight bytes a pixel."""
    chances = _empty(len(mask))
    for row, (_, chance) in enumerate(_LOCALIZATION.values()):
        for index in range(len(mask)):
            chances[row, index] = chance(mask[index])
    return chances


def _answers(outputs: Tensor) -> Tensor:
    return outputs.argmax(dim=1)


def _peaks(heatmaps: Tensor) -> Tensor:
    """Largest finite magnitude of each question's maps, `(Q,)`."""
    return heatmaps.double().abs().nan_to_num(nan=0.0, posinf=0.0).flatten(1).amax(dim=1)
