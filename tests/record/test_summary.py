"""Means over probes and their intervals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from xai_callbacks import ConfigurationError
from xai_callbacks.record import interval, summarize

NAN, INF = math.nan, math.inf


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def flips(count, of):
    return (torch.arange(of) < count).double()


def test_what_has_no_value_is_counted_and_not_averaged():
    estimate = summarize(vector(0.2, NAN, 0.4, INF), chance=vector(0.1, 0.9, 0.3, 0.9))
    assert estimate == (pytest.approx(0.3), None, None, pytest.approx(0.2), 2, 2)


def test_where_a_metric_does_not_apply_nothing_is_missing():
    estimate = summarize(vector(0.5, NAN, NAN), chance=vector(0.1, NAN, 0.2))
    assert (estimate.valid, estimate.degenerate) == (1, 1)


def test_nothing_valid_is_nan_and_no_number():
    estimate = summarize(vector(NAN, NAN), chance=vector(0.5, 0.5), strata=torch.tensor([0, 1]))
    assert (math.isnan(estimate.value), estimate.low, estimate.valid, estimate.degenerate) == (True, None, 0, 2)


def test_values_may_be_of_any_type_and_carry_gradients():
    assert summarize(torch.tensor([1, 2, 4])).value == pytest.approx(7 / 3)
    assert summarize(torch.tensor([1.0, 3.0], requires_grad=True)).value == 2.0


def test_thirty_values_have_an_interval_and_fewer_have_none():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert summarize(values, bounds=(0, 1)).low is not None
    assert summarize(values[1:], bounds=(0, 1)).low is None


def test_strata_count_alike_whatever_their_size():
    strata = torch.tensor([0] * 90 + [1] * 10)
    values = torch.cat([flips(45, 90), torch.ones(10, dtype=torch.float64)])
    estimate = summarize(values, strata=strata, bounds=(0, 1))
    assert estimate.value == pytest.approx(0.75)
    balanced = summarize(values[strata == 0], bounds=(0, 1))
    assert estimate.high - estimate.low > balanced.high - balanced.low  # as few probes speak for a half


def test_equal_strata_are_a_plain_mean():
    values = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, split = summarize(values, bounds=(0, 1)), summarize(values, strata=torch.arange(60) % 3, bounds=(0, 1))
    assert tuple(split[:3]) == pytest.approx(tuple(plain[:3]))


@pytest.mark.parametrize(("bounds", "low", "high"), [((0.0, 1.0), 0.0, 1.0), ((-1.0, 1.0), -1.0, 1.0)])
def test_a_bounded_interval_is_students_with_a_value_more_at_each_bound(bounds, low, high):
    values = 0.3 * torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    more = torch.cat([values, vector(low, high)]).numpy()
    reach = stats.t.ppf(0.975, 39) * more.std() / math.sqrt(42)
    expected = max(low, more.mean() - reach), min(high, more.mean() + reach)
    assert interval(values, bounds=bounds) == pytest.approx(expected)


def test_all_alike_is_no_certainty():
    low, high = interval(torch.ones(40, dtype=torch.float64), bounds=(0.0, 1.0))
    assert (low, high) == (pytest.approx(0.9286, abs=1e-4), 1.0)  # as docs/shortcuts.md says


@pytest.mark.parametrize("count", [30, 64, 200])
def test_every_share_is_covered(count):
    """Exactly, over all outcomes: at least 93 % whatever the share is."""
    ends = [interval(flips(right, count), bounds=(0.0, 1.0)) for right in range(count + 1)]
    for share in torch.linspace(0.005, 0.995, 199).tolist():
        chances = stats.binom.pmf(range(count + 1), count, share)
        covered = sum(p for p, (low, high) in zip(chances, ends, strict=True) if low <= share <= high)
        assert covered >= 0.93


def test_values_beyond_their_bounds_widen_these():
    values = torch.linspace(0, 2, 40, dtype=torch.float64)
    low, high = interval(values, bounds=(0.0, 1.0))
    assert (low, high) == interval(values, bounds=(0.0, 2.0))


def test_without_bounds_it_is_no_narrower_than_students():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    low, high = interval(values)
    student = stats.t.interval(0.95, 49, values.mean(), stats.sem(values.numpy()))
    assert low <= student[0] + 1e-12
    assert high >= student[1] - 1e-12
    assert high - student[1] > student[0] - low  # the long tail is on the right
    assert interval(values) == (low, high)


def test_without_bounds_many_equal_values_have_no_interval():
    assert interval(torch.cat([torch.zeros(38), torch.rand(12)]).double()) == (None, None)


def test_yes_and_no_are_a_share_without_bounds():
    assert interval(flips(2, 40)) == interval(flips(2, 40), bounds=(0.0, 1.0))


@pytest.mark.parametrize("count", [30, 64, 500])
def test_without_bounds_all_no_or_all_yes_may_be_something_rare(count):
    low, high = summarize(torch.zeros(count))[1:3]
    assert low == 0
    # The largest share of which none of so many is met once in a thousand times.
    assert stats.binom.pmf(0, count, high) == pytest.approx(0.001)
    assert summarize(torch.ones(count))[1:3] == pytest.approx((1 - high, 1))


def test_what_may_be_negative_reaches_to_both_sides():
    low, high = summarize(torch.zeros(40), signed=True)[1:3]
    assert low == -high
    assert high == summarize(torch.zeros(40))[2]
    assert interval(-torch.ones(40, dtype=torch.float64), signed=True) == pytest.approx((-1 - high, -1 + high))
    for change in (flips(2, 40), -flips(2, 40), flips(2, 40) - flips(4, 40).flip(0)):
        assert interval(change, signed=True) == interval(change, bounds=(-1.0, 1.0))
    values = torch.linspace(-2, 5, 40, dtype=torch.float64)
    assert interval(values, signed=True) == interval(values)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    interval(torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": torch.ones(2, 2)}, "Expected `values` to be"),
        ({"values": torch.ones(2), "chance": torch.ones(3)}, "Expected `chance` to have the shape of `values`"),
        ({"values": torch.ones(2), "strata": torch.ones(3)}, "Expected `strata` to have the shape of `values`"),
        ({"values": torch.ones(2), "confidence": 95}, r"Expected `confidence` to be a number in \(0, 1\), but got 95"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        summarize(**arguments)
