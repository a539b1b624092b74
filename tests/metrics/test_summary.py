"""Means with bootstrap intervals against scipy, simulation, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import Estimate, summarize

NAN, INF = math.nan, math.inf


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def skewed(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(count, dtype=torch.float64).exponential_(generator=generator)


# ---- mean, chance, counts


def test_probes_without_a_value_are_counted_and_not_averaged_in_as_zeros():
    estimate = summarize(vector(0.2, NAN, 0.4, INF), chance=vector(0.1, 0.9, 0.3, 0.9))

    assert estimate == Estimate(
        value=pytest.approx(0.3), low=None, high=None, chance=pytest.approx(0.2), valid=2, degenerate=2
    )


def test_probe_without_such_a_region_is_not_degenerate():
    estimate = summarize(vector(0.5, NAN, NAN), chance=vector(0.1, NAN, 0.2))

    assert (estimate.valid, estimate.degenerate) == (1, 1)
    assert estimate.chance == 0.1


def test_metric_without_a_chance_level_has_none():
    assert summarize(vector(1.0, 2.0)).chance is None


@pytest.mark.parametrize("values", [vector(), vector(NAN, NAN)])
def test_without_a_valid_probe_value_and_chance_are_nan(values):
    estimate = summarize(values, chance=torch.ones_like(values))

    assert math.isnan(estimate.value)
    assert math.isnan(estimate.chance)
    assert estimate[4:] == (0, len(values))


def test_values_may_be_of_any_type_and_carry_gradients():
    estimate = summarize(torch.tensor([1, 2, 4]))

    assert estimate.value == 7 / 3
    assert summarize(torch.tensor([1.0, 3.0], requires_grad=True)).value == 2.0


# ---- interval


def test_interval_is_given_from_thirty_valid_probes_on():
    values = torch.cat([skewed(30), vector(NAN)])

    assert summarize(values[1:]).low is None
    assert summarize(values[1:]).high is None
    assert summarize(values).low < summarize(values).value < summarize(values).high


def test_interval_agrees_with_scipy():
    values = skewed(80)
    reference = stats.bootstrap(
        (values.numpy(),), np.mean, method="percentile", confidence_level=0.9, n_resamples=20_000, random_state=1
    ).confidence_interval

    estimate = summarize(values, confidence=0.9, resamples=20_000)

    # An end is a quantile of 20,000 means, with a standard error of sqrt(p (1 - p) / n) / density: 2 % of their spread.
    tolerance = 0.1 * float(values.std()) / math.sqrt(80)
    assert estimate.low == pytest.approx(reference.low, abs=tolerance)
    assert estimate.high == pytest.approx(reference.high, abs=tolerance)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    trials, confidence = 1500, 0.8
    covered = 0
    for seed in range(trials):
        values = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        estimate = summarize(values, confidence=confidence, resamples=300, seed=trials + seed)
        covered += estimate.low <= 0 <= estimate.high

    # With 50 normal probes the percentile interval falls short of its level by a point or so.
    assert stats.binomtest(covered, trials, confidence - 0.01).pvalue > 0.01


def test_missing_probes_widen_the_interval_no_more_than_their_number_does():
    values = skewed(200)
    thinned = values.clone()
    thinned[::2] = NAN

    full, half, kept = (summarize(each) for each in (values, thinned, values[1::2]))

    assert half.value == kept.value
    assert half.high - half.low == pytest.approx(kept.high - kept.low, rel=0.15)
    assert half.high - half.low > full.high - full.low


def test_estimates_of_two_epochs_are_paired():
    values = skewed(60)

    first, second = summarize(values), summarize(values + 5.0)

    assert second.low - first.low == pytest.approx(5.0, abs=1e-12)
    assert second.high - first.high == pytest.approx(5.0, abs=1e-12)


def test_pairing_survives_a_probe_that_lost_its_value():
    values = skewed(60)
    values[7] = values.mean()
    lost = values.clone()
    lost[7] = NAN

    # Resampling the 59 that are left would draw other probes altogether: measured, that moves the upper end by 0.017.
    assert summarize(lost).low == pytest.approx(summarize(values).low, abs=0.008)
    assert summarize(lost).high == pytest.approx(summarize(values).high, abs=0.008)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    values = skewed(60)

    assert summarize(values, seed=1) == summarize(values, seed=1)
    assert summarize(values, seed=1).low != summarize(values, seed=2).low


def test_drawing_in_blocks_of_bounded_memory_changes_nothing(monkeypatch):
    values = skewed(60)
    whole = summarize(values, resamples=50)

    monkeypatch.setattr("xai_callbacks.metrics.summary._BLOCK", 60 * 7)
    blocks = summarize(values, resamples=50)

    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_global_random_state_is_neither_read_nor_advanced():
    values = skewed(60)
    before = torch.get_rng_state()
    first = summarize(values)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert summarize(values) == first


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": torch.ones(2, 2)}, "Expected `values` to be"),
        ({"values": torch.ones(2), "chance": torch.ones(3)}, "Expected `chance` to have the shape of `values`"),
        ({"values": torch.ones(2), "confidence": 95}, "Expected `confidence` to be between 0 and 1, but got 95"),
        ({"values": torch.ones(2), "resamples": 0}, "Expected `resamples` to be 1 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        summarize(**arguments)
