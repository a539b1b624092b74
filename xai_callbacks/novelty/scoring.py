"""`Scorer`: asks several novelty scores about the same images, each for what it costs and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from xai_callbacks.access import Subject, Tapped, tap
from xai_callbacks.access.subject import find_module
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore

__all__ = ["Scorer", "why_useless"]


class Scorer:
    """Novelty scores of one audit.

    Args:
        scores: The scores; their names must differ.
        inliers: Familiar images `(N, C, H, W)`, from which scores that learn do so; None if none learns.
        labels: Classes of these, `(N,)` int64; None where unknown.

    Raises:
        ConfigurationError: Two scores have one name, or one must learn and there is nothing to learn from.
    """

    def __init__(
        self, scores: Sequence[NoveltyScore], inliers: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
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

    def of_last_layer(self, tapped: Tapped) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, from what the last layer saw and said of N images."""
        return {
            score.name: score.score(tapped.given, tapped.output).detach()
            for score in self.scores
            if isinstance(score, LastLayerScore)
        }

    def of_model(self, subject: Subject, images: Tensor) -> dict[str, Tensor]:
        """Scores by name, each `(N,)` float64, that run the model themselves; call inside `undisturbed`."""
        return {
            score.name: score.score(subject, images).detach() for score in self.scores if isinstance(score, ModelScore)
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


def why_useless(values: Tensor, names: Sequence[str]) -> str | None:
    """What is wrong with scores `(N,)` of named images: NaN, inf, or all the same; None if nothing is."""
    broken = (~values.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        return f"it is NaN or inf for {len(broken)} of {len(values)} probes, first for {names[broken[0]]!r}"
    if len(values) > 1 and bool((values == values[0]).all()):
        return f"it is {float(values[0]):.3g} for all {len(values)} probes, so that it tells none from another"
    return None
