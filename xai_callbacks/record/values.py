"""The parts of a record: estimates, keys, heatmaps, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["Estimate", "Finding", "Key", "MapSet", "Onset", "PerProbe"]


class Estimate(NamedTuple):
    """One number for many probes, with its uncertainty and its chance level.

    The interval covers the choice of probes only: another training run with another seed may lie outside.

    Attributes:
        value: Mean over the valid probes; NaN if there is none.
        low: Lower end of the 95 % interval; None where there is none, as with fewer than 30 valid probes.
        high: Upper end; None likewise.
        chance: Mean chance level over the same probes; None for a metric that has none, NaN if no probe is valid.
        valid: Number of probes (or images) that have a value.
        degenerate: Number of probes that should have a value and have none: their map was empty or not finite.
    """

    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    valid: int = 1
    degenerate: int = 0


class PerProbe(NamedTuple):
    """One number for each probe.

    Attributes:
        values: `(N,)` float64; NaN where there is no value.
        chance: Chance level of each, `(N,)` float64, NaN where the metric does not apply; None for a metric without.
    """

    values: Tensor
    chance: Tensor | None = None


class Key(NamedTuple):
    """Declaration of one metric: the one place from which expectations, charts and tables know it.

    Attributes:
        key: As it is logged, without the name of the audit, such as `cue/patch/effect`. A part `*` stands for any text.
        words: Meaning in a few words, for charts and tables.
        low: Smallest possible value; None for no bound.
        high: Largest possible value; None for no bound.
        chance: Value that means nothing, in words or as a number, such as "area" or "1 / K"; empty for none.
        unit: `share` where each probe says yes or no and the value is the share of yes; else what the number counts,
            such as "logits" or "seconds"; empty for a plain number; `label` where it names something of each probe,
            whose mean says nothing and is not logged.
        of: What the number is estimated from: `probes`, `images` of the validation set, or `nothing`, as for a state.
    """

    key: str
    words: str
    low: float | None = None
    high: float | None = None
    chance: str = ""
    unit: str = ""
    of: Literal["probes", "images", "nothing"] = "probes"

    def matches(self, key: str) -> bool:
        """Whether this declares `key`; a part `*` matches the rest of the key if it is the last, else one part."""
        mine, given = self.key.split("/"), key.split("/")
        if mine[-1] == "*" and len(given) >= len(mine):
            mine, given = mine[:-1], given[: len(mine) - 1]
        return len(mine) == len(given) and all(a in ("*", b) for a, b in zip(mine, given, strict=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class MapSet:
    """Heatmaps of one explainer at one audit.

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
        peaks: Largest magnitude of a cell in this run so far, one a question, by which empty maps are told.
        stamps: Trust tests of single maps by name, `(Q, N)` float64 each; empty where none was made.
    """

    heatmaps: Tensor
    explainer: str
    layer: str = ""
    reason: str = ""
    units: Literal["score", "relative"] = "score"
    about: Literal["question", "image"] = "question"
    verified: bool = True
    peaks: tuple[float, ...] = ()
    stamps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, tuple[int, ...]]:
        """What must be equal for the maps of two audits to be compared: explainer, layer and shape."""
        return self.explainer, self.layer, tuple(self.heatmaps.shape)


@dataclass(frozen=True)
class Onset:
    """When a cue came into use.

    Attributes:
        epoch: Epoch of the first audit, of those without interruption above the threshold, whose estimate exceeds it.
        earliest: First epoch since which the interval reached above the threshold.
        latest: First epoch since which the interval lay above it.
        last_clean: Epoch of the last audit before, if there was one.
        untrained: Whether that one looked at the model before training.
        checkpoint: Path of a checkpoint of that audit's weights; None if none is known.
    """

    epoch: int
    earliest: int
    latest: int
    last_clean: int | None
    untrained: bool
    checkpoint: str | None

    def __str__(self) -> str:
        span = "" if self.earliest == self.latest else f" ({self.earliest}–{self.latest})"
        if self.last_clean is None:
            return f"from epoch {self.epoch}{span}; no audit before was clean"
        where = f", checkpoint {self.checkpoint}" if self.checkpoint else ""
        clean = "before training" if self.untrained else f"epoch {self.last_clean}"
        return f"from epoch {self.epoch}{span}; last clean audit: {clean}{where}"


@dataclass(frozen=True)
class Finding:
    """A conclusion of a rule about one thing at one audit.

    Attributes:
        key: What it is about, such as `alarm/cue/patch`; its value is logged under this key.
        state: In one or two words, such as "no evidence", "watch", "alarm"; "pass", "fail", "not enough evidence".
        value: The state as a number, larger = more alarming; NaN where nothing was tested, None to log none.
        sentence: All of it in words.
        about: Key of the metric it is about; empty for none.
        threshold: What that metric is held against; None for nothing.
        estimate: Value of that metric; None if this audit has none.
        onset: When it began; None where that is not known.
        loud: Whether it is to be said to the user when its value is higher than ever before in the run.
        stop: Whether training should end.
    """

    key: str
    state: str
    value: float | None
    sentence: str
    about: str = ""
    threshold: float | None = None
    estimate: Estimate | None = None
    onset: Onset | None = None
    loud: bool = False
    stop: bool = False
