"""What every audit measures: the answers, how far heatmaps drifted, and the novelty scores."""

from collections.abc import Sequence

import torch

from xai_callbacks.history import History
from xai_callbacks.measures.base import Context, Measure, keys_of_maps
from xai_callbacks.metrics.novelty import rank_correlation
from xai_callbacks.metrics.nulls import explanation_drift
from xai_callbacks.record import AuditRecord, Estimate, Key, Measured, PerProbe, summarize
from xai_callbacks.tasks import in_key


class Answers(Measure):
    """Judges how right, how sure and how steady the answers of the model are.

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
            names = [] if truth is None else _error_keys(context, truth.reshape(len(truth), -1).shape[1])
            return [Key(name, f"mean absolute error {name.partition('/')[2]}".rstrip(), 0.0) for name in names]
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
        found: dict[str, PerProbe] = {}
        if record.outputs is None:
            return found
        if not context.task.classifies:
            if record.truth is not None:
                errors = (record.outputs - record.truth.reshape(len(record.truth), -1)).abs().double()
                columns = [errors.mean(dim=1), *errors.T]
                names = _error_keys(context, errors.shape[1])
                found = {name: PerProbe(values) for name, values in zip(names, columns, strict=False)}
            return found
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


def _error_keys(context: Context, count: int) -> list[str]:
    names = [in_key(context.task.name(index)) for index in range(count)] if count > 1 else []
    return ["absolute_error", *(f"absolute_error/{name}" for name in names)]


class Drift(Measure):
    """Compares heatmaps with those of the latest audit at which the same explainer answered.

    `<map>/drift` is their cosine distance, in [0, 2]; none if explainer, layer, shape, probes or question differ.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """One for all heatmaps of a question."""
        words = "cosine distance of heatmaps to those of the previous audit"
        return [Key(f"{name}/drift", words, 0.0, 2.0) for name in context.maps]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge what can be compared."""
        found = {}
        for name, given in record.maps.items():
            earlier = past.latest_with(name)
            if earlier is None or earlier.fingerprint != record.fingerprint or earlier.maps[name].kind != given.kind:
                continue
            before = dict(zip(_asked(earlier, name), earlier.maps[name].heatmaps, strict=True))
            for asked, key, maps in zip(_asked(record, name), keys_of_maps(record, name), given.heatmaps, strict=True):
                if asked in before:
                    found[f"{key}/drift"] = PerProbe(explanation_drift(before[asked], maps))
        return found


def _asked(record: AuditRecord, explainer: str) -> list[tuple[str, ...]]:
    """What each row of heatmaps is about: a question with its settings, or the images."""
    about_image = record.maps[explainer].about == "image"
    return [()] if about_image else list(zip(record.questions, record.asked, strict=True))


class Scores(Measure):
    """Judges the novelty scores of the probes.

    `novelty/<score>` is their mean; `novelty/<score>/rank_correlation` in [-1, 1], chance 0, says whether the same
    probes are novel as at the previous audit.
    """

    def keys(self, context: Context) -> Sequence[Key]:
        """Two for each score."""
        words = "rank correlation of {} with the previous audit"
        means = [Key(f"novelty/{name}", f"mean {name} of the probes") for name in context.novelty]
        names = [(f"novelty/{name}/rank_correlation", words.format(name)) for name in context.novelty]
        return [*means, *(Key(key, about, -1.0, 1.0, "0") for key, about in names)]

    def measure(self, record: AuditRecord, past: History, context: Context) -> Measured:
        """Judge all scores of the record."""
        found: dict[str, Estimate] = {}
        before = {} if past.last is None else past.last.scores
        for name, values in record.scores.items():
            found[f"novelty/{name}"] = summarize(values)
            if name in before:
                value = rank_correlation(before[name], values)
                found[f"novelty/{name}/rank_correlation"] = Estimate(value, chance=0.0, valid=len(values))
        return found
