"""`Expectation`: one sentence that must hold at every audit.

| state | when |
|---|---|
| `pass` | the value and both ends of its interval are on the expected side of the bound |
| `fail` | the value and both ends are on the other side |
| `not enough evidence` | the bound lies in the interval; or there should be an interval and is none; or no value |
| `not due` | before `from epoch`, or after `until epoch` |

With fewer than 30 valid probes a metric of the probes has no interval, since it would promise more than it knows: not
enough evidence, however good the value. Others without an interval have none by nature: the value decides. A share of
all images without an interval gets one by the same formula. Values that are NaN or infinite neither pass nor fail. What
was measured of heatmaps that failed their tests is no evidence, see `AuditRecord.trust`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.record import FEWEST_FOR_INTERVAL, AuditRecord, Estimate, Finding, Key, interval, summarize
from xai_callbacks.rules.base import Rule
from xai_callbacks.rules.sentence import Sentence, advice, parse, refusal


@dataclass(frozen=True)
class Expectation(Rule):
    """One sentence that must hold at every audit, such as `cue/patch/effect < 0.05 from epoch 5`.

    Its finding is `expectation/<label>`; earlier ones in the history tell the story of the run.

    Attributes:
        sentence: In the language of `xai_callbacks.rules.sentence`.
        name: What it is called in tables; None for its sentence.
        wanted: What the sentence says.

    Raises a `ConfigurationError` if the sentence is not of the language, or the name is no readable text.
    """

    sentence: str
    name: str | None = None
    wanted: Sentence = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sentence, str):
            raise ConfigurationError(f"Expected `sentence` to be text, but got {self.sentence!r}.")
        name: object = self.name
        if name is not None and not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise ConfigurationError(f"Expected `name` to be readable text on one line, but got {name!r}.")
        object.__setattr__(self, "wanted", parse(self.sentence))
        object.__setattr__(self, "sentence", str(self.wanted))

    @property
    def label(self) -> str:
        """The name, or the sentence where there is none."""
        return self.name or self.sentence

    def check(self, keys: Sequence[Key], probes: int, identity: AuditRecord | None = None) -> Sequence[str]:
        """See `Rule.check`; looks the key up among those declared, and classes and groups in the identity."""
        wanted = self.wanted
        key = next((each for each in keys if each.matches(wanted.key)), None)
        if key is None:
            known = list(dict.fromkeys(each.key for each in keys))
            raise refusal(self.sentence, "the key of a metric of this run", repr(wanted.key), advice(wanted.key, known))
        self._check_bound(key)
        if wanted.for_class is not None or wanted.for_group is not None:
            if key.of != "probes":
                kind = "group" if wanted.for_class is None else "class"
                raise refusal(self.sentence, f"a metric of the probes before `for {kind}`", f"one of {key.of}")
            probes = probes if identity is None else int(_members(wanted, identity).sum())
        if key.of != "probes" or probes >= FEWEST_FOR_INTERVAL:
            return ()
        return (
            f"Expected at least {FEWEST_FOR_INTERVAL} probes to judge {self.label!r}, but got {probes}: with fewer "
            "there is no interval, and never enough evidence.",
        )

    def conclude(self, history: History) -> Sequence[Finding]:
        """See `Rule.conclude`; judges the latest audit."""
        record, wanted = history.last, self.wanted
        if record is None:
            return ()
        if record.epoch < (wanted.from_epoch or 0):
            return (self._finding("not due", f" before epoch {wanted.from_epoch}"),)
        if wanted.until_epoch is not None and record.epoch > wanted.until_epoch:
            return (self._finding("not due", f" after epoch {wanted.until_epoch}"),)
        if doubt := record.doubt(wanted.key):
            return (self._finding("not enough evidence", f", as its heatmap {doubt}"),)
        key = record.key(wanted.key) or Key(wanted.key, "")
        estimate = _estimate(wanted, key, record)
        if estimate is None:
            return (self._finding("not enough evidence", ", not measured at this audit"),)
        return (self._judged(key, estimate, wanted.key in record.per_probe),)

    def _judged(self, key: Key, estimate: Estimate, of_each: bool) -> Finding:
        points = [estimate.value, *(end for end in (estimate.low, estimate.high) if end is not None)]
        holds = {self.wanted.holds(point) for point in points}
        has_interval = len(points) == 3
        few = not has_interval and key.of == "probes" and (of_each or estimate.valid < FEWEST_FOR_INTERVAL)
        state, margin = "not enough evidence", ""
        if not few and len(holds) == 1 and all(map(math.isfinite, points)):
            state, margin = "pass" if holds.pop() else "fail", f" by {abs(estimate.value - self.wanted.bound):.3g}"
        shown = "no value" if not math.isfinite(estimate.value) else _text(points[0], self.wanted.bound)
        if has_interval and shown != "no value":
            shown += f" [{', '.join(_text(end, self.wanted.bound) for end in points[1:])}]"
        count = "" if key.of == "nothing" else f" on {estimate.valid} {key.of}"
        lost = f" ({estimate.degenerate} without a value)" if estimate.degenerate else ""
        missing = f", too few for an interval ({FEWEST_FOR_INTERVAL})" if few else " (no interval)"
        remark = "" if has_interval else missing
        return self._finding(state, f"{margin}, {shown}{count}{lost}{remark}", estimate)

    def _finding(self, state: str, words: str, estimate: Estimate | None = None) -> Finding:
        key, about, bound = f"expectation/{self.label}", self.wanted.key, self.wanted.bound
        sentence = f"{self.name}: {self.sentence}" if self.name else self.sentence
        return Finding(key, state, None, f"{sentence}: {state}{words}.", about, bound, estimate)

    def _check_bound(self, key: Key) -> None:
        """Refuse a bound that no value can break or meet, or that no number of probes can show to be met."""
        wanted = self.wanted
        low, high = -math.inf if key.low is None else key.low, math.inf if key.high is None else key.high
        met = {wanted.holds(low), wanted.holds(high)}
        if len(met) == 2 and not (key.unit == "share" and wanted.bound in (low, high)):
            return
        can = "be shown to meet" if len(met) == 2 else "meet" if met == {False} else "miss"
        ends = f"Its values go from {low:g} to {high:g}."
        if high == 1 and 1 < wanted.bound <= 100:
            ends += f" Did you mean {wanted.bound:g} %?"
        raise refusal(self.sentence, f"a bound that `{wanted.key}` can {can}", f"`{wanted.comparison}`", ends)


def _text(value: float, bound: float) -> str:
    """Three digits, or as many as it takes to tell the value from the bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if (float(text) < bound, float(text) > bound) == (value < bound, value > bound):
            return text
    return repr(value)


