"""Results of one audit: collected chunk by chunk in bounded memory, then given as fields of an `AuditRecord`."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xai_callbacks.errors import in_words
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.explainers.base import Units
from xai_callbacks.history import History
from xai_callbacks.metrics.agreement import resampled
from xai_callbacks.questions import Posed, Question
from xai_callbacks.record import MapSet
from xai_callbacks.tasks import Task

Progress = Callable[[int], None] | None  # called with the number of probes done
MOST_CELLS = 64  # most cells a side of a heatmap that is kept; small images keep every pixel
MOST_FEATURES = 128  # most probes of which features are kept, evenly spaced


class Asked(NamedTuple):
    """What one question was about, for all N probes."""

    fact: Tensor  # outputs asked about, (N,) int64; -1 for none
    foil: Tensor | None  # outputs they are held against, (N,) int64
    value: Tensor | None  # values they are held against, (N,) float32; None for classes and labels


class Gathered:
    """Results of all chunks, in tensors on the CPU made when the first chunk comes.

    Collecting small results in lists would leave them between large temporary ones and fragment the heap, so that the
    memory of an audit would grow with the number of probes after all.
    """

    def __init__(self, probes: int) -> None:
        self._probes = probes
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._features: dict[str, list[Tensor]] = {}
        self.failures: dict[str, str] = {}  # why explainers failed, by name
        self.notes: dict[str, None] = {}  # what explainers say that users should read, each once

    def put(self, kind: str, name: str, values: Tensor, chunk: slice) -> None:
        """Store values `(n, ...)` of one chunk."""
        if (kind, name) not in self._tensors:
            self._tensors[kind, name] = torch.empty(self._probes, *values.shape[1:], dtype=values.dtype)
        self._tensors[kind, name][chunk] = values.detach().to("cpu")

    def put_posed(self, posed: Sequence[Posed], chunk: slice) -> None:
        """Store what was asked."""
        for index, each in enumerate(posed):
            for part in Asked._fields:
                if (values := getattr(each, part)) is not None:
                    self.put(part, str(index), values, chunk)

    def put_features(self, features: Mapping[str, Tensor], chunk: slice) -> None:
        """Store features `(n, D)` of those probes of a chunk that are compared, by stage."""
        places = torch.linspace(0, self._probes - 1, min(self._probes, MOST_FEATURES)).round().long()
        rows = places[(places >= chunk.start) & (places < chunk.stop)] - chunk.start
        for name, values in features.items():
            self._features.setdefault(name, []).append(values[rows.to(values.device)].cpu())

    def fail(self, explainer: str, error: Exception) -> None:
        """Drop the heatmaps of an explainer that failed, and note why."""
        self.failures[explainer] = in_words(error)
        self._tensors.pop(("maps", explainer), None)

    def told(self, where: str = "") -> list[str]:
        """Which explainers failed and why, in sentences."""
        return [f"The explainer `{name}` failed and was left out{where}. {why}" for name, why in self.failures.items()]

    @property
    def outputs(self) -> Tensor | None:
        """Outputs `(N, K)`; None where nothing is asked of them."""
        return self._tensors.get(("answers", "outputs"))

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What each question was about."""
        facts, foils, values = (self._of(part) for part in Asked._fields)
        return tuple(Asked(fact, foils.get(index), values.get(index)) for index, fact in facts.items())

    @property
    def maps(self) -> dict[str, Tensor]:
        """Signed heatmaps `(Q, N, h, w)` by explainer."""
        return {name: maps.transpose(0, 1).contiguous() for name, maps in self._of("maps").items()}

    @property
    def scores(self) -> dict[str, Tensor]:
        """Novelty scores `(N,)` by name."""
        return self._of("score")

    @property
    def features(self) -> dict[str, Tensor]:
        """Features of the compared probes, `(n, D)` float32 by stage."""
        return {name: torch.cat(parts) for name, parts in self._features.items()}

    def _of(self, wanted: str) -> dict[str, Tensor]:
        return {name: values for (kind, name), values in self._tensors.items() if kind == wanted}


