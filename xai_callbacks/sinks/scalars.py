"""The numbers of a record as flat, named scalars, in one form for every logger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from xai_callbacks.record import AuditRecord, Estimate

__all__ = ["DETAIL", "MAIN", "detail_scalars", "finite", "layout", "main_scalars"]

MAIN = "audit"
DETAIL = "audit_detail"


def main_scalars(record: AuditRecord) -> dict[str, float]:
    """The values of all metrics, such as `audit/why/relevance_mass/core`; NaN where no probe was valid."""
    return {f"{MAIN}/{key}": estimate.value for key, estimate in record.metrics.items()}


def detail_scalars(record: AuditRecord) -> dict[str, float]:
    """What a value must be read beside, such as `audit_detail/why/relevance_mass/core/chance`.

    `chance` is the value of a map that knows nothing; `low` and `high` bound the 95 % bootstrap interval over probes,
    from 30 valid probes on; `degenerate` counts probes left out because their map is empty or not finite. `seconds` is
    the time the audit took.
    """
    scalars = {}
    for key, estimate in record.metrics.items():
        parts = {"chance": estimate.chance, "low": estimate.low, "high": estimate.high}
        scalars.update({f"{DETAIL}/{key}/{part}": value for part, value in parts.items() if value is not None})
        if estimate.degenerate:
            scalars[f"{DETAIL}/{key}/degenerate"] = float(estimate.degenerate)
    scalars[f"{DETAIL}/seconds"] = sum(record.seconds.values())
    return scalars


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and inf, which charts cannot draw."""
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def layout(metrics: Mapping[str, Estimate], prefix: str = "") -> dict[str, dict[str, list[object]]]:
    """A layout for TensorBoard's custom scalars page: one category a question, one chart a metric.

    Charts of a metric in several regions draw the regions together with their chance levels; a metric with an interval
    and no region is drawn with its margin.

    Args:
        metrics: The metrics of a record.
        prefix: What the logger puts before every tag.
    """
    categories: dict[str, dict[str, list[object]]] = {}
    for group, name, keys in _charts(metrics):
        tags = [f"{prefix}{MAIN}/{key}" for key in keys]
        if len(keys) == 1 and metrics[keys[0]].low is not None:
            details = [f"{prefix}{DETAIL}/{keys[0]}/{part}" for part in ("low", "high")]
            chart: list[object] = ["Margin", [tags[0], *details]]
        else:
            chances = [f"{prefix}{DETAIL}/{key}/chance" for key in keys if metrics[key].chance is not None]
            chart = ["Multiline", [*tags, *chances]]
        categories.setdefault(group, {})[name] = chart
    return categories


def _charts(metrics: Iterable[str]) -> list[tuple[str, str, list[str]]]:
    """Category, chart name and keys; metrics of several regions share a chart."""
    charts: dict[tuple[str, str], list[str]] = {}
    for key in metrics:
        parts = key.split("/")
        group = "audit: probes" if len(parts) == 1 else f"audit: {parts[0].replace('_', ' ')}"
        charts.setdefault((group, parts[min(1, len(parts) - 1)].replace("_", " ")), []).append(key)
    return [(group, name, keys) for (group, name), keys in charts.items()]