def _estimate(wanted: Sentence, key: Key, record: AuditRecord) -> Estimate | None:
    """The estimate that a sentence is about, of some probes only where it says so; None where nothing was measured."""
    if wanted.for_class is not None or wanted.for_group is not None:
        scores = {f"novelty/{name}": each for name, each in record.scores.items()}
        values, chance = {**scores, **record.per_probe}.get(wanted.key), record.chances.get(wanted.key)
        if values is None:
            return None
        rows = _members(wanted, record)
        values = values.double().where(rows, torch.nan)
        chance = None if chance is None else chance.double().where(rows, torch.nan)
        missing = int((rows & ~values.isfinite()).sum()) if chance is None else None
        found = summarize(values, chance=chance, bounds=(key.low, key.high))
        return found if missing is None else found._replace(degenerate=missing)
    known = record.metrics.get(wanted.key)
    if known is None or known.low is not None or key.of != "images" or key.unit != "share" or not known.valid:
        return known
    right = (torch.arange(known.valid) < round(known.value * known.valid)).double()
    low, high = interval(right, bounds=(0.0, 1.0))
    return known._replace(low=low, high=high)


def _members(wanted: Sentence, record: AuditRecord) -> Tensor:
    """Which probes a sentence is about, `(N,)` bool; refuses a class or group that there is not, or of no probe."""
    rows = torch.ones(1, dtype=torch.bool)
    if wanted.for_class is not None:
        rows = rows & (record.truth == _class_index(wanted, wanted.for_class, record))
    if wanted.for_group is not None:
        if not record.groups:
            raise refusal(wanted, "probes with groups, to ask `for group`", "none", "Give the probes `groups=`.")
        if wanted.for_group not in record.groups:
            expected, known = "the name of a group after `for group`", tuple(dict.fromkeys(record.groups))
            raise refusal(wanted, expected, repr(wanted.for_group), advice(wanted.for_group, known))
        rows = rows & torch.tensor([group == wanted.for_group for group in record.groups])
    if not rows.any():
        raise refusal(wanted, "probes of the class and group", "none", "Add some to the probe set.")
    return rows


def _class_index(wanted: Sentence, given: str | int, record: AuditRecord) -> int:
    truth, names, name = record.truth, record.class_names, str(given)
    if truth is None:
        raise refusal(wanted, "labelled probes, to ask `for class`", "none", "Give the probes `labels=`.")
    if truth.ndim > 1 or truth.is_floating_point():
        got = "values" if truth.is_floating_point() else "several labels a probe"
        raise refusal(wanted, "classes, to ask `for class`", got, "Leave the clause out.")
    expected = "the name or index of a class after `for class`"
    if names.count(name) > 1:
        raise refusal(wanted, expected, f"{names.count(name)} of that name", "Write the index.")
    if name in names:  # a name that consists of digits goes before the index
        return names.index(name)
    if isinstance(given, int) and (not names or given < len(names)):
        return given
    raise refusal(wanted, expected, repr(given), advice(name, names, "Without `class_names` write an index."))
