"""Group metrics: sklearn, Newcombe's published intervals and values by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score
from torch.testing import assert_close

from tests.metrics.group_cases import C, K, batch, cue_reader, group_sums, table
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.groups import (
    conflict_gap,
    group_accuracy,
    minimum_interval,
    reweighted_accuracy,
    wilson_interval,
    worst_group_accuracy,
)

# ---- counts


def test_counts_are_those_of_a_loop_and_unknown_cues_are_in_none():
    logits, labels, cues = batch(80)
    cues[::7] = -1
    expected = torch.zeros(K, C, K, dtype=torch.long)
    for row in range(80):
        if cues[row] >= 0:
            expected[labels[row], cues[row], logits[row].argmax()] += 1

    assert torch.equal(group_sums(logits, labels, cues, C).counts, expected)
    assert int(group_sums(logits, labels, cues, C).unknown) == 12


def test_accuracies_are_those_of_sklearn_and_nan_for_an_empty_group():
    logits, labels, cues = batch()
    cues[labels == 2] = 0

    accuracy = group_accuracy(group_sums(logits, labels, cues, C).counts)

    for label, cue in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]:
        rows = (labels == label) & (cues == cue)
        assert accuracy[label, cue] == accuracy_score(labels[rows], logits[rows].argmax(dim=1))
    assert accuracy[2, 1].isnan()


def test_logits_that_are_not_finite_are_left_out_and_counted():
    logits, labels, cues = batch(20)
    logits[3, 1], logits[9, 0], cues[9] = math.nan, math.inf, -1

    sums = group_sums(logits, labels, cues, C)
    assert (int(sums.not_finite), int(sums.unknown), int(sums.counts.sum())) == (2, 0, 18)
    assert sums.losses.isfinite().all()
    assert sums.bins.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4)}, r"`logits` to be floats \(N, 3\)"),
        ({"logits": torch.zeros(4, K, dtype=torch.long)}, r"`logits` to be floats \(N, 3\)"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"`labels` to be integers \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"`labels` to be in \[0, 3\), but got 0 to 3"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, r"`labels` to be in \[0, 3\)"),
        ({"cues": torch.zeros(4)}, "`cues` to be integers"),
        ({"cues": torch.tensor([0, 1, 2, 0])}, r"`cues` to be in \[-1, 2\), but got 0 to 2"),
        ({"cues": torch.tensor([0, 1, -2, 0])}, r"`cues` to be in \[-1, 2\)"),
        ({"num_cues": 0}, "`num_cues` to be an integer of 1 or more"),
    ],
)
def test_batches_of_another_form_are_refused(change, message):
    zeros = torch.zeros(4, dtype=torch.long)
    arguments = {"logits": torch.zeros(4, K), "labels": zeros, "cues": zeros, "num_cues": C} | change

    with pytest.raises(ConfigurationError, match=message):
        group_sums(**arguments)


# ---- worst group and conflict gap


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(correct, total, low, high):
    ends = wilson_interval(torch.tensor(correct), torch.tensor(total))

    assert [round(float(end), 4) for end in ends] == [low, high]


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_holds_the_proportion_and_mirrors(case):
    correct, total = map(torch.tensor, case)
    low, high = wilson_interval(correct, total)
    mirrored = wilson_interval(total - correct, total)

    assert 0 <= low <= correct / total.double() <= high <= 1
    assert_close((1 - high, 1 - low), mirrored, rtol=0, atol=1e-12)


# Newcombe 1998, "Interval estimation for the difference between independent proportions", table II, method 10.
@pytest.mark.parametrize(
    ("aligned", "conflicting", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_interval_of_the_conflict_gap_is_the_published_one(aligned, conflicting, low, high):
    rows = [[correct, total - correct] for correct, total in (aligned, conflicting)]
    gap, *_ = conflict_gap(table(rows, [[0, 0], [0, 0]]), [0, 1])

    assert (round(gap.low, 4), round(gap.high, 4)) == (low, high)
    assert gap.value == pytest.approx(aligned[0] / aligned[1] - conflicting[0] / conflicting[1])
    assert gap.valid == aligned[1] + conflicting[1]


def test_model_that_reads_only_the_cue_loses_all_where_the_cue_conflicts():
    gap, aligned, conflicting = conflict_gap(cue_reader(), [0, 1])

    assert (gap.value, aligned, conflicting, gap.chance) == (1.0, 1.0, 0.0, 0.0)
    assert conflict_gap(cue_reader(), [1, 0])[0].value == -1.0


def test_conflict_gap_without_conflicting_images_is_nan_without_an_interval():
    gap, aligned, _ = conflict_gap(table([[9, 1], [0, 0]], [[0, 0], [2, 8]]), [0, 1])

    assert math.isnan(gap.value)
    assert (gap.low, gap.high, aligned) == (None, None, 0.85)


def test_worst_group_leaves_small_groups_out():
    # By accuracy: .9, 0 of 19, .6 of 20, and none.
    worst, label, cue = worst_group_accuracy(table([[90, 10], [0, 19]], [[8, 12], [0, 0]]))

    assert (label, cue) == (1, 0)
    ends = minimum_interval(torch.tensor([90, 12]), torch.tensor([100, 20]))
    assert worst == (0.6, *ends, None, 20, 0)


def test_worst_group_of_small_groups_alone_is_nan():
    worst, label, cue = worst_group_accuracy(table([[3, 0], [0, 3]], [[0, 0], [1, 1]]))

    assert all(math.isnan(value) for value in (worst.value, label, cue))
    assert worst.low is None


def exact_ends(correct: list[int], total: list[int], error: float) -> list[tuple[float, float]]:
    """Clopper and Pearson's ends, by scipy, each with an error on its side."""
    tests = [binomtest(*pair).proportion_ci(1 - 2 * error, method="exact") for pair in zip(correct, total, strict=True)]
    return [(float(ci.low), float(ci.high)) for ci in tests]


