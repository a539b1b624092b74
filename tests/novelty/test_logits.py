"""Baselines of the logits against formulas written out, and against pytorch-ood where that is right."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xai_callbacks.novelty.last_layer import Energy, Entropy, JointEnergy, MaxLogit, MaxSoftmax

SCORES = [MaxSoftmax(), MaxLogit(), Energy(), Entropy()]

logits_of_any_size = hnp.arrays(
    "float64",
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(-50, 50),
)


def ask(score, logits):
    return score.score(torch.ones(len(logits), 2), logits)


def written_out(score, row):
    """The formulas in plain Python, where nothing overflows."""
    powers = [math.exp(value) for value in row]
    probabilities = [power / math.fsum(powers) for power in powers]
    return {
        "max_softmax": -max(probabilities),
        "max_logit": -max(row),
        "energy": -math.log(math.fsum(powers)),
        "entropy": math.fsum(-p * math.log(p) for p in probabilities if p > 0),
    }[score.name]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
@given(values=logits_of_any_size)
def test_score_is_the_formula_written_out(score, values):
    expected = torch.tensor([written_out(score, row) for row in values.tolist()], dtype=torch.float64)

    found = ask(score, torch.from_numpy(values))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("score", "name"),
    [(MaxSoftmax(), "MaxSoftmax"), (MaxLogit(), "MaxLogit"), (Energy(), "EnergyBased"), (Entropy(), "Entropy")],
)
def test_score_is_that_of_pytorch_ood(score, name):
    detectors = pytest.importorskip("pytorch_ood.detector")
    # Moderate logits: its entropy clips probabilities at 1e-7, which ours does not.
    logits = torch.randn(20, 7, dtype=torch.float64)
    theirs = getattr(detectors, name)(None).predict_logits(logits)

    torch.testing.assert_close(ask(score, logits), theirs)


@given(values=logits_of_any_size, shift=st.floats(-1e3, 1e3))
def test_a_constant_added_to_the_logits_moves_energy_and_max_logit_alone(values, shift):
    logits = torch.from_numpy(values)
    for score in SCORES:
        moved = -shift if score.name in ("energy", "max_logit") else 0.0
        torch.testing.assert_close(ask(score, logits + shift), ask(score, logits) + moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
@given(values=logits_of_any_size)
def test_an_image_scores_the_same_in_any_company_and_order_of_classes(score, values):
    logits = torch.from_numpy(values)
    together = ask(score, logits)

    alone = torch.cat([ask(score, row[None]) for row in logits])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(together, ask(score, logits.flip(1)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_one_sigmoid_logit_is_two_classes_and_its_sign_does_not_count(score):
    logit = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    found = ask(score, logit)

    torch.testing.assert_close(found, ask(score, torch.cat([-logit / 2, logit / 2], dim=1)), rtol=0, atol=0)
    torch.testing.assert_close(found, found.flip(0))
    assert found.argmax() == 4


@given(values=logits_of_any_size)
def test_joint_energy_is_the_sum_of_the_energies_of_single_labels(values):
    """Each label with a logit of 0 for its absence: two classes, and their energy."""
    logits = torch.from_numpy(values)
    found = ask(JointEnergy(), logits)
    expected = [-math.fsum(math.log1p(math.exp(value)) for value in row) for row in values.tolist()]

    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    alone = torch.stack([ask(JointEnergy(), column[:, None]) for column in logits.T]).sum(dim=0)
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    absent = torch.zeros(len(logits), 1, dtype=torch.float64)
    pairs = [ask(Energy(), torch.cat([column[:, None], absent], dim=1)) for column in logits.T]
    torch.testing.assert_close(found, torch.stack(pairs).sum(dim=0), rtol=1e-9, atol=1e-12)


def test_joint_energy_keeps_its_digits_where_no_label_is_likely_and_does_not_overflow():
    logits = torch.tensor([[-700.0], [-40.0], [0.0], [800.0]], dtype=torch.float64)
    expected = torch.tensor([-math.exp(-700), -math.exp(-40), -math.log(2), -800.0], dtype=torch.float64)

    torch.testing.assert_close(ask(JointEnergy(), logits), expected, rtol=1e-9, atol=0)


def test_an_image_of_no_known_label_is_the_novel_one():
    nothing, one, several = ask(JointEnergy(), torch.tensor([[-5.0, -5, -5], [5.0, -5, -5], [5.0, 5, -5]]))

    assert nothing > one > several


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_the_undecided_image_is_the_novel_one(score):
    undecided, certain = ask(score, torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))

    assert undecided > certain


def test_bounds_are_reached():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, -1e4, -1e4, -1e4]], dtype=torch.float64)

    torch.testing.assert_close(ask(MaxSoftmax(), logits), torch.tensor([-0.25, -1.0], dtype=torch.float64))
    torch.testing.assert_close(ask(Entropy(), logits), torch.tensor([math.log(4), 0.0], dtype=torch.float64))
    torch.testing.assert_close(ask(Energy(), logits), torch.tensor([-math.log(4), -1e4], dtype=torch.float64))
