"""What a cue does to an answer: hand computations, slow twins, and what is NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks import ConfigurationError
from xai_callbacks.metrics import cues

NAN = math.nan

# Every function of the module by what it compares: (present, absent, classes, labels).
FUNCTIONS = {
    "effect": lambda one, other, classes, _: cues.cue_effect(one, other, classes),
    "effect_logit": lambda one, other, classes, _: cues.cue_effect_logit(one, other, classes),
    "flip_rate": lambda one, other, classes, _: cues.flip_rate(one, other, classes),
    "spurious_score": lambda one, other, classes, _: cues.spurious_score(one, other, classes),
    "tv": lambda one, other, classes, _: cues.total_variation(one, other, classes),
    "consistency": lambda one, other, classes, _: cues.consistency(one, other, classes),
    "pair_acc": cues.pair_accuracy,
    "answers_with": lambda one, _, classes, __: cues.answers_with(one, classes),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def softmax(row):
    """Slow and plain."""
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    return [power / sum(powers) for power in powers]


def answer(row):
    return max(range(len(row)), key=lambda index: row[index])


def slow(name, one, other, cue, label):
    """One probe, in plain Python."""
    p, q = softmax(one), softmax(other)
    return {
        "effect": p[cue] - q[cue],
        "effect_logit": (one[cue] - sum(one) / len(one)) - (other[cue] - sum(other) / len(other)),
        "flip_rate": float(answer(one) == cue and answer(other) != cue),
        "spurious_score": NAN if answer(other) == cue else float(answer(one) == cue),
        "tv": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "consistency": float(answer(one) == answer(other)),
        "pair_acc": float(answer(one) == label == answer(other)),
        "answers_with": float(answer(one) == cue),
    }[name]


@every_function
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 9), classes=st.integers(2, 5), scale=st.sampled_from([0.1, 5.0])
)
def test_each_is_that_of_a_slow_twin(name, seed, count, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, count, classes, generator=generator) * scale
    pointed, labels = torch.randint(classes, (2, count), generator=generator)

    found = FUNCTIONS[name](one, other, pointed, labels)

    rows = zip(one.tolist(), other.tolist(), pointed.tolist(), labels.tolist(), strict=True)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([slow(name, *row) for row in rows], abs=1e-12, nan_ok=True)


def test_a_case_by_hand():
    """Two classes, odds of 3 to 1 with the cue and of 1 to 3 without."""
    third = math.log(3)
    present, absent = torch.tensor([[0.0, third]]), torch.tensor([[third, 0.0]])
    cue, label = torch.tensor([1]), torch.tensor([0])

    found = {name: float(function(present, absent, cue, label)) for name, function in FUNCTIONS.items()}

    # In logits: third - third / 2 with the cue, -third / 2 without.
    assert found == pytest.approx(
        {
            "effect": 0.5,
            "effect_logit": third,
            "flip_rate": 1,
            "spurious_score": 1,
            "tv": 0.5,
            "consistency": 0,
            "pair_acc": 0,
            "answers_with": 1,
        },
        abs=1e-7,
    )


def test_the_spurious_score_asks_only_where_the_answer_was_another_one():
    present = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    neutral = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = cues.spurious_score(present, neutral, torch.ones(4, dtype=torch.int64))
    assert found.tolist() == pytest.approx([1, NAN, 0, NAN], nan_ok=True)


@pytest.mark.parametrize("name", ["effect", "effect_logit", "tv", "flip_rate", "spurious_score"])
@given(seed=st.integers(0, 10**6))
def test_the_same_answer_twice_is_exactly_no_effect(name, seed):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 9
    found = FUNCTIONS[name](logits, logits.clone(), torch.tensor([0, 1, 2, 0]), torch.zeros(4, dtype=torch.int64))
    assert found.nan_to_num(nan=0.0).tolist() == [0, 0, 0, 0]


@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
def test_a_constant_on_all_logits_changes_nothing(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    pointed = torch.tensor([0, 1, 2, 0])
    for name in ("effect", "effect_logit", "tv"):
        plain = FUNCTIONS[name](one, other, pointed, pointed)
        torch.testing.assert_close(FUNCTIONS[name](one + shift, other, pointed, pointed), plain, rtol=0, atol=1e-9)


def test_logits_do_not_saturate_where_probabilities_do():
    present, absent = torch.tensor([[400.0, 0.0]]), torch.tensor([[200.0, 0.0]])
    cue = torch.tensor([0])
    assert float(cues.cue_effect(present, absent, cue)) == 0
    assert float(cues.cue_effect_logit(present, absent, cue)) == 100  # half of the gain, as there are two classes


@every_function
@pytest.mark.parametrize("broken", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["present", "absent"])
def test_logits_that_are_not_finite_are_nan_and_no_other_row_is(name, broken, where):
    one, other = torch.randn(2, 3, 4)
    (one if where == "present" else other)[1, 2] = broken
    cue = torch.tensor([0, 1, 3])
    # Never the class that is answered already, for which the spurious score is NaN.
    cue = torch.where(other.nan_to_num().argmax(dim=1) == cue, (cue + 1) % 4, cue)

    found = FUNCTIONS[name](one, other, cue, cue)

    expected = [False, name != "answers_with" or where == "present", False]
    assert found.isnan().tolist() == expected


@every_function
def test_class_minus_one_is_no_pair(name):
    one, other = torch.randn(2, 3, 4)
    found = FUNCTIONS[name](one, other, torch.tensor([-1, -1, -1]), torch.tensor([0, 1, 2]))
    assert found.isnan().all()


@every_function
def test_no_images_are_no_values(name):
    none = torch.zeros(0, 3)
    assert FUNCTIONS[name](none, none, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
    )


@pytest.mark.parametrize(
    ("one", "other", "classes", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2).long(), r"but got \(2, 3\) and \(3, 3\)"),
        (torch.zeros(2), torch.zeros(2), torch.zeros(2).long(), r"Expected logits \(N, K\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3).long(), r"int64 \(2,\), but got torch.int64 \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), r"but got torch.float32 \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]), "-1 or below 3, .*, but got 0 to 3"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([-2, 1]), "but got -2 to 1"),
    ],
)
@pytest.mark.parametrize("name", ["effect", "pair_acc", "spurious_score"])
def test_what_does_not_fit_is_refused(name, one, other, classes, message):
    with pytest.raises(ConfigurationError, match=message):
        FUNCTIONS[name](one, other, classes, classes)
