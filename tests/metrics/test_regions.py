"""Judgements of answers to partly changed images: hand computations, slow twins, and what is NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.metrics.cues import answers_with, spread

NAN = math.nan


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


# ---- right answers


def test_an_answer_is_right_where_the_label_has_the_largest_logit():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 2.0], [NAN, 2.0], [math.inf, 0.0]])
    assert answers_with(outputs, torch.tensor([1, 1, 1, 0])).tolist() == pytest.approx([1, 0, NAN, NAN], nan_ok=True)


# ---- spread


@given(seed=st.integers(0, 10**6), fills=st.integers(2, 4), count=st.integers(1, 5), classes=st.integers(2, 4))
def test_spread_is_that_of_a_slow_twin(seed, fills, count, classes):
    outputs = torch.randn(fills, count, classes, generator=torch.Generator().manual_seed(seed)) * 2
    distance, disagree = spread(outputs)

    for probe in range(count):
        rows = [softmax(row) for row in outputs[:, probe].tolist()]
        middle = [sum(row[k] for row in rows) / fills for k in range(classes)]
        apart = [sum(abs(row[k] - middle[k]) for k in range(classes)) / 2 for row in rows]
        assert float(distance[probe]) == pytest.approx(sum(apart) / fills, abs=1e-6)
        answers = {max(range(classes), key=lambda k: row[k]) for row in rows}
        assert float(disagree[probe]) == (len(answers) > 1)


def test_two_certain_opposite_answers_lie_a_half_from_their_mean_and_equal_ones_nowhere():
    outputs = torch.tensor([[[99.0, 0.0], [1.0, 0.0]], [[0.0, 99.0], [1.0, 0.0]]])
    distance, disagree = spread(outputs)
    assert distance.tolist() == pytest.approx([0.5, 0])
    assert disagree.tolist() == [1, 0]


def test_one_answer_that_is_not_finite_is_nan_for_its_probe_only():
    outputs = torch.zeros(3, 2, 2)
    outputs[1, 0, 1] = NAN
    for values in spread(outputs):
        assert values.isnan().tolist() == [True, False]


# ---- relative sensitivity
