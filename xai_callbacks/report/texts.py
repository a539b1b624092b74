"""Numbers, findings and tables in words."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from xai_callbacks.compare import MetricDifference, quality_key
from xai_callbacks.gallery.heat import first_answer
from xai_callbacks.gallery.words import headline, plural, when
from xai_callbacks.record import AuditRecord, Estimate, Finding

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROUNDING: Final = 1e-6  # what is nearer to 0 is rounding
_TURNS: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
URGENT: Final = {"alarm": "alarm", "fail": "alarm", "watch": "watch", "reacts to any edit": "watch", "pass": "calm"}


def number(value: float | None, decimals: int | None = None) -> str:
    """Three digits, or so many decimals, with a true minus; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ("" if float(text) else text.lstrip("-")) or text.replace("-", "−")


def interval(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Such as "0.58 [0.54, 0.63]", to the digits that the interval leaves; a `sign` before what is positive, too.

    An end that is not 0 has as many digits as show it.
    """
    if estimate is None:
        return "–"
    low, high, decimals = estimate.low, estimate.high, None
    if low is not None and high is not None and high > low:
        exact = -math.log10((high - low) / 2)
        decimals = max(math.ceil(exact) + (exact % 1 > 0.5), 0)
    value = number(estimate.value, decimals)
    plus = "+" if sign and value[0] not in "−–" and value.strip("0.") else ""
    return plus + value + ("" if low is None or high is None else f" [{_end(low, decimals)}, {_end(high, decimals)}]")


def _end(value: float, decimals: int | None) -> str:
    if decimals is not None and abs(value) > _ROUNDING and not round(value, decimals):
        return number(value, math.ceil(-math.log10(abs(value))))
    return number(value, decimals)


def asides(sentence: str) -> list[tuple[str, bool]]:
    """Parts of a sentence, and whether each is a long remark in brackets, to be set smaller."""
    return [(part, part.startswith(" (")) for part in re.split(r"( \((?:[^()]|\([^()]*\)){60,}\))", sentence) if part]


def straight(value: Any) -> Any:
    """Plain values whose texts, and keys, turn the order of no text after them: such characters become escapes."""
    if isinstance(value, dict):
        return {straight(key): straight(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [straight(each) for each in value]
    if isinstance(value, str) and not value.isascii() and not hasattr(value, "__html__"):
        return _TURNS.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return value


class Brief:
    """Long names with their middle left out; those of different names differ.

    Args:
        names: All names of a kind, such as those of the models.
        most: Characters of a name that are shown, and more only where names would look alike.
    """

    def __init__(self, names: Sequence[str], most: int) -> None:
        self.used: dict[str, str] = {}  # whole names that were met, by what is shown
        self._short: dict[str, str] = {}
        while len(set(self._short.values())) < len(set(names)):
            self._short = {each: _without_middle(each, most) for each in names}
            most *= 2
        long = sorted((name for name, short in self._short.items() if name != short), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, long)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """A text in which names are short."""
        return self._pattern.sub(self._shorter, text)

    def _shorter(self, found: re.Match[str]) -> str:
        short = self._short[found[0]]
        self.used[short] = found[0]
        return short


def _without_middle(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - most // 3 - 1]}…{name[-(most // 3) :]}"


def epoch(record: AuditRecord) -> str:
    """When an audit was, without its step."""
    return when(record).partition(" · ")[0]


def letter(place: int) -> str:
    """Short name of a model: A for the first, the baseline."""
    return LETTERS[place] if place < len(LETTERS) else str(place + 1)


def model(place: int, name: str, record: AuditRecord) -> dict[str, Any]:
    """Who is compared, and what was found of it in few words."""
    key = quality_key([record])
    quality = record.metrics.get(key)
    return {
        "place": place,
        "letter": letter(place),
        "name": name,
        "when": when(record),
        "checkpoint": Path(record.checkpoint).name if record.checkpoint else "",
        "weights": record.weights[:8],
        "quality": key.replace("_", " "),
        "value": "" if quality is None else interval(quality).partition(" ")[0],
        "interval": "" if quality is None else interval(quality).partition(" ")[2],
        "of": "" if quality is None else plural(quality.valid, "probe"),
        "headline": [(line.text, line.tone) for line in headline(record) if line.text],
    }


def findings(records: Sequence[AuditRecord]) -> list[dict[str, Any]]:
    """A row for each thing that rules judge, with what they found of each model; the most alarming first."""
    rows: dict[str, list[Finding | None]] = {}
    for place, record in enumerate(records):
        for each in record.findings:
            rows.setdefault(each.key, [None] * len(records))[place] = each
    order = sorted(rows, key=lambda key: -max(each.urgency for each in rows[key] if each))
    return [{"key": key, "cells": [each and _finding(each) for each in rows[key]]} for key in order]


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "state": finding.state,
        "tone": URGENT.get(finding.state, "plain"),
        "estimate": "" if finding.estimate is None else interval(finding.estimate),
        "threshold": "" if finding.threshold is None else f"held against {number(finding.threshold)}",
        "onset": "" if finding.onset is None else str(finding.onset),
        "sentence": finding.sentence,
    }


def judged(records: Sequence[AuditRecord]) -> list[str]:
    """Keys that come first: how right answers are, what rules are about, and where the first heat lies."""
    found = sorted((each for record in records for each in record.findings), key=lambda each: -each.urgency)
    keys = dict.fromkeys([quality_key(records), *(each.about for each in found)])
    for record in records:
        heat = f"{first_answer(record)}/{next(iter(record.questions), '')}/relevance_mass/"
        keys |= dict.fromkeys(sorted((key for key in record.metrics if key.startswith(heat)), reverse=True))
    return [key for key in keys if any(key in record.metrics for record in records)]


def metrics_of(records: Sequence[AuditRecord], first: Sequence[str]) -> list[str]:
    """Keys of all metrics of probes or images, those given first; states of rules have their own table."""
    keys = dict.fromkeys([*first, *(key for record in records for key in record.metrics)])
    return [key for key in keys if any(key in record.metrics and _counts(record, key) for record in records)]


def _counts(record: AuditRecord, key: str) -> bool:
    declared = record.key(key)
    return declared is None or declared.of != "nothing"


def words_of(records: Sequence[AuditRecord], key: str) -> str:
    """The meaning of a key; the key itself where it was not declared."""
    declared = next((found for record in records if (found := record.key(key)) is not None), None)
    return key if declared is None else declared.words


def metric_rows(first: AuditRecord, last: AuditRecord, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The table of a run."""
    return [
        {
            "key": key,
            "words": words_of([last], key),
            "doubt": last.doubt(key),
            "first": interval(first.metrics.get(key)),
            "last": interval(last.metrics[key]),
            "chance": number(last.metrics[key].chance, 2),
            "valid": last.metrics[key].valid,
        }
        for key in keys
        if key in last.metrics
    ]


def difference_rows(
    metrics: Sequence[MetricDifference], first: Sequence[str], record: AuditRecord
) -> list[dict[str, Any]]:
    """The table of two models: what rules are about, then what is beyond noise, then the rest."""
    place = {key: where for where, key in enumerate(first)}
    order = sorted(metrics, key=lambda each: (place.get(each.key, len(place)), not each.beyond))
    return [
        {
            "key": each.key,
            "words": each.words,
            "doubt": record.doubt(each.key),
            "a": interval(each.a),
            "b": interval(each.b),
            "difference": interval(each.difference, sign=True),
            "p": number(each.p),
            "beyond": each.beyond,
            "chance": number(each.a.chance, 2),
            "verdict": _compared(each.beyond, each.difference.value),
        }
        for each in order
    ]


def _compared(beyond: bool | None, value: float) -> str:
    if beyond is None:
        return "cannot be told"
    return f"beyond noise: {'higher' if value > 0 else 'lower'}" if beyond else "within noise"
