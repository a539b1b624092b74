"""The verdict of a comparison in words: which model to ship, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xai_callbacks.record import AuditRecord, Finding

if TYPE_CHECKING:
    from xai_callbacks.compare.comparison import Difference

_FAR = 0.5  # cosine distance from which maps are said to differ where no seeds tell what is usual
_NAMED = 3  # findings or metrics named at a time


def conclude(records: Mapping[str, AuditRecord], differences: Mapping[str, Difference], noise: str) -> tuple[str, ...]:
    """Sentences, the most important first.

    A model that raises an alarm or fails an expectation is not to be shipped. Of the others the most accurate one is,
    if it is more accurate beyond noise.
    """
    faults = {name: _faults(record) for name, record in records.items()}
    sound = [name for name, found in faults.items() if not found]
    sentences = [_shipped(records, differences, sound, noise)]
    sentences += [_blamed(name, found, records[name]) for name, found in faults.items() if found]
    if all(each.identical for each in differences.values()):
        return "The models have the same weights: nothing differs.", *sentences[1:]
    if not any(record.findings for record in records.values()):
        tried = any(key.startswith("cue/") for record in records.values() for key in record.metrics)
        sentences.append(
            "Cues were tried, but no rule has concluded on them: audit with rules=[AlarmRule(audits=1)]."
            if tried
            else "No cue was tried and no expectation was given: nothing here speaks against a shortcut. Add "
            "trials=[CueTrial(...)], or expectations."
        )
    for name, each in differences.items():
        sentences += _differing(next(iter(records)), name, each, records[name], noise)
    return tuple(sentences)


def _faults(record: AuditRecord) -> list[Finding]:
    return [each for each in record.findings if each.state in ("alarm", "fail")]


def _shipped(
    records: Mapping[str, AuditRecord], differences: Mapping[str, Difference], sound: Sequence[str], noise: str
) -> str:
    if not sound:
        return "Ship none of them: each raises an alarm or fails an expectation."
    if len(sound) == 1:
        return f"Ship {sound[0]}: it is the only one without an alarm or a failed expectation."
    shared = set.intersection(*(set(records[name].metrics) for name in sound))
    key = next((key for key in ("accuracy", "absolute_error") if key in shared), "")
    if not key:
        return f"Nothing speaks against {_listed(sound)}; no labels are known by which to choose."
    values = {name: records[name].metrics[key].value * (1 if key == "accuracy" else -1) for name in sound}
    best = max(sound, key=lambda name: values[name])
    baseline = next(iter(records))
    against = [name for name in sound if name != best]
    # Only differences from the baseline are known with their uncertainty.
    rows = [differences[name].metric(key) for name in (against if best == baseline else [best]) if name in differences]
    if rows and (best == baseline or against == [baseline]) and all(row is not None and row.beyond for row in rows):
        return f"Ship {best}: {key.replace('_', ' ')} {_number(records[best], key)} is better beyond noise ({noise})."
    return (
        f"Nothing measured speaks against {_listed(sound)}, and their {key.replace('_', ' ')} does not differ beyond "
        f"noise ({noise})."
    )


def _blamed(name: str, found: Sequence[Finding], record: AuditRecord) -> str:
    words = " ".join(each.sentence for each in found[:_NAMED])
    for cue, described in record.tried.items():  # which may name a colour for each class
        words = words.replace(described, f"cue {cue!r}")
    more = f" And {len(found) - _NAMED} more." if len(found) > _NAMED else ""
    return f"Do not ship {name}. {words}{more}"


def _differing(baseline: str, name: str, each: Difference, record: AuditRecord, noise: str) -> list[str]:
    """What differs between a model and the baseline, in sentences."""
    flips = f"{name} against {baseline}: {len(each.gained)} probes gained, {len(each.lost)} lost"
    if each.changed:
        flips += f", {len(each.changed)} with another answer besides"
    beyond = [row for row in each.metrics if row.beyond]
    named = ", ".join(f"{row.key} {row.difference.value:+.2g}" for row in beyond[:_NAMED])
    more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
    sentences = [f"{flips}. Beyond noise ({noise}): {named or 'no metric'}{more}."]
    first = next(iter(each.agreements.values()), None)
    if first is not None and each.reasons:
        limit = _FAR if first.expected is None else first.expected
        apart = sum(float(first.distance[place]) > limit for place in each.reasons)
        usual = "" if first.expected is None else ", which two seeds exceed on 5 %"
        sentences.append(
            f"Same answer, different reasons: on {apart} of {len(each.reasons)} probes with the same answer the maps "
            f"{first.key} are further apart than {limit:.2f} (cosine distance{usual})."
        )
    return sentences


def _number(record: AuditRecord, key: str) -> str:
    estimate = record.metrics[key]
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}" if math.isfinite(estimate.value) else "unknown"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
