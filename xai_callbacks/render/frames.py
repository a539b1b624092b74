"""Which audits a filmstrip shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from xai_callbacks.errors import ConfigurationError

__all__ = ["keep_frame_indices"]


def keep_frame_indices(positions: Sequence[int], limit: int = 8) -> list[int]:
    """Thin out frames while audits are still coming in, so that memory stays bounded.

    Call it after each audit with the positions of the frames held. Whenever there are too many, the frame whose
    neighbours are closest to each other goes (of equals the earliest). First and last always stay.

    Args:
        positions: Steps, epochs or audit numbers of the frames held, strictly increasing.
        limit: Largest number of frames to hold, >= 2.

    Returns:
        Strictly increasing indices into `positions`, `min(len(positions), limit)` of them.

    Raises:
        ConfigurationError: If `positions` does not increase strictly, or `limit` is below 2.
    """
    _require_limit(limit)
    if any(later <= earlier for earlier, later in pairwise(positions)):
        raise ConfigurationError(
            f"Expected `positions` to increase strictly, but got {list(positions)}. "
            f"Pass one position per audit, in order."
        )
    kept = list(range(len(positions)))
    while len(kept) > limit:
        gaps = [positions[after] - positions[before] for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return kept


def _require_limit(limit: int) -> None:
    if limit < 2:
        raise ConfigurationError(
            f"Expected `limit` to be >= 2, but got {limit}. The first and the last audit are always shown."
        )
