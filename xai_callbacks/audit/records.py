"""What an audit gathered, as the fields of an `AuditRecord`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.audit.gathered import Observed
from xai_callbacks.metrics.summary import Estimate, PerProbe
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Asked, Question

__all__ = ["Findings", "of_answers", "of_questions", "summarized"]


class Findings(NamedTuple):
    """Metrics by key: over all probes, and what each probe adds."""

    estimates: dict[str, Estimate]
    per_probe: dict[str, Tensor]
    chances: dict[str, Tensor]


def summarized(metrics: Mapping[str, PerProbe | Estimate]) -> Findings:
    """Means over probes; what is an estimate already stays as it is."""
    of_probes = {key: metric for key, metric in metrics.items() if isinstance(metric, PerProbe)}
    return Findings(
        {key: metric.summary() if isinstance(metric, PerProbe) else metric for key, metric in metrics.items()},
        {key: metric.values for key, metric in of_probes.items()},
        {key: metric.chance for key, metric in of_probes.items() if metric.chance is not None},
    )


def of_answers(probes: ProbeSet, observed: Observed, truth: Tensor | None) -> dict[str, Any]:
    """What the model answered."""
    outputs, regression = observed.outputs, probes.task == "regression"
    predictions = outputs[:, 0] if regression else outputs.argmax(dim=1)
    confidences = torch.full_like(predictions, torch.nan) if regression else outputs.softmax(dim=1).amax(dim=1)
    return {"outputs": outputs, "predictions": predictions, "confidences": confidences, "truth": truth}


def of_questions(probes: ProbeSet, questions: Sequence[Question], observed: Observed) -> dict[str, Any]:
    """What was asked, and the heatmaps that answer it."""
    count = len(observed.outputs)
    asked = tuple(zip(questions, observed.asked, strict=True))
    return {
        "questions": tuple(question.key for question in questions),
        "headings": tuple(question.title("P", "Q") for question in questions),
        "titles": tuple(_titles(probes, question, answered, observed.outputs) for question, answered in asked),
        "facts": torch.stack([_or_none(answered.fact, count) for answered in observed.asked]),
        "foils": torch.stack([_or_none(answered.foil, count) for answered in observed.asked]),
        "heatmaps": observed.heatmaps,
    }


def _titles(probes: ProbeSet, question: Question, asked: Asked, outputs: Tensor) -> tuple[str, ...]:
    if asked.fact is None:
        facts = [f"{value:.3g}" for value in outputs[:, 0].tolist()]
        foils = [""] * len(facts) if asked.value is None else [f"{value:.3g}" for value in asked.value.tolist()]
    else:
        facts = [probes.class_name(index) for index in asked.fact.tolist()]
        foils = [""] * len(facts) if asked.foil is None else [probes.class_name(index) for index in asked.foil.tolist()]
    return tuple(question.title(fact, foil) for fact, foil in zip(facts, foils, strict=True))


def _or_none(classes: Tensor | None, count: int) -> Tensor:
    return torch.full((count,), -1, dtype=torch.int64) if classes is None else classes
