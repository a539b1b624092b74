"""Alarms: when evidence of a shortcut is enough to say so, and since when.

| state | value | when |
|---|---|---|
| alarm | 2 | `cue/<cue>/effect` has an interval above the threshold at several consecutive audits: the cue is *used* |
| watch | 1 | that holds for the latest audit only; or a region is *looked at*, which is no proof of use: at several \
consecutive audits more heat lies there than chance, the untrained model and models with random weights put there |
| no evidence | 0 | neither; which says nothing about cues that were not tested |
| no evidence | NaN | there is no interval to go by, as with fewer than 30 valid probes: nothing was tested |

The audit before training (step 0) is no evidence: a head that has not learnt anything may react to a cue as well. The
intervals cover the choice of probes, not the randomness of training. How often the rule is wrong is measured by
`scripts/evaluate_detection.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from xai_callbacks.errors import ConfigurationError, is_number, require_bool, require_integer
from xai_callbacks.metrics.null_judge import REFERENCE
from xai_callbacks.record import Estimate

__all__ = ["AlarmBook", "AlarmRule", "Finding", "Onset", "State"]

State = Literal["no evidence", "watch", "alarm"]

_VALUES: dict[State, float] = {"no evidence": 0.0, "watch": 1.0, "alarm": 2.0}


@dataclass(frozen=True)
class AlarmRule:
    """When evidence is enough.

    Attributes:
        threshold: What the lower end of the interval of a cue's effect must exceed: a rise of the probability of its
            class, in [0, 1).
        audits: At how many consecutive audits; one alone may be chance.
        min_count: Fewest valid probes. There is no interval, and no alarm, with fewer than 30.
        stop: Whether the first alarm ends training.
        hook: Called once with each finding that becomes an alarm.

    Raises:
        ConfigurationError: A value is out of range, or of a wrong type.
    """

    threshold: float = 0.03
    audits: int = 2
    min_count: int = 30
    stop: bool = False
    hook: Callable[[Finding], object] | None = None

    def __post_init__(self) -> None:
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise ConfigurationError(f"Expected `threshold` to be a number in [0, 1), but got {self.threshold!r}.")
        require_integer("audits", self.audits, minimum=1)
        require_integer(
            "min_count", self.min_count, minimum=30, hint="With fewer probes there is no interval to go by."
        )
        require_bool("stop", self.stop)
        if self.hook is not None and not callable(self.hook):
            raise ConfigurationError(f"Expected `hook` to be a function of a finding, but got {self.hook!r}.")


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
    """What is known about one cue, or one region that should not matter.

    Attributes:
        key: Such as `cue/patch` or `attribution/spurious`.
        state: See the module.
        estimate: Latest effect of the cue, or lift of the region; None if this audit has none.
        onset: When the cue came into use; None without an alarm.
        sentence: All of it in words.
        tested: Whether there were enough valid probes for any state but "no evidence".
    """

    key: str
    state: State
    estimate: Estimate | None
    onset: Onset | None
    sentence: str
    tested: bool = True

    @property
    def value(self) -> float:
        """The state as a number: 0, 1 or 2; NaN where nothing was tested."""
        return _VALUES[self.state] if self.tested else math.nan


@dataclass(frozen=True)
class _Look:
    """One audit of one cue or region."""

    step: int
    epoch: int
    estimate: Estimate
    checkpoint: str | None


class AlarmBook:
    """Watches cues and regions over the audits of a run.

    Args:
        cues: Names of the cues, as in `cue/<name>/effect`.
        regions: Keys of the lifts of regions that should not matter, such as `gradcam/why/relevance_lift/spurious`.
        rule: When evidence is enough.
    """

    def __init__(self, cues: Sequence[str], regions: Sequence[str] = (), rule: AlarmRule | None = None) -> None:
        self.cues = tuple(cues)
        self.regions = tuple(regions)
        self.rule = AlarmRule() if rule is None else rule
        self._looks: dict[str, list[_Look]] = {}
        self._references: dict[str, float] = {}

    @property
    def watches(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self.cues or self.regions)

    def forewarning(self, probes: int) -> str:
        """What to say before training of so many probes if no alarm is possible with them; else empty."""
        if not self.cues or probes >= self.rule.min_count:
            return ""
        return (
            f"Expected at least {self.rule.min_count} probes to watch {', '.join(map(repr, self.cues))}, but got "
            f"{probes}: with fewer there is no interval, so no alarm will be raised whatever the model does, and alarm "
            "values are "
            "NaN. Build the probe set with more, such as ProbeSet.from_dataset(val_set, per_class=32)."
        )

    def see(
        self, metrics: Mapping[str, Estimate], *, step: int, epoch: int, checkpoint: str | None = None
    ) -> tuple[Finding, ...]:
        """Take in one audit; returns what is known now, cues first.

        Args:
            metrics: Metrics of the audit by key.
            step: Step of the audit; 0 is before training.
            epoch: Its epoch.
            checkpoint: Path of a checkpoint that was saved since the audit before, of the weights it looked at.
        """
        for looks in self._looks.values() if checkpoint is not None else ():
            # A path that comes again was written over: what it held before is gone.
            looks[:] = [replace(look, checkpoint=None) if look.checkpoint == checkpoint else look for look in looks]
            if looks:
                looks[-1] = replace(looks[-1], checkpoint=checkpoint)
        findings = [self._cue(cue, metrics, step, epoch) for cue in self.cues]
        return tuple(findings + [self._region(key, metrics, step, epoch) for key in self.regions])

    def forget(self) -> None:
        """Begin anew."""
        self._looks = {}
        self._references = {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        looks = {
            key: [(look.step, look.epoch, tuple(look.estimate), look.checkpoint) for look in seen]
            for key, seen in self._looks.items()
        }
        return {"looks": looks, "references": dict(self._references)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` left off."""
        self._looks = {
            key: [_Look(step, epoch, Estimate(*estimate), checkpoint) for step, epoch, estimate, checkpoint in seen]
            for key, seen in state["looks"].items()
        }
        self._references = dict(state["references"])

    def _cue(self, cue: str, metrics: Mapping[str, Estimate], step: int, epoch: int) -> Finding:
        key = f"cue/{cue}"
        estimate = metrics.get(f"{key}/effect")
        looks = self._remember(key, step, epoch, estimate)
        run = _last_run([self._exceeds(look, self.rule.threshold) for look in looks])
        state: State = "no evidence"
        if estimate is not None and run:
            state = "alarm" if run >= self.rule.audits else "watch"
        onset = _onset(looks, run, self.rule.threshold) if state == "alarm" else None
        words = self._words(f"cue {cue!r}", state, estimate, onset)
        return Finding(key, state, estimate, onset, words, _bounded(estimate, self.rule.min_count))

    def _region(self, key: str, metrics: Mapping[str, Estimate], step: int, epoch: int) -> Finding:
        region = key.rpartition("/")[2]
        estimate = metrics.get(key)
        limit = self._references[key] = self._limit(key, metrics, step)
        looks = self._remember(f"attribution/{region}", step, epoch, estimate)
        run = _last_run([self._exceeds(look, limit) for look in looks])
        if estimate is None or run < self.rule.audits:
            tested = _bounded(estimate, self.rule.min_count)
            sentence = f"No more heat on the region {region!r} than without training."
            if not tested:
                sentence = (
                    f"Not enough evidence on the region {region!r}: {self.rule.min_count} valid probes are needed."
                )
            return Finding(f"attribution/{region}", "no evidence", estimate, None, sentence, tested)
        sentence = (
            f"Watch the region {region!r}: the model looks there, {estimate.value:.2f} times as much heat as its area "
            f"[{estimate.low:.2f}, {estimate.high:.2f}], more than without training ({limit:.2f}). That is no proof "
            "that it uses what it sees there: edit the region."
        )
        return Finding(f"attribution/{region}", "watch", estimate, None, sentence)

    def _limit(self, key: str, metrics: Mapping[str, Estimate], step: int) -> float:
        """How much heat a region gets that means nothing: the most of all references so far."""
        references = [metrics.get(f"{key}/{REFERENCE}")]
        if step == 0:
            # The untrained model knows nothing, and may look there all the same.
            references.append(metrics.get(key))
        highs = [reference.high for reference in references if reference is not None and reference.high is not None]
        return max([1.0, self._references.get(key, 0.0), *highs])

    def _remember(self, key: str, step: int, epoch: int, estimate: Estimate | None) -> list[_Look]:
        looks = self._looks.setdefault(key, [])
        if estimate is not None:
            looks.append(_Look(step, epoch, estimate, None))
        return looks

    def _exceeds(self, look: _Look, limit: float) -> bool:
        # What the model does before training was not learnt: it is what to compare with, and no evidence.
        low = look.estimate.low
        return look.step > 0 and _bounded(look.estimate, self.rule.min_count) and low is not None and low > limit

    def _words(self, what: str, state: State, estimate: Estimate | None, onset: Onset | None) -> str:
        if estimate is None:
            return f"The {what} was not tested at this audit."
        interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
        effect = f"it raises the probability of its class by {estimate.value:.2f}{interval}"
        if state == "alarm":
            return (
                f"Alarm: the model answers by the {what}: {effect}, above {self.rule.threshold:g} at "
                f"{self.rule.audits} consecutive audits; {onset}."
            )
        if state == "watch":
            return f"Watch the {what}: {effect}, above {self.rule.threshold:g} at this audit; one may be chance."
        if estimate.valid < self.rule.min_count:
            return f"Not enough evidence on the {what}: {estimate.valid} valid probes of {self.rule.min_count}."
        return f"No evidence for the {what}, of the cues tested: {effect}."


