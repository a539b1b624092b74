"""`Scorer`: asks several novelty scores about the same images, each for what it costs and no more."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from xai_callbacks.access import Subject, Tapped, tap
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import (
    ConfigurationError,
    blaming,
    in_words,
    require_different,
    require_instance,
    require_name,
)
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore
from xai_callbacks.tasks import SingleLabel, Task


class Scorer:
    """Novelty scores of one audit; its methods are called inside `undisturbed`.

    A score that fails, by whatever error, is left out of that audit, and the others go on.

    Args:
        scores: The scores; their names must differ.
        inliers: Familiar images `(N, C, H, W)`, from which scores that learn do so; None if none learns.
        labels: Classes of these, `(N,)` int64; None where unknown.
        task: How outputs are read; None for classes that exclude each other. Scores that do not suit it are left out.
        required: Whether `check` refuses scores of the last layer where there is none; else they are left out.
        strict: Whether an error of a score is raised instead, as one that names the score.

    Attributes:
        scores: Those that suit the task.
        of_head: Those of these that need the last layer.
        notes: Which do not suit, in a sentence; empty if all do.
        failures: Why scores failed since `fit` was last called, by name; they are absent from what is returned.
    """

    def __init__(
        self,
        scores: Sequence[NoveltyScore],
        inliers: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        task: Task | None = None,
        required: bool = False,
        strict: bool = False,
    ) -> None:
        for score in scores:
            require_instance("novelty", score, (LastLayerScore, ModelScore), "a LastLayerScore or a ModelScore")
            require_name(f"`name` of {type(score).__name__}", getattr(score, "name", None))
        hint = "Give one of them another, as in `score.name = '{}_2'`."
        require_different("novelty scores", (score.name for score in scores), hint)
        self.task = SingleLabel() if task is None else task
        self.scores = tuple(score for score in scores if self.task.kind in score.tasks)
        self.of_head = tuple(score for score in self.scores if isinstance(score, LastLayerScore))
        self._of_model = tuple(score for score in self.scores if isinstance(score, ModelScore))
        left_out = ", ".join(f"`{score.name}`" for score in scores if score not in self.scores)
        note = f"Novelty by {left_out} was left out: not of {self.task.kind} outputs. docs/novelty.md lists what suits."
        self.notes: tuple[str, ...] = (note,) if left_out else ()
        learners = ", ".join(score.name for score in self.scores if score.learns)
        if learners and inliers is None:
            raise ConfigurationError(
                f"Expected `inliers`, familiar images from which {learners} can learn, but got none. Give some hundred "
                "training images as probes."
            )
        self.inliers, self.labels, self.required, self.strict = inliers, labels, required, strict
        self.failures: dict[str, str] = {}

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the scores that need nothing but one call of the last layer: no inliers, no pass of their own."""
        return tuple(score.name for score in self.of_head if not score.learns)

    def origins(self, head: str | None) -> dict[str, str]:
        """Source of each score, in words, by its name; `head` is the name of the last linear layer."""
        return {score.name: f"layer `{head}`" if score in self.of_head else "the whole model" for score in self.scores}

    def check(self, subject: Subject, head: str | None, images: Tensor) -> None:
        """Score two probes `(2, C, H, W)` with what need not learn, and ask the rest if it could, before training."""
        if head is None and self.required and self.of_head:
            raise ConfigurationError(
                "Expected a model that ends in one linear layer for the novelty scores "
                f"{', '.join(score.name for score in self.of_head)}, but got one that does not. Leave them out, or "
                "choose scores of the whole model, such as ODIN() or GradientNorm() for a classifier."
            )
        known = images if self.inliers is None else self.inliers
        for score in self.scores:
            with self._sparing(score, strict=True):
                if isinstance(score, ModelScore):
                    score.check(subject, known[:2] if score.learns else images)
                elif isinstance(score, LastLayerScore) and score.learns and head is not None:
                    score.check(len(known), _linear(subject, head).in_features)
        ready = Scorer([score for score in self.scores if not score.learns], task=self.task, strict=True)
        ready.score(subject, head, images, chunk_size=len(images))

    def fit(self, subject: Subject, head: str | None, *, chunk_size: int) -> None:
        """Begin an audit: scores that learn look at the inliers through the model as it is now."""
        self.failures = {}
        if self.inliers is None:
            return
        last = [score for score in self.of_head if score.learns]
        if last and head is not None:
            with self._sparing(*last):
                inliers = self._seen_by_head(subject, head, self.inliers, chunk_size)
                for of_head in last:
                    with self._sparing(of_head):
                        of_head.fit(inliers)
        for of_model in self._of_model:
            with self._sparing(of_model):
                if of_model.learns:
                    of_model.fit(subject, self.inliers, chunk_size=chunk_size)

    def of_last_layer(self, tapped: Tapped, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, from input and output of the last layer for N images.

        With `names` only these, outside of an audit, where what fails is raised; else all that have not failed.
        """
        found = {}
        for score in self.of_head:
            if score.name not in self.failures if names is None else score.name in names:
                with self._sparing(score, strict=names is not None):
                    # Copies, lest a score that writes into them spoils the others, or the graph of the model.
                    values = score.score(*(each.detach().clone() for each in tapped))
                    found[score.name] = _checked(score, values, len(tapped.given))
        return found

    def of_model(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, that run the model themselves."""
        found = {}
        for score in self._of_model:
            if score.name not in self.failures:
                with self._sparing(score):
                    found[score.name] = _checked(score, score.score(subject, images), len(images))
        return found

    def score(self, subject: Subject, head: str | None, images: Tensor, *, chunk_size: int) -> dict[str, Tensor]:
        """All scores of images `(N, C, H, W)`, each `(N,)` float64 on the CPU."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in torch.split(images, chunk_size):
            values = self.of_model(subject, chunk)
            last = [score for score in self.of_head if score.name not in self.failures]
            if head is not None and last:
                with self._sparing(*last), torch.no_grad(), tap(subject, head) as calls:
                    subject(subject.images(chunk))
                    values |= self.of_last_layer(calls[0])
            for name, part in values.items():
                parts.setdefault(name, []).append(part.cpu())
        return {name: torch.cat(chunks) for name, chunks in parts.items() if name not in self.failures}

    @contextmanager
    def _sparing(self, *scores: NoveltyScore, strict: bool = False) -> Iterator[None]:
        """Note what fails inside, which costs these scores, and not the whole audit; strict: raise it, naming them."""
        try:
            yield
        except Exception as error:
            if not (strict or self.strict):
                self.failures |= {s.name: in_words(error) for s in scores if s.name not in self.failures}
                return
            names = ", ".join(f"`{score.name}`" for score in scores)
            with blaming(f"the novelty score {names}", "work on this model", "novelty"):
                raise

    def _seen_by_head(self, subject: Subject, head: str, images: Tensor, chunk_size: int) -> Inliers:
        seen = []
        with torch.no_grad():
            for chunk in torch.split(images, chunk_size):
                with tap(subject, head) as calls:
                    subject(subject.images(chunk))
                seen.append(calls[0])
        weight, bias = _linear(subject, head).weight.detach(), cast("Tensor | None", _linear(subject, head).bias)
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        # One class otherwise: values say nothing of any, and labels that an image may have several of divide nothing.
        labels = self.labels if self.task.kind == "single-label" else torch.zeros(len(images), dtype=torch.int64)
        features, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return Inliers(features, logits, labels, weight, bias)


def _linear(subject: Subject, head: str) -> nn.Linear:
    return cast("nn.Linear", find_module(subject.module, head, "head"))


def _checked(score: NoveltyScore, values: object, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (count,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigurationError(
            f"Expected the novelty score `{score.name}` to give one number an image, shape ({count},), but got {got}."
        )
    return values.detach().double()
