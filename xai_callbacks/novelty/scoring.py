"""`Scorer`: asks several novelty scores about the same images, each for what it costs and no more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.access import Subject, Tapped, tap
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore

__all__ = ["Scorer"]


class Scorer:
    """Novelty scores of one audit.

    Args:
        scores: The scores; their names must differ.
        inliers: Familiar images `(N, C, H, W)`, from which scores that learn do so; None if none learns.
        labels: Classes of these, `(N,)` int64; None where unknown.

    Raises:
        ConfigurationError: A score is no `LastLayerScore` or `ModelScore`, has no usable name, or one that another has
            too, or must learn and there is nothing to learn from.
    """

    def __init__(
        self, scores: Sequence[NoveltyScore], inliers: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        for score in scores:
            _check(score)
        twice = [name for name, count in Counter(score.name for score in scores).items() if count > 1]
        if twice:
            raise ConfigurationError(
                f"Expected the novelty scores to have different names, but got {twice[0]!r} twice. Give one of them "
                f"another, as in `score.name = {twice[0] + '_2'!r}`."
            )
        learners = [score.name for score in scores if score.learns]
        if learners and inliers is None:
            raise ConfigurationError(
                f"Expected `inliers`, familiar images from which {', '.join(learners)} can learn, but got none. Give "
                "some hundred training images as probes, or choose scores that need none, such as Energy."
            )
        self.scores = tuple(scores)
        self.inliers = inliers
        self.labels = labels

    @property
    def of_head(self) -> bool:
        """Whether any score needs the last layer."""
        return any(isinstance(score, LastLayerScore) for score in self.scores)

    @property
    def first_of_last_layer(self) -> LastLayerScore | None:
        """The first score that needs the last layer; None if there is none."""
        return next((score for score in self.scores if isinstance(score, LastLayerScore)), None)

    def origins(self, head: str | None) -> dict[str, str]:
        """What each score is computed from, in words, by name of the score.

        Args:
            head: Name of the last linear layer, or None.
        """
        return {
            score.name: f"layer `{head}`" if isinstance(score, LastLayerScore) else "the whole model"
            for score in self.scores
        }

    def fit(self, subject: Subject, head: str | None, *, chunk_size: int) -> None:
        """Let scores that learn look at the inliers through the model as it is now; call inside `undisturbed`.

        Args:
            subject: The model.
            head: Name of its last linear layer; None if it has none, which leaves out the scores that need it.
            chunk_size: Images in one pass.
        """
        if self.inliers is None:
            return
        last = [score for score in self.scores if score.learns and isinstance(score, LastLayerScore)]
        if last and head is not None:
            inliers = self._seen_by_head(subject, head, self.inliers, chunk_size)
            for of_head in last:
                of_head.fit(inliers)
        for score in self.scores:
            if score.learns and isinstance(score, ModelScore):
                score.fit(subject, self.inliers, chunk_size=chunk_size)

    @property
    def watchable(self) -> tuple[str, ...]:
        """Names of the scores that need nothing but one call of the last layer: no inliers, no pass of their own."""
        return tuple(score.name for score in self.scores if isinstance(score, LastLayerScore) and not score.learns)

    def of_last_layer(self, tapped: Tapped, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, from what the last layer saw and said of N images.

        Args:
            tapped: The call.
            names: Which scores; None for all.
        """
        return {
            score.name: _checked(score, score.score(tapped.given, tapped.output), len(tapped.given))
            for score in self.scores
            if isinstance(score, LastLayerScore) and (names is None or score.name in names)
        }

    def of_model(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, that run the model themselves; call inside `undisturbed`."""
        return {
            score.name: _checked(score, score.score(subject, images), len(images))
            for score in self.scores
            if isinstance(score, ModelScore)
        }

    def score(self, subject: Subject, head: str | None, images: Tensor, *, chunk_size: int) -> dict[str, Tensor]:
        """All scores of images `(N, C, H, W)`, each `(N,)` float64 on the CPU; call inside `undisturbed`."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in torch.split(images, chunk_size):
            values = self.of_model(subject, chunk)
            if head is not None and self.of_head:
                with torch.no_grad(), tap(subject, head) as calls:
                    subject(subject.images(chunk))
                values |= self.of_last_layer(calls[0])
            for name, part in values.items():
                parts.setdefault(name, []).append(part.cpu())
        return {name: torch.cat(chunks) for name, chunks in parts.items()}

    def _seen_by_head(self, subject: Subject, head: str, images: Tensor, chunk_size: int) -> Inliers:
        features, logits = [], []
        with torch.no_grad():
            for chunk in torch.split(images, chunk_size):
                with tap(subject, head) as calls:
                    subject(subject.images(chunk))
                features.append(calls[0].given)
                logits.append(calls[0].output)
        # A head is a linear layer by definition, see `Trace.head`.
        layer = find_module(subject.module, head, "head")
        weight = layer.get_parameter("weight").detach()
        bias = dict(layer.named_parameters()).get("bias", weight.new_zeros(weight.shape[0])).detach()
        labels = None if self.labels is None else self.labels.to(weight.device)
        return Inliers(torch.cat(features), torch.cat(logits), labels, weight, bias)


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


def _checked(score: NoveltyScore, values: object, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (count,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigurationError(
            f"Expected the novelty score `{score.name}` to give one number an image, shape ({count},), but got {got}. "
            "Reduce over everything but the images."
        )
    return values.detach().double()
