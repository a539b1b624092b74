"""`Observer`: runs a model on the probes, once for all explainers and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.access import Layer, Subject, Tapped, trace_model
from xai_callbacks.audit.checks import require_as_prepared, require_finite
from xai_callbacks.audit.explaining import Explaining, layers_of
from xai_callbacks.audit.gathered import Gathered, Observed
from xai_callbacks.audit.identity import structure_of
from xai_callbacks.audit.observing import observe
from xai_callbacks.errors import ConfigurationError, OutputError, is_out_of_memory
from xai_callbacks.explainers import Explainer, Observation, Plan
from xai_callbacks.metrics.novelty import why_useless
from xai_callbacks.novelty import LastLayerScore
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question, check_questions
from xai_callbacks.tasks import Task

__all__ = ["Observer", "Prepared"]

# Probes that the one traced pass looks at; two show whether a gradient reaches a cell in general.
_TRACED = 2
# Answers to an image alone and beside another that differ by more are no matter of rounding, even in TF32.
_MIXED = 2e-3
_MIXING = (
    "The answer to an image depends on the images beside it, or is drawn at random: heatmaps show parts of answers to "
    "other images, and depend on `chunk_size`."
)
_SUITED = (
    "Choose scores of the whole model: ReconstructionError(), FisherNovelty() or GradConScore('constraint') for an "
    "autoencoder, ODIN() or FisherNovelty('uniform') for a classifier."
)


@dataclass(frozen=True)
class Prepared:
    """What was learnt about a model; plain data, valid for every model of the same structure.

    Attributes:
        structure: See `structure_of`.
        task: How outputs are read, with their number.
        probabilities: Whether the model gives probabilities.
        head: Name of the last linear layer; None where there is none.
        plans: Of the explainers, by name.
        readable: Whether the outputs are read at all.
        notes: Sentences about what was left out or assumed.
    """

    structure: int
    task: Task
    probabilities: bool
    head: str | None
    plans: dict[str, Plan]
    readable: bool
    notes: tuple[str, ...]


class Observer:
    """Looks at models and runs them on the probes.

    Args:
        probes: The probe set.
        questions: The questions.
        explaining: The explainers.
        scorer: The novelty scores.
        asks: Whether anything is asked of the outputs, so that they must be readable.
    """

    def __init__(
        self,
        probes: ProbeSet,
        questions: Sequence[Question],
        explaining: Explaining,
        scorer: Scorer,
        *,
        asks: bool,
    ) -> None:
        self.probes = probes
        self.questions = tuple(questions)
        self.explaining = explaining
        self.scorer = scorer
        self.asks = asks

    def look(self, subject: Subject, chunk_size: int) -> tuple[Prepared, Tensor | None]:
        """Look at a model once, inside `undisturbed`; learns how its outputs are read.

        Returns:
            What was learnt, and what the model says of the first probes, `(n, K)`; None if that is not read.

        Raises:
            ConfigurationError: The model does not run on the probes, does not suit a question or an explainer, or the
                device ran out of memory.
        """
        try:
            return self._look(subject, chunk_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"Expected the model to run on up to {chunk_size} probes of shape "
                f"{tuple(self.probes.images.shape[1:])} (C, H, W) at a time, but the device ran out of memory: "
                f"{error}. Lower `chunk_size`, or give probes of a smaller size."
            ) from error

    def _look(self, subject: Subject, chunk_size: int) -> tuple[Prepared, Tensor | None]:
        images = self.probes.images[:_TRACED]
        structure = structure_of(subject.module)
        try:
            trace = trace_model(subject, images, chunk_size=chunk_size)
            subject.learn_outputs(trace.outputs.detach(), trace.ending())
        except ConfigurationError as error:
            if self.asks:
                raise
            self._require_no_head(error)
            # What is no classifier, such as an autoencoder, has no outputs to read.
            self.scorer.check(subject, None, images)
            return Prepared(structure, subject.task, False, None, {}, False, self.scorer.notes), None
        check_questions(self.questions, subject.task, labelled=self.probes.truth is not None)
        notes = list(self.scorer.notes)
        if subject.probabilities and self.questions:
            notes.append(
                "The model returns probabilities; their logarithms are explained. Logits give clearer heatmaps."
            )
        head = trace.head()
        if head is None and self.scorer.of_head:
            notes.append("Novelty was left out: the model does not end in one linear layer, from which it is computed.")
        plans, said = self.explaining.prepare(trace, self.scorer.inliers)
        name = head.name if head else None
        del trace, head
        # What only shows when questions are answered, such as a model that cannot be differentiated, shows now.
        first = self._observation(subject, images, 0, layers_of(self.explaining.due(plans, 0)), name, chunk_size)
        self.explaining.attempt(first, plans)
        if _mixes(subject, images[:1], first.outputs.detach()):
            notes.append(_MIXING)
        self.scorer.check(subject, name, images)
        prepared = Prepared(structure, subject.task, subject.probabilities, name, plans, True, (*notes, *said))
        return prepared, first.outputs.detach()

    def _require_no_head(self, error: Exception) -> None:
        """Refuse scores of the last layer for a model whose outputs cannot be read."""
        names = ", ".join(score.name for score in self.scorer.scores if isinstance(score, LastLayerScore))
        if names and isinstance(error, OutputError):
            raise ConfigurationError(
                f"Expected a classifier for the scores {names}, but the outputs are no logits. {_SUITED} If this is a "
                f"classifier: {error}"
            ) from error
        if names:
            raise error

    def observe(
        self,
        subject: Subject,
        prepared: Prepared,
        due: Mapping[Explainer, Plan],
        chunk_size: int,
        on_progress: Callable[[int], None],
    ) -> Observed:
        """Run all probes, inside `undisturbed`.

        Args:
            subject: The model.
            prepared: What was learnt about it.
            due: Explainers that answer at this audit, and their plans.
            chunk_size: Images in one forward pass.
            on_progress: Called with the number of probes done.

        Raises:
            AuditError: The model returned NaN or inf for a probe, or the device ran out of memory.
        """
        gathered = Gathered(len(self.probes))
        layers = layers_of(due)
        self.explaining.failures.clear()
        for start in range(0, len(self.probes), chunk_size):
            images = self.probes.images[start : start + chunk_size]
            chunk, count = slice(start, start + len(images)), len(images)
            for name, values in self.scorer.of_model(subject, images).items():
                gathered.put(("score", name), values, chunk)
            if prepared.readable:
                observation = self._observation(subject, images, start, layers, prepared.head, chunk_size)
                gathered.put(("answers", "outputs"), observation.outputs, chunk)
                gathered.put_posed(observation.posed, chunk)
                self._score(observation, gathered, chunk)

                def progress(share: float, start: int = start, count: int = count) -> None:
                    on_progress(start + int(share * count))

                self.explaining.explain(observation, due, gathered, chunk, progress)
            on_progress(start + count)
        outputs = gathered.observed().outputs
        if outputs is not None:
            require_finite(outputs, self.probes)
            require_as_prepared(outputs, prepared.task, probabilities=prepared.probabilities)
        return gathered.observed()

    def sound_scores(self, scores: Mapping[str, Tensor], head: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Scores that say something, and which were left out and why, in sentences."""
        origins = self.scorer.origins(head)
        reasons = {name: f"because it failed: {why}" for name, why in self.scorer.failures.items()}
        for name, values in scores.items():
            why = why_useless(values, self.probes.names)
            if why is not None:
                reasons.setdefault(name, f": {why}.")
        sound = {name: values for name, values in scores.items() if name not in reasons}
        sentences = (
            f"The novelty score `{name}` of {origins[name]} was left out {why}" for name, why in reasons.items()
        )
        return sound, tuple(sentence.replace("out :", "out:") for sentence in sentences)

    def _observation(
        self, subject: Subject, images: Tensor, start: int, layers: Sequence[Layer], head: str | None, chunk_size: int
    ) -> Observation:
        truth = self.probes.truth
        return observe(
            subject,
            images,
            None if truth is None else truth[start : start + len(images)],
            self.questions,
            layers,
            head=head,
            reference=self.scorer.inliers,
            chunk_size=chunk_size,
        )

    def _score(self, observation: Observation, gathered: Gathered, chunk: slice) -> None:
        """What the last layer says of novelty."""
        if observation.head is None:
            return
        with torch.no_grad():
            detached = Tapped(*(tensor.detach() for tensor in observation.head))
            for name, values in self.scorer.of_last_layer(detached).items():
                gathered.put(("score", name), values, chunk)


@torch.no_grad()
def _mixes(subject: Subject, image: Tensor, beside: Tensor) -> bool:
    """Whether an image alone `(1, C, H, W)` has other outputs than as the first of several, `(N, K)`."""
    rounding = max(_MIXED, torch.finfo(subject.dtype).eps ** 0.5)
    away = (subject(subject.images(image))[0] - beside[0]).abs().max()
    return bool(away > rounding * beside.abs().max())
