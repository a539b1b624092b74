"""`NoveltyAuditor`: how novel probes are to one model state, without asking the model why it decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks.access import ModelSelector, OutputSelector, Subject, check_selectors, trace_model, undisturbed
from xai_callbacks.audit.checks import require_instances, require_probe_set, require_same_shape
from xai_callbacks.audit.clock import Clock
from xai_callbacks.audit.structure import structure_of
from xai_callbacks.errors import ConfigurationError, OutputError, require_integer
from xai_callbacks.interventions import LEVELS, condition_probes
from xai_callbacks.metrics import Estimate, separate
from xai_callbacks.metrics.score_judge import ScoreJudge
from xai_callbacks.novelty import LastLayerScore, NoveltyScore
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import NoveltyRecord
from xai_callbacks.tasks import Task

__all__ = ["NoveltyAuditor"]

# Images of the first look; a score of two must be able to tell them apart.
_LOOKED_AT = 2

_SUITED = (
    "Choose scores of the whole model: ReconstructionError(), FisherNovelty() or GradConScore('constraint') for an "
    "autoencoder, ODIN() or FisherNovelty('uniform') for a classifier."
)


@dataclass(frozen=True)
class _Prepared:
    """What was learnt about a model; plain data, valid for every model of the same structure."""

    structure: int
    head: str | None
    task: Task
    probabilities: bool


class NoveltyAuditor:
    """Scores how novel probes are to a model and returns a `NoveltyRecord`: of any model that scores suit.

    Unlike `Auditor`, it draws no heatmaps and needs no classifier: an autoencoder will do, with scores such as
    `FisherNovelty` and `ReconstructionError`. The model is left exactly as it was, see `access.undisturbed`. A score
    that fails in an audit is left out of it, `NoveltyRecord.useless` says why, and the others go on.

    Args:
        probes: The probe set: familiar images, such as of the validation set.
        scores: The scores, each under a name of its own.
        inliers: Familiar images, such as some hundred of training, from which scores that learn do so at every audit.
        novel: Images known to be novel; the scores are judged by how well they tell them from the probes.
        conditions: Names of `interventions.CONDITIONS`, such as `blur`: the probes are shown under each of them at five
            levels, and the scores are judged by how well they notice, `novelty/<score>/<condition>_<level>/auroc`. Five
            passes over the probes a condition.
        model: Which part of the audited module takes the images, if its `forward` does not: a dotted name or a
            callable, see `Subject`.
        output: Which part of what a classifier returns holds the logits: a key, an index or a callable.
        chunk_size: Number of images in one pass.

    Raises:
        ConfigurationError: An argument is no such thing, images differ in shape, a score must learn and there is
            nothing to learn from, or no score suits a regression net.

    Example:
        >>> auditor = NoveltyAuditor(probes, [ReconstructionError(), FisherNovelty()], inliers=some)  # doctest: +SKIP
        >>> auditor.audit(autoencoder).metrics["novelty/fisher"].value  # doctest: +SKIP
        1143.2
    """

    def __init__(
        self,
        probes: ProbeSet,
        scores: Sequence[NoveltyScore],
        *,
        inliers: ProbeSet | None = None,
        novel: ProbeSet | None = None,
        conditions: Sequence[str] = (),
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
    ) -> None:
        require_probe_set("probes", probes)
        for name, given in (("inliers", inliers), ("novel", novel)):
            if given is not None:
                require_probe_set(name, given)
                require_same_shape(name, given, probes)
        require_instances("scores", scores, NoveltyScore, "Pass scores such as [ReconstructionError()].")
        if not scores:
            raise ConfigurationError(
                "Expected `scores` to hold one novelty score or more, but got none. Pass scores such as "
                "[ReconstructionError()]."
            )
        require_instances("conditions", conditions, str, "Pass names such as ['blur', 'noise'].")
        for condition in conditions:
            # Shows whether there is such a condition, and whether it is known which values are black and white.
            condition_probes(probes.select([0]), condition, LEVELS[0])
        require_integer("chunk_size", chunk_size, minimum=1)
        check_selectors(model, output)
        self.conditions = tuple(conditions)
        self.probes = probes
        self.model = model
        self.output = output
        self.chunk_size = chunk_size
        self._scorer = Scorer(
            scores,
            None if inliers is None else inliers.images,
            None if inliers is None else inliers.labels,
            task=probes.task,
        )
        if not self._scorer.scores:
            raise ConfigurationError(
                f"Expected a score that suits probes with targets, but got none. {self._scorer.notes[0]}"
            )
        self._judge = ScoreJudge(probes, novel)
        self._prepared: _Prepared | None = None

    @property
    def key(self) -> str:
        """What is asked, in one word: the names of the scores."""
        return ",".join(score.name for score in self._scorer.scores)

    @property
    def novelty(self) -> tuple[NoveltyScore, ...]:
        """The novelty scores."""
        return self._scorer.scores

    @property
    def novel(self) -> ProbeSet | None:
        """The images known to be novel."""
        return self._judge.novel

    def prepare(self, model: nn.Module) -> None:
        """Score two images with what need not learn, and ask the rest if it could: mistakes show before training.

        Raises:
            ConfigurationError: A score does not suit the model, or the images to learn from.
        """
        with undisturbed(model):
            prepared = self._prepared = self._look(self._subject(model))
            subject = self._subject(model, prepared)
            self._scorer.check(subject, prepared.head, self.probes.images[:_LOOKED_AT])

    def describe(self) -> str:
        """What is done to a model, in words."""
        return f"scores {self.key.replace(',', ', ')}"

    def audit(
        self, model: nn.Module, *, step: int = 0, epoch: int = 0, on_progress: Callable[[int], None] | None = None
    ) -> NoveltyRecord:
        """Score the probes by one model state.

        Args:
            model: The model, in any mode, on any device.
            step: Position of the record on the run's x-axis.
            epoch: Epoch of the record.
            on_progress: Called with the number of probes done after each chunk.

        Raises:
            ConfigurationError: The model has no last layer that a score needs.
        """
        clock = Clock()
        with undisturbed(model), clock.stage("score"):
            prepared = self._ready(model)
            subject, head = self._subject(model, prepared), prepared.head
            self._scorer.fit(subject, head, chunk_size=self.chunk_size)
            known = self._scores(subject, head, on_progress)
            novel = {}
            if self.novel is not None:
                novel = self._scorer.score(subject, head, self.novel.images, chunk_size=self.chunk_size)
            degraded = self._under_conditions(subject, head)
        with clock.stage("judge"):
            judged = self._judge.judge(known, novel, self._scorer.origins(head), self._scorer.failures)
        return NoveltyRecord(
            step=step,
            epoch=epoch,
            fingerprint=self.probes.fingerprint,
            scores=judged.known,
            novel_scores=judged.novel,
            metrics=judged.estimates | dict(_noticed(judged.known, degraded)),
            seconds=dict(clock.seconds),
            notes=self._scorer.notes,
            useless=judged.useless,
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with, as tensors and plain values."""
        return self._judge.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes is ignored."""
        self._judge.load_state_dict(state)

    def forget(self) -> None:
        """Begin anew, as if nothing had been audited."""
        self._judge.forget()

    def _subject(self, model: nn.Module, prepared: _Prepared | None = None) -> Subject:
        task = self.probes.task if prepared is None else prepared.task
        subject = Subject(model, task, select=self.model, output=self.output)
        subject.probabilities = prepared is not None and prepared.probabilities
        return subject

    def _ready(self, model: nn.Module) -> _Prepared:
        subject = self._subject(model)
        if self._prepared is None or self._prepared.structure != structure_of(subject.module):
            self._prepared = self._look(subject)
        return self._prepared

    def _look(self, subject: Subject) -> _Prepared:
        """Run two images, to learn where the last layer is and whether outputs are probabilities."""
        structure = structure_of(subject.module)
        try:
            trace = trace_model(subject, self.probes.images[:_LOOKED_AT])
        except ConfigurationError as error:
            if isinstance(error, OutputError) and self._scorer.of_head:
                raise ConfigurationError(
                    f"Expected a classifier for the scores {self._of_head()}, but the outputs are no logits. {_SUITED} "
                    f"If this is a classifier: {error}"
                ) from error
            if self._scorer.of_head:
                raise
            # What is no classifier, such as an autoencoder, has neither.
            return _Prepared(structure, None, subject.task, probabilities=False)
        head = trace.head()
        if self._scorer.of_head and head is None:
            raise ConfigurationError(
                f"Expected a model that ends in one linear layer for the scores {self._of_head()}, but got one that "
                f"does not. {_SUITED}"
            )
        subject.learn_outputs(trace.outputs.detach(), trace.ending())
        return _Prepared(structure, None if head is None else head.name, subject.task, subject.probabilities)

    def _of_head(self) -> str:
        return ", ".join(score.name for score in self._scorer.scores if isinstance(score, LastLayerScore))

    def _under_conditions(self, subject: Subject, head: str | None) -> dict[str, dict[str, Tensor]]:
        """Scores of the probes by condition with its level, and name."""
        return {
            f"{condition}_{level}": self._scorer.score(
                subject, head, condition_probes(self.probes, condition, level), chunk_size=self.chunk_size
            )
            for condition in self.conditions
            for level in LEVELS
        }

    def _scores(
        self, subject: Subject, head: str | None, on_progress: Callable[[int], None] | None
    ) -> dict[str, Tensor]:
        parts = []
        for start in range(0, len(self.probes), self.chunk_size):
            chunk = self.probes.images[start : start + self.chunk_size]
            parts.append(self._scorer.score(subject, head, chunk, chunk_size=self.chunk_size))
            if on_progress is not None:
                on_progress(start + len(chunk))
        # A score that fails in a chunk is missing from there on.
        return {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}


def _noticed(
    known: Mapping[str, Tensor], degraded: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, Estimate]]:
    """AUROC of probes under a condition against the same probes without it; NaN where a score is not finite."""
    for condition, scores in degraded.items():
        for name, values in known.items():
            if bool(scores[name].isfinite().all()):
                yield f"novelty/{name}/{condition}/auroc", separate(values, scores[name])["auroc"]
            else:
                broken = int((~scores[name].isfinite()).sum())
                yield f"novelty/{name}/{condition}/auroc", Estimate(float("nan"), None, None, 0.5, 0, broken)
