"""Do the expectations hold of a record? Three answers, and a fourth for what is not asked yet.

| outcome | when |
|---|---|
| `pass` | the value and both ends of its interval are on the expected side of the bound |
| `fail` | the value and both ends are on the other side |
| `not enough evidence` | the bound lies in the interval; or there should be an interval and is none; or no value |
| `not due` | before `from epoch`, or after `until epoch` |

Intervals are those of the record, at its level of 95 %. Where there is none:

- With fewer than `FEWEST_FOR_INTERVAL` valid probes a metric of the probes has none, since it would promise more than
  it knows. That is not enough evidence, however good the value.
- With that many, a metric without an interval has none by nature, such as a rank correlation: the value decides.
- Metrics of the whole validation set (`group/...`) without an interval, and what is no estimate (`alarm/...`), are what
  they are: the value decides. The share of right answers in all images gets Wilson's interval.

Where every probe says the same, resampling knows no other answer, and the interval of a share would be a point: 30
right answers of 30 are no proof of more than 99 %. Such a share gets Wilson's interval, here [.89, 1].

A value that is NaN or infinite never passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from operator import ge, gt, le, lt

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations.expectation import Expectation, Target
from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.metrics.summary import FEWEST_FOR_INTERVAL, Estimate, summarize
from xai_callbacks.record import AuditRecord, NoveltyRecord

__all__ = ["Outcome", "Verdict", "check"]

_COMPARE = {"<": lt, "<=": le, ">": gt, ">=": ge}


class Outcome(StrEnum):
    """What an audit says of an expectation."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"
    NOT_DUE = "not due"


@dataclass(frozen=True)
class Verdict:
    """What one audit says of one expectation.

    Attributes:
        expectation: The expectation.
        outcome: What is said.
        value: What was measured; NaN if nothing was.
        low: Lower end of its interval; None without one.
        high: Upper end; None likewise.
        valid: Number of probes, or images, behind the value.
        margin: How far the value is on the expected side of the bound; negative on the other side, NaN without a value.
        reason: All that in a sentence.
    """

    expectation: Expectation
    outcome: Outcome
    value: float
    low: float | None
    high: float | None
    valid: int
    margin: float
    reason: str

    @property
    def measured(self) -> str:
        """The value with its interval, such as `0.61 [0.55, 0.66]`."""
        return _measured(self.value, self.low, self.high, self.expectation.bound)


def check(expectations: Iterable[Expectation], record: NoveltyRecord, epoch: int | None = None) -> tuple[Verdict, ...]:
    """Hold expectations against a record.

    `for class` and `for group` estimate the metric anew from the values of those probes, with an interval of their own.

    Args:
        expectations: From `parse_expectations`.
        record: The audit.
        epoch: Epoch for `from epoch` and `until epoch`; None for that of the record.

    Returns:
        One verdict for each, in order.

    Raises:
        ConfigurationError: An expectation was not looked up, or its group is of other probes.
    """
    at = record.epoch if epoch is None else epoch
    return tuple(_judged(expectation, record, at) for expectation in expectations)


def _judged(expectation: Expectation, record: NoveltyRecord, epoch: int) -> Verdict:
    target = expectation.target
    if target is None:
        raise ConfigurationError(
            f"Expected expectations from `parse_expectations`, but got {str(expectation)!r}, which was not looked up."
        )
    if not expectation.is_due(epoch):
        before = expectation.from_epoch is not None and epoch < expectation.from_epoch
        when = f"before epoch {expectation.from_epoch}" if before else f"after epoch {expectation.until_epoch}"
        return Verdict(expectation, Outcome.NOT_DUE, math.nan, None, None, 0, math.nan, f"not due {when}")
    found = _estimate(target, record)
    if found is None:
        nothing, reason = Outcome.NOT_ENOUGH_EVIDENCE, "not measured at this audit"
        return Verdict(expectation, nothing, math.nan, None, None, 0, math.nan, reason)
    estimate = _complete(found, target)
    outcome, remark = _outcome(expectation, estimate, target)
    distance = estimate.value - expectation.bound if math.isfinite(estimate.value) else math.nan
    return Verdict(
        expectation,
        outcome,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        valid=estimate.valid,
        margin=distance if expectation.operator in (">", ">=") else -distance,
        reason=_reason(expectation, estimate, target, remark),
    )


