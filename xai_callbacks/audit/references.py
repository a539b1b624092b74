"""`References`: where models with random weights look, to read a trained model's heatmaps beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xai_callbacks.access import ModelSelector, Subject, randomised_copy
from xai_callbacks.audit.explaining import layers_of
from xai_callbacks.audit.grids import bounded
from xai_callbacks.audit.observing import observe
from xai_callbacks.errors import in_words
from xai_callbacks.explainers import Explainer, Observation, Plan
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

    `<explainer>/<question>/relevance_lift/<region>/reference` has the mean of three copies, and the lowest and highest
    of them as its interval, for explainers that need no forward pass but the shared one. Cost, at the first audit only:
    three forward passes over the probes, and memory for one more model.

    Args:
        probes: The probe set.
        questions: The questions.

    Attributes:
        failures: Why references were left out when they were taken last, by what failed.
    """

    def __init__(self, probes: ProbeSet, questions: tuple[Question, ...]) -> None:
        self.probes = probes
        self.questions = questions
        self.failures: dict[str, str] = {}
        self._known: dict[str, Estimate] | None = None

    def take(
        self,
        subject: Subject,
        plans: Mapping[Explainer, Plan],
        *,
        head: str | None,
        again: Callable[[nn.Module], Subject],
        select: ModelSelector | None,
        chunk_size: int,
    ) -> dict[str, Estimate]:
        """The references; call inside `undisturbed`. What fails is told once, and costs its references alone.

        Args:
            subject: The model.
            plans: Explainers and their plans.
            head: Name of the last linear layer.
            again: Makes a subject of a copy.
            select: Where the classifier is, see `Subject`.
            chunk_size: Images in one forward pass.
        """
        cheap = {each: plan for each, plan in plans.items() if plan.cost == 0}
        self.failures.clear()
        if self._known is None and not cheap:
            return {}
        if self._known is None:
            lifts: list[dict[str, float]] = []
            try:
                for seed in range(_COPIES):
                    copied = randomised_copy(
                        subject.root,
                        self.probes.images[:_NORMALISED],
                        seed,
                        select=select,
                        chunk_size=max(2, chunk_size),
                    )
                    lifts.append(self._lifts(again(copied), cheap, head, chunk_size))
            except Exception as error:  # told; the rest of the audit must not be lost for it
                self.failures[""] = f"The comparison with random weights failed and was left out. {in_words(error)}"
                lifts = [{}]
            shared = [key for key in lifts[0] if all(key in found for found in lifts)]
            self._known = {f"{key}/{REFERENCE}": _summary([found[key] for found in lifts]) for key in shared}
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
        self, subject: Subject, plans: Mapping[Explainer, Plan], head: str | None, chunk_size: int
    ) -> dict[str, float]:
        """Mean lift by explainer, question and region."""
        size = (self.probes.images.shape[-2], self.probes.images.shape[-1])
        found: dict[str, list[Tensor]] = {}
        for rows in torch.split(torch.arange(len(self.probes)), chunk_size):
            truth = None if self.probes.truth is None else self.probes.truth[rows]
            images = self.probes.images[rows]
            observation = observe(
                subject, images, truth, self.questions, layers_of(plans), head=head, chunk_size=chunk_size
            )
            for begins, values in self._maps(observation, plans):
                positive = relevance(values, size)
                for region, masks in self.probes.masks.items():
                    key = f"{begins}/relevance_lift/{region}"
                    found.setdefault(key, []).append(relevance_lift(positive, masks[rows]))
        mean = {key: torch.cat(parts) for key, parts in found.items()}
        return {key: float(lifts.nanmean()) for key, lifts in mean.items() if len(lifts) == len(self.probes)}

    def _maps(self, observation: Observation, plans: Mapping[Explainer, Plan]) -> Iterator[tuple[str, Tensor]]:
        """What keys begin with, and heatmaps `(N, h, w)`, of the explainers that do not fail."""
        for explainer, plan in plans.items():
            if explainer.name in self.failures:
                continue
            try:
                maps = bounded(explainer.explain(observation, plan).detach().float()).cpu()
            except Exception as error:  # told; the others go on
                self.failures[explainer.name] = (
                    f"The explainer `{explainer.name}` failed and was left out for models with random weights. "
                    f"{in_words(error)}"
                )
                continue
            if explainer.about == "image":
                yield explainer.name, maps[0]
                continue
            for question, values in zip(self.questions, maps, strict=True):
                yield f"{explainer.name}/{question.key}", values


def _summary(lifts: list[float]) -> Estimate:
    return Estimate(sum(lifts) / len(lifts), min(lifts), max(lifts), 1.0, len(lifts), 0)
