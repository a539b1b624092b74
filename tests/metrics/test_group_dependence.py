"""How far a cue moves answers, confidence and losses: sklearn, torchmetrics, values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mutual_info_score
from torch.testing import assert_close
from torchmetrics.classification import MulticlassCalibrationError

from tests.metrics.group_cases import C, K, batch, cue_reader, group_sums, table
from xai_callbacks.metrics.groups import (
    bias_amplification,
    conditional_mutual_information,
    group_ece,
    on_sides,
)

counts_of_any_kind = st.lists(st.integers(0, 60), min_size=12, max_size=12).map(
    lambda cells: torch.tensor([*cells[:6], *cells[6:]] + [5] * 6).view(K, C, K)
)


# ---- mutual information


def test_plug_in_value_is_that_of_sklearn_label_by_label():
    logits, labels, cues = batch()
    answers = logits.argmax(dim=1)
    shared = entropy = 0.0
    for label in range(K):
        rows = labels == label
        shared += int(rows.sum()) * mutual_info_score(cues[rows], answers[rows])
        entropy += int(rows.sum()) * mutual_info_score(cues[rows], cues[rows])

    value = conditional_mutual_information(group_sums(logits, labels, cues, C).counts, correct_bias=False)

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


@settings(max_examples=30)
@given(counts_of_any_kind)
def test_value_stays_in_its_range_and_does_not_care_how_cues_are_numbered(counts):
    swapped = counts.flip(1)
    value = conditional_mutual_information(counts)
    assert math.isnan(value) or 0 <= value <= 1
    assert conditional_mutual_information(swapped) == pytest.approx(value, abs=1e-12, nan_ok=True)


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
    assert_close(ece, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_calibration_of_full_confidence_is_the_share_of_errors():
    logits = torch.tensor([[1e4, 0.0]] * 100)
    labels = torch.tensor([0] * 75 + [1] * 25)

    ece = group_ece(group_sums(logits, labels, torch.zeros_like(labels), 1, 2).bins, min_count=25)

    assert ece.tolist() == [0.0, 1.0]


def test_small_groups_have_no_calibration_error():
    logits, labels, cues = batch(100)
    cues[:] = 0
    labels[:] = 0
    bins = group_sums(logits, labels, cues, C).bins

    assert group_ece(bins, min_count=100).isnan().tolist() == [False, True, True, True, True, True]
    assert group_ece(bins, min_count=101).isnan().all()


def test_losses_are_those_of_sklearn_on_each_side():
    logits, labels, cues = batch()
    sums = group_sums(logits, labels, cues, C)
    aligned = [0, 1, 1]
    agrees = torch.tensor(aligned)[labels] == cues
    probabilities = logits.double().softmax(dim=1)

    losses = on_sides(sums.losses, aligned) / on_sides(sums.counts.sum(dim=2), aligned)

    for loss, rows in zip(losses, (agrees, ~agrees), strict=True):
        assert loss == pytest.approx(log_loss(labels[rows], probabilities[rows], labels=range(K)), rel=1e-10)


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
