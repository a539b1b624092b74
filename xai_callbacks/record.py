"""`AuditRecord` and `NoveltyRecord`: the result of one audit as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from xai_callbacks.metrics.cluster_judge import Clustered
from xai_callbacks.metrics.summary import Estimate

__all__ = ["AuditRecord", "Estimate", "NoveltyRecord"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NoveltyRecord:
    """How novel the probes are to one model state. All tensors are on the CPU and detached.

    Attributes:
        step: Position on the x-axis of the run's own metrics.
        epoch: Epoch in which the audit took place, from 0.
        fingerprint: Fingerprint of the probe set; records with equal fingerprints can be compared.
        scores: Novelty scores by name, each `(N,)` float64; larger = more novel.
        novel_scores: Novelty scores of the images known to be novel, by name; empty without such images.
        metrics: Estimates by key such as `novelty/energy/auroc`.
        seconds: Wall time of each stage.
        notes: Sentences about what was left out or assumed.
        useless: Sentences about novelty scores that were left out because they failed or say nothing: which score of
            which layer, and for which probe.
    """

    step: int
    epoch: int
    fingerprint: str
    scores: Mapping[str, Tensor]
    novel_scores: Mapping[str, Tensor]
    metrics: Mapping[str, Estimate]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    useless: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditRecord(NoveltyRecord):
    """What one look at one model state found. All tensors are on the CPU and detached.

    Letters: Q questions, N probes, K classes, `h w` the explainer's grid. Metrics have keys such as
    `why/relevance_mass/core`; what else a `NoveltyRecord` holds is there.

    Attributes:
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
        novelty_maps: Where the novelty of each probe lies, see `novelty.novelty_map`; signed `(N, h, w)` float32 by
            name of the score, empty if it was not asked for.
        layer_shares: Share of each layer in the squared gradient norm, see `novelty.layer_shares`; `(N,)` float64 by
            name, empty if it was not asked for.
        per_probe: What each metric that is a mean over probes says of each, `(N,)` float64 under its key; NaN where a
            probe has no value.
        cue_regions: Region in which the probes themselves carry a cue that was tried, by name of the cue.
        failed: Sentences about trials that failed and were left out.
        clusters: Kinds of heatmaps in each class; None if they were not asked for.
        chances: Chance level of each probe, `(N,)` float64 by key, of the metrics that have one; NaN where the metric
            does not apply to a probe.
    """

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
    novelty_maps: Mapping[str, Tensor]
    layer_shares: Mapping[str, Tensor]
    per_probe: Mapping[str, Tensor]
    chances: Mapping[str, Tensor]
    clusters: Clustered | None
    cue_regions: Mapping[str, str]
    failed: tuple[str, ...]
