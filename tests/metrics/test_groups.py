"""Group metrics: sklearn, torchmetrics, Newcombe's published intervals, values by hand, and two real processes.

By hand where no library has the definition: the conflict gap, the gap of equalised odds over several classes, the
directional bias amplification and the bias correction of the mutual information.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, log_loss, mutual_info_score
from torch.testing import assert_close
from torchmetrics.classification import MulticlassCalibrationError

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.metrics.group_modules import GroupMetrics
from xai_callbacks.metrics.group_sums import group_counts, group_sums
from xai_callbacks.metrics.groups import (
    average_worst_gap,
    bias_amplification,
    conditional_mi_null,
    conditional_mutual_information,
    conflict_gap,
    conflict_losses,
    equalised_odds_gap,
    group_accuracy,
    group_ece,
    reweighted_accuracy,
    wilson_interval,
    worst_group_accuracy,
)
from xai_callbacks.metrics.minimum import minimum_interval

K, C = 3, 2


def batch(count: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (count,), generator=generator)
    cues = torch.randint(C, (count,), generator=generator)
    logits = torch.randn(count, K, generator=generator)
    logits[torch.arange(count), labels] += 0.8
    logits[torch.arange(count), cues] += 0.7  # leans on the cue
    return logits, labels, cues


def table(*rows: list[list[int]]) -> torch.Tensor:
    """Counts [label][cue][prediction]."""
    return torch.tensor(rows)


def cue_reader(size: int = 50) -> torch.Tensor:
    """Two labels, two cues, all groups equal, and the answer is the cue."""
    return table(*[[[size, 0], [0, size]]] * 2)


counts_of_any_kind = st.lists(st.integers(0, 60), min_size=12, max_size=12).map(
    lambda cells: torch.tensor([*cells[:6], *cells[6:]] + [5] * 6).view(K, C, K)
)


# ---- counts


def test_counts_are_those_of_a_loop_and_unknown_cues_are_in_none():
    logits, labels, cues = batch(80)
    cues[::7] = -1
    expected = torch.zeros(K, C, K, dtype=torch.long)
    for row in range(80):
        if cues[row] >= 0:
            expected[labels[row], cues[row], logits[row].argmax()] += 1

    assert torch.equal(group_counts(logits, labels, cues, C), expected)
    assert int(group_sums(logits, labels, cues, C).unknown) == 12


def test_accuracies_are_those_of_sklearn_and_nan_for_an_empty_group():
    logits, labels, cues = batch()
    cues[labels == 2] = 0

    accuracy = group_accuracy(group_counts(logits, labels, cues, C))

    for label, cue in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]:
        rows = (labels == label) & (cues == cue)
        assert accuracy[label, cue] == accuracy_score(labels[rows], logits[rows].argmax(dim=1))
    assert accuracy[2, 1].isnan()


def test_logits_that_are_not_finite_are_an_error_for_counts_and_counted_in_the_sums():
    logits, labels, cues = batch(20)
    logits[3, 1], logits[9, 0], cues[9] = math.nan, math.inf, -1

    with pytest.raises(AuditError, match="got NaN or infinity for 2 of 20 images"):
        group_counts(logits, labels, cues, C)

    sums = group_sums(logits, labels, cues, C)
    assert (int(sums.not_finite), int(sums.unknown), int(sums.counts.sum())) == (2, 0, 18)
    assert sums.losses.isfinite().all()
    assert sums.bins.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4)}, r"float `logits` \(N, K\)"),
        ({"logits": torch.zeros(4, K, dtype=torch.long)}, r"float `logits` \(N, K\)"),
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
        group_counts(**arguments)


@pytest.mark.parametrize(
    "counts", [torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, 2), -torch.ones(2, 2, 2, dtype=torch.long)]
)
def test_counts_of_another_form_are_refused(counts):
    with pytest.raises(ConfigurationError, match="Expected `counts` to be"):
        group_accuracy(counts)


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
    gap = conflict_gap(table(rows, [[0, 0], [0, 0]]), [0, 1])

    assert (round(gap.estimate.low, 4), round(gap.estimate.high, 4)) == (low, high)
    assert gap.estimate.value == pytest.approx(aligned[0] / aligned[1] - conflicting[0] / conflicting[1])
    assert gap.estimate.valid == aligned[1] + conflicting[1]


def test_model_that_reads_only_the_cue_loses_all_where_the_cue_conflicts():
    gap = conflict_gap(cue_reader(), [0, 1])

    assert (gap.estimate.value, gap.aligned, gap.conflicting, gap.estimate.chance) == (1.0, 1.0, 0.0, 0.0)
    assert conflict_gap(cue_reader(), [1, 0]).estimate.value == -1.0


def test_conflict_gap_without_conflicting_images_is_nan_without_an_interval():
    gap = conflict_gap(table([[9, 1], [0, 0]], [[0, 0], [2, 8]]), [0, 1])

    assert math.isnan(gap.estimate.value)
    assert (gap.estimate.low, gap.estimate.high, gap.aligned) == (None, None, 0.85)


@pytest.mark.parametrize("aligned", [[0], [0, 2], [0, -1]])
def test_map_from_label_to_cue_must_fit(aligned):
    with pytest.raises(ConfigurationError, match=r"`aligned` to be one cue in \[0, 2\) for each of 2 labels"):
        conflict_gap(cue_reader(), aligned)


def test_worst_group_leaves_small_groups_out_and_counts_them():
    # By accuracy: .9, 0 of 19, .6 of 20, and none.
    worst = worst_group_accuracy(table([[90, 10], [0, 19]], [[8, 12], [0, 0]]))

    assert (worst.label, worst.cue, worst.excluded, worst.empty) == (1, 0, 1, 1)
    ends = minimum_interval(torch.tensor([90, 12]), torch.tensor([100, 20]))
    assert worst.estimate == (0.6, *ends, None, 20, 0)


def test_worst_group_of_small_groups_alone_is_nan():
    worst = worst_group_accuracy(table([[3, 0], [0, 3]], [[0, 0], [1, 1]]))

    assert math.isnan(worst.estimate.value)
    assert (worst.estimate.low, worst.label, worst.cue, worst.excluded, worst.empty) == (None, None, None, 3, 1)


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
@pytest.mark.parametrize("confidence", [0.95, 0.6])
def test_interval_of_the_minimum_has_the_smallest_of_the_exact_ends(correct, total, confidence):
    error = (1 - confidence) / 2
    low, high = minimum_interval(torch.tensor(correct), torch.tensor(total), confidence)

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


def test_interval_of_the_minimum_of_nothing_is_none_and_needs_a_level():
    assert minimum_interval(torch.zeros(0), torch.zeros(0)) == (None, None)
    with pytest.raises(ConfigurationError, match="`confidence` to be between 0 and 1"):
        minimum_interval(torch.tensor([1]), torch.tensor([2]), 0.0)


def test_reweighted_accuracy_is_that_of_images_in_the_proportions_of_training():
    # Accuracies .9 and .5 for label 0, .4 and .8 for label 1.
    counts = table([[9, 1], [10, 10]], [[12, 8], [2, 8]])
    train = torch.tensor([[95, 5], [0, 100]])

    assert reweighted_accuracy(counts, train) == pytest.approx((95 * 0.9 + 5 * 0.5 + 100 * 0.8) / 200)
    assert average_worst_gap(counts, train, min_count=20) == pytest.approx(reweighted_accuracy(counts, train) - 0.4)
    assert average_worst_gap(counts, min_count=10) == pytest.approx((9 + 10 + 8 + 8) / 60 - 0.4)


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


def test_averages_and_gaps_without_the_images_they_need_are_nan():
    counts = table([[9, 1], [0, 0]], [[12, 8], [2, 8]])

    assert math.isnan(reweighted_accuracy(counts, torch.tensor([[95, 5], [1, 100]])))
    assert math.isnan(reweighted_accuracy(counts, torch.zeros(2, 2, dtype=torch.long)))
    assert math.isnan(average_worst_gap(counts, min_count=50))
    with pytest.raises(ConfigurationError, match=r"`train_counts` to be integers \(K, C\) \(2, 2\)"):
        reweighted_accuracy(counts, torch.ones(2, 3, dtype=torch.long))


# ---- equalised odds and mutual information


def test_equalised_odds_gap_is_the_largest_difference_of_answers():
    # Label 0 answers 1 in 10 % and 40 %; label 1 has answers .5 and .55; the third group of label 1 is too small.
    counts = table([[90, 10], [60, 40], [0, 0]], [[50, 50], [45, 55], [19, 0]])

    assert equalised_odds_gap(counts) == pytest.approx(0.3, abs=1e-15)
    assert equalised_odds_gap(counts, min_count=19) == pytest.approx(0.55, abs=1e-15)
    assert math.isnan(equalised_odds_gap(counts, min_count=101))
    assert math.isnan(equalised_odds_gap(table([[50, 50], [0, 0]], [[0, 0], [30, 70]])))


def test_plug_in_value_is_that_of_sklearn_label_by_label():
    logits, labels, cues = batch()
    answers = logits.argmax(dim=1)
    shared = entropy = 0.0
    for label in range(K):
        rows = labels == label
        shared += int(rows.sum()) * mutual_info_score(cues[rows], answers[rows])
        entropy += int(rows.sum()) * mutual_info_score(cues[rows], cues[rows])

    value = conditional_mutual_information(group_counts(logits, labels, cues, C), correct_bias=False)

    assert value == pytest.approx(shared / entropy, rel=1e-10)


def test_bias_correction_takes_off_half_a_degree_of_freedom_a_label():
    counts = table([[40, 10], [10, 40]], [[0, 50], [0, 50]])  # label 1 has one answer: nothing to correct
    plain = conditional_mutual_information(counts, correct_bias=False)

    # H(cue | label) = log 2; one cell of freedom, 200 images.
    assert conditional_mutual_information(counts) == pytest.approx(plain - 1 / (2 * 200 * math.log(2)), rel=1e-10)


def test_label_without_an_image_takes_no_part_in_the_bias_correction():
    counts = table([[40, 10], [10, 40]], [[0, 0], [0, 0]])
    plain = conditional_mutual_information(counts, correct_bias=False)

    assert conditional_mutual_information(counts) == pytest.approx(plain - 1 / (2 * 100 * math.log(2)), rel=1e-10)


def test_value_corrected_below_zero_is_zero():
    assert conditional_mutual_information(table([[25, 25], [25, 25]], [[25, 25], [24, 26]])) == 0.0


@given(st.lists(st.integers(1, 9), min_size=10, max_size=10))
def test_value_is_zero_under_exact_independence(parts):
    shares = torch.tensor(parts).view(2, 5)
    counts = shares[:, :3, None] * torch.cat([shares[:, 3:], shares[:, :1]], dim=1)[:, None, :]
    square = torch.cat([counts, counts[:1]])  # three labels, three cues, three answers

    assert conditional_mutual_information(square, correct_bias=False) == pytest.approx(0, abs=1e-12)


def test_value_is_one_if_the_answer_is_the_cue():
    assert conditional_mutual_information(cue_reader(), correct_bias=False) == pytest.approx(1, abs=1e-12)
    assert 0.98 < conditional_mutual_information(cue_reader()) < 1


def test_value_is_nan_if_no_label_has_two_cues():
    assert math.isnan(conditional_mutual_information(table([[9, 1], [0, 0]], [[0, 0], [2, 8]])))
    assert conditional_mi_null(table([[9, 1], [0, 0]], [[0, 0], [2, 8]]), draws=3).isnan().all()


def test_null_has_the_mean_that_the_correction_takes_off_and_leaves_the_random_state():
    counts = table([[60, 40], [70, 30]], [[30, 70], [45, 55]])
    before = torch.get_rng_state()

    null = conditional_mi_null(counts, draws=2000)

    assert torch.equal(torch.get_rng_state(), before)
    # 2 degrees of freedom, 400 images; the standard error of the mean is 2.2 % of it.
    assert float(null.mean()) == pytest.approx(2 / (2 * 400 * math.log(2)), rel=0.1)
    assert torch.equal(null, conditional_mi_null(counts, draws=2000))
    assert not torch.equal(null, conditional_mi_null(counts, draws=2000, seed=1))


def test_null_is_far_below_a_model_that_leans_on_the_cue():
    counts = group_counts(*batch(), C)

    assert conditional_mutual_information(counts, correct_bias=False) > conditional_mi_null(counts, draws=200).max()


@settings(max_examples=30)
@given(counts_of_any_kind)
def test_judgements_stay_in_their_range_and_do_not_care_how_cues_are_numbered(counts):
    swapped = counts.flip(1)
    for judge in (equalised_odds_gap, conditional_mutual_information):
        value = judge(counts)
        assert math.isnan(value) or 0 <= value <= 1
        assert judge(swapped) == pytest.approx(value, abs=1e-12, nan_ok=True)


# ---- calibration, losses, bias amplification


def test_calibration_error_is_that_of_torchmetrics_group_by_group():
    logits, labels, cues = batch(900)
    ece = group_ece(group_sums(logits, labels, cues, C).bins)

    expected = []
    for label in range(K):
        for cue in range(C):
            rows = (labels == label) & (cues == cue)
            oracle = MulticlassCalibrationError(num_classes=K, n_bins=15, norm="l1")
            expected.append(float(oracle(logits[rows].double().softmax(dim=1), labels[rows])))
    assert_close(ece.values, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert ece.gap == float(ece.values.max() - ece.values.min())


def test_calibration_of_full_confidence_is_the_share_of_errors():
    logits = torch.tensor([[1e4, 0.0]] * 100)
    labels = torch.tensor([0] * 75 + [1] * 25)

    ece = group_ece(group_sums(logits, labels, torch.zeros_like(labels), 1).bins, min_count=25)

    assert ece.values.tolist() == [0.0, 1.0]
    assert ece.gap == 1.0


def test_small_groups_have_no_calibration_error_and_one_group_no_gap():
    logits, labels, cues = batch(100)
    cues[:] = 0
    labels[:] = 0
    bins = group_sums(logits, labels, cues, C).bins

    assert group_ece(bins, min_count=100).values.isnan().tolist() == [False, True, True, True, True, True]
    assert math.isnan(group_ece(bins).gap)
    assert group_ece(bins, min_count=101).values.isnan().all()


def test_losses_are_those_of_sklearn_on_each_side():
    logits, labels, cues = batch()
    sums = group_sums(logits, labels, cues, C)
    aligned = [0, 1, 1]
    agrees = torch.tensor(aligned)[labels] == cues
    probabilities = logits.double().softmax(dim=1)

    losses = conflict_losses(sums.losses, sums.counts, aligned)

    for loss, rows in zip(losses, (agrees, ~agrees), strict=True):
        assert loss == pytest.approx(log_loss(labels[rows], probabilities[rows], labels=range(K)), rel=1e-10)


def test_losses_must_be_those_of_the_groups():
    with pytest.raises(ConfigurationError, match=r"Expected `losses` to be \(K, C\)"):
        conflict_losses(torch.zeros(3), cue_reader(), [0, 1])


def test_bias_amplification_of_a_model_that_reads_only_the_cue():
    # In each cell the sign is + where label = cue; P(answer = cue | cue) = 1, P(label | cue) = 1/2: all four are 1/2.
    train = torch.tensor([[90, 10], [10, 90]])

    assert bias_amplification(cue_reader(), train) == 0.5
    assert bias_amplification(cue_reader(), train.flip(0)) == -0.5
    # Label 0 is the more frequent one with both cues, but less so with cue 1: 20 of 30, 80 of 100 over all.
    assert bias_amplification(cue_reader(), torch.tensor([[60, 20], [10, 10]])) == 0.5


def test_bias_amplification_is_zero_for_right_answers_and_for_balanced_training():
    right = table([[7, 0], [5, 0]], [[0, 2], [0, 30]])

    assert bias_amplification(right, torch.tensor([[90, 10], [10, 90]])) == 0.0
    assert bias_amplification(cue_reader(), torch.tensor([[49, 21], [7, 3]])) == 0.0


def test_bias_amplification_leaves_out_cues_without_an_image():
    train = torch.tensor([[90, 10], [10, 90]])

    assert bias_amplification(table([[50, 0], [0, 0]], [[50, 0], [0, 0]]), train) == 0.5
    assert math.isnan(bias_amplification(torch.zeros(2, 2, 2, dtype=torch.long), train))


# ---- the metric


ALIGNED, TRAIN = [0, 1, 1], torch.tensor([[90, 10], [5, 95], [20, 80]])


def metric_of(*parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> GroupMetrics:
    metric = GroupMetrics(K, C, ALIGNED, TRAIN)
    for part in parts:
        metric.update(*part)
    return metric


def rows_of(data: tuple[torch.Tensor, ...], rows: slice) -> tuple[torch.Tensor, ...]:
    return tuple(values[rows] for values in data)


def close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def test_metric_gives_the_values_of_the_functions_as_floats():
    data = batch(900)
    sums = group_sums(*data, C)
    worst, gap, ece = worst_group_accuracy(sums.counts), conflict_gap(sums.counts, ALIGNED), group_ece(sums.bins)

    computed = metric_of(data).compute()

    assert all(type(value) is float and key.startswith("group/") for key, value in computed.items())
    assert [computed[f"group/wga{end}"] for end in ("", "_low", "_high")] == list(worst.estimate[:3])
    assert (computed["group/wga_label"], computed["group/wga_cue"]) == (worst.label, worst.cue)
    assert [computed[f"group/conflict_gap{end}"] for end in ("", "_low", "_high")] == list(gap.estimate[:3])
    assert (computed["group/accuracy_aligned"], computed["group/accuracy_conflicting"]) == gap[1:]
    losses = conflict_losses(sums.losses, sums.counts, ALIGNED)
    assert (computed["group/loss_aligned"], computed["group/loss_conflicting"]) == losses
    assert computed["group/cond_mi"] == conditional_mutual_information(sums.counts)
    assert computed["group/equalised_odds_gap"] == equalised_odds_gap(sums.counts)
    assert computed["group/bias_amplification"] == bias_amplification(sums.counts, TRAIN)
    assert computed["group/average_worst_gap"] == average_worst_gap(sums.counts)
    assert computed["group/accuracy_reweighted"] == reweighted_accuracy(sums.counts, TRAIN)
    assert computed["group/average_worst_gap_reweighted"] == average_worst_gap(sums.counts, TRAIN)
    assert (computed["group/ece_gap"], computed["group/ece/2_1"]) == (ece.gap, float(ece.values[5]))
    assert computed["group/accuracy/2_1"] == float(group_accuracy(sums.counts)[2, 1])
    assert computed["group/count/2_1"] == int(((data[1] == 2) & (data[2] == 1)).sum())
    assert computed["group/n_min"] == int(sums.counts.sum(dim=2).min())
    assert computed["group/accuracy_all"] == pytest.approx(accuracy_score(data[1], data[0].argmax(dim=1)))
    assert computed["group/accuracy_balanced"] == pytest.approx(float(group_accuracy(sums.counts).mean()))
    assert computed["group/excluded"] == computed["group/empty"] == computed["group/not_finite"] == 0


def test_metric_says_nothing_of_what_it_was_not_given():
    keys = {key.removeprefix("group/") for key in GroupMetrics(K, C, per_group=False)._values()}

    withheld = ("aligned", "conflict", "bias", "reweighted", "/")
    assert not [key for key in keys if any(word in key for word in withheld)]
    assert {"wga", "cond_mi", "ece_gap", "not_finite"} <= keys


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=4).map(sorted))
def test_batches_may_be_split_anywhere(cuts):
    data = batch(120)
    ends = [0, *cuts, 120]
    parts = [rows_of(data, slice(start, stop)) for start, stop in pairwise(ends)]

    close(metric_of(*parts).compute(), metric_of(data).compute())


def test_two_shards_merged_equal_the_whole():
    data = batch()
    left, right = metric_of(rows_of(data, slice(0, 100))), metric_of(rows_of(data, slice(100, None)))

    left.merge_state(right)

    close(left.compute(), metric_of(data).compute())


def test_calling_the_metric_gives_the_batch_and_keeps_the_sum():
    first, second = batch(200, seed=1), batch(200, seed=2)
    metric = metric_of(first)

    close(metric(*second), metric_of(second).compute())
    close(metric.compute(), metric_of(first, second).compute())


def test_state_starts_anew_after_reset():
    metric = metric_of(batch(50))
    metric.reset()
    metric.update(*batch(seed=1))

    close(metric.compute(), metric_of(batch(seed=1)).compute())


def test_images_with_bad_logits_or_unknown_cue_are_counted_and_change_nothing_else():
    logits, labels, cues = batch(300)
    clean = metric_of(rows_of((logits, labels, cues), slice(5, None))).compute()
    logits[:3, 1], cues[3:5] = torch.tensor([math.nan, math.inf, -math.inf]), -1

    computed = metric_of((logits, labels, cues)).compute()

    assert (computed.pop("group/not_finite"), computed.pop("group/unknown_cue")) == (3, 2)
    close(computed, {key: value for key, value in clean.items() if key in computed})


def test_without_an_image_judgements_are_nan_and_counts_are_zero():
    metric = metric_of((torch.full((4, K), math.nan), torch.zeros(4).long(), torch.zeros(4).long()))

    computed = metric.compute()

    assert (computed.pop("group/not_finite"), computed.pop("group/empty")) == (4, K * C)
    zero = {key for key, value in computed.items() if value == 0}
    assert zero == {"group/excluded", "group/unknown_cue"} | {key for key in computed if "/count/" in key}
    assert all(math.isnan(value) for key, value in computed.items() if key not in zero)


def test_group_of_three_images_is_no_worst_group_and_has_no_calibration_error():
    logits, labels, cues = batch(500)
    rows = ((labels != 2) | (cues != 1)).nonzero().flatten()
    rows = torch.cat([rows, ((labels == 2) & (cues == 1)).nonzero().flatten()[:3]])

    computed = metric_of((logits[rows], labels[rows], cues[rows])).compute()

    assert (computed["group/n_min"], computed["group/excluded"], computed["group/count/2_1"]) == (3, 1, 3)
    assert (computed["group/wga_label"], computed["group/wga_cue"]) != (2, 1)
    assert math.isnan(computed["group/ece/2_1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` to be an integer of 2 or more"),
        ({"num_cues": 0}, "`num_cues` to be an integer of 1 or more"),
        ({"aligned": [0, 1]}, r"for each of 3 labels, but got \[0, 1\]"),
        ({"train_counts": torch.ones(K, C)}, "`train_counts` to be integers"),
        ({"train_counts": torch.ones(C, K, dtype=torch.long)}, "`train_counts` to be integers"),
        ({"min_count": 0}, "`min_count` to be an integer of 1 or more"),
        ({"confidence": 1.0}, "`confidence` to be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GroupMetrics(**{"num_classes": K, "num_cues": C} | arguments)


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `logits` to be \(N, 3\), but got \(2, 4\)"):
        GroupMetrics(K, C).update(torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(2).long())


def test_metric_holds_on_to_no_graph_and_sums_half_precision_logits_in_float64():
    logits, labels, cues = batch(200)
    metric = metric_of((logits.bfloat16().requires_grad_(), labels, cues))

    assert not metric.losses.requires_grad
    assert not metric.bins.requires_grad
    close(metric.compute(), metric_of((logits.bfloat16().double(), labels, cues)).compute())


# One of two processes. The images are split between them, then one of them has none at all, then the other.
RANK = """
import json, sys, torch
from torch import distributed
from xai_callbacks.metrics.group_modules import GroupMetrics

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
data, aligned, train = torch.load(f"{folder}/data.pt")
results = []
for split in (137, len(data[0]), 0):
    rows = slice(0, split) if rank == 0 else slice(split, None)
    metric = GroupMetrics(3, 2, aligned, train)
    if len(data[0][rows]):
        metric.update(*(values[rows] for values in data))
    results.append(metric.compute())
distributed.destroy_process_group()
print(json.dumps(results))
"""


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric GroupMetrics was called before:UserWarning")
def test_two_processes_agree_on_the_values_of_the_whole(tmp_path):
    data = batch()
    data[0][5] = math.nan
    torch.save((data, ALIGNED, TRAIN), tmp_path / "data.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()

    expected = metric_of(data).compute()
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        for computed in json.loads(output.splitlines()[-1]):
            close(computed, expected)
