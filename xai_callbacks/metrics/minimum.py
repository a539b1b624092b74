"""`minimum_interval`: how low the lowest of several proportions may be, and how high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from xai_callbacks.errors import ConfigurationError

__all__ = ["minimum_interval"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Ends are found to 1e-10: each round cuts what is left of [0, 1] into as many parts.
_ROUNDS, _PARTS = 11, 8


def minimum_interval(
    correct: Tensor, total: Tensor, confidence: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Exact interval for the smallest of several true proportions, which need not be that with the smallest count.

    The smallest count is too low on average, the more so the more proportions there are: an interval of that proportion
    alone would often lie below the true minimum, and a bootstrap of the minimum, which takes the minimum once more,
    nearly always. This one holds the true minimum with a probability of at least `confidence`, whatever the proportions
    and however few the trials. Its ends are the smallest lower and the smallest upper end of the exact intervals of the
    single proportions (Clopper and Pearson 1934): lower ones with the error `(1 - confidence) / 2`, since that of the
    true minimum alone must hold; upper ones with the error of Šidák for all of them, since each must hold.

    Args:
        correct: Trials that went well, any shape.
        total: Trials, same shape, 1 or more.
        confidence: Level, in (0, 1).

    Returns:
        Lower and upper end in [0, 1]; None for both without a proportion.
    """
    if not 0 < confidence < 1:
        raise ConfigurationError(f"Expected `confidence` to be between 0 and 1, but got {confidence}.")
    if not total.numel():
        return None, None
    right, trials = (values.detach().flatten().cpu().long().numpy() for values in (correct, total))
    # The likeliest first, since it spares the others most of the work.
    order = np.argsort(right / trials)
    right, trials = right[order], trials[order]
    error = (1 - confidence) / 2
    each = 1 - (1 - error) ** (1 / len(trials))
    # As many right or more is as many wrong or fewer.
    low, _ = _crossing(trials - right, trials, lambda tails, shares: tails.at(1 - shares) >= error)
    _, high = _crossing(right, trials, lambda tails, shares: tails.at(shares) <= each)
    return low, high


# NumPy: these are many small steps, which cost PyTorch several times as much.
class _Tails:
    """Probabilities of `most` or fewer of `total` trials, both `(G,)`, as functions of the proportion.

    They tell a half and more from less, and the latter to rounding.
    """

    def __init__(self, most: Integers, total: Integers) -> None:
        self._most, self._total = most, total
        # Terms further below `most` than 24 standard deviations add nothing to a small tail.
        self._window = np.minimum(most, (12 * np.sqrt(total)).astype(np.int64) + 20) + 1
        trials = np.repeat(total, self._window)
        successes = np.repeat(most, self._window) - (np.arange(len(trials)) - np.repeat(self._starts(), self._window))
        failures = trials - successes
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total.max() + 1)))])  # of factorials
        self._terms = logs[trials] - logs[successes] - logs[failures], successes.astype(float), failures.astype(float)

    def at(self, shares: Floats) -> Floats:
        """The probabilities at proportions `(S,)` in (0, 1), `(S, G)`."""
        ways, successes, failures = self._terms
        logs = np.log(shares)[:, None] * successes + np.log1p(-shares)[:, None] * failures
        sums = np.add.reduceat(np.exp(ways + logs), self._starts(), axis=1)
        # The median is at most the mean, rounded up: here the tail is a half or more.
        return np.where(shares[:, None] * self._total <= self._most, 1.0, sums)

    def _starts(self) -> Integers:
        starts: Integers = np.cumsum(self._window) - self._window
        return starts


def _crossing(
    most: Integers, total: Integers, condition: Callable[[_Tails, Floats], npt.NDArray[np.bool_]]
) -> tuple[float, float]:
    """The last share at which a condition, `(S, G)`, holds for no group yet, and the first at which it does for one.

    0 and 1 where there is no such share inside.
    """
    low, high = _narrowed(_Tails(most[:1], total[:1]), condition)
    # A group for which it does not hold where it does for the first group is not the one.
    earlier = condition(_Tails(most, total), np.array([high]))[0] if high < 1 else np.ones(len(total), dtype=bool)
    earlier[0] = True
    return (low, high) if earlier.sum() == 1 else _narrowed(_Tails(most[earlier], total[earlier]), condition)


def _narrowed(tails: _Tails, condition: Callable[[_Tails, Floats], npt.NDArray[np.bool_]]) -> tuple[float, float]:
    low, high = 0.0, 1.0
    cuts = np.arange(1, _PARTS) / _PARTS
    for _ in range(_ROUNDS):
        shares = low + (high - low) * cuts
        ends = [low, *shares.tolist(), high]
        before = int((~condition(tails, shares).any(axis=1)).sum())
        low, high = ends[before], ends[before + 1]
    return low, high