def bounded(heatmaps: Tensor, units: Units = "score") -> Tensor:
    """Heatmaps `(..., h, w)` on a grid of at most `MOST_CELLS` cells a side, see `resampled`."""
    height, width = heatmaps.shape[-2:]
    factor = math.ceil(max(height, width) / MOST_CELLS)
    if factor <= 1:
        return heatmaps
    return resampled(heatmaps, (math.ceil(height / factor), math.ceil(width / factor)), units)


def map_sets(
    maps: Mapping[str, Tensor], due: Mapping[Explainer, Plan], questions: Sequence[Question], past: History
) -> dict[str, MapSet]:
    """Heatmaps with what they are, in the order of the explainers."""
    found = {}
    for each, plan in due.items():
        if each.name in maps:
            given = MapSet(
                heatmaps=maps[each.name],
                explainer=repr(each),
                layer=plan.layers[0].name if plan.layers else "",
                reason=plan.reason,
                units=each.units,
                about=each.about,
                verified=plan.verified,
            )
            found[each.name] = replace(given, peaks=_peaks(given, each.name, questions, past))
    return found


def _peaks(given: MapSet, explainer: str, questions: Sequence[Question], past: History) -> tuple[float, ...]:
    """The largest magnitude in the run so far, of each question."""
    own = given.heatmaps.double().abs().nan_to_num(nan=0.0, posinf=0.0).amax(dim=(1, 2, 3)).tolist()
    earlier = past.latest_with(explainer)
    peaks = () if earlier is None or earlier.maps[explainer].kind != given.kind else earlier.maps[explainer].peaks
    if earlier is None or not peaks:
        return tuple(own)
    if given.about == "image":
        return tuple(map(max, own, peaks))
    known = dict(zip(zip(earlier.questions, earlier.asked, strict=True), peaks, strict=True))
    asked = ((question.key, repr(question)) for question in questions)
    return tuple(max(peak, known.get(question, 0.0)) for peak, question in zip(own, asked, strict=True))


def answers_of(gathered: Gathered, task: Task, questions: Sequence[Question], truth: Tensor | None) -> dict[str, Any]:
    """What was asked and answered, as fields of a record."""
    outputs, asked = gathered.outputs, gathered.asked
    if outputs is None:
        return {}
    unknown = torch.full((len(outputs),), torch.nan, dtype=torch.float64)
    found = {
        "outputs": outputs,
        "predictions": task.predictions(outputs),
        "confidences": task.confidences(outputs),
        "correct": unknown if truth is None else task.correct(outputs, truth),
    }
    if not asked:
        return found
    none = torch.full((len(outputs),), -1, dtype=torch.int64)
    return found | {
        "questions": tuple(question.key for question in questions),
        "headings": tuple(question.title("P", "Q") for question in questions),
        "titles": tuple(_titles(task, *pair, outputs) for pair in zip(questions, asked, strict=True)),
        "facts": torch.stack([each.fact for each in asked]),
        "foils": torch.stack([none if each.foil is None else each.foil for each in asked]),
    }


def _titles(task: Task, question: Question, asked: Asked, outputs: Tensor) -> tuple[str, ...]:
    facts = ["no label" if index < 0 else task.name(index) for index in asked.fact.tolist()]
    foils = [""] * len(facts)
    if not task.classifies:
        values = outputs.gather(1, asked.fact[:, None])[:, 0].tolist()
        several = outputs.shape[1] > 1
        facts = [f"{name if several else ''} {value:.3g}".lstrip() for name, value in zip(facts, values, strict=True)]
        foils = foils if asked.value is None else [f"{value:.3g}" for value in asked.value.tolist()]
    elif asked.foil is not None:
        foils = ["no label" if index < 0 else task.name(index) for index in asked.foil.tolist()]
    return tuple(question.title(fact, foil) for fact, foil in zip(facts, foils, strict=True))


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of all parameters and buffers; empty where values cannot be read.

    Cost: all weights are copied to the CPU once, some .1 s for 100 MB.
    """
    digest, tensors = hashlib.sha256(), (*module.named_parameters(), *module.named_buffers())
    try:
        with torch.no_grad():
            for name, tensor in tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                values = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # lazy, quantised, sparse or sharded tensors
        return ""
    return digest.hexdigest() if tensors else ""
