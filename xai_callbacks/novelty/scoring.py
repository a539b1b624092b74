"""`Scorer`: asks several novelty scores about the same images, each for what it costs and no more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xai_callbacks.access import Subject, Tapped, tap
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError, XAICallbacksError, in_words, is_out_of_memory
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore
from xai_callbacks.tasks import SingleLabel, Task

__all__ = ["Scorer"]


class Scorer:
    """Novelty scores of one audit.

    A score that fails, by whatever error, is left out of that audit, see `failures`, and the others go on.

    Args:
        scores: The scores; their names must differ.
        inliers: Familiar images `(N, C, H, W)`, from which scores that learn do so; None if none learns.
        labels: Classes of these, `(N,)` int64; None where unknown.
        task: How outputs are read; None for classes that exclude each other. Scores that do not suit it are left out.
        strict: Whether an error of a score is raised instead, as one that names the score.

    Attributes:
        scores: Those that suit the task.
        notes: Which do not, in a sentence; empty if all do.
        failures: Why scores failed since `fit` was last called, by name; they are absent from what is returned.

    Raises:
        ConfigurationError: A score is no `LastLayerScore` or `ModelScore`, has no usable name, or one that another has
            too, or must learn and there is nothing to learn from.
    """

    def __init__(
        self,
        scores: Sequence[NoveltyScore],
        inliers: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        task: Task | None = None,
        strict: bool = False,
    ) -> None:
        for score in scores:
            _check(score)
        twice = [name for name, count in Counter(score.name for score in scores).items() if count > 1]
        if twice:
            raise ConfigurationError(
                f"Expected the novelty scores to have different names, but got {twice[0]!r} twice. Give one of them "
                f"another, as in `score.name = {twice[0] + '_2'!r}`."
            )
        self.task = SingleLabel() if task is None else task
        self.scores = tuple(score for score in scores if self.task.kind in score.tasks)
        self.notes = _left_out([score.name for score in scores if score not in self.scores], self.task)
        learners = [score.name for score in self.scores if score.learns]
        if learners and inliers is None:
            raise ConfigurationError(
                f"Expected `inliers`, familiar images from which {', '.join(learners)} can learn, but got none. Give "
                "some hundred training images as probes, or choose scores that need none, such as Energy."
            )
        self.inliers = inliers
        self.labels = labels
        self.strict = strict
        self.failures: dict[str, str] = {}

    @property
    def of_head(self) -> bool:
        """Whether any score needs the last layer."""
        return any(isinstance(score, LastLayerScore) for score in self.scores)

    @property
    def first_of_last_layer(self) -> LastLayerScore | None:
        """The first score that needs the last layer and has not failed; None if there is none."""
        return next((score for score in self._going(None) if isinstance(score, LastLayerScore)), None)

    def origins(self, head: str | None) -> dict[str, str]:
        """What each score is computed from, in words, by name of the score.

        Args:
            head: Name of the last linear layer, or None.
        """
        return {
            score.name: f"layer `{head}`" if isinstance(score, LastLayerScore) else "the whole model"
            for score in self.scores
        }

    def check(self, subject: Subject, head: str | None, images: Tensor) -> None:
        """Raise what is wrong before training; call inside `undisturbed`.

        Scores that need not learn are asked for those of the images; the others whether they could learn.

        Args:
            subject: The model.
            head: Name of its last linear layer; None if it has none, which leaves out the scores that need it.
            images: Two probes, `(2, C, H, W)`.

        Raises:
            ConfigurationError: A score does not suit the model, or the inliers, or fails by an error of its own.
        """
        inliers = images[:0] if self.inliers is None else self.inliers
        for score in self.scores:
            with _naming(score):
                if isinstance(score, ModelScore):
                    score.check(subject, inliers[:2] if score.learns else images)
                elif isinstance(score, LastLayerScore) and score.learns and head is not None:
                    score.check(len(inliers), _linear(subject, head).in_features)
        ready = Scorer([score for score in self.scores if not score.learns], task=self.task, strict=True)
        ready.score(subject, head, images, chunk_size=len(images))

    def fit(self, subject: Subject, head: str | None, *, chunk_size: int) -> None:
        """Let scores that learn look at the inliers through the model as it is now; call inside `undisturbed`.

        Begins an audit: what failed in the last one gets another chance, whether or not it learns.

        Args:
            subject: The model.
            head: Name of its last linear layer; None if it has none, which leaves out the scores that need it.
            chunk_size: Images in one pass.
        """
        self.failures = {}
        if self.inliers is None:
            return
        last = [score for score in self.scores if score.learns and isinstance(score, LastLayerScore)]
        if last and head is not None:
            with self._sparing(*last):
                inliers = self._seen_by_head(subject, head, self.inliers, chunk_size)
                for of_head in last:
                    with self._sparing(of_head):
                        of_head.fit(inliers)
        for score in self.scores:
            if score.learns and isinstance(score, ModelScore):
                with self._sparing(score):
                    score.fit(subject, self.inliers, chunk_size=chunk_size)

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the scores that need nothing but one call of the last layer: no inliers, no pass of their own."""
        return tuple(score.name for score in self.scores if isinstance(score, LastLayerScore) and not score.learns)

    def of_last_layer(self, tapped: Tapped, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, from what the last layer saw and said of N images.

        Args:
            tapped: The call.
            names: Which scores, outside of an audit, where what fails is raised; None for those of the audit that have
                not failed.
        """
        found = {}
        for score in self._going(names):
            if isinstance(score, LastLayerScore):
                with self._sparing(score, strict=names is not None):
                    # Copies, lest a score that writes into them spoils the others, or the graph of the model.
                    values = score.score(*(each.detach().clone() for each in tapped))
                    found[score.name] = _checked(score, values, len(tapped.given))
        return found

    def of_model(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, that run the model themselves; call inside `undisturbed`."""
        found = {}
        for score in self._going(None):
            if isinstance(score, ModelScore):
                with self._sparing(score):
                    found[score.name] = _checked(score, score.score(subject, images), len(images))
        return found

    def score(self, subject: Subject, head: str | None, images: Tensor, *, chunk_size: int) -> dict[str, Tensor]:
        """All scores of images `(N, C, H, W)`, each `(N,)` float64 on the CPU; call inside `undisturbed`."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in torch.split(images, chunk_size):
            values = self.of_model(subject, chunk)
            last = [score for score in self._going(None) if isinstance(score, LastLayerScore)]
            if head is not None and last:
                with self._sparing(*last), torch.no_grad(), tap(subject, head) as calls:
                    subject(subject.images(chunk))
                    values |= self.of_last_layer(calls[0])
            for name, part in values.items():
                parts.setdefault(name, []).append(part.cpu())
        return {name: torch.cat(chunks) for name, chunks in parts.items() if name not in self.failures}

    def _going(self, names: Sequence[str] | None) -> Iterator[NoveltyScore]:
        """Scores of some names; None for those that have not failed."""
        for score in self.scores:
            if score.name not in self.failures if names is None else score.name in names:
                yield score

    @contextmanager
    def _sparing(self, *scores: NoveltyScore, strict: bool = False) -> Iterator[None]:
        """Note what fails inside, which costs these scores, and not the whole audit."""
        if strict or self.strict:
            with _naming(*scores):
                yield
            return
        try:
            yield
        except Exception as error:
            foreign = not isinstance(error, XAICallbacksError)
            advice = " Lower `chunk_size`." if foreign and is_out_of_memory(error) else ""
            for score in scores:
                self.failures.setdefault(score.name, in_words(error) + advice)

    def _seen_by_head(self, subject: Subject, head: str, images: Tensor, chunk_size: int) -> Inliers:
        features, logits = [], []
        with torch.no_grad():
            for chunk in torch.split(images, chunk_size):
                with tap(subject, head) as calls:
                    subject(subject.images(chunk))
                features.append(calls[0].given)
                logits.append(calls[0].output)
        layer = _linear(subject, head)
        weight = layer.weight.detach()
        bias: Tensor | None = layer.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        labels = None if self.labels is None else self.labels.to(weight.device)
        if self.task.kind != "single-label":
            # One class: values say nothing of any, and labels that an image may have several of divide nothing.
            labels = torch.zeros(len(images), dtype=torch.int64, device=weight.device)
        return Inliers(torch.cat(features), torch.cat(logits), labels, weight, bias)


def _linear(subject: Subject, head: str) -> nn.Linear:
    layer = find_module(subject.module, head, "head")
    if not isinstance(layer, nn.Linear):
        raise ConfigurationError(
            f"Expected `head` to name a linear layer, but {head!r} is a {type(layer).__name__}. See `Trace.head`."
        )
    return layer


def _check(score: object) -> None:
    if not isinstance(score, LastLayerScore | ModelScore):
        raise ConfigurationError(
            f"Expected a novelty score to be a LastLayerScore or a ModelScore, but got {type(score).__name__}. Derive "
            "it from one of them, depending on what it must see."
        )
    name = getattr(score, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigurationError(
            f"Expected `name` of {type(score).__name__} to be letters, digits, '_', '-' and '.', but got {name!r}. It "
            "is the key under which the score is logged."
        )


# Why scores do not suit a kind of task, and what does.
_UNSUITED = {
    "single-label": "classes that exclude each other have a softmax. Choose Energy() or MaxLogit().",
    "multi-label": "labels that do not exclude each other have no softmax. Choose JointEnergy(), MaxLogit(), or scores "
    "of features, such as KNearest() or Mahalanobis().",
    "regression": "a regression net has no logits of classes. Choose scores of features, such as KNearest() or "
    "Mahalanobis().",
}


def _left_out(names: Sequence[str], task: Task) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"Novelty by {', '.join(f'`{name}`' for name in names)} was left out: {_UNSUITED[task.kind]}",)


@contextmanager
def _naming(*scores: NoveltyScore) -> Iterator[None]:
    """Turn any error of scores into one of the package that names them."""
    try:
        yield
    except XAICallbacksError:
        raise
    except Exception as error:
        names = ", ".join(f"`{score.name}`" for score in scores)
        problem, advice = f"it raised {in_words(error).rstrip('.')}", "Mend the score, or leave it out."
        if is_out_of_memory(error):
            problem, advice = "it ran out of memory", "Lower `chunk_size`, or leave the score out."
        raise ConfigurationError(
            f"Expected the novelty score {names} to work on this model, but {problem}. {advice}"
        ) from error


def _checked(score: NoveltyScore, values: object, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (count,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigurationError(
            f"Expected the novelty score `{score.name}` to give one number an image, shape ({count},), but got {got}. "
            "Reduce over everything but the images."
        )
    return values.detach().double()
