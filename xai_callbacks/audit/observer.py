"""`Observer`: runs a model on the probes, once for all explainers and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_callbacks.access import Layer, features, forward, randomised_copy, stages_of, trace_model
from xai_callbacks.access.subject import OTHER_MODEL, ModelSelector, OutputSelector, Subject
from xai_callbacks.audit.explaining import Explaining, explain, layers_of
from xai_callbacks.audit.results import Gathered, Progress
from xai_callbacks.errors import AuditError, ConfigurationError, OutputError, is_out_of_memory, require_instance
from xai_callbacks.explainers import Explainer, Observation, Plan
from xai_callbacks.metrics.novelty import why_useless
from xai_callbacks.novelty import LastLayerScore
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Posed, Question, check_questions
from xai_callbacks.tasks import Task

_TRACED = 2  # probes that the one traced pass looks at; two show whether a gradient reaches a cell in general
# Statistics of batch normalisation in a model with random weights are taken from no more probes than these.
_NORMALISED = 256
# Answers to an image alone and beside another that differ by more are no matter of rounding, even in TF32.
_MIXED = 2e-3
_MIXING = (
    "The answer to an image depends on the images beside it, or is drawn at random: heatmaps show parts of answers to "
    "other images, and depend on `chunk_size`."
)
_PROBABILITIES = "The model returns probabilities; their logarithms are explained. Logits give clearer heatmaps."
_NO_HEAD = "Novelty was left out: the model does not end in one linear layer, from which it is computed."


@dataclass(frozen=True)
class Prepared:
    """What was learnt about a model; plain data, valid for every model of the same structure."""

    structure: int  # see `structure_of`
    task: Task  # how outputs are read, with their number
    probabilities: bool  # whether the model gives probabilities
    head: str | None  # name of the last linear layer
    plans: dict[str, Plan]  # of the explainers, by name
    readable: bool  # whether the outputs are read at all
    notes: tuple[str, ...]  # sentences about what was left out or assumed


def structure_of(module: nn.Module) -> int:
    """A number that two models share if modules and parameters have the same names, types and shapes."""
    modules = tuple((name, type(part).__qualname__) for name, part in module.named_modules())
    lazy = nn.UninitializedParameter
    parameters = ((name, () if isinstance(each, lazy) else each.shape) for name, each in module.named_parameters())
    return hash((modules, tuple(parameters)))


@dataclass(frozen=True, eq=False)
class Observer:
    """Looks at models and runs them on the probes; to be used inside `undisturbed`."""

    probes: ProbeSet
    questions: tuple[Question, ...]
    explaining: Explaining
    scorer: Scorer
    select: ModelSelector | None
    output: OutputSelector | None
    chunk_size: int
    asks: bool  # whether anything is asked of the outputs, so that they must be readable
    keeps_features: bool = False  # whether those of the stages are kept, for measures

    def subject(self, model: nn.Module, prepared: Prepared | None = None) -> Subject:
        """The model as it is asked."""
        task = self.probes.task if prepared is None else prepared.task
        subject = Subject(model, task, select=self.select, output=self.output)
        subject.probabilities = prepared is not None and prepared.probabilities
        return subject

    def look(self, subject: Subject) -> tuple[Prepared, Tensor | None]:
        """Look at a model once; the subject learns how its outputs are read.

        Returns what was learnt, and what the model says of the first probes, `(n, K)`; None if that is not read. Raises
        a `ConfigurationError` if the model does not run on the probes, or does not suit a question or an explainer.
        """
        images = self.probes.images[:_TRACED]
        structure = structure_of(subject.module)
        try:
            trace = trace_model(subject, images, chunk_size=self.chunk_size)
            subject.learn_outputs(trace.outputs.detach(), trace.ending())
        except ConfigurationError as error:
            if self.asks:
                raise
            self._require_no_head(error)
            # What is no classifier, such as an autoencoder, has no outputs to read.
            self.scorer.check(subject, None, images)
            return Prepared(structure, subject.task, False, None, {}, False, self.scorer.notes), None
        check_questions(self.questions, subject.task, labelled=self.probes.truth is not None)
        head = None if (call := trace.head()) is None else call.name
        try:
            plans, said = self.explaining.prepare(trace, self.scorer.inliers)
        except ConfigurationError:
            self._require_finite(trace.outputs)  # NaN moves with no image, so that no layer seems to lie on it
            raise
        del trace, call
        # What only shows when questions are answered, such as a model that cannot be differentiated, shows now.
        layers = layers_of(self.explaining.due(plans, 0))
        first = self.observation(subject, slice(0, len(images)), layers, head)
        self.explaining.attempt(first, plans)
        outputs = first.outputs.detach()
        told = {
            _PROBABILITIES: subject.probabilities and bool(self.questions),
            _NO_HEAD: head is None and self.scorer.of_head,
            _MIXING: _mixes(self.observation(subject, slice(0, 1), [], None), outputs),
        }
        self.scorer.check(subject, head, images)
        notes = (*self.scorer.notes, *(note for note, applies in told.items() if applies), *said)
        return Prepared(structure, subject.task, subject.probabilities, head, plans, True, notes), outputs

    def _require_no_head(self, error: Exception) -> None:
        """Refuse scores of the last layer for a model whose outputs cannot be read."""
        names = ", ".join(score.name for score in self.scorer.scores if isinstance(score, LastLayerScore))
        if names and isinstance(error, OutputError):
            raise ConfigurationError(
                f"Expected a classifier for the scores {names}, but the outputs are no logits. Choose scores of the "
                "whole model: ReconstructionError(), FisherNovelty() or GradConScore('constraint') for an autoencoder, "
                f"ODIN() or FisherNovelty('uniform') for a classifier. If this is a classifier: {error}"
            ) from error
        if names:
            raise error

    def observe(self, subject: Subject, prepared: Prepared, due: Mapping[Explainer, Plan], tell: Progress) -> Gathered:
        """Run all probes for the explainers that are `due`; tells the number of probes done.

        Raises an `AuditError` if the model returned NaN or inf, or the device ran out of memory, and an `OutputError`
        if the outputs are not those of a model like the one that was prepared.
        """
        gathered, layers = Gathered(len(self.probes)), layers_of(due)
        stages = stages_of(subject.module) if self.keeps_features else []
        for chunk in self.chunks():
            for name, values in self.scorer.of_model(subject, self.probes.images[chunk]).items():
                gathered.put("score", name, values, chunk)
            if prepared.readable:
                with features(subject.module, stages) as seen:
                    observation = self.observation(subject, chunk, layers, prepared.head)
                gathered.put_features(seen, chunk)
                gathered.put("answers", "outputs", observation.outputs, chunk)
                gathered.put_posed(observation.posed, chunk)
                if observation.head is not None:
                    with torch.no_grad():
                        for name, values in self.scorer.of_last_layer(observation.head).items():
                            gathered.put("score", name, values, chunk)
                explain(observation, due, gathered, chunk, tell)
            if tell is not None:
                tell(chunk.stop)
        if gathered.outputs is not None:
            self._check(gathered.outputs, prepared)
        return gathered

    def chunks(self) -> list[slice]:
        """Places of the probes, `chunk_size` at a time."""
        starts = range(0, len(self.probes), self.chunk_size)
        return [slice(start, min(start + self.chunk_size, len(self.probes))) for start in starts]

    def observation(
        self,
        subject: Subject,
        chunk: slice,
        layers: Sequence[Layer],
        head: str | None,
        outputs: Tensor | None = None,
    ) -> Observation:
        """One forward pass over some probes; questions are posed of `outputs` `(N, K)`, or None for what comes out."""
        images, truth, inliers = self.probes.images[chunk], self.probes.truth, self.scorer.inliers
        known = None if truth is None else truth[chunk]
        return observe(
            subject,
            images,
            known,
            self.questions,
            layers,
            head=head,
            reference=inliers,
            chunk_size=self.chunk_size,
            settled=None if outputs is None else outputs[chunk],
        )

    def _require_finite(self, outputs: Tensor) -> None:
        """Refuse outputs `(n, K)` of the first or of all probes that are NaN or inf."""
        broken = (~outputs.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
        if broken:
            raise AuditError(
                f"Expected finite model outputs, but got NaN or inf for {len(broken)} of {len(outputs)} probes, first "
                f"for {self.probes.names[broken[0]]!r}. The training has probably diverged; look at the loss and the "
                "learning rate."
            )

    def _check(self, outputs: Tensor, prepared: Prepared) -> None:
        self._require_finite(outputs)
        given = ""
        if outputs.shape[1] != prepared.task.width:
            given = f"{outputs.shape[1]} instead of {prepared.task.width}"
        elif not prepared.probabilities and prepared.task.are_distributions(outputs):
            given = "probabilities, which add up to 1, instead of logits"
        if given:
            raise OutputError(f"Expected outputs as when the model was prepared, but got {given}. {OTHER_MODEL}")

    def sound_scores(self, scores: Mapping[str, Tensor], head: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Scores that say something, and which were left out and why, in sentences."""
        reasons = {name: f" because it failed: {why}" for name, why in self.scorer.failures.items()}
        for name, values in scores.items():
            if (why := why_useless(values, self.probes.names)) is not None:
                reasons.setdefault(name, f": {why}.")
        origins = self.scorer.origins(head)
        told = (f"The novelty score `{name}` of {origins[name]} was left out{why}" for name, why in reasons.items())
        return {name: values for name, values in scores.items() if name not in reasons}, tuple(told)