def _outcome(expectation: Expectation, estimate: Estimate, target: Target) -> tuple[Outcome, str]:
    """What the estimate says, and what must be added to understand it."""
    compare = _COMPARE[expectation.operator]
    points = [estimate.value, *(end for end in (estimate.low, estimate.high) if end is not None)]
    if not all(map(math.isfinite, points)):
        return Outcome.NOT_ENOUGH_EVIDENCE, ""
    has_interval = len(points) == 3
    if not has_interval and target.unit == "probes" and estimate.valid < FEWEST_FOR_INTERVAL:
        return Outcome.NOT_ENOUGH_EVIDENCE, f", too few for an interval ({FEWEST_FOR_INTERVAL})"
    remark = "" if has_interval else " (no interval)"
    holds = {bool(compare(point, expectation.bound)) for point in points}
    if len(holds) == 2:
        return Outcome.NOT_ENOUGH_EVIDENCE, remark
    return Outcome.PASS if holds.pop() else Outcome.FAIL, remark


def _estimate(target: Target, record: NoveltyRecord) -> Estimate | None:
    """The estimate as recorded, or of some probes only; None where nothing is recorded."""
    if target.class_index is None and target.members is None:
        return record.metrics.get(target.key)
    vectors, chances = (record.per_probe, record.chances) if isinstance(record, AuditRecord) else ({}, {})
    values = vectors.get(target.key)
    if values is None and target.key.startswith("novelty/"):
        values = record.scores.get(target.key.removeprefix("novelty/"))
    if values is None:
        return None
    rows, chance = _rows(target, record, len(values)), chances.get(target.key)
    return summarize(values[rows], chance=None if chance is None else chance[rows])


def _rows(target: Target, record: NoveltyRecord, count: int) -> Tensor:
    rows = torch.ones(count, dtype=torch.bool)
    if target.class_index is not None:
        truth = record.truth if isinstance(record, AuditRecord) else None
        rows &= torch.tensor(False) if truth is None else truth == target.class_index
    if target.members is not None:
        if len(target.members) != count:
            raise ConfigurationError(
                f"Expected a record of the {len(target.members)} probes whose groups were looked up, but got one of "
                f"{count}. Parse the expectations with the probes of the record."
            )
        rows &= torch.tensor(target.members)
    return rows


def _complete(estimate: Estimate, target: Target) -> Estimate:
    """The estimate with the interval that it should have, turned around if need be."""
    low, high = _interval(estimate, target)
    if not target.complement:
        return estimate._replace(low=low, high=high)
    ends = (None, None) if low is None or high is None else (1 - high, 1 - low)
    return estimate._replace(value=1 - estimate.value, low=ends[0], high=ends[1])


def _interval(estimate: Estimate, target: Target) -> tuple[float | None, float | None]:
    low, high, count = estimate.low, estimate.high, estimate.valid
    # A point is no interval, and a share of so many images has one.
    known = low is not None or target.unit == "images"
    if not (target.share and low == high and known and count and math.isfinite(estimate.value)):
        return low, high
    ends = wilson_interval(torch.tensor(round(estimate.value * count)), torch.tensor(count))
    return float(ends[0]), float(ends[1])


def _reason(expectation: Expectation, estimate: Estimate, target: Target, remark: str) -> str:
    count = "" if target.unit == "nothing" else f" on {estimate.valid} {target.unit}"
    lost = f" ({estimate.degenerate} without a value)" if estimate.degenerate else ""
    shown = _measured(estimate.value, estimate.low, estimate.high, expectation.bound)
    return f"{shown}{count}{lost}{remark}; expected {expectation.comparison}"


def _measured(value: float, low: float | None, high: float | None, bound: float) -> str:
    if not math.isfinite(value):
        return "no value"
    ends = "" if low is None or high is None else f" [{_text(low, bound)}, {_text(high, bound)}]"
    return f"{_text(value, bound)}{ends}"


def _text(value: float, bound: float) -> str:
    """Three digits, or as many as it takes to tell the value from the bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if (float(text) < bound, float(text) > bound) == (value < bound, value > bound):
            return text
    return repr(value)
