"""Evidence of shortcuts as pictures: looked at and used, and kinds of heatmaps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord
from xai_callbacks.render import ColorScale
from xai_callbacks.render.clusters import ClusterExample, ClusterRow, render_clusters
from xai_callbacks.render.quadrants import Placed, render_quadrants
from xai_callbacks.sinks.pictures import density

__all__ = ["cluster_pictures", "quadrant_pictures"]

# Classes drawn: those with more than one kind of heatmap first.
_CLASSES = 6
# Effect above which a cue is drawn as used where no rule says so.
_USED = 0.03


def quadrant_pictures(probes: ProbeSet, record: AuditRecord) -> Iterator[tuple[str, np.ndarray]]:
    """For each cue that the probes carry in a region: where each probe lies between looked at and used.

    Args:
        probes: The probe set.
        record: The audit.

    Yields:
        The cue and its picture `(H, W, 3)` uint8.
    """
    rule = record.metrics.get("alarm/threshold")
    for cue, region in record.cue_regions.items():
        name = next((name for name, maps in record.maps.items() if maps.about == "question"), "")
        key = f"{name}/{record.questions[0]}/relevance_mass/{region}"
        used, looked = record.per_probe.get(f"cue/{cue}/effect"), record.per_probe.get(key)
        if used is None or looked is None:
            continue
        known = (used.isfinite() & looked.isfinite()).nonzero()[:, 0].tolist()
        if known:
            picture = render_quadrants(
                [Placed(probes.pixels[row].numpy(), min(float(looked[row]), 1.0), float(used[row])) for row in known],
                chance=float(record.chances[key][known].mean()),
                threshold=_USED if rule is None else rule.value,
                title=f"Cue {cue!r}: looked at, and used | step {record.step}",
                subtitle=f"{len(known)} of {len(probes)} probes | only what is used raises an alarm",
            )
            yield cue, picture


def cluster_pictures(probes: ProbeSet, record: AuditRecord, scale: ColorScale) -> Iterator[tuple[str, np.ndarray]]:
    """For some classes: their kinds of heatmaps.

    Args:
        probes: The probe set.
        record: The audit.
        scale: Colour scale of the heatmaps.

    Yields:
        Name of the class and its picture `(H, W, 3)` uint8.
    """
    if record.clusters is None:
        return
    shown = sorted(record.clusters.classes, key=lambda kind: (-len(kind.clusters), kind.label))[:_CLASSES]
    clustered = next(maps for maps in record.maps.values() if maps.about == "question")
    maps = density(clustered.heatmaps[record.clusters.question])
    for kind in shown:
        name = probes.class_name(kind.label)
        rows = [
            ClusterRow(
                cluster.number,
                name,
                len(cluster.members),
                ClusterExample(_mean_pixels(probes, cluster.members), maps[cluster.members.numpy()].mean(axis=0)),
                [_example(probes, record, maps, row) for row in cluster.examples.tolist()],
                cluster.accuracy.value,
                _interval(cluster.accuracy.low, cluster.accuracy.high),
                cluster.p,
                {region: (share.mass, share.lift) for region, share in cluster.regions.items()},
            )
            for cluster in kind.clusters
        ]
        if rows:
            picture = render_clusters(
                rows,
                title=f"Kinds of heatmaps in class {name} | step {record.step}",
                subtitle=f"{sum(row.size for row in rows)} probes | examples: closest to the mean",
                scale=scale,
            )
            yield name, picture


def _example(probes: ProbeSet, record: AuditRecord, maps: np.ndarray, row: int) -> ClusterExample:
    answer = int(record.predictions[row])
    wrong = record.truth is not None and answer != int(record.truth[row])
    return ClusterExample(probes.pixels[row].numpy(), maps[row], f"says {probes.class_name(answer)}", wrong)


def _mean_pixels(probes: ProbeSet, members: Tensor) -> np.ndarray:
    mean: np.ndarray = probes.pixels[members].double().mean(dim=0).round().to(torch.uint8).numpy()
    return mean


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None or math.isnan(low) else (low, high)