def _bounded(estimate: Estimate | None, min_count: int) -> bool:
    """Whether there is an interval, of enough probes."""
    return estimate is not None and estimate.low is not None and estimate.valid >= min_count


def _last_run(above: Sequence[bool]) -> int:
    """How many of the last audits, without interruption, were above."""
    run = 0
    for one in reversed(above):
        if not one:
            break
        run += 1
    return run


def _onset(looks: Sequence[_Look], run: int, threshold: float) -> Onset:
    """Dates the use of a cue whose interval was above the threshold at the last `run` audits."""
    latest = len(looks) - run

    def since(reaches: Sequence[bool]) -> int:
        return latest - _last_run(reaches[:latest])

    trained = [look.step > 0 for look in looks]
    values, highs = [look.estimate.value for look in looks], [look.estimate.high or 0.0 for look in looks]
    first = since([learnt and value > threshold for learnt, value in zip(trained, values, strict=True)])
    earliest = since([learnt and high > threshold for learnt, high in zip(trained, highs, strict=True)])
    # An untrained model may react to the cue as well, and is not clean then.
    before = looks[first - 1] if first > 0 and values[first - 1] <= threshold else None
    return Onset(
        looks[first].epoch,
        looks[min(earliest, first)].epoch,
        looks[latest].epoch,
        None if before is None else before.epoch,
        before is not None and before.step == 0,
        None if before is None else _existing(before.checkpoint),
    )


def _existing(checkpoint: str | None) -> str | None:
    # Of several checkpoints a trainer often keeps the best only.
    return checkpoint if checkpoint is not None and Path(checkpoint).exists() else None
