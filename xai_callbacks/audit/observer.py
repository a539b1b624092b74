"""`Observer`: runs a model on the probes, once for all explainers and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.access import Layer, Subject, Tapped, choose_layer, trace_model
from xai_callbacks.audit.checks import require_as_prepared, require_finite
from xai_callbacks.audit.explaining import Explaining, layers_of
from xai_callbacks.audit.gathered import Gathered, Observed
from xai_callbacks.audit.observing import observe
from xai_callbacks.audit.structure import structure_of
from xai_callbacks.errors import ConfigurationError, in_words, is_out_of_memory
from xai_callbacks.explainers import Explainer, Observation, Plan
from xai_callbacks.novelty import LastLayerScore
from xai_callbacks.novelty.address import layer_shares, novelty_map
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
_LOCATING = "where novelty lies"


@dataclass(frozen=True)
class Prepared:
    """What was learnt about a model; plain data, valid for every model of the same structure.

    Attributes:
        structure: See `structure_of`.
        task: How outputs are read, with their number.
        probabilities: Whether the model gives probabilities.
        head: Name of the last linear layer; None where there is none.
        plans: Of the explainers, by name.
        novelty_layer: Where novelty is located; None if it is not.
        located: The score whose novelty is located.
        notes: Sentences about what was left out or assumed.
    """

    structure: int
    task: Task
    probabilities: bool
    head: str | None
    plans: dict[str, Plan]
    novelty_layer: Layer | None
    located: LastLayerScore | None
    notes: tuple[str, ...]


class Observer:
    """Looks at models and runs them on the probes.

    Args:
        probes: The probe set.
        questions: The questions.
        explaining: The explainers.
        scorer: The novelty scores.
        locate_novelty: Whether to find out where in the image and in which layer novelty lies.
        chunk_size: Images in one forward pass.
    """

    def __init__(
        self,
        probes: ProbeSet,
        questions: Sequence[Question],
        explaining: Explaining,
        scorer: Scorer,
        *,
        locate_novelty: bool,
        chunk_size: int,
    ) -> None:
        self.probes = probes
        self.questions = tuple(questions)
        self.explaining = explaining
        self.scorer = scorer
        self.locate_novelty = locate_novelty
        self.chunk_size = chunk_size

    def look(self, subject: Subject) -> tuple[Prepared, Tensor]:
        """Look at a model once, inside `undisturbed`; learns how its outputs are read.

        Returns:
            What was learnt, and what the model says of the first probes, `(n, K)`.

        Raises:
            ConfigurationError: The model does not run on the probes, does not suit a question or an explainer, or the
                device ran out of memory.
        """
        try:
            return self._look(subject)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"Expected the model to run on up to {self.chunk_size} probes of shape "
                f"{tuple(self.probes.images.shape[1:])} (C, H, W) at a time, but the device ran out of memory: "
                f"{error}. Lower `chunk_size`, or give probes of a smaller size."
            ) from error

    def _look(self, subject: Subject) -> tuple[Prepared, Tensor]:
        images = self.probes.images[:_TRACED]
        trace = trace_model(subject, images, chunk_size=self.chunk_size)
        subject.learn_outputs(trace.outputs.detach(), trace.ending())
        check_questions(self.questions, subject.task, labelled=self.probes.truth is not None)
        notes = list(self.scorer.notes)
        if subject.probabilities:
            notes.append(
                "The model returns probabilities; their logarithms are explained. Logits give clearer heatmaps."
            )
        head = trace.head()
        if head is None and self.scorer.of_head:
            notes.append("Novelty was left out: the model does not end in one linear layer, from which it is computed.")
        plans, said = self.explaining.prepare(trace, self.scorer.inliers)
        layer = None
        located = self.scorer.first_of_last_layer if self.locate_novelty else None
        if head is not None and located is not None:
            layers = [layer for plan in plans.values() for layer in plan.layers]
            layer = layers[0] if layers else choose_layer(trace)
        name = head.name if head else None
        del trace, head
        # What only shows when questions are answered, such as a model that cannot be differentiated, shows now.
        first = self._observation(subject, images, 0, layers_of(self.explaining.due(plans, 0)), name)
        self.explaining.attempt(first, plans)
        if _mixes(subject, images[:1], first.outputs.detach()):
            notes.append(_MIXING)
        self.scorer.check(subject, name, images)
        if self.locate_novelty:
            layer_shares(subject, images)
        prepared = Prepared(
            structure_of(subject.module),
            subject.task,
            subject.probabilities,
            name,
            plans,
            layer,
            located,
            (*notes, *said),
        )
        return prepared, first.outputs.detach()

    def observe(
        self,
        subject: Subject,
        prepared: Prepared,
        due: Mapping[Explainer, Plan],
        on_progress: Callable[[int], None],
    ) -> Observed:
        """Run all probes, inside `undisturbed`.

        Args:
            subject: The model.
            prepared: What was learnt about it.
            due: Explainers that answer at this audit, and their plans.
            on_progress: Called with the number of probes done.

        Raises:
            AuditError: The model returned NaN or inf for a probe, or the device ran out of memory.
        """
        gathered = Gathered(len(self.probes))
        layers = layers_of(due) + ([] if prepared.novelty_layer is None else [prepared.novelty_layer])
        self.explaining.failures.clear()
        for start in range(0, len(self.probes), self.chunk_size):
            images = self.probes.images[start : start + self.chunk_size]
            chunk, count = slice(start, start + len(images)), len(images)
            observation = self._observation(subject, images, start, layers, prepared.head)
            gathered.put(("answers", "outputs"), observation.outputs, chunk)
            gathered.put_posed(observation.posed, chunk)
            self._score(observation, prepared, gathered, chunk)

            def progress(share: float, start: int = start, count: int = count) -> None:
                on_progress(start + int(share * count))

            self.explaining.explain(observation, due, gathered, chunk, progress)
            on_progress(start + count)
        outputs = gathered.observed().outputs
        require_finite(outputs, self.probes)
        require_as_prepared(outputs, prepared.task, probabilities=prepared.probabilities)
        self._score_model(subject, gathered)
        return gathered.observed()

    def _observation(
        self, subject: Subject, images: Tensor, start: int, layers: Sequence[Layer], head: str | None
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
            chunk_size=self.chunk_size,
        )

    def _score(self, observation: Observation, prepared: Prepared, gathered: Gathered, chunk: slice) -> None:
        """What the last layer says of novelty, and where it lies."""
        if observation.head is None:
            return
        with torch.no_grad():
            detached = Tapped(*(tensor.detach() for tensor in observation.head))
            for name, values in self.scorer.of_last_layer(detached).items():
                gathered.put(("score", name), values, chunk)
        score, layer = prepared.located, prepared.novelty_layer
        if layer is None or score is None or _LOCATING in self.explaining.failures:
            return
        with self._sparing("map", gathered):
            activation = observation.activations[layer.name]
            gathered.put(("map", score.name), novelty_map(activation, layer.layout, *observation.head, score), chunk)

    @contextmanager
    def _sparing(self, kind: str, gathered: Gathered) -> Iterator[None]:
        """Note what fails inside, which costs where novelty lies, and not the whole audit."""
        try:
            yield
        except Exception as error:
            self.explaining.failures[_LOCATING] = f"Novelty could not be located. {in_words(error)}"
            gathered.drop_kind(kind)

    def _score_model(self, subject: Subject, gathered: Gathered) -> None:
        """Scores that run the model themselves."""
        for start in range(0, len(self.probes), self.chunk_size):
            chunk = slice(start, start + self.chunk_size)
            for name, values in self.scorer.of_model(subject, self.probes.images[chunk]).items():
                gathered.put(("score", name), values, chunk)
        if self.locate_novelty:
            with self._sparing("layer", gathered):
                for start in range(0, len(self.probes), self.chunk_size):
                    chunk = slice(start, start + self.chunk_size)
                    for layer, values in layer_shares(subject, self.probes.images[chunk]).items():
                        gathered.put(("layer", layer), values, chunk)


@torch.no_grad()
def _mixes(subject: Subject, image: Tensor, beside: Tensor) -> bool:
    """Whether an image alone `(1, C, H, W)` has other outputs than as the first of several, `(N, K)`."""
    rounding = max(_MIXED, torch.finfo(subject.dtype).eps ** 0.5)
    away = (subject(subject.images(image))[0] - beside[0]).abs().max()
    return bool(away > rounding * beside.abs().max())
