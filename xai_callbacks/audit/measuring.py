"""`Measuring`: several measures of one audit, none at the price of another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.audit.checks import require_instances
from xai_callbacks.errors import ConfigurationError, blaming, in_words
from xai_callbacks.history import History
from xai_callbacks.measures import ALWAYS, Context, Localization, Measure
from xai_callbacks.record import AuditRecord, Estimate, Key, Measured, PerProbe, summarize


class Measuring:
    """The measures of an auditor: those that are always taken, and those given; None for the defaults."""

    def __init__(self, measures: Sequence[Measure] | None) -> None:
        given = [Localization()] if measures is None else measures
        require_instances("measures", given, Measure, "Pass measures such as [Localization(), Baselines()].")
        self.measures: tuple[Measure, ...] = (*ALWAYS, *given)

    def keys(self, context: Context) -> tuple[Key, ...]:
        """What all measures declare; a `ConfigurationError` if one does not suit the audit, or fails."""
        declared: list[Key] = []
        for measure in self.measures:
            with blaming(f"the measure {measure!r}", "declare its keys", "measures"):
                keys: object = measure.keys(context)
            if not isinstance(keys, list | tuple) or not all(isinstance(key, Key) for key in keys):
                raise ConfigurationError(
                    f"Expected the measure {measure!r} to declare its keys as a list of Key, but got {keys!r}."
                )
            declared += keys
        return tuple(declared)

    def measure(
        self, record: AuditRecord, tried: Measured, tried_keys: Sequence[Key], past: History, context: Context
    ) -> AuditRecord:
        """The record with what trials found and all measures; what fails costs itself alone."""
        record = _with(record, tried, tried_keys)
        for measure in self.measures:
            try:
                found = measure.measure(record, past, context)
                require_measured(f"the measure {measure!r}", found, len(context.probes))
                twice = found.keys() & (record.metrics.keys() | record.per_probe.keys())
                if twice:
                    raise ConfigurationError(f"Expected keys of its own, but {min(twice)!r} is measured already.")
                record = _with(record, found, measure.keys(context))
            except Exception as error:  # told; the rest of the audit must not be lost for it
                sentence = f"The measure {measure!r} failed and was left out. {in_words(error)}"
                record = replace(record, failed=(*record.failed, sentence))
        notes = tuple(dict.fromkeys((*record.notes, *context.notes)))
        return replace(record, notes=notes, trust=dict(context.trust), grams=dict(context.grams))


def require_measured(what: str, found: object, probes: int) -> None:
    """Raise a `ConfigurationError` unless results are `Measured`, of plain numbers or of one for each probe."""
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"Expected {what} to return results by key, but got {type(found).__name__}.")
    for key, values in found.items():
        if not isinstance(key, str):
            raise ConfigurationError(f"Expected {what} to judge by keys that are texts, but got {key!r}.")
        vectors = [part for part in values if isinstance(part, Tensor)] if isinstance(values, PerProbe) else []
        plain = isinstance(values, Estimate) and all(part is None or isinstance(part, int | float) for part in values)
        if plain or (vectors and all(part.shape == (probes,) for part in vectors)):
            continue
        shapes = [tuple(part.shape) for part in vectors] or type(values).__name__
        got = values if isinstance(values, Estimate) else shapes
        raise ConfigurationError(
            f"Expected {what} to judge {key!r} by an Estimate, or a PerProbe of ({probes},), but got {got}."
        )


def summarized(found: Measured, declared: Sequence[Key]) -> dict[str, Estimate]:
    """Estimates by key: means over probes, with intervals within the bounds that are declared; none of labels."""
    estimates = {}
    for key, values in found.items():
        known = next((each for each in declared if each.matches(key)), Key(key, ""))
        if isinstance(values, Estimate):
            estimates[key] = values
        elif known.unit != "label":  # whose mean says nothing
            bounds = (known.low, known.high)
            estimates[key] = summarize(values.values, chance=values.chance, strata=values.strata, bounds=bounds)
    return estimates


def _with(record: AuditRecord, found: Measured, declared: Sequence[Key]) -> AuditRecord:
    """The record with some results more, and the declarations of their keys."""
    of_probes = {key: values for key, values in found.items() if isinstance(values, PerProbe)}
    chances = {key: _plain(each.chance) for key, each in of_probes.items() if each.chance is not None}
    strata = {key: each.strata.detach().cpu() for key, each in of_probes.items() if each.strata is not None}
    used = tuple(each for each in declared if any(each.matches(key) for key in found))
    return replace(
        record,
        metrics={**record.metrics, **summarized(found, declared)},
        per_probe={**record.per_probe, **{key: _plain(each.values) for key, each in of_probes.items()}},
        chances={**record.chances, **chances},
        strata={**record.strata, **strata},
        keys=tuple(dict.fromkeys((*record.keys, *used))),
    )


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)
