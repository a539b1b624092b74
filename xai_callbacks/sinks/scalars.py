"""The numbers of a record as flat, named scalars, in one form for every logger."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from xai_callbacks.record import Estimate, NoveltyRecord

__all__ = ["detail_scalars", "finite", "layout", "main_scalars"]


def main_scalars(record: NoveltyRecord, name: str = "audit") -> dict[str, float]:
    """The values of all metrics, such as `audit/gradcam/why/relevance_mass/core`; NaN where no probe was valid."""
    return {f"{name}/{key}": estimate.value for key, estimate in record.metrics.items()}


def detail_scalars(record: NoveltyRecord, name: str = "audit") -> dict[str, float]:
    """What a value must be read beside, such as `audit_detail/gradcam/why/relevance_mass/core/chance`.

    `chance` is the value of a map that knows nothing; `low` and `high` bound the 95 % bootstrap interval over probes,
    from 30 valid probes on; `degenerate` counts probes left out because their map is empty or not finite. `seconds` is
    the time the audit took.
    """
    scalars = {}
    for key, estimate in record.metrics.items():
        parts = {"chance": estimate.chance, "low": estimate.low, "high": estimate.high}
        scalars.update({f"{name}_detail/{key}/{part}": value for part, value in parts.items() if value is not None})
        if estimate.degenerate:
            scalars[f"{name}_detail/{key}/degenerate"] = float(estimate.degenerate)
    scalars[f"{name}_detail/seconds"] = sum(record.seconds.values())
    return scalars


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and inf, which charts cannot draw."""
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def layout(
    metrics: Mapping[str, Estimate], prefix: str = "", name: str = "audit", *, explainers: Collection[str] = ()
) -> dict[str, dict[str, list[object]]]:
    """A layout for TensorBoard's custom scalars page: one category an explainer and question, one chart a metric.

    A chart draws the value with its interval where there is one, and names the chance level in its title: lines of one
    run share a colour, so a second line for it could not be told apart.

    Args:
        metrics: The metrics of a record.
        prefix: What the logger puts before every tag.
        name: Name of the audit.
        explainers: Names of explainers that answer questions, with which keys of their heatmaps begin.
    """
    categories: dict[str, dict[str, list[object]]] = {}
    for key, estimate in metrics.items():
        tags = [f"{prefix}{name}/{key}"]
        if estimate.low is not None:
            tags += [f"{prefix}{name}_detail/{key}/{part}" for part in ("low", "high")]
        category, title = _place(key, estimate, name, explainers)
        categories.setdefault(category, {})[title] = ["Multiline" if len(tags) == 1 else "Margin", tags]
    return categories


def _place(key: str, estimate: Estimate, name: str, explainers: Collection[str]) -> tuple[str, str]:
    """Category and title of a chart, such as "audit: gradcam why" and "relevance mass, core (chance 0.31)"."""
    first, *rest = key.split("/")
    if first in explainers and len(rest) > 1:
        first, rest = f"{first} {rest[0]}", rest[1:]
    first, rest = first.replace("_", " "), [part.replace("_", " ") for part in rest]
    chance = estimate.chance is not None and math.isfinite(estimate.chance)
    title = (", ".join(rest) or first) + (f" (chance {estimate.chance:.2g})" if chance else "")
    return f"{name}: {first if rest else 'probes'}", title
