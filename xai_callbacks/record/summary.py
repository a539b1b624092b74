"""`summarize`: one number for many probes, with an interval that holds for few and skewed values, too."""

import math

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_number
from xai_callbacks.record.values import Estimate

FEWEST_FOR_INTERVAL = 30
"""With fewer valid probes an interval would promise more than it knows, and none is given."""

_MOST_TIED = 0.75  # of values without bounds, more that are equal than this share hide how far the others reach
_SELDOM = 0.001  # values without bounds that are all 0 may be something that was this unlikely not to be met
_RESAMPLES = 1000

Bounds = tuple[float | None, float | None]


def summarize(
    values: Tensor,
    *,
    chance: Tensor | None = None,
    strata: Tensor | None = None,
    bounds: Bounds = (None, None),
    signed: bool = False,
    confidence: float = 0.95,
) -> Estimate:
    """Mean over probes with its interval, see `interval`.

    Args:
        values: One value a probe, `(N,)`; NaN or inf where there is none. Such probes are counted, never averaged in.
        chance: Chance level of each probe, `(N,)`; NaN where the metric does not apply (the probe has no such region),
            which keeps that probe out of `degenerate`.
        strata: Stratum of each probe, such as its class, `(N,)` int64: values are averaged within each stratum, and
            then over strata, so that the mix of the probes does not matter. None for a plain mean.
        bounds: Smallest and largest possible value; None for no bound.
        signed: Whether values without bounds may be negative as well as positive, as differences may.
        confidence: Level of the interval, in (0, 1).

    Raises a `ConfigurationError` if shapes differ, or `confidence` is out of range.
    """
    if values.ndim != 1:
        raise ConfigurationError(f"Expected `values` to be (N,), one a probe, but got shape {tuple(values.shape)}.")
    for name, each in (("chance", chance), ("strata", strata)):
        if each is not None and each.shape != values.shape:
            raise ConfigurationError(
                f"Expected `{name}` to have the shape of `values`, {tuple(values.shape)}, but got {tuple(each.shape)}."
            )
    require_number("confidence", confidence, 0, 1, ends="()")
    values = values.detach().to("cpu", torch.float64)
    valid = torch.isfinite(values)
    # Equal weights, or equal in sum for each stratum that has any valid probe.
    places = torch.zeros(int(valid.sum()), dtype=torch.int64) if strata is None else strata[valid]
    found, place, counts = torch.unique(places, return_inverse=True, return_counts=True)
    given, weights = values[valid], 1 / (counts.double()[place] * max(len(found), 1))
    low, high = interval(given, weights, bounds=bounds, signed=signed, confidence=confidence)
    missing, level = ~valid, None
    if chance is not None:
        chance = chance.detach().to("cpu", torch.float64)
        missing, level = missing & ~torch.isnan(chance), _mean(chance[valid], place, counts)
    value = _mean(given, place, counts)
    return Estimate(value, low, high, level, len(given), int(missing.sum()))


def _mean(values: Tensor, place: Tensor, counts: Tensor) -> float:
    """Mean of the means of strata: of ones exactly 1, as a product with weights is on some machines only."""
    if len(counts) < 2:
        return float(values.mean())
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, values)
    return float((sums / counts).mean())


def interval(
    values: Tensor,
    weights: Tensor | None = None,
    *,
    bounds: Bounds = (None, None),
    signed: bool = False,
    confidence: float = 0.95,
) -> tuple[float | None, float | None]:
    """Confidence interval of a mean; none of fewer than 30 values, nor where it would not hold.

    Of values within bounds it is Student's interval after one value more at each bound: Agresti and Coull (1998) for
    shares, Agresti and Min (2005) for paired ones, the same for all between. It covers any share with 93 % at least at
    a level of 95 %. Without bounds it is the wider of Student's and the bootstrap-t interval, and there is none where
    more than three quarters of the values are equal. Coverage over skewed, rare and heavy-tailed values is in
    `docs/shortcuts.md`.

    Args:
        values: `(n,)` float64, all finite.
        weights: Weight of each in the mean, `(n,)`, sum 1; None for equal ones.
        bounds: Smallest and largest possible value; None for no bound. Values that are all 0 or 1 are a share;
            where they are all alike, the interval holds any share of which a thousandth of the draws would be so.
        signed: Whether values without bounds may be negative, as differences may: then those that are all -1, 0 or 1
            are differences of shares, and where they are all alike the interval reaches to both sides.
        confidence: Level, in (0, 1).
    """
    from scipy.stats import t

    if len(values) < FEWEST_FOR_INTERVAL:
        return None, None
    weights = torch.full_like(values, 1 / len(values)) if weights is None else weights
    # As many equal weights would give the same variance (Kish's effective sample size).
    count = float(1 / (weights @ weights))
    mean = float(values @ weights)
    reach = float(t.ppf((1 + confidence) / 2, max(count - 1, 1)))
    least = -1.0 if signed else 0.0
    if bounds == (None, None) and bool(((values == 0) | (values == 1) | (values == least)).all()):
        if bool((values == values[0]).all()):  # perhaps no share, but something rare of unknown size
            rare = 1 - _SELDOM ** (1 / count)
            if signed:
                return float(values[0]) - rare, float(values[0]) + rare
            return (0.0, rare) if values[0] == 0 else (1 - rare, 1.0)
        bounds = (least, 1.0)
    if bounds[0] is None or bounds[1] is None:
        if int(torch.unique(values, return_counts=True)[1].max()) > _MOST_TIED * len(values):
            return None, None
        error = math.sqrt(float(((values - mean) ** 2) @ weights) / max(count - 1, 1))
        below, above = _bootstrap_t(values, weights, count, (1 - confidence) / 2)
        return mean - max(reach, above) * error, mean + max(reach, -below) * error
    low, high = min(bounds[0], float(values.min())), max(bounds[1], float(values.max()))
    more = count + 2
    centre = (count * mean + low + high) / more
    square = (count * float(values**2 @ weights) + low**2 + high**2) / more
    half = reach * math.sqrt(max(square - centre**2, 0.0) / more)
    return max(low, min(centre - half, mean)), min(high, max(centre + half, mean))


def _bootstrap_t(values: Tensor, weights: Tensor, count: float, tail: float) -> tuple[float, float]:
    """Quantiles of the studentised mean over resamples; the random state of PyTorch is neither read nor advanced."""
    even, generator = torch.ones(_RESAMPLES, len(values)), torch.Generator().manual_seed(0)
    drawn = torch.multinomial(even, len(values), replacement=True, generator=generator)
    given = weights[drawn] / weights[drawn].sum(dim=1, keepdim=True)
    means = (values[drawn] * given).sum(dim=1)
    spread = ((values[drawn] - means[:, None]) ** 2 * given).sum(dim=1).div(max(count - 1, 1)).sqrt()
    studentised = ((means - values @ weights) / spread)[spread > 0]
    ends = torch.quantile(studentised, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(ends[0]), float(ends[1])