@pytest.mark.parametrize(
    ("correct", "total"),
    [
        ([5, 30, 0, 10], [9, 50, 7, 10]),
        ([12, 90], [20, 100]),
        ([10], [10]),
        ([0, 0], [40, 3]),
        ([30, 30], [30, 30]),
        ([7_100, 9_990, 15], [10_000, 10_000, 20]),
        ([99_000, 49_700], [100_000, 50_000]),
        ([3, 2], [100_000, 90_000]),
    ],
)
def test_interval_of_the_minimum_has_the_smallest_of_the_exact_ends(correct, total):
    error = 0.025
    low, high = minimum_interval(torch.tensor(correct), torch.tensor(total))

    assert low == pytest.approx(min(pair[0] for pair in exact_ends(correct, total, error)), abs=1e-9)
    together = 1 - (1 - error) ** (1 / len(correct))
    assert high == pytest.approx(min(pair[1] for pair in exact_ends(correct, total, together)), abs=1e-9)


@pytest.fixture(scope="module")
def ends_of_outcomes():
    """The interval of each outcome of three groups of eight; their order makes no difference."""
    outcomes = itertools.combinations_with_replacement(range(9), 3)
    return {each: minimum_interval(torch.tensor(each), torch.tensor([8, 8, 8])) for each in outcomes}


@pytest.mark.parametrize("shares", [(0.8, 0.8, 0.8), (0.95, 0.95, 0.95), (0.5, 0.7, 0.9), (1.0, 1.0, 0.99)])
def test_interval_of_the_minimum_holds_the_true_one_as_often_as_it_says(ends_of_outcomes, shares):
    """By all outcomes of three groups of eight; neither side is wrong more often than its half allows."""
    chances = [binom.pmf(range(9), 8, share) for share in shares]
    above = below = total = 0.0
    for outcome in itertools.product(range(9), repeat=3):
        chance = math.prod(chances[group][correct] for group, correct in enumerate(outcome))
        low, high = ends_of_outcomes[tuple(sorted(outcome))]
        total += chance
        above += chance * (low > min(shares))
        below += chance * (high < min(shares))

    assert total == pytest.approx(1)
    assert max(above, below) <= 0.025


def test_interval_of_the_worst_of_many_equal_groups_reaches_the_truth_where_that_of_one_group_does_not():
    """Twenty groups with an accuracy of .7; the worst happens to have 27 of 50."""
    correct, total = torch.tensor([27] + [35] * 19), torch.full((20,), 50)
    low, high = minimum_interval(correct, total)

    assert float(wilson_interval(correct[0], total[0])[1]) < 0.7 < high
    assert low < 27 / 50


def test_interval_of_the_minimum_of_nothing_is_none():
    assert minimum_interval(torch.zeros(0), torch.zeros(0)) == (None, None)


def test_reweighted_accuracy_is_that_of_images_in_the_proportions_of_training():
    # Accuracies .9 and .5 for label 0, .4 and .8 for label 1.
    counts = table([[9, 1], [10, 10]], [[12, 8], [2, 8]])
    train = torch.tensor([[95, 5], [0, 100]])

    assert reweighted_accuracy(counts, train) == pytest.approx((95 * 0.9 + 5 * 0.5 + 100 * 0.8) / 200)


def test_reweighted_accuracy_does_not_depend_on_how_many_images_a_group_has():
    counts, train = table([[9, 1], [10, 10]], [[12, 8], [2, 8]]), torch.tensor([[95, 5], [20, 100]])
    more = counts.clone()
    more[0, 1] *= 7

    assert reweighted_accuracy(more, train) == pytest.approx(reweighted_accuracy(counts, train), rel=1e-12)
    # In proportions equal to its own, it is the plain average.
    plain = accuracy_score(
        [0] * 30 + [1] * 30, [0] * 9 + [1] + [0] * 10 + [1] * 10 + [0] * 12 + [1] * 8 + [0] * 2 + [1] * 8
    )
    assert reweighted_accuracy(counts, counts.sum(dim=2)) == pytest.approx(plain)


def test_averages_without_the_images_they_need_are_nan():
    counts = table([[9, 1], [0, 0]], [[12, 8], [2, 8]])

    assert math.isnan(reweighted_accuracy(counts, torch.tensor([[95, 5], [1, 100]])))
    assert math.isnan(reweighted_accuracy(counts, torch.zeros(2, 2, dtype=torch.long)))
