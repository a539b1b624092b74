"""Records and vocabularies made by hand, for the tests of expectations."""

from __future__ import annotations

from dataclasses import fields

import torch

from xai_callbacks.expectations import Vocabulary, parse_expectations
from xai_callbacks.metrics import summarize
from xai_callbacks.record import AuditRecord, Estimate, MapSet

VOCABULARY = Vocabulary(
    questions=("gradcam/why", "gradcam/why_rather_than"),
    regions=("core", "spurious"),
    trials=("cue/tint", "region/core", "rfs/core", "bg", "fill"),
    novelty=("energy", "grad_norm"),
    labelled=True,
    labels=(0, 1, 2),
    class_names=("wolf", "husky", "great white"),
    num_classes=3,
    novel=True,
    group_metrics=True,
    aligned=True,
    train_counts=True,
    clusters=True,
    alarms=True,
)

MAPS = MapSet(
    heatmaps=torch.zeros(2, 64, 2, 2),
    explainer="GradCAM()",
    layer="2",
    reason="by hand",
    units="score",
    about="question",
    verified=True,
)


def estimate(value, low=None, high=None, valid=64, degenerate=0):
    return Estimate(value, low, high, None, valid, degenerate)


def made_record(metrics=None, per_probe=None, *, chances=None, truth=None, scores=None, epoch=0, step=0, probes=64):
    """A record with these metrics, and with the means of what is said of each probe."""
    per_probe, chances, scores = per_probe or {}, chances or {}, scores or {}
    means = {key: summarize(values, chance=chances.get(key)) for key, values in per_probe.items()}
    means |= {f"novelty/{name}": summarize(values) for name, values in scores.items()}
    given = {
        "step": step,
        "epoch": epoch,
        "fingerprint": "0123456789abcdef",
        "scores": scores,
        "novel_scores": {},
        "metrics": {**means, **(metrics or {})},
        "seconds": {},
        "notes": (),
        "useless": (),
        "maps": {"gradcam": MAPS},
        "questions": ("why", "why_rather_than"),
        "outputs": torch.zeros(probes, 3),
        "predictions": torch.zeros(probes, dtype=torch.int64),
        "confidences": torch.full((probes,), 1 / 3),
        "truth": truth,
        "per_probe": per_probe,
        "chances": chances,
    }
    # What no expectation reads: titles, clusters and so on.
    return AuditRecord(**dict.fromkeys((field.name for field in fields(AuditRecord)), None) | given)


def parsed(*sentences, vocabulary=VOCABULARY):
    return parse_expectations(sentences, vocabulary)
