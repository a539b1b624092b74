"""The numbers of a record as flat, named scalars, in one form for every logger."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xai_callbacks.record import AuditRecord

__all__ = ["detail_scalars", "finite", "key_charts", "key_metrics", "main_scalars"]


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


def key_charts(record: AuditRecord, prefix: str = "", name: str = "audit") -> dict[str, tuple[str, list[object]]]:
    """Title and chart of each key metric for TensorBoard's custom scalars page, with its interval if there is one.

    Thresholds and the chance level stand in the title: lines of one run share a colour, so further lines could not be
    told apart. A metric that is not finite has no chart. `prefix` is what the logger puts before every tag.
    """
    drawn, found = finite(detail_scalars(record, name)), dict[str, tuple[str, list[object]]]()
    for key, thresholds in key_metrics(record).items():
        estimate = record.metrics[key]
        if math.isfinite(estimate.value):
            notes = [f"threshold {value:.3g}" for value in thresholds]
            if estimate.chance is not None and math.isfinite(estimate.chance):
                notes.append(f"chance {estimate.chance:.2g}")
            ends = [tag for end in ("low", "high") if (tag := f"{name}_range/{key}/{end}") in drawn]
            tags = [f"{prefix}{tag}" for tag in (f"{name}/{key}", *ends)]
            title = f"{key} ({', '.join(notes)})" if notes else key
            found[key] = title, ["Margin" if len(ends) == 2 else "Multiline", tags]
    return found
