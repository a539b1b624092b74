"""`Auditor`: one look at one model state. Knows neither Lightning nor any logger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from xai_callbacks.audit.asking import Asking
from xai_callbacks.audit.checks import require_instances, require_same_shape
from xai_callbacks.audit.explaining import Explaining
from xai_callbacks.audit.identity import Clock, identity_of, structure_of, weights_hash
from xai_callbacks.audit.measuring import Measuring
from xai_callbacks.audit.observer import Observer, Prepared
from xai_callbacks.audit.results import map_sets, of_answers, of_questions
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
from xai_callbacks.record import AuditRecord, Key
from xai_callbacks.tasks import Task
from xai_callbacks.trials import CueTrial, Trial

__all__ = ["Auditor"]


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
        self._scorer = Scorer(
            _default_scores(probes.task) if novelty is None else novelty,
            None if familiar is None else familiar.images,
            None if familiar is None else familiar.labels,
            task=probes.task,
            required=novelty is not None,
        )
        self._trials = TrialRunner(probes, () if trials is None else trials)
        self._measuring = Measuring(measures)
        explains = [each.name for each in self._explaining.explainers if each.about == "question"]
        if explains and not self.questions:
            raise ConfigurationError(
                f"Expected `questions` for the explainers {', '.join(explains)} to answer, but got none. Leave "
                "`questions` out for the defaults, or leave these explainers out."
            )
        asks = bool(self.questions or self._explaining.explainers or self.trials)
        if not asks and not self._scorer.scores:
            left_out = self._scorer.notes[0] if self._scorer.notes else "Give `questions`, `novelty` or `trials`."
            raise ConfigurationError(f"Expected something to audit, but got nothing. {left_out}")
        self._observer = Observer(probes, self.questions, self._explaining, self._scorer, asks=asks)
        self._prepared: Prepared | None = None
        check_questions(self.questions, probes.task, labelled=probes.truth is not None)
        self._measuring.keys(self._context())

    def extended(
        self, *, questions: Sequence[Question], trials: Sequence[Trial], measures: Sequence[Measure]
    ) -> Auditor:
        """The same auditor with other questions, and more trials and measures.

        Args:
            questions: All questions.
            trials: Trials to add.
            measures: Measures to add, but those of a kind that was given already.
        """
        given: dict[str, Any] = dict(self._given)
        kinds = {type(measure) for measure in given["measures"] or ()}
        given["trials"] = [*(given["trials"] or ()), *trials]
        given["measures"] = [*(given["measures"] or ()), *(each for each in measures if type(each) not in kinds)]
        return Auditor(self.probes, list(questions), **given)

    @property
    def explainers(self) -> tuple[Explainer, ...]:
        """The explainers."""
        return self._explaining.explainers

    @property
    def asked(self) -> tuple[str, ...]:
        """What the keys of heatmaps begin with, by explainer and question, such as `gradcam/why`."""
        about = [each.name for each in self.explainers if each.about == "question"]
        return tuple(f"{name}/{question.key}" for name in about for question in self.questions)

    @property
    def novelty(self) -> tuple[NoveltyScore, ...]:
        """The novelty scores."""
        return self._scorer.scores

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials."""
        return self._trials.trials

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures, also those that are always taken."""
        return self._measuring.measures

    @property
    def keys(self) -> tuple[Key, ...]:
        """Declarations of all metrics that audits may have; those of trials are known once a model is prepared."""
        return (*self._measuring.keys(self._context()), *self._trials.keys)

    @property
    def identity(self) -> AuditRecord:
        """A record of what is known before any audit: probes, questions, settings, versions."""
        settings = {
            "novelty": [score.name for score in self.novelty],
            "trials": [trial.name for trial in self.trials],
            "measures": [repr(measure) for measure in self.measures],
            "model": None if self.model is None else str(self.model),
            "output": None if self.output is None else str(self.output),
            "chunk_size": self.chunk_size,
        }
        identity = identity_of(self.probes, self.questions, self.explainers, settings)
        return replace(identity, cue_regions=self.cue_regions)

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
        if plans:
            return "; ".join(f"explains by {name} at {plan.reason}" for name, plan in plans.items())
        scores = ", ".join(score.name for score in self.novelty)
        return f"scores {scores}" if scores and not self.questions else "gives no heatmaps"

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

        Raises:
            AuditError: The model returned NaN or inf for a probe; the message names it.
            ConfigurationError: See `prepare`.
        """
        clock = Clock()
        model = as_module(model)
        history = History() if past is None else past
        with undisturbed(model):
            with clock.stage("explain"):
                prepared = self._ready(model)
                subject = self._subject(model, prepared)
                due = self._explaining.due(prepared.plans, len(history))
                self._scorer.fit(subject, prepared.head, chunk_size=self.chunk_size)
                observed = self._observer.observe(subject, prepared, due, self.chunk_size, on_progress or _silent)
            with clock.stage("try"):
                tried = self._trials.run(subject, observed.outputs, chunk_size=self.chunk_size)
            past = history.comparable(AuditRecord(fingerprint=self.probes.fingerprint))
            scores, useless = self._observer.sound_scores(observed.scores, prepared.head)
            record = replace(
                self.identity,
                step=step,
                epoch=epoch,
                time=time.time(),
                untrained=untrained,
                weights=weights_hash(subject.root),
                maps=map_sets(observed.maps, due, self.questions, past),
                **of_answers(subject.task, observed.outputs, self.probes.truth),
                **of_questions(subject.task, self.questions, observed),
                scores=scores,
                notes=prepared.notes,
                useless=useless,
                failed=(*self._explaining.failures.values(), *tried.failed),
            )
            with clock.stage("judge"):
                answered = {each: plan for each, plan in due.items() if each.name in record.maps}
                asking = Asking(
                    subject, prepared.head, self.probes, self.questions, answered, self._scorer,
                    again=lambda copied: self._subject(copied, prepared), select=self.model,
                    chunk_size=self.chunk_size,
                )  # fmt: skip
                context = replace(self._context(subject.task), model=asking)
                record = self._measuring.measure(record, tried.judged, self._trials.keys, past, context)
        failed = (*record.failed, *asking.failures)
        return replace(record, failed=failed, seconds=dict(clock.seconds))

    def _context(self, task: Task | None = None) -> Context:
        about_image = tuple(each.name for each in self.explainers if each.about == "image")
        return Context(
            probes=self.probes,
            task=self.probes.task if task is None else task,
            questions=self.questions,
            asked=self.asked,
            maps=self.asked + about_image,
            novelty=tuple(score.name for score in self.novelty),
            trials=tuple(trial.name for trial in self.trials),
            chunk_size=self.chunk_size,
        )

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
        prepared, outputs = self._observer.look(subject, self.chunk_size)
        keys = self._measuring.keys(self._context(prepared.task))
        if outputs is not None:
            self._trials.look(subject, outputs, {each.key for each in keys})
        return prepared


def _default_scores(task: Task) -> tuple[NoveltyScore, ...]:
    return (JointEnergy(),) if task.kind == "multi-label" else (GradNorm(),)


def _silent(_done: int) -> None:
    pass
