"""`AuditRecord` and `NoveltyRecord`: the result of one audit as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xai_callbacks.errors import AuditError
from xai_callbacks.metrics.cluster_judge import Clustered
from xai_callbacks.metrics.summary import Estimate

__all__ = ["AuditRecord", "Estimate", "MapSet", "NoveltyRecord"]


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
class MapSet:
    """The heatmaps of one explainer at one audit.

    Attributes:
        heatmaps: Signed `(Q, N, h, w)` float32, on a grid of at most 64 x 64 cells; positive cells raise the score of
            the question. `(1, N, h, w)` if they are about the image, whatever is asked.
        explainer: The explainer with its settings, such as `GradCAM()`.
        layer: Name of the layer at which they were computed; empty for the pixels.
        reason: Where they were computed and why, in one sentence.
        units: `score` if the cells of a map add up to the score of its question (logits, or nats for one that starts
            at a cross-entropy), or to a part of it; `relative` if they only tell more from less.
        about: `question`, or `image`.
        verified: Whether the maps are known to lie on the image.
    """

    heatmaps: Tensor
    explainer: str
    layer: str
    reason: str
    units: Literal["score", "relative"]
    about: Literal["question", "image"]
    verified: bool

    @property
    def kind(self) -> tuple[str, str, tuple[int, int]]:
        """What must be equal for the maps of two audits to be compared: explainer, layer and grid."""
        return self.explainer, self.layer, (self.heatmaps.shape[-2], self.heatmaps.shape[-1])


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditRecord(NoveltyRecord):
    """What one look at one model state found. All tensors are on the CPU and detached.

    Letters: Q questions, N probes, K outputs, `h w` an explainer's grid. Metrics have keys such as
    `gradcam/why/relevance_mass/core`; what else a `NoveltyRecord` holds is there.

    Attributes:
        maps: Heatmaps by name of the explainer; empty where there are none, see `notes`.
        questions: Keys of the questions, length Q.
        headings: The questions in words, with P for the fact and Q for the foil, length Q.
        titles: The questions in words for each probe, Q tuples of length N.
        outputs: Logits `(N, K)`, or predicted values `(N, V)` for regression; float32.
        predictions: What the model says, see `Task.predictions`: classes `(N,)` int64, labels `(N, K)` bool, or values
            `(N,)` or `(N, V)` float32.
        confidences: Largest probability `(N,)` in [0, 1]; NaN for regression.
        correct: Share of what the model says of each probe that is right, `(N,)` float64; NaN where that is unknown,
            and for regression.
        truth: Labels or target values, as the probes have them; None for unlabelled probes.
        facts: Outputs asked about, `(Q, N)` int64; -1 where a question has none.
        foils: Outputs held against them, `(Q, N)` int64; -1 where a question has none.
        novelty_maps: Where the novelty of each probe lies, see `novelty.novelty_map`; signed `(N, h, w)` float32 by
            name of the score, empty if it was not asked for.
        layer_shares: Share of each layer in the squared gradient norm, see `novelty.layer_shares`; `(N,)` float64 by
            name, empty if it was not asked for.
        per_probe: What each metric that is a mean over probes says of each, `(N,)` float64 under its key; NaN where a
            probe has no value.
        cue_regions: Region in which the probes themselves carry a cue that was tried, by name of the cue.
        failed: Sentences about explainers and trials that failed and were left out.
        clusters: Kinds of heatmaps in each class; None if they were not asked for.
        chances: Chance level of each probe, `(N,)` float64 by key, of the metrics that have one; NaN where the metric
            does not apply to a probe.
    """

    maps: Mapping[str, MapSet]
    questions: tuple[str, ...]
    headings: tuple[str, ...]
    titles: tuple[tuple[str, ...], ...]
    outputs: Tensor
    predictions: Tensor
    confidences: Tensor
    correct: Tensor
    truth: Tensor | None
    facts: Tensor
    foils: Tensor
    novelty_maps: Mapping[str, Tensor]
    layer_shares: Mapping[str, Tensor]
    per_probe: Mapping[str, Tensor]
    chances: Mapping[str, Tensor]
    clusters: Clustered | None
    cue_regions: Mapping[str, str]
    failed: tuple[str, ...]

    @property
    def heatmaps(self) -> Tensor:
        """Heatmaps of the first explainer, `(Q, N, h, w)`.

        Raises:
            AuditError: There are none.
        """
        return self._first.heatmaps

    @property
    def layer(self) -> str:
        """Layer of the first explainer.

        Raises:
            AuditError: There are no heatmaps.
        """
        return self._first.layer

    @property
    def layer_reason(self) -> str:
        """Why the first explainer explains there, or why there are no heatmaps."""
        return self._first.reason if self.maps else " ".join([*self.failed, *self.notes])

    @property
    def _first(self) -> MapSet:
        if not self.maps:
            told = " ".join([*self.failed, *self.notes])
            raise AuditError(f"Expected heatmaps in this record, but there are none. {told}".rstrip())
        return next(iter(self.maps.values()))
