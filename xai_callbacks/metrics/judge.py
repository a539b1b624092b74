"""`Judge`: all metrics of one audit, and the little it must remember to compare audits."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

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
from xai_callbacks.tasks import Task, in_key

__all__ = ["Judge", "KeyedMaps"]

# Metric and its chance level.
_LOCALIZATION = {
    "relevance_mass": (relevance_mass, area_fraction),
    "relevance_lift": (relevance_lift, lift_chance),
    "relevance_rank": (relevance_rank, area_fraction),
    "soft_iou": (soft_iou, soft_iou_chance),
}


class KeyedMaps(NamedTuple):
    """The heatmaps of one explainer, and the keys under which they are judged.

    Attributes:
        heatmaps: Signed `(Q, N, h, w)`.
        keys: What the keys of each of the Q rows begin with, such as `gradcam/why`.
        kind: What must be equal for the maps of two audits to be compared, such as explainer and layer.
    """

    heatmaps: Tensor
    keys: tuple[str, ...]
    kind: Hashable


class Judge:
    """Judges predictions and heatmaps of one probe set, audit after audit.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `accuracy` | share of probes classified as labelled; of several labels the right share | [0, 1] | 1 / K, or - |
    | `exact_match` | share of probes of which all known labels are right (multi-label) | [0, 1] | - |
    | `absolute_error` | mean absolute error (regression); `absolute_error/<value>` of several | [0, inf) | - |
    | `confidence` | mean largest probability | [0, 1] | - |
    | `switched` | share of probes predicted differently than at the previous audit | [0, 1] | - |
    | `<explainer>/<question>/relevance_mass/<region>` | share of positive relevance in the region | [0, 1] | area |
    | `<explainer>/<question>/relevance_lift/<region>` | relevance mass / area | [0, inf) | 1 |
    | `<explainer>/<question>/relevance_rank/<region>` | its share of the most relevant pixels | [0, 1] | area |
    | `<explainer>/<question>/soft_iou/<region>` | soft intersection over union | [0, 1] | 4a / (1 + 3a), a the area |
    | `<explainer>/<question>/drift` | cosine distance of each map to that of the previous audit | [0, 2] | - |

    Maps of another explainer, layer or grid are never compared.

    Args:
        probes: The probe set.
    """

    def __init__(self, probes: ProbeSet) -> None:
        self.probes = probes
        self._answers: Tensor | None = None
        self._previous: dict[str, KeyedMaps] = {}
        self._peaks: dict[str, float] = {}
        self._size = (probes.images.shape[-2], probes.images.shape[-1])
        self._chances = {region: _chances(mask) for region, mask in probes.masks.items()}

    def judge(
        self, task: Task, outputs: Tensor, truth: Tensor | None, maps: Mapping[str, KeyedMaps], chunk_size: int
    ) -> dict[str, PerProbe]:
        """All metrics of one audit; remembers this audit for the next.

        Args:
            task: How outputs are read.
            outputs: Logits `(N, K)`, or values `(N, V)`.
            truth: Labels or targets, or None.
            maps: Heatmaps by explainer.
            chunk_size: Heatmaps enlarged to the size of the images at a time.
        """
        judged = dict(_predictions(task, outputs, truth))
        answers = task.predictions(outputs)
        if task.classifies and self._answers is not None and self._answers.shape == answers.shape:
            judged["switched"] = PerProbe((answers != self._answers).reshape(len(answers), -1).any(dim=1).double())
        self._answers = answers
        for explainer, given in maps.items():
            judged.update(self._of_maps(given, self._previous.get(explainer), chunk_size))
            self._previous[explainer] = given
        return judged

    def forget(self) -> None:
        """Begin anew, as if nothing had been judged."""
        self._answers, self._previous, self._peaks = None, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "fingerprint": self.probes.fingerprint,
            "answers": self._answers,
            "peaks": dict(self._peaks),
            "maps": {name: tuple(given) for name, given in self._previous.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes is ignored."""
        if state.get("fingerprint") != self.probes.fingerprint:
            return
        self._answers, self._peaks = state["answers"], dict(state["peaks"])
        self._previous = {name: KeyedMaps(*given) for name, given in state["maps"].items()}

    def _of_maps(self, given: KeyedMaps, before: KeyedMaps | None, chunk_size: int) -> Iterator[tuple[str, PerProbe]]:
        comparable = before is not None and before.kind == given.kind and before.heatmaps.shape == given.heatmaps.shape
        for index, (key, heatmaps) in enumerate(zip(given.keys, given.heatmaps, strict=True)):
            self._peaks[key] = max(self._peaks.get(key, 0.0), _peak(heatmaps))
            for name, values, chance in self._localization(heatmaps, self._peaks[key], chunk_size):
                yield f"{key}/{name}", PerProbe(values, chance)
            if comparable and before is not None and key in before.keys:
                earlier = before.heatmaps[before.keys.index(key)]
                yield f"{key}/drift", PerProbe(explanation_drift(earlier, given.heatmaps[index]))

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


def _predictions(task: Task, outputs: Tensor, truth: Tensor | None) -> Iterator[tuple[str, PerProbe]]:
    if not task.classifies:
        if truth is not None:
            errors = (outputs.detach() - truth.reshape(len(truth), -1)).abs().double()
            yield "absolute_error", PerProbe(errors.mean(dim=1))
            if errors.shape[1] > 1:
                for index in range(errors.shape[1]):
                    yield f"absolute_error/{in_key(task.name(index))}", PerProbe(errors[:, index])
        return
    if truth is not None:
        right = task.correct(outputs, truth)
        single = task.kind == "single-label"
        chance = torch.full_like(right, 1 / outputs.shape[1]) if single else None
        yield "accuracy", PerProbe(right, chance)
        if not single:
            yield "exact_match", PerProbe((right == 1).double().where(right.isfinite(), torch.nan))
    yield "confidence", PerProbe(task.confidences(outputs).double())


def _empty(probes: int) -> Tensor:
    return torch.empty(len(_LOCALIZATION), probes, dtype=torch.float64)


def _chances(mask: Tensor) -> Tensor:
    """Chance level of each metric, `(metrics, N)`; probe by probe, as a sum over a mask takes eight bytes a pixel."""
    chances = _empty(len(mask))
    for row, (_, chance) in enumerate(_LOCALIZATION.values()):
        for index in range(len(mask)):
            chances[row, index] = chance(mask[index])
    return chances


def _peak(heatmaps: Tensor) -> float:
    """Largest finite magnitude."""
    return float(heatmaps.double().abs().nan_to_num(nan=0.0, posinf=0.0).amax())
