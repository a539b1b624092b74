"""What an audit gathered, as fields of an `AuditRecord`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xai_callbacks.audit.gathered import Asked, Observed
from xai_callbacks.explainers import Explainer, Plan
from xai_callbacks.history import History
from xai_callbacks.questions import Question
from xai_callbacks.record import MapSet
from xai_callbacks.tasks import Task

__all__ = ["map_sets", "of_answers", "of_questions"]


def map_sets(
    maps: Mapping[str, Tensor], due: Mapping[Explainer, Plan], questions: Sequence[Question], past: History
) -> dict[str, MapSet]:
    """Heatmaps with what they are, in the order of the explainers."""
    found = {}
    for each, plan in due.items():
        if each.name not in maps:
            continue
        given = MapSet(
            heatmaps=maps[each.name],
            explainer=repr(each),
            layer=plan.layers[0].name if plan.layers else "",
            reason=plan.reason,
            units=each.units,
            about=each.about,
            verified=plan.verified,
        )
        found[each.name] = replace(given, peaks=_peaks(given, each.name, questions, past))
    return found


def _peaks(given: MapSet, explainer: str, questions: Sequence[Question], past: History) -> tuple[float, ...]:
    """The largest magnitude in the run so far, of each question."""
    own = given.heatmaps.double().abs().nan_to_num(nan=0.0, posinf=0.0).amax(dim=(1, 2, 3)).tolist()
    earlier = past.latest_with(explainer)
    peaks = () if earlier is None or earlier.maps[explainer].kind != given.kind else earlier.maps[explainer].peaks
    if earlier is None or not peaks:
        return tuple(own)
    if given.about == "image":
        return tuple(map(max, own, peaks))
    known = dict(zip(zip(earlier.questions, earlier.asked, strict=True), peaks, strict=True))
    asked = ((question.key, repr(question)) for question in questions)
    return tuple(max(peak, known.get(question, 0.0)) for peak, question in zip(own, asked, strict=True))


def of_answers(task: Task, outputs: Tensor | None, truth: Tensor | None) -> dict[str, Any]:
    """What the model answered."""
    if outputs is None:
        return {}
    unknown = torch.full((len(outputs),), torch.nan, dtype=torch.float64)
    return {
        "outputs": outputs,
        "predictions": task.predictions(outputs),
        "confidences": task.confidences(outputs),
        "correct": unknown if truth is None else task.correct(outputs, truth),
    }


def of_questions(task: Task, questions: Sequence[Question], observed: Observed) -> dict[str, Any]:
    """What was asked."""
    outputs, asked = observed.outputs, tuple(zip(questions, observed.asked, strict=True))
    if outputs is None or not asked:
        return {}
    none = torch.full((len(outputs),), -1, dtype=torch.int64)
    return {
        "questions": tuple(question.key for question in questions),
        "headings": tuple(question.title("P", "Q") for question in questions),
        "titles": tuple(_titles(task, question, answered, outputs) for question, answered in asked),
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
