"""`AlarmRule`: when evidence of a shortcut is enough to say so, and since when."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from statistics import NormalDist
from types import NoneType
from typing import NamedTuple

from xai_callbacks.errors import (
    ConfigurationError,
    require_bool,
    require_instance,
    require_integer,
    require_number,
)
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Finding, Key, Onset
from xai_callbacks.rules.base import Rule

_QUANTILE = NormalDist()
_CUE = re.compile(r"cue/(.+)/effect")
# A model that learnt a cue misses it in images of its class, by a share of what it costs the others; whoever misses it
# much need not ignore the controls. Of cues of three classes or more it is enough to fill half of what was missing.
_MISSED, _MUCH_MISSED, _FILLED = 0.4, 0.8, 0.5
_STATES = {"no evidence": 0.0, "reacts to any edit": 1.0, "watch": 1.0, "alarm": 2.0}

Looks = Sequence[tuple[AuditRecord, Estimate | None]]


class _Judged(NamedTuple):
    """A cue at one audit."""

    side: int  # 1 or -1 if its pull is beyond the threshold, and on which side; else 0
    what: str  # key of what is: the cue itself, or a neighbour
    why_not: str  # why it cannot be said that the cue was learnt; empty if it was


@dataclass(frozen=True)
class AlarmRule(Rule):
    """Watches all cues that were ever tried in the run, and the regions in which the probes carry them.

    | state | value | when |
    |---|---|---|
    | alarm | 2 | at several consecutive audits `cue/<cue>/pull` has an interval beyond the threshold, above or below, and the cue was learnt: `gain` is .8 of `loss`; or .4 of `loss` or half of `room`, with an interval of `excess` above 0. It is *used* |
    | watch | 1 | that holds for the latest audit only; or a region is *looked at*, which is no proof of use |
    | reacts to any edit | 1 | the pull is beyond the threshold, but it was not learnt: images of its class do without it, and as they are, any such edit is taken for the class |
    | no evidence | 0 | none of these; which says nothing about cues that were not tested |
    | no evidence | NaN | no interval to go by, as with fewer than 30 valid probes: nothing was tested |

    Of probes without labels `effect` is judged in place of `pull`. Below the threshold, the cue speaks for another class
    than it was said to point to. Where neighbours of a cue are tried, one that is beyond the threshold counts as the cue
    does. Several cues are watched at one level: intervals are widened as Bonferroni has it, so that of clean models as
    few raise an alarm as with one cue. An audit that did not try the cue ends a run of consecutive ones.

    Findings are `alarm/cue/<cue>` and `alarm/attribution/<region>`. A region is looked at if at several consecutive
    audits more heat lies there than chance, the untrained model and models with random weights put there, by the first
    explainer and question for which the latter is known, and whose heatmaps did not fail their tests. The audit before training is no evidence: a head that has
    not learnt anything may react to a cue as well. Intervals cover the choice of probes, not the randomness of training.
    `scripts/studies/evaluate_alarm.py` measures how often the rule is wrong. A checkpoint is named only while it is on disk.

    Attributes:
        threshold: What the interval of a cue's pull must lie beyond, in [0, 1).
        audits: At how many consecutive audits; one alone may be chance.
        min_count: Fewest valid probes. There is no interval, and no alarm, with fewer than 30.
        reference: Path of the saved record of a model known not to use the cues, of the same probes. The interval of the
            pull must lie beyond that model's; then it is not asked whether the class of the cue needs it.
        stop: Whether an alarm ends training.
        hook: Called once with each finding that becomes an alarm.

    Raises:
        ConfigurationError: A value is out of range, or of a wrong type.
        AuditError: The reference cannot be read.
    """  # noqa: E501 - a row of a table cannot be broken

    threshold: float = 0.03
    audits: int = 2
    min_count: int = 30
    reference: str | os.PathLike[str] | None = None
    stop: bool = False
    hook: Callable[[Finding], object] | None = None
    _clean: AuditRecord | None = field(default=None, init=False, repr=False, compare=False)

    keys = (
        Key(
            "alarm/cue/*",
            "use of the cue: 0 no evidence, 1 watch or reaction to any edit, 2 alarm, NaN untested",
            0.0,
            2.0,
            of="nothing",
        ),
        Key("alarm/attribution/*", "heat on the region: 0 no evidence, 1 watch, NaN untested", 0.0, 1.0, of="nothing"),
    )

    def __post_init__(self) -> None:
        require_number("threshold", self.threshold, 0, 1)
        require_integer("audits", self.audits, minimum=1)
        hint = "With fewer probes there is no interval to go by."
        require_integer("min_count", self.min_count, minimum=30, hint=hint)
        require_instance("reference", self.reference, (str, os.PathLike, NoneType), "the path of a record, or None")
        if self.reference is not None:
            object.__setattr__(self, "_clean", AuditRecord.load(self.reference))
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
        found = [self._cue(cue, len(cues), history) for cue in cues]
        return found + [self._region(*lift, history) for lift in lifts.items()]

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
        """Raise a `ConfigurationError` if no `cue/<cue>/effect` is declared, for an alarm to be about."""
        if not _cues(each.key for each in keys):
            raise ConfigurationError(
                "Expected `trials` to hold a CueTrial for an alarm to be about, but got none. Pass "
                "trials=[CueTrial(PatchCue(...))], or a cue of your own; heat alone raises no alarm."
            )

    def announce(self, finding: Finding) -> None:
        """Call the hook if this is an alarm."""
        if self.hook is not None and finding.state == "alarm":
            self.hook(finding)

    def _cue(self, cue: str, cues: int, history: History) -> Finding:
        records = history.without_tensors()
        read = any(self._tested(each.metrics.get(f"cue/{cue}/pull")) for each in records)
        about = f"cue/{cue}/pull" if read else f"cue/{cue}/effect"
        looks = [(each, each.metrics.get(about)) for each in records]
        estimate = looks[-1][1]
        judged = [self._judged(cue, about, record, cues) for record, _ in looks]
        side, what = judged[-1].side, judged[-1].what
        run = _last_run([each.side == side != 0 and not each.why_not for each in judged])
        state = "no evidence"
        if side:
            state = "alarm" if run >= self.audits else "watch" if run else "reacts to any edit"
        onset = self._onset(looks, side, run, history) if state == "alarm" and what == about else None
        sentence = self._sentence(cue, state, judged[-1], records[-1], onset)
        found = self._finding(f"alarm/cue/{cue}", state, sentence, about, self.threshold, estimate)
        return replace(found, onset=onset, stop=self.stop and state == "alarm")

    def _judged(self, cue: str, about: str, record: AuditRecord, cues: int) -> _Judged:
        """On which side of the threshold the pull of a cue is, or of a neighbour of it."""
        widened = _QUANTILE.inv_cdf(1 - 0.025 / cues) / _QUANTILE.inv_cdf(0.975)
        clean = self._clean
        is_known = clean is not None and clean.fingerprint == record.fingerprint and about in clean.metrics
        # Both ends of what a model shows that is known not to use the cue; what lies beyond needs no other null.
        ends = [_ends(clean.metrics[about], widened)] if clean is not None and is_known else []
        control = record.metrics.get(f"cue/{cue}/control")
        for key in [about, *(key for key in record.metrics if key.startswith(f"cue/{cue}/nearby/"))]:
            estimate = record.metrics.get(key)
            if record.untrained or not self._tested(estimate):
                continue
            assert estimate is not None  # noqa: S101  # it was tested; narrows the type
            low, high = _ends(estimate, widened)
            beyond = [control.value] if control is not None and key != about else []
            learnt = bool(ends) or key != about
            if low > max([self.threshold, *beyond, *(end for _, end in ends)]):
                return _Judged(1, key, "" if learnt else self._why_not(cue, 1, record, widened))
            if high < min([-self.threshold, *beyond, *(end for end, _ in ends)]):
                return _Judged(-1, key, "" if learnt else self._why_not(cue, -1, record, widened))
        return _Judged(0, about, "")

    def _why_not(self, cue: str, side: int, record: AuditRecord, widened: float) -> str:
        """Why it cannot be said that a cue was learnt; empty if it was."""
        keys = ("excess", "control", "gain", "loss", "room")
        excess, control, gain, loss, room = (record.metrics.get(f"cue/{cue}/{key}") for key in keys)
        why = ""
        if excess is not None and not (self._tested(excess) and _ends(excess, widened)[0] > 0):
            moved = "" if control is None else f" by {control.value:.2f}"
            why = f"another edit of the same place and contrast moves it{moved}"
        if gain is None or loss is None or not gain.valid or not loss.valid:
            return why
        # Where the cue speaks for the other class, what one of them gains is what the other seems to lose.
        missed, cost = (gain.value, loss.value) if side > 0 else (-loss.value, -gain.value)
        filled = side > 0 and room is not None and missed > _FILLED * room.value
        if missed > _MUCH_MISSED * max(cost, 0.0) or (not why and (filled or missed > _MISSED * max(cost, 0.0))):
            return ""
        return why or f"its own class is known without it (gain {missed:.2f}, loss {cost:.2f})"

    def _sentence(self, cue: str, state: str, judged: _Judged, record: AuditRecord, onset: Onset | None) -> str:
        what, tried = judged.what, record.tried.get(cue, f"cue {cue!r}")
        estimate = record.metrics.get(what)
        if estimate is None:
            return f"The cue {cue!r} was not tested at this audit."
        if estimate.valid < self.min_count:
            return f"Not enough evidence on the cue {cue!r}: {estimate.valid} valid probes of {self.min_count}."
        interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
        named = "its label" if what.endswith("pull") or "/nearby/" in what else "its class"
        moved = f"it moves the probability of {named} by {estimate.value:.2f}{interval}"
        if "/nearby/" in what:
            moved = f"{what.rpartition('/')[2]} of what was painted {moved}"
        rises = [key for key in record.metrics if key.startswith(f"cue/{cue}/raises/")]
        moved += f", and images with it are called {rises[0].rpartition('/')[2]!r} more often" if rises else ""
        moved += ", against the class that it was said to point to" if judged.side < 0 else ""
        gap = record.metrics.get(f"cue/{cue}/gap")
        worse = 0.0 if gap is None else judged.side * gap.value
        where = "of another class" if judged.side > 0 else "of the class that it was said to point to"
        cost = f" With the cue {where} {worse:.0%} fewer are right." if worse > 0 else ""
        if state == "alarm":
            # Of one look alone nobody knows since when.
            since = f"; {onset}" if onset and (self.audits > 1 or onset.last_clean is not None) else ""
            times = f"beyond {self.threshold:g} at "
            times += "this audit" if self.audits == 1 else f"{self.audits} consecutive audits"
            return f"Alarm: the model answers by the {tried}: {moved}, {times}{since}.{cost}"
        if state == "watch":
            return f"Watch the {tried}: {moved}, beyond {self.threshold:g} at this audit; one may be chance."
        if state == "reacts to any edit":
            return f"Reacts to such an edit: {moved}; but {judged.why_not}: no evidence that the {tried} was learnt."
        return f"No evidence for the {tried}, just as it was painted: {moved}. Nothing is said of others."

    def _region(self, region: str, about: str, history: History) -> Finding:
        latest = history.without_tensors()[-1]
        looks, doubt = history.estimates(about), latest.doubt(about)
        estimate = None if doubt else latest.metrics.get(about)
        # The untrained model knows nothing, and may look there all the same: it is what to compare with.
        nothing = [*history.estimates(f"{about}/reference"), *(look for look in looks if look[0].untrained)]
        limit = max([1.0, *(each.high for _, each in nothing if each.high is not None)])
        above = [
            self._tested(each) and (each.low or 0.0) > limit and not record.untrained and not record.doubt(about)
            for record, each in looks
        ]
        state, sentence = "no evidence", f"No more heat on the region {region!r} than without training."
        if doubt:
            sentence = f"Not enough evidence on the region {region!r}: its heatmap {doubt}."
        elif estimate is None or not self._tested(estimate):
            sentence = f"Not enough evidence on the region {region!r}: {self.min_count} valid probes are needed."
        elif _last_run(above) >= self.audits:
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
        value = _STATES[state] if self._tested(estimate) else math.nan
        loud = state != "no evidence"
        return Finding(key, state, value, sentence, about=about, threshold=threshold, estimate=estimate, loud=loud)

    def _tested(self, estimate: Estimate | None) -> bool:
        """Whether there is an interval, of enough probes."""
        return estimate is not None and estimate.low is not None and estimate.valid >= self.min_count

    def _onset(self, looks: Looks, side: int, run: int, history: History) -> Onset:
        """Date the use of a cue whose interval was beyond the threshold at the last `run` audits."""
        latest = len(looks) - run

        def value(look: tuple[AuditRecord, Estimate | None], reached: Callable[[Estimate], float | None]) -> float:
            return math.nan if look[1] is None else side * (reached(look[1]) or 0.0)

        def since(reached: Callable[[Estimate], float | None]) -> int:
            beyond = [not look[0].untrained and value(look, reached) > self.threshold for look in looks[:latest]]
            return latest - _last_run(beyond)

        first, earliest = since(lambda each: each.value), since(lambda each: each.high if side > 0 else each.low)
        # An untrained model may react to the cue as well, and is not clean then.
        is_clean = first > 0 and value(looks[first - 1], lambda each: each.value) <= self.threshold
        before = looks[first - 1][0] if is_clean else None
        return Onset(
            looks[first][0].epoch,
            looks[min(earliest, first)][0].epoch,
            looks[latest][0].epoch,
            None if before is None else before.epoch,
            before is not None and before.untrained,
            None if before is None else _checkpoint(before, history.without_tensors()),
        )


def _ends(estimate: Estimate, widened: float) -> tuple[float, float]:
    """The interval, so many times as wide."""
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return estimate.value - widened * (estimate.value - low), estimate.value + widened * (high - estimate.value)


def _cues(keys: Iterable[str]) -> list[str]:
    """Cues whose effect is among some keys, each once."""
    return list(dict.fromkeys(found[1] for key in keys if (found := _CUE.fullmatch(key))))


def _lifts(record: AuditRecord, keys: Mapping[str, object]) -> dict[str, str]:
    """Key of the lift to watch, of those seen so far, for each region that carries a cue; one in doubt if all are."""
    found: dict[str, str] = {}
    for region in record.cue_regions.values():
        ends = tuple(f"/{question}/relevance_lift/{region}" for question in record.questions[:1])
        lifts = [key for key in keys if key.endswith(ends) and f"{key}/reference" in keys]
        if lifts:
            found[region] = next((key for key in lifts if not record.doubt(key)), lifts[0])
    return found


def _last_run(above: Sequence[bool]) -> int:
    """How many of the last audits, without interruption, were above."""
    return len(list(takewhile(bool, reversed(above))))


def _checkpoint(record: AuditRecord, records: Sequence[AuditRecord]) -> str | None:
    """The checkpoint of an audit, unless it was written over or is gone: trainers often keep the best only."""
    place = next(index for index, each in enumerate(records) if each is record)
    written_over = record.checkpoint in [each.checkpoint for each in records[place + 1 :]]
    return record.checkpoint if record.checkpoint and not written_over and Path(record.checkpoint).exists() else None
