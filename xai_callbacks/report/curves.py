"""Curves of metrics over training: where lines, bands and ticks stand, for the template to draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Finding, Key
from xai_callbacks.report.texts import epoch, interval, number

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 26
TICKS: Final = 6

Look = tuple[AuditRecord, Estimate]


def curve(key: str, models: Mapping[str, History]) -> dict[str, Any] | None:
    """One metric of all models; None where no model has two values of it."""
    looks = {name: [look for look in history.estimates(key) if math.isfinite(look[1].value)]
             for name, history in models.items()}  # fmt: skip
    if max((len(each) for each in looks.values()), default=0) < 2:
        return None
    declared = next((each[-1][0].key(key) for each in looks.values() if each), None)
    about = [finding for each in looks.values() if each for finding in each[-1][0].findings if finding.about == key]
    x, y, steps, marks = _axes(looks, declared, about)
    thresholds = sorted({each.threshold for each in about if each.threshold is not None})
    return {
        "key": key,
        "words": key if declared is None else declared.words,
        "described": ". ".join(_described(name, each) for name, each in looks.items() if each),
        "size": (WIDTH, HEIGHT),
        "edges": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "ticks_x": [(x(step), words) for step, words in steps],
        "ticks_y": [(y(mark), number(mark)) for mark in marks],
        "series": [_series(place, each, x, y) for place, each in enumerate(looks.values()) if each],
        "thresholds": [(y(each), number(each)) for each in thresholds],
    }


def _series(place: int, looks: Sequence[Look], x: Any, y: Any) -> dict[str, Any]:
    upper = [(x(record.step), y(each.high)) for record, each in looks if each.low is not None]
    lower = [(x(record.step), y(each.low)) for record, each in looks if each.low is not None]
    chance = [(x(record.step), y(each.chance)) for record, each in looks if _known(each.chance)]
    return {
        "place": place,
        "band": _path([*upper, *reversed(lower)]) + "Z" if upper else "",
        "line": _path([(x(record.step), y(each.value)) for record, each in looks]),
        "chance": _path(chance),
        "dots": [(x(record.step), y(each.value), f"{epoch(record)}: {interval(each)}") for record, each in looks],
    }


def _axes(looks: Mapping[str, Sequence[Look]], declared: Key | None, about: Sequence[Finding]) -> tuple[Any, ...]:
    """Functions to places, and what is written at the ends of both axes; bounds that are known are kept in sight."""
    estimates = [each for series in looks.values() for _, each in series]
    drawn = [value for each in estimates for value in (each.value, each.low, each.high, each.chance)]
    values = [value for value in drawn if value is not None and math.isfinite(value)]
    values += [each.threshold for each in about if each.threshold is not None]
    low, high = min(values), max(values)
    if declared is not None and declared.high is not None and declared.low is not None and declared.high <= 1:
        low, high = min(low, max(declared.low, 0.0)), max(high, declared.high)
    if high == low:
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    longest = max(looks.values(), key=len)
    first = min(series[0][0].step for series in looks.values() if series)
    last = max(series[-1][0].step for series in looks.values() if series)
    every = math.ceil(len(longest) / TICKS)
    named = [(record.step, _tick(record)) for record, _ in longest[::-1][::every]]

    def x(step: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    return x, y, named, _ticks(low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends."""
    spread = high - low
    unit = 10.0 ** math.floor(math.log10(spread / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if spread / (unit * factor) <= 5)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _described(name: str, looks: Sequence[Look]) -> str:
    (first, began), (last, ended) = looks[0], looks[-1]
    chance = f"; chance {number(ended.chance)}" if _known(ended.chance) else ""
    return f"{name}: {interval(began)} {epoch(first)}, {interval(ended)} at {epoch(last)}{chance}"


def _tick(record: AuditRecord) -> str:
    return "start" if record.untrained else str(record.epoch)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""
