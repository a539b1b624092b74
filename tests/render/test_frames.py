from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.render import keep_frame_indices


@given(st.integers(3, 12), st.integers(1, 400))
def test_frames_kept_while_audits_come_in_stay_few_spread_and_hold_both_ends(limit, audits):
    held = []
    for audit in range(audits):
        held.append(audit)
        held = [held[index] for index in keep_frame_indices(held, limit)]
    assert len(held) == min(limit, audits)
    assert (held[0], held[-1]) == (0, audits - 1)
    gaps = [after - before for before, after in pairwise(held)]
    assert all(gap >= 1 for gap in gaps)
    # No hole is larger than twice the even spacing, rounded up to the next power of two.
    assert not gaps or max(gaps) <= 4 * max(1, -(-audits // limit))


def test_thinning_drops_the_frame_with_the_closest_neighbours():
    assert keep_frame_indices([0, 100, 110, 120, 500], 4) == [0, 1, 3, 4]


def test_frames_within_the_limit_are_all_kept():
    assert keep_frame_indices([3, 5, 9], 8) == [0, 1, 2]
    assert keep_frame_indices([], 8) == []


def test_bad_arguments_are_named():
    with pytest.raises(ConfigurationError, match="Expected `limit` to be >= 2, but got 1"):
        keep_frame_indices([1, 2, 3], 1)
    with pytest.raises(ConfigurationError, match="Expected `positions` to increase strictly"):
        keep_frame_indices([1, 1], 4)
