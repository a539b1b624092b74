"""The numbers of a record as flat, named scalars, in one form for every logger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest

from xai_callbacks.record import AuditRecord, Estimate, Key

__all__ = ["detail_scalars", "finite", "key_metrics", "layout", "main_scalars"]


def main_scalars(record: AuditRecord, name: str = "audit") -> dict[str, float]:
    """The values of all metrics, such as `audit/gradcam/why/relevance_mass/core`; NaN where no probe was valid."""
    return {f"{name}/{key}": estimate.value for key, estimate in record.metrics.items()}


def detail_scalars(record: AuditRecord, name: str = "audit") -> dict[str, float]:
    """Ends of the 95 % intervals that charts draw, such as `audit_range/cue/patch/effect/low` and `/high`.

    Only of the key metrics, for each line is a card more on TensorBoard's page; the record has all intervals.
    """
    scalars: dict[str, float] = {}
    for key in key_metrics(record):
        low, high = record.metrics[key].low, record.metrics[key].high
        if low is not None and high is not None:
            scalars |= {f"{name}_range/{key}/low": low, f"{name}_range/{key}/high": high}
    return scalars


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and inf, which charts cannot draw."""
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def key_metrics(record: AuditRecord) -> dict[str, tuple[float, ...]]:
    """Metrics to look at first, with the thresholds they are held against.

    Those that findings are about, in the order of the findings; the accuracy where there are none.
    """
    found: dict[str, tuple[float, ...]] = {}
    for finding in record.findings:
        if finding.about in record.metrics:
            given = () if finding.threshold is None else (finding.threshold,)
            found[finding.about] = tuple(dict.fromkeys((*found.get(finding.about, ()), *given)))
    return found or ({"accuracy": ()} if "accuracy" in record.metrics else {})


def layout(record: AuditRecord, prefix: str = "", name: str = "audit") -> dict[str, dict[str, list[object]]]:
    """A layout for TensorBoard's custom scalars page: the key metrics first, then a category for each kind of metric.

    A chart draws one metric, named in words, with the interval if it is a key metric. Thresholds and the chance level
    stand in the title: lines of one run share a colour, so further lines could not be told apart.

    Args:
        record: The record. Metrics that are not finite have no chart.
        prefix: What the logger puts before every tag.
        name: Name of the audit.
    """
    first, drawn = key_metrics(record), finite(detail_scalars(record, name))
    metrics = {key: each for key, each in record.metrics.items() if math.isfinite(each.value)}
    page: dict[str, dict[str, list[object]]] = {}
    for key in dict.fromkeys([*(each for each in first if each in metrics), *metrics]):
        band = [tag for end in ("low", "high") if (tag := f"{name}_range/{key}/{end}") in drawn]
        tags = [f"{prefix}{tag}" for tag in (f"{name}/{key}", *band)]
        charts = page.setdefault(f"{name}: {'key metrics' if key in first else _category(key, record)}", {})
        title = _title(key, record.key(key), metrics[key], first.get(key, ()))
        # Two metrics may be declared in the same words.
        title = f"{title} [{key}]" if title in charts else title
        charts[title] = ["Margin" if len(tags) == 3 else "Multiline", tags]
    return page


def _category(key: str, record: AuditRecord) -> str:
    """Such as "gradcam why", "cue", or "probes" for what has no category."""
    first, *rest = key.split("/")
    if first in record.explainers and rest[0:1] and rest[0] in record.questions:
        first = f"{first} {rest[0]}"
    return first.replace("_", " ") if rest else "probes"


def _title(key: str, declared: Key | None, estimate: Estimate, thresholds: tuple[float, ...]) -> str:
    """Such as "effect of the cue: patch (threshold 0.03, chance 0)"."""
    parts = key.split("/")
    words, free = ("", parts[1:] or parts) if declared is None else (declared.words, [])
    if declared is not None:  # a declaration for many keys says what they share; which of them it is stands behind
        pattern = declared.key.split("/")
        free = [part for part, mine in zip_longest(parts, pattern, fillvalue="*") if mine == "*"]
    words = ": ".join(filter(None, [words, ", ".join(free).replace("_", " ")]))
    notes = [f"threshold {value:.3g}" for value in thresholds]
    if estimate.chance is not None and math.isfinite(estimate.chance):
        notes.append(f"chance {estimate.chance:.2g}")
    return words + (f" ({', '.join(notes)})" if notes else "")
