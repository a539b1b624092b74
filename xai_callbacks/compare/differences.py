"""Paired differences of metrics between two audits of the same probes, and which of them are beyond noise."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.record import AuditRecord, Estimate, Key, summarize

_FLIPS = 10_000  # random signs: p values are multiples of 1e-4
_ROUNDING = 1e-9
NOTHING = 1e-5  # changes below this share of what a metric may be, or is, are rounding of another machine
# About an earlier audit of the same run, about rules, and names of things: no properties of a model by itself.
_NOT_COMPARED = ("drift", "switched", "rank_correlation", "cka", "number")
_NOT_COMPARED_ROOTS = ("alarm", "expectation")
FEWEST_SEEDS = 3


class MetricDifference(NamedTuple):
    """One metric of a model against the baseline."""

    key: str
    words: str  # what it means
    a: Estimate  # of the baseline
    b: Estimate  # of the model
    difference: Estimate  # b - a over the probes that have a value in both, with an interval; else of the estimates
    p: float | None = None  # corrected for the number of metrics; None where it cannot be told
    beyond: bool | None = None  # whether it is beyond noise


def metric_differences(
    a: AuditRecord, b: AuditRecord, seeds: Sequence[AuditRecord] = (), *, confidence: float = 0.95
) -> tuple[MetricDifference, ...]:
    """Differences of all metrics that both audits have, most certain first.

    Two kinds of noise are told apart. That of the *probes*: signs of paired differences are flipped at random, for all
    metrics at once, and the largest studentised mean of any metric gives the corrected p value (Westfall and Young
    1993). That of *training*: with three seeds of one training or more, a difference is also held against what two of
    them differ by, `|b - a| / (sqrt(2) sd)` as Student's t, corrected by Holm's procedure. The ratio of `sd` to the
    standard error over probes is taken to be the median one of all metrics at least: of many metrics a few seeds agree
    on some by chance. What is beyond both, or beyond probes where there are no seeds, and whose interval is beyond 0,
    is beyond noise. Rounding is not: changes below 1e-5 of the range of a metric, or of its size, count as none. Means
    of novelty scores are judged by seeds only.

    Args:
        a: Audit of the baseline.
        b: Audit of the model.
        seeds: Audits of three or more trainings that differ in their seed alone.
        confidence: 1 - the chance that any metric of two equal models is found beyond noise.
    """
    compared = [_paired(key, a, b) for key in a.metrics if key in b.metrics and _is_of_the_model(key, a.key(key))]
    if not seeds:  # scores of two nets are in units of their own
        compared = [(row, None if row.key.startswith("novelty/") else shares) for row, shares in compared]
    rows = [row for row, _ in compared]
    statistics = [_statistic(shares) for _, shares in compared]
    p_probes = _sign_flip_p(statistics)
    p_seeds = _seeds_p(rows, seeds, a) if len(seeds) >= FEWEST_SEEDS else [0.0] * len(rows)
    found = []
    for row, parts, *each in zip(rows, statistics, p_probes, p_seeds, strict=True):
        p = None if any(math.isnan(value) for value in each) else max(each)
        size = 0.0 if parts is None else -abs(float(parts.sum()))
        low, high = row.difference.low, row.difference.high
        apart = low is None or high is None or low > 0 or high < 0
        judged = row._replace(p=p, beyond=None if p is None else p <= 1 - confidence and apart)
        found.append(((math.inf if p is None else p, size), judged))
    return tuple(row for _, row in sorted(found, key=lambda each: each[0]))


def _is_of_the_model(key: str, declared: Key | None) -> bool:
    parts = key.split("/")
    label = declared is not None and declared.unit == "label"
    return not label and parts[-1] not in _NOT_COMPARED and parts[0] not in _NOT_COMPARED_ROOTS


def _paired(key: str, a: AuditRecord, b: AuditRecord) -> tuple[MetricDifference, Tensor | None]:
    """A row without p, and the part `(N,)` that each probe has in the difference.

    None where that is not known, or no probe has a value in both.
    """
    declared = a.key(key) or Key(key, "")
    first, second = a.metrics[key], b.metrics[key]
    difference, shares = Estimate(second.value - first.value, valid=min(first.valid, second.valid)), None
    before, after = _of_probes(a, key), _of_probes(b, key)
    if before is not None and after is not None and len(before) == len(after):
        change, strata = after - before, a.strata.get(key)
        reach = None if declared.low is None or declared.high is None else declared.high - declared.low
        difference = summarize(change, strata=strata, bounds=(None if reach is None else -reach, reach), signed=True)
        known = change.isfinite()
        if bool(known.any()):
            size = reach or float(torch.stack([before, after])[:, known].abs().mean())
            shares = _shares(change.where(~(change.abs() <= NOTHING * size), 0.0), strata)
    return MetricDifference(key, declared.words, first, second, difference), shares


def _of_probes(record: AuditRecord, key: str) -> Tensor | None:
    """Value of each probe, if the metric is their mean."""
    return record.per_probe.get(key, record.scores.get(key.removeprefix("novelty/")))


def _shares(change: Tensor, strata: Tensor | None) -> Tensor:
    """The change of each probe times its weight in the mean, 0 where it has none."""
    known = change.isfinite()
    weights = known.double()
    if strata is not None:
        for stratum in torch.unique(strata[known]):
            inside = known & (strata == stratum)
            weights[inside] = 1 / inside.sum()
    return change.nan_to_num(0, 0, 0) * weights * known


def _statistic(shares: Tensor | None) -> Tensor | None:
    """What each probe adds to the studentised mean, `(N,)`: its denominator does not change with the signs."""
    if shares is None:
        return None
    length: Tensor = torch.linalg.vector_norm(shares)
    return shares / length.clamp_min(torch.finfo(torch.float64).tiny)


def _sign_flip_p(statistics: Sequence[Tensor | None]) -> list[float]:
    """Corrected p value of each mean being 0; NaN where it is not a mean over probes that both have."""
    found = [math.nan] * len(statistics)
    places = [place for place, each in enumerate(statistics) if each is not None]
    parts = [each for each in statistics if each is not None]
    if not parts:
        return found
    matrix = torch.stack(parts)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (matrix.shape[1], _FLIPS), generator=generator).double() * 2 - 1
    largest = (matrix @ signs).abs().amax(dim=0)
    for place, observed in zip(places, matrix.sum(dim=1).abs().tolist(), strict=True):
        beaten = int((largest >= observed - _ROUNDING).sum())
        found[place] = (1 + beaten) / (1 + _FLIPS)
    return found


def _seeds_p(rows: Sequence[MetricDifference], seeds: Sequence[AuditRecord], a: AuditRecord) -> list[float]:
    """Corrected p value of each difference being one of seeds; NaN where they do not all have the metric."""
    from scipy.stats import t

    spreads = [_spread(row.key, seeds, a) for row in rows]
    errors = [_standard_error(row.key, a) for row in rows]
    known = [spread / error for spread, error in zip(spreads, errors, strict=True) if spread >= 0 and error > 0]
    usual = median(known) if known else 0.0
    found = [math.nan] * len(rows)
    for place, (row, spread, error) in enumerate(zip(rows, spreads, errors, strict=True)):
        if not math.isnan(spread + row.difference.value):
            # Among many metrics some seeds agree by chance: none is taken to be steadier than the usual one.
            least = max(spread, 0.0 if math.isnan(error) else usual * error)
            change = abs(row.difference.value)
            if least or not change:  # of seeds that agree to the last digit nothing is known
                found[place] = 2 * float(t.sf(change / (math.sqrt(2) * (least or 1.0)), len(seeds) - 1))
    order = sorted((place for place, p in enumerate(found) if not math.isnan(p)), key=lambda place: found[place])
    worst = 0.0
    for rank, place in enumerate(order):  # Holm 1979
        worst = max(worst, min(1.0, found[place] * (len(order) - rank)))
        found[place] = worst
    return found


def _spread(key: str, seeds: Sequence[AuditRecord], a: AuditRecord) -> float:
    """Standard deviation of a metric over seeds; NaN where one lacks it."""
    values = torch.tensor([each.metrics[key].value for each in seeds if key in each.metrics], dtype=torch.float64)
    if len(values) < len(seeds):
        return math.nan
    declared = a.key(key)
    # Seeds may agree on a share to the last probe, and the next one still differ by one.
    least = 0.5 / len(a.names) if declared is not None and declared.unit == "share" else 0.0
    return max(float(values.std()), least)


def _standard_error(key: str, a: AuditRecord) -> float:
    """Standard error of a metric of one model by the choice of probes; NaN where it is no mean over probes."""
    values = _of_probes(a, key)
    known = torch.empty(0) if values is None else values[values.isfinite()]
    return float(known.std() / math.sqrt(len(known))) if len(known) > 1 else math.nan
