"""`AlarmRule`: when evidence of a shortcut is enough to say so, and since when."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from xai_callbacks.errors import ConfigurationError, is_number, require_bool, require_integer
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Finding, Key, Onset
from xai_callbacks.rules.base import Rule

__all__ = ["AlarmRule"]

_EFFECT = re.compile(r"cue/(.+)/effect")
_STATES = ("no evidence", "watch", "alarm")

Looks = Sequence[tuple[AuditRecord, Estimate]]


@dataclass(frozen=True)
class AlarmRule(Rule):
    """Watches all cues that were ever tried in the run, and the regions in which the probes carry them.

    | state | value | when |
    |---|---|---|
    | alarm | 2 | `cue/<cue>/effect` has an interval above the threshold at several consecutive audits: it is *used* |
    | watch | 1 | that holds for the latest audit only; or a region is *looked at*, which is no proof of use |
    | no evidence | 0 | neither; which says nothing about cues that were not tested |
    | no evidence | NaN | no interval to go by, as with fewer than 30 valid probes: nothing was tested |

    Findings are `alarm/cue/<cue>` and `alarm/attribution/<region>`. A region is looked at if at several consecutive
    audits more heat lies there than chance, the untrained model and models with random weights put there, by the first
    explainer and question for which the latter is known. The audit before training is no evidence: a head that has not
    learnt anything may react to a cue as well. Intervals cover the choice of probes, not the randomness of training.
    How often the rule is wrong is measured by `scripts/studies/evaluate_detection.py`. A checkpoint is named only if it
    is still on disk; all else follows from the history.

    Attributes:
        threshold: What the lower end of the interval of a cue's effect must exceed: a rise of the probability of its
            class, in [0, 1).
        audits: At how many consecutive audits; one alone may be chance.
        min_count: Fewest valid probes. There is no interval, and no alarm, with fewer than 30.
        stop: Whether an alarm ends training.
        hook: Called once with each finding that becomes an alarm.

    Raises:
        ConfigurationError: A value is out of range, or of a wrong type.
    """

    threshold: float = 0.03
    audits: int = 2
    min_count: int = 30
    stop: bool = False
    hook: Callable[[Finding], object] | None = None

    keys = (
        Key("alarm/cue/*", "use of the cue: 0 no evidence, 1 watch, 2 alarm, NaN untested", 0.0, 2.0, of="nothing"),
        Key("alarm/attribution/*", "heat on the region: 0 no evidence, 1 watch, NaN untested", 0.0, 1.0, of="nothing"),
    )

    def __post_init__(self) -> None:
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise ConfigurationError(f"Expected `threshold` to be a number in [0, 1), but got {self.threshold!r}.")
        require_integer("audits", self.audits, minimum=1)
        hint = "With fewer probes there is no interval to go by."
        require_integer("min_count", self.min_count, minimum=30, hint=hint)
        require_bool("stop", self.stop)
        if self.hook is not None and not callable(self.hook):
            raise ConfigurationError(f"Expected `hook` to be a function of a finding, but got {self.hook!r}.")

    def conclude(self, history: History) -> Sequence[Finding]:
        """See `Rule.conclude`; cues first. Only audits of the probes of the latest one count."""
        if history.last is None:
            return ()
        history = history.comparable(history.last)
        records = history.without_tensors()
        seen = dict.fromkeys(key for each in records for key in each.metrics)
        # A cue that was never tried because its trial fails is declared all the same.
        cues = [cue for cue in _cues([*seen, *(each.key for each in records[-1].keys)]) if "*" not in cue]
        lifts = _lifts(records[-1], seen)
        return [self._cue(cue, history) for cue in cues] + [self._region(*lift, history) for lift in lifts.items()]

    def check(self, keys: Sequence[Key], probes: int, identity: AuditRecord | None = None) -> Sequence[str]:
        """See `Rule.check`; says if there are too few probes for any alarm."""
        cues = _cues(each.key for each in keys)
        if not cues or probes >= self.min_count:
            return ()
        return (
            f"Expected at least {self.min_count} probes to watch {', '.join(map(repr, cues))}, but got {probes}: with "
            "fewer there is no interval, so no alarm will be raised whatever the model does, and alarm values are NaN. "
            "Build the probe set with more, such as ProbeSet.from_dataset(val_set, per_class=32).",
        )

    def require_cue(self, keys: Sequence[Key]) -> None:
        """Check that a cue is tried; for a rule that the user gave, as without a cue there is no alarm.

        Raises:
            ConfigurationError: No `cue/<cue>/effect` is declared.
        """
        if not _cues(each.key for each in keys):
            raise ConfigurationError(
                "Expected `trials` to hold a CueTrial for an alarm to be about, but got none. Pass "
                "trials=[CueTrial(PatchCue(...))], or a cue of your own; heat alone raises no alarm."
            )

    def announce(self, finding: Finding) -> None:
        """Call the hook if this is an alarm."""
        if self.hook is not None and finding.state == "alarm":
            self.hook(finding)

    def _cue(self, cue: str, history: History) -> Finding:
        about = f"cue/{cue}/effect"
        looks, estimate = history.estimates(about), history.without_tensors()[-1].metrics.get(about)
        run = _last_run([self._exceeds(look, self.threshold) for look in looks])
        state = "no evidence"
        if estimate is not None and run:
            state = "alarm" if run >= self.audits else "watch"
        onset = self._onset(looks, run, history) if state == "alarm" else None
        sentence = self._sentence(f"cue {cue!r}", state, estimate, onset)
        found = self._finding(f"alarm/cue/{cue}", state, sentence, about, self.threshold, estimate)
        return replace(found, onset=onset, stop=self.stop and state == "alarm")

    def _sentence(self, what: str, state: str, estimate: Estimate | None, onset: Onset | None) -> str:
        if estimate is None:
            return f"The {what} was not tested at this audit."
        interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
        effect = f"it raises the probability of its class by {estimate.value:.2f}{interval}"
        if state == "alarm":
            return (
                f"Alarm: the model answers by the {what}: {effect}, above {self.threshold:g} at {self.audits} "
                f"consecutive audits; {onset}."
            )
        if state == "watch":
            return f"Watch the {what}: {effect}, above {self.threshold:g} at this audit; one may be chance."
        if estimate.valid < self.min_count:
            return f"Not enough evidence on the {what}: {estimate.valid} valid probes of {self.min_count}."
        return f"No evidence for the {what}, of the cues tested: {effect}."

    def _region(self, region: str, about: str, history: History) -> Finding:
        looks, estimate = history.estimates(about), history.without_tensors()[-1].metrics.get(about)
        # The untrained model knows nothing, and may look there all the same.
        nothing = [*history.estimates(f"{about}/reference"), *(look for look in looks if look[0].untrained)]
        limit = max([1.0, *(each.high for _, each in nothing if each.high is not None)])
        state, sentence = "no evidence", f"No more heat on the region {region!r} than without training."
        if estimate is None or not self._tested(estimate):
            sentence = f"Not enough evidence on the region {region!r}: {self.min_count} valid probes are needed."
        elif _last_run([self._exceeds(look, limit) for look in looks]) >= self.audits:
            state = "watch"
            sentence = (
                f"Watch the region {region!r}: the model looks there, {estimate.value:.2f} times as much heat as its "
                f"area [{estimate.low:.2f}, {estimate.high:.2f}], more than without training ({limit:.2f}). That is "
                "no proof that it uses what it sees there: edit the region."
            )
        return self._finding(f"alarm/attribution/{region}", state, sentence, about, limit, estimate)

    def _finding(
        self, key: str, state: str, sentence: str, about: str, threshold: float, estimate: Estimate | None
    ) -> Finding:
        value = float(_STATES.index(state)) if self._tested(estimate) else math.nan
        loud = state != "no evidence"
        return Finding(key, state, value, sentence, about=about, threshold=threshold, estimate=estimate, loud=loud)

    def _tested(self, estimate: Estimate | None) -> bool:
        """Whether there is an interval, of enough probes."""
        return estimate is not None and estimate.low is not None and estimate.valid >= self.min_count

    def _exceeds(self, look: tuple[AuditRecord, Estimate], limit: float) -> bool:
        # What the model does before training was not learnt: it is what to compare with, and no evidence.
        record, estimate = look
        return not record.untrained and self._tested(estimate) and (estimate.low or 0.0) > limit

    def _onset(self, looks: Looks, run: int, history: History) -> Onset:
        """Date the use of a cue whose interval was above the threshold at the last `run` audits."""
        latest = len(looks) - run

        def since(reached: Callable[[Estimate], float]) -> int:
            above = [not record.untrained and reached(each) > self.threshold for record, each in looks[:latest]]
            return latest - _last_run(above)

        first, earliest = since(lambda each: each.value), since(lambda each: each.high or 0.0)
        # An untrained model may react to the cue as well, and is not clean then.
        before = looks[first - 1][0] if first > 0 and looks[first - 1][1].value <= self.threshold else None
        return Onset(
            looks[first][0].epoch,
            looks[min(earliest, first)][0].epoch,
            looks[latest][0].epoch,
            None if before is None else before.epoch,
            before is not None and before.untrained,
            None if before is None else _checkpoint(before, history.without_tensors()),
        )


def _cues(keys: Iterable[str]) -> list[str]:
    """Cues whose effect is among some keys, each once."""
    return list(dict.fromkeys(found[1] for key in keys if (found := _EFFECT.fullmatch(key))))


def _lifts(record: AuditRecord, keys: Mapping[str, object]) -> dict[str, str]:
    """Key of the lift to watch, of those seen so far, for each region that carries a cue."""
    found: dict[str, str] = {}
    for region in record.cue_regions.values():
        ends = tuple(f"/{question}/relevance_lift/{region}" for question in record.questions[:1])
        lifts = [key for key in keys if key.endswith(ends) and f"{key}/reference" in keys]
        if lifts:
            found[region] = lifts[0]
    return found


def _last_run(above: Sequence[bool]) -> int:
    """How many of the last audits, without interruption, were above."""
    return len(list(takewhile(bool, reversed(above))))


def _checkpoint(record: AuditRecord, records: Sequence[AuditRecord]) -> str | None:
    """The checkpoint of an audit, unless it was written over or is gone: trainers often keep the best only."""
    place = next(index for index, each in enumerate(records) if each is record)
    written_over = record.checkpoint in [each.checkpoint for each in records[place + 1 :]]
    return record.checkpoint if record.checkpoint and not written_over and Path(record.checkpoint).exists() else None
