"""`AuditRecord`: the result of one audit as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from xai_callbacks.metrics.summary import Estimate

__all__ = ["AuditRecord", "Estimate"]


@dataclass(frozen=True, eq=False)
class AuditRecord:
    """What one look at one model state found. All tensors are on the CPU and detached.

    Letters: Q questions, N probes, K classes, `h w` the explainer's grid.

    Attributes:
        step: Position on the x-axis of the run's own metrics.
        epoch: Epoch in which the audit took place, from 0.
        fingerprint: Fingerprint of the probe set; records with equal fingerprints can be compared.
        layer: Name of the layer at which the heatmaps were computed.
        layer_reason: Why that layer, in one sentence.
        questions: Keys of the questions, length Q.
        headings: The questions in words, with P for the fact and Q for the foil, length Q.
        titles: The questions in words for each probe, Q tuples of length N.
        outputs: Logits `(N, K)`, or predicted values `(N, 1)` for regression; float32.
        predictions: Predicted classes `(N,)` int64, or values `(N,)` float32.
        confidences: Largest probability `(N,)` in [0, 1]; NaN for regression.
        truth: Labels `(N,)` int64 or target values `(N,)` float32; None for unlabelled probes.
        facts: Classes asked about, `(Q, N)` int64; -1 where a question has none.
        foils: Classes held against them, `(Q, N)` int64; -1 where a question has none.
        heatmaps: Signed heatmaps `(Q, N, h, w)` float32, see `Explanation.heatmaps`.
        scores: Novelty scores by name, each `(N,)` float64; larger = more novel.
        metrics: Estimates by key such as `why/relevance_mass/core`.
        seconds: Wall time of each stage.
        notes: Sentences about what was left out or assumed.
        novel_scores: Novelty scores of the images known to be novel, by name; empty without such images.
    """

    step: int
    epoch: int
    fingerprint: str
    layer: str
    layer_reason: str
    questions: tuple[str, ...]
    headings: tuple[str, ...]
    titles: tuple[tuple[str, ...], ...]
    outputs: Tensor
    predictions: Tensor
    confidences: Tensor
    truth: Tensor | None
    facts: Tensor
    foils: Tensor
    heatmaps: Tensor
    scores: Mapping[str, Tensor]
    metrics: Mapping[str, Estimate]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    novel_scores: Mapping[str, Tensor] = field(default_factory=dict)
