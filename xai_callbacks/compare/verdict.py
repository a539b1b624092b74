"""The verdict of a comparison in words: which model to ship, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xai_callbacks.compare.differences import MetricDifference
from xai_callbacks.errors import first_of
from xai_callbacks.record import AuditRecord, Estimate, Finding

if TYPE_CHECKING:
    from xai_callbacks.compare.comparison import Difference

_FAR = 0.5  # cosine distance from which maps are said to differ where no seeds tell what is usual
_NAMED = 3  # models, findings or metrics named at a time
_FEWEST = 5  # probes with the same answer of whose reasons a share is said
_QUALITIES = ("exact_match", "accuracy", "absolute_error")  # the share of labels that are right rewards naming none

Contest = Callable[[str, str], MetricDifference | None]
"""The difference in quality of one model from another, by their names."""


def quality_key(records: Iterable[AuditRecord]) -> str:
    """Metric by which models are chosen: that of the answers which all have; empty if there is none.

    `exact_match` of several labels, `accuracy` of classes, `absolute_error` of one value; errors of several values are
    in units of their own, and their mean says nothing.
    """
    given = list(records)
    if any(key.startswith("absolute_error/") for record in given for key in record.metrics):
        return ""
    known = (key for key in _QUALITIES if all(_is_known(record.metrics.get(key)) for record in given))
    return next(known, "")


def quality(estimate: Estimate, key: str) -> float:
    """How good a value of that metric, or a difference of two, is: larger is better."""
    return -estimate.value if key == "absolute_error" else estimate.value


@dataclass(frozen=True)
class _Standing:
    """What rules say of one model."""

    faults: tuple[Finding, ...]  # alarms, and expectations that failed
    doubts: tuple[Finding, ...]  # what one audit is not enough for, and reactions to any edit
    untested: tuple[str, ...]  # what other models were tested for

    @property
    def sound(self) -> bool:
        return not (self.faults or self.doubts or self.untested)


def conclude(
    records: Mapping[str, AuditRecord], differences: Mapping[str, Difference], noise: str, contest: Contest
) -> tuple[str, ...]:
    """Sentences, the most important first.

    A model with an alarm or a failed expectation is not to be shipped, one in doubt or not tested as others were is not
    recommended. Of the others one is, if it is better than each of them beyond noise, and than chance.
    """
    standings = {name: _standing(record, records) for name, record in records.items()}
    if all(each.identical for each in differences.values()):
        sentences = ["The models have the same weights: nothing differs."]
    else:
        sentences = [_choice(records, standings, noise, contest)]
    sentences += [said for name, each in standings.items() for said in _held_against(name, each, records[name])]
    if not any(record.findings for record in records.values()):
        tried = any(key.startswith("cue/") for record in records.values() for key in record.metrics)
        sentences.append(
            "Cues were tried, but no rule has concluded on them: audit with rules=[AlarmRule(audits=1)]."
            if tried
            else "No cue was tried and no expectation was given: nothing here speaks against a shortcut. Add "
            "trials=[CueTrial(...)], or expectations."
        )
    for name in list(differences)[:_NAMED]:
        sentences += _differing(next(iter(records)), name, differences[name], records[name], noise)
    if len(differences) > _NAMED:
        sentences.append(f"And {len(differences) - _NAMED} more models, each against {next(iter(records))}.")
    return tuple(sentences)


def _standing(record: AuditRecord, records: Mapping[str, AuditRecord]) -> _Standing:
    own = {each.key: each for each in record.findings}
    # A region that is looked at may not be used: no reason to hold a model back.
    keys = {each.key for other in records.values() for each in other.findings if "attribution" not in each.key}
    untested = sorted(key for key in keys if key not in own or _is_open(own[key]))
    faults = tuple(each for each in record.findings if each.serious)
    doubts = tuple(each for each in record.findings if each.key in keys and each.value == 1.0 and each not in faults)
    return _Standing(faults, doubts, tuple(untested))


def _is_open(finding: Finding) -> bool:
    """Whether nothing was concluded, for want of probes or before its time."""
    value = finding.value
    return finding.state in ("not enough evidence", "not due") or (value is not None and math.isnan(value))


def _choice(
    records: Mapping[str, AuditRecord], standings: Mapping[str, _Standing], noise: str, contest: Contest
) -> str:
    sound = [name for name, each in standings.items() if each.sound]
    if not sound:
        return "Ship none of them: each has an alarm, a failed expectation, a doubt, or was not tested enough."
    key = quality_key(records[name] for name in sound)
    if not key:
        several = any(each.startswith("absolute_error/") for record in records.values() for each in record.metrics)
        why = "errors of several values cannot be added up" if several else "no labels are known by which to choose"
        return f"Nothing speaks against {_listed(sound)}; {why}."
    best = max(sound, key=lambda name: quality(records[name].metrics[key], key))
    told = f"{key.replace('_', ' ')} {_number(records[best].metrics[key])}"
    if not _is_beyond_chance(records[best].metrics[key]):
        return f"Ship none of them: {best}, the best that nothing speaks against, is no better than chance ({told})."
    rows = {name: contest(best, name) for name in records if name != best and quality_key([records[name]]) == key}
    level = [name for name in sound if name != best and not _is_worse(rows.get(name), key)]
    if level:
        worse = [name for name in sound if name not in (best, *level)]
        more = f"; {_listed(worse)} {_is(worse)} worse" if worse else ""
        return (
            f"Nothing speaks against {_listed([best, *level])}, which cannot be told apart by {key.replace('_', ' ')} "
            f"beyond noise ({noise}): {told} of {best}{more}."
        )
    refused = [name for name, row in rows.items() if name not in sound and _is_better(row, key)]
    if refused:
        return f"Ship {best} only if its {told} will do: {_listed(refused)} {_is(refused)} better, but refused."
    others = (
        f"better than the others beyond noise ({noise})"
        if len(sound) > 1
        else "the only one that nothing speaks against"
    )
    tested = any(record.findings for record in records.values())
    return f"{'Ship' if tested else 'By its answers alone, take'} {best}: {told}, {others}."


def _held_against(name: str, standing: _Standing, record: AuditRecord) -> list[str]:
    said = []
    for words, found in (("Do not ship", standing.faults), ("In doubt:", standing.doubts)):
        if found:
            told = " ".join(each.sentence for each in found[:_NAMED])
            for cue, described in record.tried.items():  # which may name a colour for each class
                told = told.replace(described, f"cue {cue!r}")
            said.append(f"{words} {name}. {told}" + (f" And {len(found) - _NAMED} more." if found[_NAMED:] else ""))
    if standing.untested:
        why = f" {' '.join(record.failed)}" if record.failed else ""
        said.append(f"Not tested, or not with enough evidence: {name}, for {_listed(standing.untested)}.{why}")
    return said


def _differing(baseline: str, name: str, each: Difference, record: AuditRecord, noise: str) -> list[str]:
    """What differs between a model and the baseline, in sentences."""
    flips = f"{len(each.gained)} probes gained, {len(each.lost)} lost"
    if each.changed:
        flips += f", {len(each.changed)} with another answer besides"
    about = [*_QUALITIES, *(finding.about for finding in record.findings)]
    beyond = sorted((row for row in each.metrics if row.beyond), key=lambda row: row.key not in about)
    named = first_of([f"{row.key} {row.difference.value:+.2g}" for row in beyond], _NAMED)
    sentences = [f"{name} against {baseline}: {flips}. Beyond noise ({noise}): {named or 'no metric'}."]
    first = next(iter(each.agreements.values()), None)
    if first is not None and len(each.reasons) >= _FEWEST:
        limit = _FAR if first.expected is None else first.expected
        apart = sum(float(first.distance[place]) > limit for place in each.reasons)
        usual = "" if first.expected is None else ", which two seeds exceed on 5 %"
        of = f"{each.same} probes with the same answer"
        if len(each.reasons) < each.same:
            of = f"the {len(each.reasons)} with maps to compare, of {of},"
        sentences.append(
            f"Same answer, different reasons: on {apart} of {of} the maps {first.key} are further apart than "
            f"{limit:.2f} (cosine distance{usual})."
        )
    return sentences


def _is_known(estimate: Estimate | None) -> bool:
    return estimate is not None and math.isfinite(estimate.value)


def _is_beyond_chance(estimate: Estimate) -> bool:
    """Whether its interval is above chance, or where it has none the value; what has no chance level always is."""
    least = estimate.value if estimate.low is None else estimate.low
    return estimate.chance is None or least > estimate.chance


def _is_better(row: MetricDifference | None, key: str) -> bool:
    """Whether the other model of a contest is better beyond noise."""
    return row is not None and bool(row.beyond) and quality(row.difference, key) > 0


def _is_worse(row: MetricDifference | None, key: str) -> bool:
    return row is not None and bool(row.beyond) and quality(row.difference, key) < 0


def _number(estimate: Estimate) -> str:
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.3g}{ends}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return first_of(names, _NAMED)
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
