"""`Auditor`: one look at one model state. Knows neither Lightning nor any logger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xai_callbacks.access import (
    ModelSelector,
    OutputSelector,
    Subject,
    Tapped,
    TargetLayer,
    tap,
    trace_model,
    undisturbed,
)
from xai_callbacks.audit.checks import (
    require_finite,
    require_instances,
    require_labels_below,
    require_probe_set,
    require_same_shape,
)
from xai_callbacks.audit.clock import Clock
from xai_callbacks.audit.evidence import Evidence
from xai_callbacks.audit.gathered import Gathered, Observed
from xai_callbacks.audit.records import of_answers, of_questions
from xai_callbacks.audit.structure import structure_of
from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.explainers import Explainer, GradCAM
from xai_callbacks.metrics.score_judge import ScoreJudge
from xai_callbacks.novelty import GradNorm, NoveltyScore
from xai_callbacks.novelty.address import layer_shares, novelty_map
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Answerable, Question, check_questions, default_questions
from xai_callbacks.record import AuditRecord, Estimate
from xai_callbacks.trials import CueTrial, Trial

__all__ = ["Auditor"]

# Probes that the one traced pass looks at; two show whether a gradient reaches a cell in general.
_TRACED = 2


@dataclass(frozen=True)
class _Prepared:
    """What was learnt about a model; plain data, valid for every model of the same structure."""

    structure: int
    layer: TargetLayer
    head: str | None
    probabilities: bool
    notes: tuple[str, ...]


class Auditor:
    """Asks a model questions about probes and returns an `AuditRecord`.

    The model is left exactly as it was, see `access.undisturbed`. Cost: about one forward pass over the probes,
    whatever the number of questions. Memory beyond the probes: the activations of `chunk_size` images, and heatmaps on
    the grid of the target layer.

    Args:
        probes: The probe set.
        questions: Questions to ask; None for `Why()`, `WhyRatherThan()` and `WhyNotCertain()`, or their like for
            regression.
        explainer: How to answer; None for `GradCAM()` at an automatic layer.
        novelty: Novelty scores computed beside; None for `GradNorm()`. Those of the last layer cost nothing, a
            `ModelScore` passes of its own.
        inliers: Familiar images, such as some hundred of training, from which scores that learn do so at every audit.
        novel: Images known to be novel. They are scored as well, and the scores judged by how well they tell them from
            the probes.
        locate_novelty: Whether to find out where in the image and in which layer the novelty of each probe lies, at the
            price of two forward and backward passes: see `novelty.novelty_map`, of the first score of the last layer,
            and `novelty.layer_shares`.
        trials: Edits of the probes by which to find out what the model uses, such as `CueTrial(PatchCue(...))`. Each
            says what it costs; none by default.
        nulls: Whether heatmaps are also judged by what knows nothing: shifted maps, the regions of other probes, an
            edge filter, and copies of the model with random weights, see `NullJudge` and `References`.
        clusters: Whether heatmaps of each class are clustered (SpRAy), for cues that nobody named: see `ClusterJudge`.
            Of `Why("label")` if it is among the questions, else of the first. Sixty probes a class or more are wanted.
        model: Which part of the audited module classifies images, if its `forward` does not: a dotted name or a
            callable, see `Subject`.
        output: Which part of what the model returns holds the logits: a key, an index or a callable; None chooses, see
            `select_output`.
        chunk_size: Number of images in one forward pass.

    Raises:
        ConfigurationError: A question cannot be answered with these probes, or an argument is out of range.

    Example:
        >>> auditor = Auditor(probes)  # doctest: +SKIP
        >>> record = auditor.audit(model, step=100)  # doctest: +SKIP
        >>> record.metrics["why/relevance_mass/core"].value  # doctest: +SKIP
        0.61
    """

    def __init__(
        self,
        probes: ProbeSet,
        questions: Sequence[Question] | None = None,
        *,
        explainer: Explainer | None = None,
        novelty: Sequence[NoveltyScore] | None = None,
        inliers: ProbeSet | None = None,
        novel: ProbeSet | None = None,
        locate_novelty: bool = False,
        trials: Sequence[Trial] = (),
        nulls: bool = False,
        clusters: bool = False,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
    ) -> None:
        require_probe_set("probes", probes)
        for argument, given in (("inliers", inliers), ("novel", novel)):
            if given is not None:
                require_probe_set(argument, given)
                require_same_shape(argument, given, probes)
        require_integer("chunk_size", chunk_size, least=1)
        if explainer is not None and not isinstance(explainer, Explainer):
            raise ConfigurationError(
                f"Expected `explainer` to be an explainer such as GradCAM(), but got {explainer!r}."
            )
        for argument, values, kind in (("questions", questions, Question), ("novelty", novelty, NoveltyScore)):
            if values is not None:
                require_instances(argument, values, kind, "Leave it out for the defaults.")
        self.probes = probes
        self.questions = default_questions(probes.task) if questions is None else tuple(questions)
        self.explainer = GradCAM() if explainer is None else explainer
        self.locate_novelty = locate_novelty
        self.nulls = nulls
        self.clusters = clusters
        self._scorer = Scorer(
            (GradNorm(),) if novelty is None else novelty,
            None if inliers is None else inliers.images,
            None if inliers is None else inliers.labels,
            task=probes.task,
        )
        self.model = model
        self.output = output
        self.chunk_size = chunk_size
        self._truth = probes.labels if probes.task == "classification" else probes.targets
        self._score_judge = ScoreJudge(probes, novel)
        self._evidence = Evidence(probes, self.questions, trials, nulls=nulls, clusters=clusters)
        self._prepared: _Prepared | None = None
        check_questions(self.questions, Answerable(probes.task, labelled=self._truth is not None))

    @property
    def key(self) -> str:
        """What is asked, in one word: the keys of the questions."""
        return ",".join(question.key for question in self.questions)

    @property
    def novelty(self) -> tuple[NoveltyScore, ...]:
        """The novelty scores."""
        return self._scorer.scores

    @property
    def novel(self) -> ProbeSet | None:
        """The images known to be novel."""
        return self._score_judge.novel

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials."""
        return self._evidence.trials.trials

    @property
    def cue_regions(self) -> dict[str, str]:
        """Region in which the probes themselves carry a cue that is tried, by name of the cue."""
        cues = [trial.cue for trial in self.trials if isinstance(trial, CueTrial)]
        return {cue.name: cue.carried_in for cue in cues if cue.carried_in is not None}

    def prepare(self, model: nn.Module) -> TargetLayer:
        """Look at a model once: choose the layer and check that every question can be answered.

        `audit` does so by itself; calling it early brings mistakes to light before training. Cost: one forward and one
        backward pass over two probes.

        Returns:
            The layer at which heatmaps will be computed, with the reason.

        Raises:
            ConfigurationError: The model does not run on the probes, has no suitable layer, or too few classes.
        """
        with undisturbed(model):
            prepared = self._prepared = self._look(self._subject(model))
            subject, first = self._subject(model, prepared), self.probes.images[:_TRACED]
            self._scorer.check(subject, prepared.head, first)
            if self.locate_novelty:
                layer_shares(subject, first)
        return prepared.layer

    def describe(self) -> str:
        """What is done to a model that has been prepared, in words."""
        return "is not prepared yet" if self._prepared is None else f"explains at {self._prepared.layer.reason}"

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the novelty scores that need nothing but one call of the last layer."""
        return self._scorer.watchable

    @contextmanager
    def tap(self, model: nn.Module) -> Iterator[list[Tapped]]:
        """List the calls of the last layer while the model is used for something else; nothing is changed.

        Nothing is listed of a model that has not been prepared or does not end in one linear layer.
        """
        head = None if self._prepared is None else self._prepared.head
        if head is None or not self.watchable:
            yield []
            return
        with tap(self._subject(model), head) as calls:
            yield calls

    def of_last_layer(self, tapped: Tapped) -> dict[str, Tensor]:
        """Scores of the images of one call of the last layer, `(N,)` by name, of those that are `watchable`."""
        return self._scorer.of_last_layer(tapped, self.watchable)

    def classifier(self, model: nn.Module) -> tuple[Subject, str | None]:
        """The model as it is asked, and the name of its last linear layer; None where it does not end in one."""
        if self._prepared is None:
            self.prepare(model)
        head = None if self._prepared is None else self._prepared.head
        return self._subject(model, self._prepared), head

    def audit(
        self, model: nn.Module, *, step: int = 0, epoch: int = 0, on_progress: Callable[[int], None] | None = None
    ) -> AuditRecord:
        """Audit one model state.

        Args:
            model: The model, in any mode, on any device.
            step: Position of the record on the run's x-axis.
            epoch: Epoch of the record.
            on_progress: Called with the number of probes done after each chunk.

        Raises:
            AuditError: The model returned NaN or inf for a probe; the message names it.
            ConfigurationError: See `prepare`.
        """
        clock = Clock()
        with undisturbed(model):
            with clock.stage("explain"):
                prepared = self._ready(model)
                subject = self._subject(model, prepared)
                self._scorer.fit(subject, prepared.head, chunk_size=self.chunk_size)
                observed = self._observe(subject, prepared, on_progress or _silent)
                novel = {}
                if self.novel is not None:
                    novel = self._scorer.score(subject, prepared.head, self.novel.images, chunk_size=self.chunk_size)
                references = self._take_references(subject, prepared)
            with clock.stage("try"):
                tried = self._evidence.trials.run(subject, observed.outputs, chunk_size=self.chunk_size)
        answers = of_questions(self.probes, self.questions, observed)
        with clock.stage("judge"):
            origins = self._scorer.origins(prepared.head)
            judged = self._score_judge.judge(observed.scores, novel, origins, self._scorer.failures)
            found = self._evidence.judge(
                observed, self._truth, answers["facts"], {**references, **tried.judged}, self.chunk_size
            )
        return AuditRecord(
            step=step,
            epoch=epoch,
            fingerprint=self.probes.fingerprint,
            layer=prepared.layer.name,
            layer_reason=prepared.layer.reason,
            **of_answers(self.probes, observed, self._truth),
            **answers,
            novelty_maps=observed.novelty_maps,
            layer_shares=observed.layer_shares,
            scores=judged.known,
            novel_scores=judged.novel,
            metrics=found.findings.estimates | judged.estimates,
            per_probe=found.findings.per_probe,
            chances=found.findings.chances,
            clusters=found.clusters,
            cue_regions=self.cue_regions,
            seconds=dict(clock.seconds),
            notes=prepared.notes + (() if found.clusters is None else found.clusters.notes),
            useless=judged.useless,
            failed=tried.failed,
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with, as tensors and plain values."""
        return {"evidence": self._evidence.state_dict(), "scores": self._score_judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes or questions is ignored."""
        self._evidence.load_state_dict(state["evidence"])
        self._score_judge.load_state_dict(state["scores"])

    def forget(self) -> None:
        """Begin anew, as if nothing had been audited: the next audit has no drift."""
        self._evidence.forget()
        self._score_judge.forget()

    def _subject(self, model: nn.Module, prepared: _Prepared | None = None) -> Subject:
        subject = Subject(model, select=self.model, output=self.output, task=self.probes.task)
        subject.probabilities = prepared is not None and prepared.probabilities
        return subject

    def _ready(self, model: nn.Module) -> _Prepared:
        subject = self._subject(model)
        if self._prepared is None or self._prepared.structure != structure_of(subject.module):
            self._prepared = self._look(subject)
        return self._prepared

    def _look(self, subject: Subject) -> _Prepared:
        trace = trace_model(subject, self.probes.images[:_TRACED])
        notes = list(self._scorer.notes)
        if subject.learn_output_kind(trace.outputs, ends_in_probabilities=trace.ends_in_probabilities()):
            notes.append(
                "The model returns probabilities; their logarithms are explained. Logits give clearer heatmaps."
            )
        classes = subject.interpret(trace.outputs).shape[1] if self.probes.task == "classification" else None
        check_questions(self.questions, Answerable(self.probes.task, self._truth is not None, classes))
        require_labels_below(self.probes, classes)
        head = trace.head()
        if head is None and self._scorer.of_head:
            notes.append("Novelty was left out: the model does not end in one linear layer, from which it is computed.")
        layer = self.explainer.prepare(trace)
        del trace
        # What only shows when questions are answered, such as a model that cannot be differentiated, shows now.
        truth = None if self._truth is None else self._truth[:_TRACED]
        first = self.explainer.explain(subject, layer, self.probes.images[:_TRACED], self.questions, truth)
        self._evidence.trials.look(subject, first.outputs.detach())
        return _Prepared(
            structure_of(subject.module), layer, head.name if head else None, subject.probabilities, tuple(notes)
        )

    def _take_references(self, subject: Subject, prepared: _Prepared) -> dict[str, Estimate]:
        if self._evidence.references is None:
            return {}

        def again(copied: nn.Module) -> Subject:
            return self._subject(copied, prepared)

        return self._evidence.references.take(
            subject,
            prepared.layer,
            self.explainer,
            self._truth,
            again=again,
            select=self.model,
            chunk_size=self.chunk_size,
        )

    def _observe(self, subject: Subject, prepared: _Prepared, on_progress: Callable[[int], None]) -> Observed:
        gathered = Gathered(len(self.probes))
        for start in range(0, len(self.probes), self.chunk_size):
            chunk = slice(start, start + self.chunk_size)
            truth = None if self._truth is None else self._truth[chunk]
            with ExitStack() as stack:
                tapped = stack.enter_context(tap(subject, prepared.head)) if prepared.head else []
                explanation = self.explainer.explain(
                    subject, prepared.layer, self.probes.images[chunk], self.questions, truth
                )
            # An explainer may run the model on altered images too; the first forward pass is that of the probes
            # themselves.
            for name, values in self._scorer.of_last_layer(tapped[0]).items() if tapped else ():
                gathered.put(("score", name), values, chunk)
            gathered.put_explanation(explanation, chunk)
            on_progress(min(start + self.chunk_size, len(self.probes)))
        require_finite(gathered.observed().outputs, self.probes)
        for start in range(0, len(self.probes), self.chunk_size):
            chunk = slice(start, start + self.chunk_size)
            for name, values in self._scorer.of_model(subject, self.probes.images[chunk]).items():
                gathered.put(("score", name), values, chunk)
            if self.locate_novelty:
                self._locate(subject, prepared, gathered, chunk)
        return gathered.observed()

    def _locate(self, subject: Subject, prepared: _Prepared, gathered: Gathered, chunk: slice) -> None:
        images = self.probes.images[chunk]
        score = self._scorer.first_of_last_layer
        if prepared.head is not None and score is not None:
            gathered.put(("map", score.name), novelty_map(subject, prepared.layer, prepared.head, images, score), chunk)
        for layer, values in layer_shares(subject, images).items():
            gathered.put(("layer", layer), values, chunk)


def _silent(_done: int) -> None:
    pass
