"""`Auditor`: one look at one model state. Knows neither Lightning nor any logger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from xai_callbacks.access import Tapped, tap, undisturbed
from xai_callbacks.access.subject import Model, ModelSelector, OutputSelector, Subject, as_module, check_selectors
from xai_callbacks.audit.checks import require_instances, require_same_shape
from xai_callbacks.audit.explaining import Explaining
from xai_callbacks.audit.measuring import Measuring
from xai_callbacks.audit.observer import Asking, Observer, Prepared, structure_of
from xai_callbacks.audit.results import answers_of, map_sets, weights_hash
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.history import History
from xai_callbacks.measures import Context, Measure
from xai_callbacks.novelty import GradNorm, JointEnergy, NoveltyScore
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.probes.files import loaded
from xai_callbacks.questions import Question, check_questions, default_questions
from xai_callbacks.record import AuditRecord, Key, versions
from xai_callbacks.tasks import Task
from xai_callbacks.trials import CueTrial, Trial


class Auditor:
    """Asks a model questions about probes and returns an `AuditRecord`.

    The model is left exactly as it was, see `access.undisturbed`. Cost: about one forward pass over the probes,
    whatever the number of questions and of explainers at layers; other explainers, trials and measures say what they
    cost. Memory beyond the probes: the activations of `chunk_size` images, and heatmaps on grids of at most 64 x 64.

    Always measured are accuracy (or errors), confidence, changed answers, drift of the heatmaps and mean novelty.

    Args:
        probes: The probe set, or the path of a saved one.
        questions: Questions to ask; None for `Why()`, `WhyRatherThan()` and `WhyNotCertain()`, or their like for
            regression. `[]` asks nothing of the outputs: with novelty scores alone any model will do, also an
            autoencoder.
        explainers: How to answer, such as `[GradCAM(), Every(5, IntegratedGradients())]`, each under a name of its own.
            None for `GradCAM()` at an automatic layer, where the model has a feature map; `[]` for no heatmaps.
        novelty: Novelty scores computed beside; None for `GradNorm()`, or `JointEnergy()` of several labels. Those of
            the last layer cost nothing, a `ModelScore` passes of its own.
        trials: Edits of the probes by which to find out what the model uses, such as `CueTrial(PatchCue(...))`.
        measures: Further judgements, such as `[Localization(), Baselines(), MapClusters()]`; None for `Localization()`.
        inliers: Familiar images, such as some hundred of training, from which scores that learn do so at every audit,
            and to which explainers may refer; a probe set, or the path of a saved one.
        model: Which part of the audited module classifies images, if its `forward` does not: a dotted name or a
            callable, see `Subject`.
        output: Which part of what the model returns holds the logits: a key, an index or a callable; None chooses, see
            `select_output`.
        chunk_size: Number of images in one forward pass.

    Raises a `ConfigurationError` if a question cannot be answered with these probes, or an argument is out of range.

    Example:
        >>> auditor = Auditor(probes)  # doctest: +SKIP
        >>> record = auditor.audit(model, step=100)  # doctest: +SKIP
        >>> record.metrics["gradcam/why/relevance_mass/core"].value  # doctest: +SKIP
        0.61
    """

    def __init__(
        self,
        probes: ProbeSet | str | os.PathLike[str],
        questions: list[Question] | None = None,
        *,
        explainers: list[Explainer] | None = None,
        novelty: list[NoveltyScore] | None = None,
        trials: list[Trial] | None = None,
        measures: list[Measure] | None = None,
        inliers: ProbeSet | str | os.PathLike[str] | None = None,
        model: ModelSelector | None = None,
        output: OutputSelector | None = None,
        chunk_size: int = 16,
    ) -> None:
        self._given: dict[str, Any] = {
            "explainers": explainers, "novelty": novelty, "trials": trials, "measures": measures, "inliers": inliers,
            "model": model, "output": output, "chunk_size": chunk_size,
        }  # fmt: skip
        self.probes = probes = loaded(probes)
        familiar = None if inliers is None else loaded(inliers, "inliers")
        if familiar is not None:
            require_same_shape("inliers", familiar, probes)
        require_integer("chunk_size", chunk_size, minimum=1)
        check_selectors(model, output)
        for argument, values, kind in (("questions", questions, Question), ("novelty", novelty, NoveltyScore)):
            if values is not None:
                require_instances(argument, values, kind, "Leave it out for the defaults.")
        self.questions = default_questions(probes.task) if questions is None else tuple(questions)
        self.model, self.output, self.chunk_size = model, output, chunk_size
        self._explaining = Explaining([] if explainers is None and not self.questions else explainers)
        usual: NoveltyScore = JointEnergy() if probes.task.kind == "multi-label" else GradNorm()
        scores = [usual] if novelty is None else novelty
        self._familiar = None if familiar is None else familiar.fingerprint
        known = (None, None) if familiar is None else (familiar.images, familiar.labels)
        self._scorer = Scorer(scores, *known, task=probes.task, required=novelty is not None)
        self._trials = TrialRunner(probes, () if trials is None else trials)
        self._measuring = Measuring(measures)
        self.novelty, self.trials, self.measures = self._scorer.scores, self._trials.trials, self._measuring.measures
        explains = [each.name for each in self.explainers if each.about == "question"]
        if explains and not self.questions:
            raise ConfigurationError(
                f"Expected `questions` for the explainers {', '.join(explains)} to answer, but got none. Leave "
                "`questions` out for the defaults, or leave these explainers out."
            )
        asks = bool(self.questions or self.explainers or self.trials)
        if not asks and not self.novelty:
            left_out = next(iter(self._scorer.notes), "Give `questions`, `novelty` or `trials`.")
            raise ConfigurationError(f"Expected something to audit, but got nothing. {left_out}")
        keeps = any(measure.needs_features for measure in self.measures)
        self._observer = Observer(
            probes, self.questions, self._explaining, self._scorer, model, output, chunk_size, asks, keeps
        )
        self._prepared: Prepared | None = None
        check_questions(self.questions, probes.task, labelled=probes.truth is not None)
        self._measuring.keys(self._context())

    def extended(
        self, *, questions: Sequence[Question], trials: Sequence[Trial], measures: Sequence[Measure]
    ) -> Auditor:
        """The same auditor with these questions, more trials, and more measures, but for those of a kind it has."""
        old = {name: self._given[name] or () for name in ("trials", "measures")}
        new = [each for each in measures if type(each) not in set(map(type, old["measures"]))]
        given = self._given | {"trials": [*old["trials"], *trials], "measures": [*old["measures"], *new]}
        return Auditor(self.probes, list(questions), **given)

    @property
    def explainers(self) -> tuple[Explainer, ...]:
        """The explainers; by default they are settled when a model is prepared."""
        return self._explaining.explainers

    @property
    def keys(self) -> tuple[Key, ...]:
        """Declarations of all metrics that audits may have; those of trials are known once a model is prepared."""
        return (*self._measuring.keys(self._context()), *self._trials.keys)

    @property
    def identity(self) -> AuditRecord:
        """A record of what is known before any audit: probes, questions, settings, versions."""
        settings = {
            "novelty": [repr(score) for score in self.novelty],
            "inliers": self._familiar,
            "trials": [repr(trial) for trial in self.trials],
            "measures": [repr(measure) for measure in self.measures],
            "model": None if self.model is None else str(self.model),
            "output": None if self.output is None else str(self.output),
            "chunk_size": self.chunk_size,
        }
        probes, named = self.probes, dict(enumerate(self.probes.group_names or ()))
        groups = [] if probes.groups is None else probes.groups.tolist()
        cues = [trial.cue for trial in self.trials if isinstance(trial, CueTrial)]
        return AuditRecord(
            fingerprint=probes.fingerprint,
            names=tuple(probes.names),
            class_names=tuple(probes.class_names or ()),
            groups=tuple(named.get(each, str(each)) if each >= 0 else "" for each in groups),
            explainers={each.name: repr(each) for each in self.explainers},
            asked=tuple(repr(question) for question in self.questions),
            versions=versions(),
            settings=settings,
            truth=probes.truth,
            cue_regions={cue.name: cue.carried_in for cue in cues if cue.carried_in is not None},
            tried={cue.name: f"cue {cue.name!r} ({cue.describe(probes)})" for cue in cues},
        )

    def prepare(self, model: Model) -> dict[str, Plan]:
        """Look at a model once: choose and verify layers, and check that every question can be answered.

        `audit` does so by itself; calling it early brings mistakes to light before training. Cost: one forward and one
        backward pass over two probes, and seventeen forward passes for each, and six more, to verify a layer.

        Returns, by name of the explainer, where its heatmaps will be computed, with the reason, and what they cost.
        Raises a `ConfigurationError` if the model does not run on the probes, has no layer that suits, or too few
        outputs; an `AuditError` if no layer seems to suit, as the outputs are NaN or inf.
        """
        module = as_module(model)
        with undisturbed(module):
            return dict(self._look(self._observer.subject(module)).plans)

    def describe(self) -> str:
        """What is done to a model that has been prepared, in words."""
        if plans := {} if self._prepared is None else self._prepared.plans:
            return "; ".join(f"explains by {name} at {plan.reason}" for name, plan in plans.items())
        scores = ", ".join(score.name for score in self.novelty)
        return f"scores {scores}" if scores and not self.questions else "gives no heatmaps"

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the novelty scores that need nothing but one call of the last layer."""
        return self._scorer.watchable

    def tap(self, model: nn.Module) -> AbstractContextManager[list[Tapped]]:
        """List the calls of the last layer while the model is used for something else; nothing is changed.

        Nothing is listed of a model that has not been prepared or does not end in one linear layer.
        """
        if self._prepared is None or self._prepared.head is None or not self.watchable:
            return nullcontext([])
        return tap(self._observer.subject(model), self._prepared.head)

    def of_last_layer(self, tapped: Tapped) -> dict[str, Tensor]:
        """Scores of the images of one call of the last layer, `(N,)` by name, of those that are `watchable`."""
        return self._scorer.of_last_layer(tapped, self.watchable)

    def classifier(self, model: nn.Module) -> tuple[Subject, str | None]:
        """The model as it is asked, and the name of its last linear layer; None where it does not end in one."""
        if self._prepared is None:
            self.prepare(model)
        return self._observer.subject(model, self._prepared), self._prepared.head if self._prepared else None

    def audit(
        self,
        model: Model,
        *,
        step: int = 0,
        epoch: int = 0,
        past: History | None = None,
        untrained: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> AuditRecord:
        """Audit one model state.

        Args:
            model: The model, in any mode, on any device; or a function from images `(N, C, H, W)` to outputs, which
                explainers such as `Occlusion` can explain, and whose answers and trials are judged as any.
            step: Position of the record on the run's x-axis.
            epoch: Epoch of the record.
            past: Earlier audits of the run, for what compares audits, such as drift; append the record to it yourself.
            untrained: Whether the model has not been trained yet.
            on_progress: Called with the number of probes done.

        Raises an `AuditError` that names the probe for which the model returned NaN or inf, and errors as `prepare`.
        """
        seconds: dict[str, float] = {}
        model = as_module(model)
        history = History() if past is None else past
        with undisturbed(model):
            with _timed(seconds, "explain"):
                prepared = self._ready(model)
                subject = self._observer.subject(model, prepared)
                due = self._explaining.due(prepared.plans, len(history))
                self._scorer.fit(subject, prepared.head, chunk_size=self.chunk_size)
                gathered = self._observer.observe(subject, prepared, due, on_progress)
            with _timed(seconds, "try"):
                tried = self._trials.run(subject, gathered.outputs, chunk_size=self.chunk_size)
            past = history.comparable(AuditRecord(fingerprint=self.probes.fingerprint))
            scores, useless = self._observer.sound_scores(gathered.scores, prepared.head)
            record = replace(
                self.identity,
                step=step,
                epoch=epoch,
                time=time.time(),
                untrained=untrained,
                weights=weights_hash(subject.root),
                maps=map_sets(gathered.maps, due, self.questions, past),
                **answers_of(gathered, subject.task, self.questions, self.probes.truth),
                scores=scores,
                notes=(*prepared.notes, *gathered.notes, *tried.notes),
                useless=useless,
                failed=(*gathered.told(), *tried.failed),
            )
            with _timed(seconds, "judge"):
                answered = {each: plan for each, plan in due.items() if each.name in record.maps}
                asking = Asking(self._observer, subject, prepared, answered, gathered)
                context = replace(self._context(subject.task), model=asking)
                record = self._measuring.measure(record, tried.judged, self._trials.keys, past, context)
        return replace(record, failed=(*record.failed, *asking.failures), seconds=seconds)

    def _context(self, task: Task | None = None) -> Context:
        about = [each.name for each in self.explainers if each.about == "question"]
        asked = tuple(f"{name}/{question.key}" for name in about for question in self.questions)
        return Context(
            probes=self.probes,
            task=self.probes.task if task is None else task,
            asked=asked,
            maps=asked + tuple(each.name for each in self.explainers if each.about == "image"),
            novelty=tuple(score.name for score in self.novelty),
            chunk_size=self.chunk_size,
        )

    def _ready(self, model: nn.Module) -> Prepared:
        subject = self._observer.subject(model)
        if self._prepared is None or self._prepared.structure != structure_of(subject.module):
            return self._look(subject)
        return self._prepared

    def _look(self, subject: Subject) -> Prepared:
        self._prepared, outputs = self._observer.look(subject)
        keys = self._measuring.keys(self._context(self._prepared.task))
        if outputs is not None:
            self._trials.look(subject, outputs, {each.key for each in keys})
        return self._prepared


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin
