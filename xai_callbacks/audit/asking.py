"""`Asking`: ways for measures to ask the audited model once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from xai_callbacks.access import ModelSelector, Subject, randomised_copy
from xai_callbacks.audit.explaining import checked, layers_of
from xai_callbacks.audit.gathered import Gathered
from xai_callbacks.audit.observing import observe
from xai_callbacks.errors import in_words
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Question

__all__ = ["Asking"]

# Statistics of batch normalisation are taken from no more probes than these.
_NORMALISED = 256


class Asking:
    """The model of one audit, for measures; see `ModelAccess`. To be used inside `undisturbed`.

    Args:
        subject: The model.
        head: Name of its last linear layer; None where it has none.
        probes: The probe set.
        questions: The questions.
        due: Explainers that answered at this audit, and their plans.
        scorer: The novelty scores.
        again: Makes a subject of a copy of the model.
        select: Where the classifier is, see `Subject`.
        chunk_size: Images in one forward pass.

    Attributes:
        failures: Sentences about what failed and was left out.
    """

    def __init__(
        self,
        subject: Subject,
        head: str | None,
        probes: ProbeSet,
        questions: tuple[Question, ...],
        due: Mapping[Explainer, Plan],
        scorer: Scorer,
        *,
        again: Callable[[nn.Module], Subject],
        select: ModelSelector | None,
        chunk_size: int,
    ) -> None:
        self._subject, self._head, self._probes, self._questions = subject, head, probes, questions
        self._cheap = {each: plan for each, plan in due.items() if plan.cost == 0}
        self._scorer, self._again, self._select, self._chunk_size = scorer, again, select, chunk_size
        self.failures: list[str] = []

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """See `ModelAccess.scores`; a score that fails is told in `failures`, and the others go on."""
        before = dict(self._scorer.failures)
        found = self._scorer.score(self._subject, self._head, images, chunk_size=self._chunk_size)
        self.failures += [
            f"The novelty score `{name}` of further images failed and was left out. {why}"
            for name, why in self._scorer.failures.items()
            if name not in before
        ]
        return found

    def randomised(self, seed: int) -> dict[str, Tensor]:
        """See `ModelAccess.randomised`; an explainer that fails is told in `failures` and not asked again."""
        if not self._cheap:
            return {}
        images, truth = self._probes.images, self._probes.truth
        copied = randomised_copy(
            self._subject.root, images[:_NORMALISED], seed, select=self._select, chunk_size=max(2, self._chunk_size)
        )
        subject, gathered = self._again(copied), Gathered(len(images))
        for rows in torch.split(torch.arange(len(images)), self._chunk_size):
            observation = observe(
                subject, images[rows], None if truth is None else truth[rows], self._questions, layers_of(self._cheap),
                head=self._head, reference=self._scorer.inliers, chunk_size=self._chunk_size,
            )  # fmt: skip
            for each, plan in list(self._cheap.items()):
                chunk = slice(int(rows[0]), int(rows[-1]) + 1)
                try:
                    gathered.put_maps(each.name, checked(each, each.explain(observation, plan), observation), chunk)
                except Exception as error:  # told once; the others go on
                    del self._cheap[each]
                    gathered.drop(("maps", each.name))
                    self.failures.append(
                        f"The explainer `{each.name}` failed and was left out for models with random weights. "
                        f"{in_words(error)}"
                    )
        return gathered.maps()
