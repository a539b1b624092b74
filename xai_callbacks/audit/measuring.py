"""`Measuring`: several measures of one audit, none at the price of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xai_callbacks.audit.checks import require_instances
from xai_callbacks.errors import ConfigurationError, in_words
from xai_callbacks.history import History
from xai_callbacks.measures import ALWAYS, Context, Measure, Measured, default_measures
from xai_callbacks.metrics.summary import summarize
from xai_callbacks.record import AuditRecord, Estimate, Key, PerProbe

__all__ = ["Measuring", "require_measured"]


class Measuring:
    """The measures of an auditor.

    Args:
        measures: Measures beside those that are always taken; None for the defaults.

    Attributes:
        measures: All of them.

    Raises:
        ConfigurationError: Something is no measure.
    """

    def __init__(self, measures: Sequence[Measure] | None) -> None:
        given = default_measures() if measures is None else measures
        require_instances("measures", given, Measure, "Pass measures such as [Localization(), Baselines()].")
        self.measures: tuple[Measure, ...] = (*ALWAYS, *given)

    def keys(self, context: Context) -> tuple[Key, ...]:
        """What all measures declare.

        Raises:
            ConfigurationError: A measure does not suit the probes, the questions or the explainers, or fails.
        """
        declared: list[Key] = []
        for measure in self.measures:
            try:
                declared += _checked(measure, measure.keys(context))
            except ConfigurationError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"Expected the measure {measure!r} to declare its keys, but it raised {in_words(error)} Mend it, "
                    "or leave it out of `measures`."
                ) from error
        return tuple(declared)

    def measure(
        self, record: AuditRecord, tried: Measured, tried_keys: Sequence[Key], past: History, context: Context
    ) -> AuditRecord:
        """The record with what trials found and all measures; what fails costs itself alone.

        Args:
            record: The audit so far.
            tried: What trials found.
            tried_keys: Declarations of these.
            past: Earlier audits of the same probes.
            context: What measures may know; its notes go into the record.
        """
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
        return replace(record, notes=tuple(dict.fromkeys((*record.notes, *context.notes))))


def require_measured(what: str, found: object, probes: int) -> None:
    """Refuse results that are no `Measured`.

    Args:
        what: What gave them, in words.
        found: The results.
        probes: Number of probes.

    Raises:
        ConfigurationError: A key is no text, or a value neither an Estimate of plain numbers nor a PerProbe of as many
            as there are probes.
    """
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


def _checked(measure: Measure, keys: object) -> Sequence[Key]:
    """Keys, if that is what a measure declares."""
    fits = isinstance(keys, Sequence) and all(isinstance(key, Key) for key in keys)
    if not fits:
        raise ConfigurationError(
            f"Expected the measure {measure!r} to declare its keys as a list of Key, but got {keys!r}."
        )
    return keys  # type: ignore[return-value]  # `fits` says so


def _with(record: AuditRecord, found: Measured, declared: Sequence[Key]) -> AuditRecord:
    """The record with some results more, and the declarations of their keys."""
    of_probes = {key: values for key, values in found.items() if isinstance(values, PerProbe)}
    # The mean of labels says nothing.
    labels = {key for key in of_probes if any(each.unit == "label" and each.matches(key) for each in declared)}
    estimates = {
        key: summarize(values.values, chance=values.chance) if isinstance(values, PerProbe) else values
        for key, values in found.items()
        if key not in labels
    }
    chances = {key: _plain(each.chance) for key, each in of_probes.items() if each.chance is not None}
    used = tuple(each for each in declared if any(each.matches(key) for key in found))
    return replace(
        record,
        metrics={**record.metrics, **estimates},
        per_probe={**record.per_probe, **{key: _plain(each.values) for key, each in of_probes.items()}},
        chances={**record.chances, **chances},
        keys=tuple(dict.fromkeys((*record.keys, *used))),
    )


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)
