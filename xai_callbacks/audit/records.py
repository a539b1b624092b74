"""What an audit gathered, as the fields of an `AuditRecord`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xai_callbacks.audit.gathered import Asked, Observed
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.metrics.summary import Estimate, PerProbe
from xai_callbacks.questions import Question
from xai_callbacks.record import MapSet
from xai_callbacks.tasks import Task

__all__ = ["Findings", "map_sets", "of_answers", "of_questions", "summarized"]


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


def map_sets(maps: Mapping[str, Tensor], due: Mapping[Explainer, Plan]) -> dict[str, MapSet]:
    """Heatmaps with what they are, in the order of the explainers."""
    return {
        each.name: MapSet(
            heatmaps=maps[each.name],
            explainer=repr(each),
            layer=plan.layers[0].name if plan.layers else "",
            reason=plan.reason,
            units=each.units,
            about=each.about,
            verified=plan.verified,
        )
        for each, plan in due.items()
        if each.name in maps
    }


def of_answers(task: Task, outputs: Tensor, truth: Tensor | None) -> dict[str, Any]:
    """What the model answered."""
    unknown = torch.full((len(outputs),), torch.nan, dtype=torch.float64)
    return {
        "outputs": outputs,
        "predictions": task.predictions(outputs),
        "confidences": task.confidences(outputs),
        "correct": unknown if truth is None else task.correct(outputs, truth),
        "truth": truth,
    }


def of_questions(task: Task, questions: Sequence[Question], observed: Observed) -> dict[str, Any]:
    """What was asked."""
    asked = tuple(zip(questions, observed.asked, strict=True))
    none = torch.full((len(observed.outputs),), -1, dtype=torch.int64)
    return {
        "questions": tuple(question.key for question in questions),
        "headings": tuple(question.title("P", "Q") for question in questions),
        "titles": tuple(_titles(task, question, answered, observed.outputs) for question, answered in asked),
        "facts": torch.stack([each.fact for each in observed.asked]),
        "foils": torch.stack([none if each.foil is None else each.foil for each in observed.asked]),
    }


def _titles(task: Task, question: Question, asked: Asked, outputs: Tensor) -> tuple[str, ...]:
    if task.classifies:
        facts = [_named(task, index) for index in asked.fact.tolist()]
        foils = [""] * len(facts) if asked.foil is None else [_named(task, index) for index in asked.foil.tolist()]
    else:
        several = outputs.shape[1] > 1
        values = outputs.gather(1, asked.fact[:, None])[:, 0].tolist()
        facts = [
            f"{task.name(index)} {value:.3g}" if several else f"{value:.3g}"
            for index, value in zip(asked.fact.tolist(), values, strict=True)
        ]
        foils = [""] * len(facts) if asked.value is None else [f"{value:.3g}" for value in asked.value.tolist()]
    return tuple(question.title(fact, foil) for fact, foil in zip(facts, foils, strict=True))


def _named(task: Task, index: int) -> str:
    return "no label" if index < 0 else task.name(index)
