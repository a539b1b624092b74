"""When two records say the same, and several audits as of one run."""

from __future__ import annotations

import math

import pytest
import torch

from xai_callbacks import History


def numbers(estimate):
    return [math.nan if part is None else part for part in estimate]


def same_records(first, second, tolerance=1e-6):
    """Tensors and metrics alike, whatever the times were."""
    for name in ("outputs", "predictions", "confidences", "correct", "facts", "foils"):
        close(getattr(first, name), getattr(second, name), tolerance)
    assert list(first.maps) == list(second.maps)
    for name, maps in first.maps.items():
        close(maps.heatmaps, second.maps[name].heatmaps, tolerance)
        assert maps.kind == second.maps[name].kind
    for name, scores in first.scores.items():
        close(scores, second.scores[name], tolerance)
    assert first.titles == second.titles
    assert first.metrics.keys() == second.metrics.keys()
    for key, estimate in first.metrics.items():
        expected = pytest.approx(numbers(second.metrics[key]), rel=1e-4, abs=1e-6, nan_ok=True)
        assert numbers(estimate) == expected, key


def close(first, second, tolerance):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)


def run_of(auditor, *models, past=None):
    """The history of a run with one audit of each model; it goes on from `past`."""
    history = History() if past is None else past
    for model in models:
        history.append(auditor.audit(model, step=len(history), past=history))
    return history
