"""`Measure`: a judgement of an audit, of heatmaps, scores or predictions, that says beforehand which keys it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import AuditRecord, Estimate, Key, PerProbe
from xai_callbacks.tasks import Task

__all__ = ["Context", "Measure", "Measured", "ModelAccess", "earlier_row", "keys_of_maps", "maps_by_key"]

Measured = Mapping[str, PerProbe | Estimate]
"""Results by key: one number for each probe, of which the mean is logged with an interval; or an estimate."""


class ModelAccess(Protocol):
    """Ways of asking the model once more, during an audit, for measures that need it. Each says what it costs."""

    def scores(self, images: Tensor) -> Mapping[str, Tensor]:
        """Novelty scores of images `(M, C, H, W)` as the model expects them, `(M,)` by name, on the CPU."""

    def randomised(self, seed: int) -> Mapping[str, Tensor]:
        """Heatmaps `(Q, N, h, w)` of the probes by a copy of the model with random weights, by name of the explainer.

        Only of explainers that answer at this audit and cost no forward pass of their own. Costs one forward pass over
        the probes and memory for one more model.
        """


@dataclass(frozen=True, eq=False)
class Context:
    """What a measure may know beside the record.

    Attributes:
        probes: The probe set.
        task: How outputs are read, with their number once a model has been prepared.
        questions: The questions.
        asked: What keys of heatmaps about questions begin with, such as `gradcam/why`.
        maps: What keys of all heatmaps begin with: those of `asked`, and names of explainers about the image.
        novelty: Names of the novelty scores.
        trials: Names of the trials.
        chunk_size: Images, or heatmaps of their size, at a time.
        model: The model during an audit; None before.
        notes: Takes sentences about what was left out, for the notes of the record.
    """

    probes: ProbeSet
    task: Task
    questions: tuple[Question, ...] = ()
    asked: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    novelty: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    chunk_size: int = 16
    model: ModelAccess | None = None
    notes: list[str] = field(default_factory=list)


class Measure(ABC):
    """A judgement of an audit. One that raises is left out of that audit, and said; the others go on."""

    @abstractmethod
    def keys(self, context: Context) -> Sequence[Key]:
        """Declare what `measure` may give: called before training, with a context whose `model` is None.

        Raises:
            ConfigurationError: The measure does not suit the probes, the questions or the explainers.
        """

    @abstractmethod
    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge one audit.

        Args:
            record: The audit so far: outputs, heatmaps, scores, what trials and earlier measures found.
            past: Earlier audits of the run, of the same probes.
            context: What else there is to know.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def keys_of_maps(record: AuditRecord, explainer: str) -> tuple[str, ...]:
    """What the keys of the heatmaps of an explainer begin with, such as `gradcam/why`, one a row of its heatmaps."""
    about = record.maps[explainer].about
    return tuple(f"{explainer}/{key}" for key in record.questions) if about == "question" else (explainer,)


def maps_by_key(record: AuditRecord) -> dict[str, Tensor]:
    """Heatmaps `(N, h, w)` of a record by what their keys begin with, such as `gradcam/why`."""
    found: dict[str, Tensor] = {}
    for name, given in record.maps.items():
        found |= dict(zip(keys_of_maps(record, name), given.heatmaps, strict=True))
    return found


def earlier_row(record: AuditRecord, row: int, earlier: AuditRecord) -> int | None:
    """Row of the same question, with the same settings, at an earlier audit; None if it was not asked."""
    asked = list(zip(earlier.questions, earlier.asked, strict=True))
    question = (record.questions[row], record.asked[row])
    return asked.index(question) if question in asked else None
