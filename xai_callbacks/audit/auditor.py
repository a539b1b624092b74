"""`Auditor`: one look at one model state. Knows neither Lightning nor any logger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xai_callbacks.access import (
    Model,
    ModelSelector,
    OutputSelector,
    Subject,
    Tapped,
    as_module,
    check_selectors,
    tap,
    undisturbed,
)
from xai_callbacks.audit.checks import require_instances, require_probe_set, require_same_shape
from xai_callbacks.audit.clock import Clock
from xai_callbacks.audit.evidence import Evidence
from xai_callbacks.audit.explaining import Explaining
from xai_callbacks.audit.observer import Observer, Prepared
from xai_callbacks.audit.records import map_sets, of_answers, of_questions
from xai_callbacks.audit.structure import structure_of
from xai_callbacks.errors import require_bool, require_integer
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.metrics.score_judge import ScoreJudge
from xai_callbacks.novelty import GradNorm, JointEnergy, NoveltyScore
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question, check_questions, default_questions
from xai_callbacks.record import AuditRecord, Estimate
from xai_callbacks.tasks import Task
from xai_callbacks.trials import CueTrial, Trial

__all__ = ["Auditor"]


class Auditor:
    """Asks a model questions about probes and returns an `AuditRecord`.

    The model is left exactly as it was, see `access.undisturbed`. Cost: about one forward pass over the probes,
    whatever the number of questions and of explainers at layers; other explainers say what they cost. Memory beyond the
    probes: the activations of `chunk_size` images, and heatmaps on grids of at most 64 x 64 cells.

    Args:
        probes: The probe set.
        questions: Questions to ask; None for `Why()`, `WhyRatherThan()` and `WhyNotCertain()`, or their like for
            regression.
        explainers: How to answer, such as `[GradCAM(), Every(5, IntegratedGradients())]`, each under a name of its own.
            None for `GradCAM()` at an automatic layer, where the model has a feature map; `[]` for no heatmaps.
        novelty: Novelty scores computed beside; None for `GradNorm()`, or `JointEnergy()` of several labels. Those of
            the last layer cost nothing, a `ModelScore` passes of its own.
        inliers: Familiar images, such as some hundred of training, from which scores that learn do so at every audit,
            and to which explainers may refer.
        novel: Images known to be novel. They are scored as well, and the scores judged by how well they tell them from
            the probes.
        locate_novelty: Whether to find out where in the image and in which layer the novelty of each probe lies: see
            `novelty.novelty_map`, of the first score of the last layer, at no further forward pass, and
            `novelty.layer_shares`, at the price of one forward and backward pass.
        trials: Edits of the probes by which to find out what the model uses, such as `CueTrial(PatchCue(...))`. Each
            says what it costs; none by default.
        nulls: Whether heatmaps are also judged by baselines: shifted maps, the regions of other probes, an edge filter,
            and copies of the model with random weights, see `NullJudge` and `References`.
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
        >>> record.metrics["gradcam/why/relevance_mass/core"].value  # doctest: +SKIP
        0.61
    """

    def __init__(
        self,
        probes: ProbeSet,
        questions: Sequence[Question] | None = None,
        *,
        explainers: Sequence[Explainer] | None = None,
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
        require_integer("chunk_size", chunk_size, minimum=1)
        for argument, switch in (("locate_novelty", locate_novelty), ("nulls", nulls), ("clusters", clusters)):
            require_bool(argument, switch)
        check_selectors(model, output)
        for argument, values, kind in (("questions", questions, Question), ("novelty", novelty, NoveltyScore)):
            if values is not None:
                require_instances(argument, values, kind, "Leave it out for the defaults.")
        self.probes = probes
        self.questions = default_questions(probes.task) if questions is None else tuple(questions)
        self.locate_novelty = locate_novelty
        self.nulls = nulls
        self.clusters = clusters
        self._explaining = Explaining(explainers)
        self._scorer = Scorer(
            _default_scores(probes.task) if novelty is None else novelty,
            None if inliers is None else inliers.images,
            None if inliers is None else inliers.labels,
            task=probes.task,
        )
        self.model = model
        self.output = output
        self.chunk_size = chunk_size
        self._score_judge = ScoreJudge(probes, novel)
        self._evidence = Evidence(probes, self.questions, trials, nulls=nulls, clusters=clusters)
        self._observer = Observer(
            probes,
            self.questions,
            self._explaining,
            self._scorer,
            locate_novelty=locate_novelty,
            chunk_size=chunk_size,
        )
        self._prepared: Prepared | None = None
        self._audits = 0
        check_questions(self.questions, probes.task, labelled=probes.truth is not None)
        if locate_novelty:
            probes.task.require_classes("locate_novelty")

    @property
    def key(self) -> str:
        """What is asked, in one word: the keys of the questions."""
        return ",".join(question.key for question in self.questions)

    @property
    def asked(self) -> tuple[str, ...]:
        """What the keys of heatmaps begin with, by explainer and question, such as `gradcam/why`."""
        about = [each.name for each in self.explainers if each.about == "question"]
        return tuple(f"{name}/{question.key}" for name in about for question in self.questions)

    @property
    def explainers(self) -> tuple[Explainer, ...]:
        """The explainers."""
        return self._explaining.explainers

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

    def prepare(self, model: Model) -> dict[str, Plan]:
        """Look at a model once: choose and verify layers, and check that every question can be answered.

        `audit` does so by itself; calling it early brings mistakes to light before training. Cost: one forward and one
        backward pass over two probes, and seventeen forward passes for each, and six more, to verify a layer.

        Returns:
            By name of the explainer, where its heatmaps will be computed, with the reason, and what they cost.

        Raises:
            ConfigurationError: The model does not run on the probes, has no suitable layer, or too few outputs.
        """
        module = as_module(model)
        with undisturbed(module):
            self._prepared = self._look(self._subject(module))
        return dict(self._prepared.plans)

    def describe(self) -> str:
        """What is done to a model that has been prepared, in words."""
        if self._prepared is None:
            return "is not prepared yet"
        plans = self._prepared.plans
        if not plans:
            return "gives no heatmaps"
        return "; ".join(f"explains by {name} at {plan.reason}" for name, plan in plans.items())

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
        self, model: Model, *, step: int = 0, epoch: int = 0, on_progress: Callable[[int], None] | None = None
    ) -> AuditRecord:
        """Audit one model state.

        Args:
            model: The model, in any mode, on any device; or a function from images `(N, C, H, W)` to outputs, which
                explainers such as `Occlusion` can explain, and whose answers and trials are judged as any.
            step: Position of the record on the run's x-axis.
            epoch: Epoch of the record.
            on_progress: Called with the number of probes done.

        Raises:
            AuditError: The model returned NaN or inf for a probe; the message names it.
            ConfigurationError: See `prepare`.
        """
        clock = Clock()
        model = as_module(model)
        with undisturbed(model):
            with clock.stage("explain"):
                prepared = self._ready(model)
                subject = self._subject(model, prepared)
                due = self._explaining.due(prepared.plans, self._audits)
                self._scorer.fit(subject, prepared.head, chunk_size=self.chunk_size)
                observed = self._observer.observe(subject, prepared, due, on_progress or _silent)
                novel = {}
                if self.novel is not None:
                    novel = self._scorer.score(subject, prepared.head, self.novel.images, chunk_size=self.chunk_size)
                kept = {each: plan for each, plan in due.items() if each.name in observed.maps}
                references, not_taken = self._take_references(subject, prepared, kept)
            with clock.stage("try"):
                tried = self._evidence.trials.run(subject, observed.outputs, chunk_size=self.chunk_size)
        self._audits += 1
        truth, maps = self.probes.truth, map_sets(observed.maps, due)
        answers = of_questions(subject.task, self.questions, observed)
        with clock.stage("judge"):
            origins = self._scorer.origins(prepared.head)
            judged = self._score_judge.judge(observed.scores, novel, origins, self._scorer.failures)
            found = self._evidence.judge(
                subject.task,
                observed.outputs,
                maps,
                answers["facts"],
                {**references, **tried.judged},
                clustered=next((each.name for each in self.explainers if each.about == "question"), None),
                chunk_size=self.chunk_size,
            )
        return AuditRecord(
            step=step,
            epoch=epoch,
            fingerprint=self.probes.fingerprint,
            maps=maps,
            **of_answers(subject.task, observed.outputs, truth),
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
            failed=(*self._explaining.failures.values(), *not_taken, *tried.failed),
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next audit compares itself with, as tensors and plain values."""
        return {
            "audits": self._audits,
            "evidence": self._evidence.state_dict(),
            "scores": self._score_judge.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes or questions is ignored."""
        self._audits = int(state["audits"])
        self._evidence.load_state_dict(state["evidence"])
        self._score_judge.load_state_dict(state["scores"])

    def forget(self) -> None:
        """Begin anew, as if nothing had been audited: the next audit has no drift."""
        self._audits = 0
        self._evidence.forget()
        self._score_judge.forget()

    def _subject(self, model: nn.Module, prepared: Prepared | None = None) -> Subject:
        task = self.probes.task if prepared is None else prepared.task
        subject = Subject(model, task, select=self.model, output=self.output)
        subject.probabilities = prepared is not None and prepared.probabilities
        return subject

    def _ready(self, model: nn.Module) -> Prepared:
        subject = self._subject(model)
        if self._prepared is None or self._prepared.structure != structure_of(subject.module):
            self._prepared = self._look(subject)
        return self._prepared

    def _look(self, subject: Subject) -> Prepared:
        prepared, outputs = self._observer.look(subject)
        self._evidence.trials.look(subject, outputs)
        return prepared

    def _take_references(
        self, subject: Subject, prepared: Prepared, plans: dict[Explainer, Plan]
    ) -> tuple[dict[str, Estimate], tuple[str, ...]]:
        """References by key, and why some were left out."""
        taken = self._evidence.references
        if taken is None:
            return {}, ()

        def again(copied: nn.Module) -> Subject:
            return self._subject(copied, prepared)

        found = taken.take(
            subject, plans, head=prepared.head, again=again, select=self.model, chunk_size=self.chunk_size
        )
        return found, tuple(taken.failures.values())


def _default_scores(task: Task) -> tuple[NoveltyScore, ...]:
    return (JointEnergy(),) if task.kind == "multi-label" else (GradNorm(),)


def _silent(_done: int) -> None:
    pass
