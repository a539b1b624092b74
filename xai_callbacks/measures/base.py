"""`Measure`: a judgement of an audit, of heatmaps, scores or predictions, that says beforehand which keys it gives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Key, Measured
from xai_callbacks.tasks import Task


class ModelAccess(Protocol):
    """Ways of asking the model once more, during an audit, for measures that need it. Each says what it costs."""

    def features(self) -> Mapping[str, Tensor]:
        """What the stages of the model gave for the probes, `(N, D)` float32 on the CPU by name of the module.

        Feature maps are averaged to at most 4 x 4 cells first. Seen in the pass that all explainers share: costs
        nothing more, and is empty unless a measure has `needs_features`.
        """

    def scores(self, images: Tensor) -> Mapping[str, Tensor]:
        """Novelty scores of images `(M, C, H, W)` as the model expects them, `(M,)` by name, on the CPU."""

    def answers(self, images: Tensor, rows: Tensor) -> Tensor:
        """Scores of the questions for altered versions `(M, C, H, W)` of the probes at `rows` `(M,)`, `(Q, M)`.

        Questions are those that were asked of the probes as they are. Cost: one forward pass over the images, all at
        once: give `chunk_size` at a time.
        """

    def randomised(
        self, seed: int, *, share: float = 1.0, max_cost: float = 0.0, as_posed: bool = False
    ) -> Mapping[str, Tensor]:
        """Heatmaps `(Q, N, h, w)` of the probes by a copy with random weights, by name of the explainer.

        The copy is asked about its own answers, or `as_posed` of the model about those of the model. Of explainers due
        that need at most `max_cost` forward passes of their own; `share` is that of the modules with random weights,
        see `randomised_copy`. Cost: one forward pass over the probes, those of the explainers, and memory for one more
        model.
        """


@dataclass(frozen=True, eq=False)
class Context:
    """What a measure may know beside the record.

    Attributes:
        probes: The probe set.
        task: How outputs are read, with their number once a model has been prepared.
        asked: What keys of heatmaps about questions begin with, such as `gradcam/why`.
        maps: The same of all heatmaps: those of `asked`, and names of explainers about the image.
        novelty: Names of the novelty scores.
        chunk_size: Images, or heatmaps of their size, at a time.
        model: The model during an audit; None before.
        notes: Takes sentences about what was left out, for the notes of the record.
        trust: Takes verdicts on heatmaps by what their keys begin with, for the record, see `AuditRecord.trust`.
        grams: Takes inner products of features by layer, for the record, see `AuditRecord.grams`.
    """

    probes: ProbeSet
    task: Task
    asked: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    novelty: tuple[str, ...] = ()
    chunk_size: int = 16
    model: ModelAccess | None = None
    notes: list[str] = field(default_factory=list)
    trust: dict[str, str] = field(default_factory=dict)
    grams: dict[str, Tensor] = field(default_factory=dict)


class Measure(ABC):
    """A judgement of an audit. One that raises is left out of that audit, and said; the others go on.

    Attributes:
        needs_features: Whether it asks for `ModelAccess.features`, which are kept only for those that do.
    """

    needs_features: ClassVar[bool] = False

    @abstractmethod
    def keys(self, context: Context) -> Sequence[Key]:
        """Declare what `measure` may give: called before training, with a context whose `model` is None.

        Raises a `ConfigurationError` if the measure does not suit the probes, the questions or the explainers.
        """

    @abstractmethod
    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge one audit.

        `record` is the audit so far, with what trials and earlier measures found; `past` are earlier ones of the run.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def keys_of_maps(record: AuditRecord, explainer: str) -> tuple[str, ...]:
    """What the keys of the heatmaps of an explainer begin with, such as `gradcam/why`, one a row of its heatmaps."""
    about = record.maps[explainer].about
    return tuple(f"{explainer}/{key}" for key in record.questions) if about == "question" else (explainer,)