class Asking:
    """The model of one audit, for measures; see `ModelAccess`. `failures` tells what failed and was left out.

    `gathered` is what the audit saw; of its outputs the questions are posed.
    """

    def __init__(
        self,
        observer: Observer,
        subject: Subject,
        prepared: Prepared,
        due: Mapping[Explainer, Plan],
        gathered: Gathered,
    ) -> None:
        self._observer, self._subject, self._prepared = observer, subject, prepared
        self._due, self._outputs, self._features = dict(due), gathered.outputs, gathered.features
        self.failures: list[str] = []

    def features(self) -> dict[str, Tensor]:
        """See `ModelAccess.features`."""
        return self._features

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """See `ModelAccess.scores`."""
        scorer = self._observer.scorer
        before = dict(scorer.failures)
        found = scorer.score(self._subject, self._prepared.head, images, chunk_size=self._observer.chunk_size)
        self.failures += [
            f"The novelty score `{name}` of further images failed and was left out. {why}"
            for name, why in scorer.failures.items()
            if name not in before
        ]
        return found

    def answers(self, images: Tensor, rows: Tensor) -> Tensor:
        """See `ModelAccess.answers`."""
        assert self._outputs is not None  # noqa: S101  # as there are heatmaps to ask about; narrows the type
        subject, truth = self._subject, self._observer.probes.truth
        with torch.no_grad():
            outputs = subject(subject.images(images))
            settled = self._outputs[rows].to(outputs.device)
            known = None if truth is None else truth[rows].to(outputs.device)
            posed = (question.pose(settled, known, subject.task) for question in self._observer.questions)
            return torch.stack([each.score(outputs) for each in posed]).cpu()

    def randomised(
        self, seed: int, *, share: float = 1.0, max_cost: float = 0.0, as_posed: bool = False
    ) -> dict[str, Tensor]:
        """See `ModelAccess.randomised`; an explainer that fails is not asked again."""
        asked = {each: plan for each, plan in self._due.items() if plan.cost <= max_cost}
        if not asked:
            return {}
        observer, head = self._observer, self._prepared.head
        images, least = observer.probes.images[:_NORMALISED], max(2, observer.chunk_size)
        root, select = self._subject.root, observer.select
        copied = randomised_copy(root, images, seed, share=share, select=select, chunk_size=least)
        subject, gathered = observer.subject(copied, self._prepared), Gathered(len(observer.probes))
        for chunk in observer.chunks():
            settled = self._outputs if as_posed else None
            observation = observer.observation(subject, chunk, layers_of(asked), head, settled)
            explain(observation, asked, gathered, chunk)
        self._due = {each: plan for each, plan in self._due.items() if each.name not in gathered.failures}
        self.failures += gathered.told(" for models with random weights")
        return gathered.maps


