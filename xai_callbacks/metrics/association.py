"""Does a mark go with a part of things more often than chance explains? An exact test, and its price for many."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["fisher_exact", "holm"]


def fisher_exact(marked: int, part: int, all_marked: int, total: int) -> float:
    """Two-sided p-value of Fisher's exact test, in (0, 1].

    The chance that a part drawn at random holds a number of marked things that is as improbable as the one found, or
    more so. Counted in whole numbers: nothing is rounded but the result. Cost: `O(part)` binomial coefficients.

    Args:
        marked: Marked things in the part.
        part: Things in the part.
        all_marked: Marked things in all.
        total: Things in all.

    Raises:
        ConfigurationError: The counts contradict each other.
    """
    counts = (("marked", marked), ("part", part), ("all_marked", all_marked), ("total", total))
    for name, count in counts:
        require_integer(name, count, minimum=0)
    least, most = max(0, part + all_marked - total), min(part, all_marked)
    if part > total or all_marked > total or not least <= marked <= most:
        got = ", ".join(f"{name}={count}" for name, count in counts)
        raise ConfigurationError(f"Expected counts of a part and of the whole that it is taken from, but got {got}.")
    ways = [math.comb(all_marked, k) * math.comb(total - all_marked, part - k) for k in range(least, most + 1)]
    found = ways[marked - least]
    return sum(number for number in ways if number <= found) / math.comb(total, part)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the same order, in [0, 1].

    At most one in twenty such families has a corrected value below 0.05 by chance, however the tests depend on each
    other. NaN stands for a test that could not be made: it stays NaN and is not counted.
    """
    tests = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    if tests and not (tests[0][0] >= 0 and tests[-1][0] <= 1):
        raise ConfigurationError(f"Expected `p_values` to be in [0, 1] or NaN, but got {list(p_values)}.")
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tests):
        largest = max(largest, min(1.0, p * (len(tests) - rank)))
        corrected[place] = largest
    return corrected
