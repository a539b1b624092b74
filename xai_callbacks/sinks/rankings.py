"""Novelty scores as pictures and histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, NoveltyRecord
from xai_callbacks.render import Ranked, render_ranking
from xai_callbacks.sinks.pictures import caption, truth
from xai_callbacks.sinks.trend import Trend

__all__ = ["most_novel", "write_histograms"]

SHOWN = 8


def most_novel(probes: ProbeSet, record: NoveltyRecord, name: str, trend: Trend) -> np.ndarray:
    """The probes that one score finds most novel, most novel first, with their past; `(H, W, 3)` uint8.

    Args:
        probes: The probe set.
        record: The audit.
        name: Name of the score.
        trend: Past audits with this one.
    """
    scores = record.scores[name]
    order = scores.argsort(descending=True, stable=True)[:SHOWN].tolist()
    rows = [
        Ranked(probes.pixels[index].numpy(), _words(probes, record, index), f"{float(scores[index]):.4g}", past)
        for index in order
        for past in [trend.of(name, index)]
    ]
    picture: np.ndarray = render_ranking(
        rows,
        title=f"Most novel by {name} | step {record.step}",
        subtitle=f"{len(rows)} of {len(scores)} probes",
        steps=trend.steps,
    )
    return picture


def write_histograms(writer: Any, name: str, groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Write `<name>_novelty/<score>/<group>` for each group of images and score, to a `SummaryWriter` or its like.

    Args:
        writer: Has `add_histogram`.
        name: What all tags begin with.
        groups: Scores `(N,)` by group and score; empty ones are left out.
        step: Step of the audit.
    """
    for group, scores in groups.items():
        for score, values in scores.items():
            if len(values):
                writer.add_histogram(f"{name}_novelty/{score}/{group}", values.numpy(), step)


def _words(probes: ProbeSet, record: NoveltyRecord, index: int) -> str:
    answer = f"predicted: {caption(probes, record, index)}" if isinstance(record, AuditRecord) else ""
    return "\n".join(part for part in (probes.names[index], truth(probes, index), answer) if part)