def observe(
    subject: Subject,
    images: Tensor,
    truth: Tensor | None,
    questions: Sequence[Question],
    layers: Sequence[Layer],
    *,
    head: str | None = None,
    reference: Tensor | None = None,
    chunk_size: int = 16,
    settled: Tensor | None = None,
) -> Observation:
    """Run images `(N, C, H, W)` once and pose the questions; call inside `undisturbed`.

    The graph begins at the earliest layer; without layers there is none. `head` names a last linear layer to be tapped,
    `chunk_size` is for explainers that run the model again. Questions are posed of the outputs `(N, K)`, or of those
    that are `settled`, of another model. Raises a `TargetLayerError` if a layer did not run once, or
    the outputs do not depend on any, and an `AuditError` if the device ran out of memory.
    """
    images = subject.images(images)
    try:
        outputs, activations, tapped = forward(subject, images, layers, head)
    except Exception as error:
        if is_out_of_memory(error):
            raise AuditError(
                f"Expected {len(images)} images of {tuple(images.shape[1:])} (C, H, W) to fit into memory, but the "
                f"device ran out of it: {error}. Lower `chunk_size`, now {chunk_size}."
            ) from error
        raise
    settled = outputs.detach() if settled is None else settled.to(outputs.device)
    truth = None if truth is None else truth.to(settled.device)
    posed = tuple(question.pose(settled, truth, subject.task) for question in questions)
    for question, each in zip(questions, posed, strict=True):
        require_instance(f"{question!r}.pose", each, Posed, "a method that returns a Posed")
    return Observation(
        subject=subject,
        images=images,
        outputs=outputs,
        posed=posed,
        activations=activations,
        head=tapped,
        reference=reference,
        chunk_size=chunk_size,
    )


def _mixes(alone: Observation, beside: Tensor) -> bool:
    """Whether an image alone has other outputs than as the first of several, `(N, K)`."""
    rounding = max(_MIXED, torch.finfo(alone.subject.dtype).eps ** 0.5)
    return bool((alone.outputs[0] - beside[0]).abs().max() > rounding * beside.abs().max())
