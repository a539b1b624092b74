"""Judgements of answers to partly changed images: hand computations, slow twins, and what is NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks.metrics.regions import correct, relative_sensitivity, spread

NAN = math.nan


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


# ---- right answers


def test_an_answer_is_right_where_the_label_has_the_largest_logit():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 2.0], [NAN, 2.0], [math.inf, 0.0]])
    assert correct(outputs, torch.tensor([1, 1, 1, 0])).tolist() == pytest.approx([1, 0, NAN, NAN], nan_ok=True)


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


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        # a = .5: (1 - 0) / (2 * .5)
        ((0, 0, 0, 0), (1, 1, 1, 1), 1),
        ((1, 1, 1, 1), (0, 0, 0, 0), -1),
        # a = .75: (1 - .5) / (2 * .25), the largest there can be
        ((1, 1, 0, 0), (1, 1, 1, 1), 1),
        # a = .25: (.25 - .25) / ...
        ((1, 0, 0, 0), (0, 0, 0, 1), 0),
        # shares over draws, a = .375: (.5 - .25) / (2 * .375)
        ((0.5, 0.5, 0, 0), (1, 1, 0, 0), 1 / 3),
    ],
)
def test_relative_sensitivity_by_hand(inside, outside, expected):
    found = relative_sensitivity(vector(*inside), vector(*outside), torch.ones(4, dtype=torch.bool))
    assert found.value == pytest.approx(expected)
    assert (found.chance, found.valid, found.degenerate) == (0, 4, 0)


@pytest.mark.parametrize("right", [1, 2, 38, 39])
def test_there_is_no_answer_where_next_to_all_or_none_are_right(right):
    """Of 20 probes, that is 40 answers: the mean accuracy must lie between .05 and .95, both excluded."""
    answers = torch.zeros(40, dtype=torch.float64)
    answers[:right] = 1
    assert math.isnan(relative_sensitivity(answers[::2], answers[1::2], torch.ones(20, dtype=torch.bool)).value)


@pytest.mark.parametrize("right", [3, 37])
def test_the_range_is_that_of_the_mean_of_both(right):
    answers = torch.zeros(40, dtype=torch.float64)
    answers[:right] = 1
    inside, outside = answers[::2], answers[1::2]
    a_in, a_out = float(inside.mean()), float(outside.mean())
    middle = (a_in + a_out) / 2
    found = relative_sensitivity(inside, outside, torch.ones(20, dtype=torch.bool)).value
    assert found == pytest.approx((a_out - a_in) / (2 * min(middle, 1 - middle)))


def test_probes_without_an_object_do_not_count_and_broken_ones_are_counted():
    inside, outside = vector(0, 1, NAN, NAN, 0), vector(1, 0, 1, NAN, 1)
    has = torch.tensor([True, False, True, False, True])
    found = relative_sensitivity(inside, outside, has)
    assert (found.value, found.valid, found.degenerate) == (pytest.approx(1), 2, 1)


def test_no_probe_at_all_is_nan():
    found = relative_sensitivity(vector(NAN, 0), vector(0, 0), torch.tensor([True, False]))
    assert math.isnan(found.value)
    assert (found.low, found.high, found.valid, found.degenerate) == (None, None, 0, 1)


def test_the_interval_is_that_of_resampled_probes_and_comes_with_thirty():
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.rand(2, 60, generator=generator) < torch.tensor([[0.4], [0.7]])).double()
    has = torch.ones(60, dtype=torch.bool)
    found = relative_sensitivity(inside, outside, has)

    slow = []
    for _ in range(2000):
        drawn = torch.randint(60, (60,), generator=generator)
        a_in, a_out = float(inside[drawn].mean()), float(outside[drawn].mean())
        middle = (a_in + a_out) / 2
        slow.append((a_out - a_in) / (2 * min(middle, 1 - middle)))
    low, high = torch.tensor(slow).quantile(torch.tensor([0.025, 0.975])).tolist()

    assert found.low < found.value < found.high
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    assert relative_sensitivity(inside[:29], outside[:29], has[:29]).low is None
