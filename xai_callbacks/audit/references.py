"""`References`: where models with random weights look, to read a trained model's heatmaps beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks.access import ModelSelector, Subject, TargetLayer, randomised_copy
from xai_callbacks.explainers import Explainer
from xai_callbacks.metrics.localization import relevance, relevance_lift
from xai_callbacks.metrics.null_judge import REFERENCE
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question
from xai_callbacks.record import Estimate

__all__ = ["References"]

_COPIES = 3
# Statistics of batch normalisation are taken from no more probes than these.
_NORMALISED = 256


class References:
    """Lifts of regions by copies of a model with random weights; taken once a run.

    `<question>/relevance_lift/<region>/reference` has the mean of three copies, and the lowest and highest of them as
    its interval. Cost, at the first audit only: three forward passes over the probes, and memory for one more model.

    Args:
        probes: The probe set.
        questions: The questions.
    """

    def __init__(self, probes: ProbeSet, questions: tuple[Question, ...]) -> None:
        self.probes = probes
        self.questions = questions
        self._known: dict[str, Estimate] | None = None

    def take(
        self,
        subject: Subject,
        layer: TargetLayer,
        explainer: Explainer,
        truth: Tensor | None,
        *,
        again: Callable[[nn.Module], Subject],
        select: ModelSelector | None,
        chunk_size: int,
    ) -> dict[str, Estimate]:
        """The references; call inside `undisturbed`.

        Args:
            subject: The model.
            layer: Where heatmaps are computed.
            explainer: Computes them.
            truth: Labels or target values, `(N,)`.
            again: Makes a subject of a copy.
            select: Where the classifier is, see `Subject`.
            chunk_size: Images in one forward pass.

        Raises:
            ConfigurationError: The model cannot be copied.
        """
        if self._known is None:
            lifts = []
            for seed in range(_COPIES):
                copied = randomised_copy(
                    subject.root, self.probes.images[:_NORMALISED], seed, select=select, chunk_size=max(2, chunk_size)
                )
                lifts.append(self._lifts(again(copied), layer, explainer, truth, chunk_size))
            self._known = {
                f"{key}/{REFERENCE}": _summary([found[key] for found in lifts if key in found]) for key in lifts[0]
            }
        return self._known

    def forget(self) -> None:
        """Begin anew: the next run may be of another model."""
        self._known = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        known = {} if self._known is None else {key: tuple(estimate) for key, estimate in self._known.items()}
        return {"fingerprint": self.probes.fingerprint, "known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` left off; a state of other probes is ignored."""
        if state["fingerprint"] == self.probes.fingerprint and state["known"]:
            self._known = {key: Estimate(*estimate) for key, estimate in state["known"].items()}

    def _lifts(
        self, subject: Subject, layer: TargetLayer, explainer: Explainer, truth: Tensor | None, chunk_size: int
    ) -> dict[str, float]:
        """Mean lift by question and region."""
        size = (self.probes.images.shape[-2], self.probes.images.shape[-1])
        found: dict[str, list[Tensor]] = {}
        for rows in torch.split(torch.arange(len(self.probes)), chunk_size):
            given = None if truth is None else truth[rows]
            maps = explainer.explain(subject, layer, self.probes.images[rows], self.questions, given).heatmaps.cpu()
            for question, values in zip(self.questions, maps, strict=True):
                positive = relevance(values, size)
                for region, masks in self.probes.masks.items():
                    key = f"{question.key}/relevance_lift/{region}"
                    found.setdefault(key, []).append(relevance_lift(positive, masks[rows]))
        return {key: float(torch.cat(parts).nanmean()) for key, parts in found.items()}


def _summary(lifts: list[float]) -> Estimate:
    return Estimate(sum(lifts) / len(lifts), min(lifts), max(lifts), 1.0, len(lifts), 0)
