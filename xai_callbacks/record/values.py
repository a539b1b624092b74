"""The parts of a record: estimates, keys, heatmaps, findings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """One number for many probes, with its uncertainty and its chance level.

    The interval covers the choice of probes only: another training run with another seed may lie outside.
    """

    value: float  # mean over the valid probes; NaN if there is none
    low: float | None = None  # ends of the 95 % interval; None where there is none, as with fewer than 30 valid probes
    high: float | None = None
    chance: float | None = None  # mean chance level over the same probes; None for a metric that has none
    valid: int = 1  # probes (or images) that have a value
    degenerate: int = 0  # those that should have a value and have none: their map was empty or not finite


class PerProbe(NamedTuple):
    """One number for each probe."""

    values: Tensor  # (N,) float64; NaN where there is no value
    chance: Tensor | None = None  # chance levels (N,) float64, NaN where the metric does not apply; None without one
    strata: Tensor | None = None  # such as classes, (N,) int64: the mean is that of the means of strata


class Key(NamedTuple):
    """Declaration of one metric: the one place from which expectations, charts and tables know it.

    Attributes:
        key: As it is logged, without the name of the audit, such as `cue/patch/effect`. A part `*` stands for any text.
        words: Meaning in a few words, for charts and tables.
        low: Smallest possible value; None for no bound.
        high: Largest possible value; None for no bound.
        chance: Value that means nothing, in words or as a number, such as "area" or "1 / K"; empty for none.
        unit: `share` where each probe says yes or no and the value is the share of yes; `label` where it names
            something of each probe, whose mean says nothing and is not logged; else what the number counts, such as
            "logits"; empty for a plain number.
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
        units: `score` if the cells of a map add up to the score of its question (logits, or nats for one that starts
            at a cross-entropy), or to a part of it; `relative` if they only tell more from less.
    """

    heatmaps: Tensor
    explainer: str  # with its settings, such as `GradCAM()`
    layer: str = ""  # at which the heatmaps were computed; empty for the pixels
    reason: str = ""  # where they were computed and why, in one sentence
    units: Literal["score", "relative"] = "score"
    about: Literal["question", "image"] = "question"
    verified: bool = True  # whether the maps are known to lie on the image
    peaks: tuple[float, ...] = ()  # largest magnitude of a cell in this run so far, one a question: tells empty maps
    # Holds its place in files, which go by the order of fields; verdicts are in `AuditRecord.trust`.
    stamps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, tuple[int, ...]]:
        """What must be equal for the maps of two audits to be compared: explainer, layer and shape."""
        return self.explainer, self.layer, tuple(self.heatmaps.shape)


@dataclass(frozen=True)
class Onset:
    """When a cue came into use."""

    epoch: int  # of the first audit, of those without interruption above the threshold, whose estimate exceeds it
    earliest: int  # first epoch since which the interval reached above the threshold
    latest: int  # first epoch since which the interval lay above it
    last_clean: int | None  # epoch of the last audit before, if there was one
    untrained: bool  # whether that one looked at the model before training
    checkpoint: str | None  # of that audit's weights; None if none is known

    def __str__(self) -> str:
        span = "" if self.earliest == self.latest else f" ({self.earliest}–{self.latest})"
        if self.last_clean is None:
            return f"from epoch {self.epoch}{span}; no audit before was clean"
        where = f", checkpoint {self.checkpoint}" if self.checkpoint else ""
        clean = "before training" if self.untrained else f"epoch {self.last_clean}"
        return f"from epoch {self.epoch}{span}; last clean audit: {clean}{where}"


@dataclass(frozen=True)
class Finding:
    """A conclusion of a rule about one thing at one audit."""

    key: str  # what it is about, such as `alarm/cue/patch`; its value is logged under this key
    state: str  # in one or two words: "no evidence", "watch", "alarm"; "pass", "fail", "not enough evidence"
    value: float | None  # the state as a number, larger = more alarming; NaN: nothing was tested, None: log none
    sentence: str  # all of it in words
    about: str = ""  # key of the metric it is about; empty for none
    threshold: float | None = None  # what that metric is held against
    estimate: Estimate | None = None  # value of that metric; None if this audit has none
    onset: Onset | None = None  # when it began; None where that is not known
    loud: bool = False  # whether to tell the user when its value is higher than ever before in the run
    stop: bool = False  # whether training should end

    @property
    def serious(self) -> bool:
        """Whether it speaks against the model: an alarm, or an expectation that fails."""
        return self.state in ("alarm", "fail")

    @property
    def urgency(self) -> float:
        """What findings are sorted by: 2 an alarm, 1.5 an expectation that fails, 1 what to watch, 0 the rest."""
        if self.state == "fail":
            return 1.5
        return 0.0 if self.value is None or math.isnan(self.value) else self.value


Measured = Mapping[str, PerProbe | Estimate]
"""Results by key: one number for each probe, of which the mean is logged with an interval; or an estimate."""


def plain(value: Any) -> Any:
    """A value as JSON has it: named tuples, dataclasses and mappings by name; None for NaN and inf."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict") or is_dataclass(value):
        value = value._asdict() if hasattr(value, "_asdict") else vars(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
