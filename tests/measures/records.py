"""Records built by hand, a model that answers as told, and what every measure must keep to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tests.tiny import tiny_probes
from xai_callbacks.history import History
from xai_callbacks.measures import Context, Measure, Measured
from xai_callbacks.metrics import summarize
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, MapSet, PerProbe


def random_maps(questions: int = 2, count: int = 6, grid: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(questions, count, grid, grid, generator=torch.Generator().manual_seed(seed))


def map_set(heatmaps: Tensor | None = None, **fields) -> MapSet:
    heatmaps = random_maps() if heatmaps is None else heatmaps
    peaks = tuple(heatmaps.flatten(1).abs().amax(dim=1).tolist())
    return MapSet(**{"heatmaps": heatmaps, "explainer": "GradCAM()", "layer": "layer4", "peaks": peaks, **fields})


def audit(probes: ProbeSet | None = None, maps: Mapping[str, MapSet] | None = None, **fields) -> AuditRecord:
    """One audit of two questions; answers are random logits of three classes."""
    probes = tiny_probes() if probes is None else probes
    outputs = fields.pop("outputs", torch.randn(len(probes), 3, generator=torch.Generator().manual_seed(1)))
    task, given = probes.task, {}
    if outputs is not None:
        unknown = torch.full((len(outputs),), math.nan, dtype=torch.float64)
        given = {
            "predictions": task.predictions(outputs),
            "confidences": task.confidences(outputs),
            "correct": unknown if probes.truth is None else task.correct(outputs, probes.truth),
        }
    return AuditRecord(**{
        "outputs": outputs, "truth": probes.truth, "fingerprint": probes.fingerprint, "names": probes.names,
        "questions": ("why", "why_label"), "asked": ("Why('predicted')", "Why('label')"),
        "maps": {} if maps is None else maps, **given, **fields,
    })  # fmt: skip


def context(probes: ProbeSet | None = None, **fields) -> Context:
    probes = tiny_probes() if probes is None else probes
    asked = ("gradcam/why", "gradcam/why_label")
    return Context(**{"probes": probes, "task": probes.task, "asked": asked, "maps": asked, "chunk_size": 4, **fields})


def past(*records: AuditRecord) -> History:
    history = History()
    for step, record in enumerate(records):
        history.append(replace(record, step=step))
    return history


def with_metrics(record: AuditRecord, found: Measured) -> AuditRecord:
    """The record with what a measure found, as the auditor puts it there."""
    of_probes = {key: each for key, each in found.items() if isinstance(each, PerProbe)}
    estimates = {
        key: summarize(each.values, chance=each.chance) if isinstance(each, PerProbe) else each
        for key, each in found.items()
    }
    return replace(record, metrics=estimates, per_probe={key: each.values for key, each in of_probes.items()})


def measured(measure: Measure, record: AuditRecord, history: History | None = None, around: Context | None = None):
    """What a measure finds; every key must be declared once, and every value lie within its bounds."""
    around = context() if around is None else around
    declared = measure.keys(replace(around, model=None))
    assert len({key.key for key in declared}) == len(declared)
    assert all(key.words for key in declared)
    found = measure.measure(record, past() if history is None else history, around)
    for name, value in found.items():
        (key,) = [each for each in declared if each.matches(name)]
        numbers = value.values if isinstance(value, PerProbe) else torch.tensor([value.value], dtype=torch.float64)
        if isinstance(value, PerProbe):
            assert value.values.shape == (len(around.probes),)
            assert value.values.dtype == torch.float64
        assert bool((numbers.isnan() | (numbers >= (-math.inf if key.low is None else key.low))).all()), name
        assert bool((numbers.isnan() | (numbers <= (math.inf if key.high is None else key.high))).all()), name
        assert bool(key.chance) or value.chance is None, name
    return found


class Model:
    """Gives the scores of as many calls, one after another, and maps of random copies."""

    def __init__(self, *scores: Mapping[str, Tensor], copies: Mapping[str, Tensor] | None = None) -> None:
        self.answers, self.copies = list(scores), copies
        self.seen: list[Tensor] = []
        self.seeds: list[int] = []

    def scores(self, images: Tensor) -> Mapping[str, Tensor]:
        self.seen.append(images)
        return self.answers[len(self.seen) - 1]

    def randomised(self, seed: int) -> Mapping[str, Tensor]:
        self.seeds.append(seed)
        if self.copies is None:
            raise RuntimeError("no copy\nof this model")
        return {name: maps * (seed + 1) + seed for name, maps in self.copies.items()}
