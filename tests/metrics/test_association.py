"""Fisher's exact test against scipy, Holm's correction by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.association import fisher_exact, holm

cells = st.tuples(*[st.integers(0, 40)] * 4)


@given(cells)
def test_fisher_is_that_of_scipy(table: tuple[int, int, int, int]):
    marked, unmarked, other_marked, other_unmarked = table
    expected = stats.fisher_exact([[marked, unmarked], [other_marked, other_unmarked]]).pvalue
    got = fisher_exact(marked, marked + unmarked, marked + other_marked, sum(table))
    assert got == pytest.approx(expected, rel=1e-9)


def test_the_lady_tasting_tea():
    # 3 of 4 cups right: (1 + 16 + 16 + 1) of 70 draws are as improbable (Fisher 1935).
    assert fisher_exact(3, 4, 4, 8) == 34 / 70
    assert fisher_exact(4, 4, 4, 8) == 2 / 70


def test_large_counts_do_not_overflow():
    expected = stats.fisher_exact([[700, 300], [2400, 1600]]).pvalue
    assert fisher_exact(700, 1000, 3100, 5000) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 5, 0, 9), (5, 5, 9, 9), (3, 9, 3, 9)])
def test_counts_that_could_not_be_otherwise_have_p_one(counts: tuple[int, int, int, int]):
    assert fisher_exact(*counts) == 1.0


@pytest.mark.parametrize("counts", [(5, 4, 5, 9), (1, 4, 9, 9), (0, 5, 8, 9), (0, 10, 0, 9), (-1, 4, 4, 8)])
def test_counts_that_contradict_each_other_are_refused(counts: tuple[int, int, int, int]):
    with pytest.raises(ConfigurationError, match="Expected"):
        fisher_exact(*counts)


def test_holm_by_hand():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before), 0.5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_holm_does_not_count_what_was_not_tested():
    corrected = holm([math.nan, 0.02, math.nan, 0.04])
    assert corrected[1::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(corrected[0])
    assert math.isnan(corrected[2])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_the_value_and_that_of_bonferroni_and_keeps_the_order(p_values: list[float]):
    corrected = holm(p_values)
    for p, larger in zip(p_values, corrected, strict=True):
        assert p <= larger <= min(1.0, p * len(p_values))
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [corrected[place] for place in order] == sorted(corrected)


def test_p_values_outside_of_their_range_are_refused():
    with pytest.raises(ConfigurationError, match="`p_values`"):
        holm([0.2, 1.2])
