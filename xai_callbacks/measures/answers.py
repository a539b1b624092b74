"""`Answers`: how right, how sure and how steady the answers of a model are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, Measured
from xai_callbacks.record import AuditRecord, Key, PerProbe
from xai_callbacks.tasks import in_key

__all__ = ["Answers"]


class Answers(Measure):
    """Judges what the model says of the probes.

    | key | meaning | range | chance |
    |---|---|---|---|
    | `accuracy` | share of probes classified as labelled; of several labels the right share | [0, 1] | 1 / K, or - |
    | `exact_match` | share of probes of which all known labels are right (multi-label) | [0, 1] | - |
    | `absolute_error` | mean absolute error (regression); `absolute_error/<value>` of several | [0, inf) | - |
    | `confidence` | mean largest probability | [0, 1] | - |
    | `switched` | share of probes predicted differently than at the previous audit | [0, 1] | - |
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """Those that the task and the labels allow."""
        truth, single = context.probes.truth, context.task.kind == "single-label"
        if not context.task.classifies:
            names = [] if truth is None else ["", *_value_names(context, truth.reshape(len(truth), -1).shape[1])]
            return [Key(f"absolute_error{name}", f"mean absolute error {name[1:]}".rstrip(), 0.0) for name in names]
        switched = Key("switched", "predicted differently than at the previous audit", 0.0, 1.0, unit="share")
        found = [Key("confidence", "mean largest probability", 0.0, 1.0), switched]
        if truth is not None and single:
            found.append(Key("accuracy", "classified as labelled", 0.0, 1.0, "1 / K", "share"))
        elif truth is not None:
            found.append(Key("accuracy", "share of the labels that are right", 0.0, 1.0))
            found.append(Key("exact_match", "all labels right", 0.0, 1.0, unit="share"))
        return found

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge outputs, if there are any."""
        if record.outputs is None:
            return {}
        if not context.task.classifies:
            return dict(_errors(record, context))
        found: dict[str, PerProbe] = {}
        if record.truth is not None and record.correct is not None:
            single = context.task.kind == "single-label"
            chance = torch.full_like(record.correct, 1 / record.outputs.shape[1]) if single else None
            found["accuracy"] = PerProbe(record.correct, chance)
            if not single:
                exact = (record.correct == 1).double().where(record.correct.isfinite(), torch.nan)
                found["exact_match"] = PerProbe(exact)
        if record.confidences is not None:
            found["confidence"] = PerProbe(record.confidences.double())
        now, before = record.predictions, None if past.last is None else past.last.predictions
        if now is not None and before is not None and before.shape == now.shape:
            found["switched"] = PerProbe((now != before).reshape(len(now), -1).any(dim=1).double())
        return found


def _errors(record: AuditRecord, context: Context) -> Iterator[tuple[str, PerProbe]]:
    if record.outputs is None or record.truth is None:
        return
    errors = (record.outputs - record.truth.reshape(len(record.truth), -1)).abs().double()
    yield "absolute_error", PerProbe(errors.mean(dim=1))
    for name, values in zip(_value_names(context, errors.shape[1]), errors.T, strict=False):
        yield f"absolute_error{name}", PerProbe(values)


def _value_names(context: Context, count: int) -> list[str]:
    """Last parts of the keys of several values."""
    return [f"/{in_key(context.task.name(index))}" for index in range(count)] if count > 1 else []
