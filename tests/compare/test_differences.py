import math
import statistics

import pytest
import torch
from scipy import stats

from xai_callbacks.compare.differences import metric_differences
from xai_callbacks.record import AuditRecord, Estimate, Key, summarize

KEYS = (
    Key("mass", "share of heat", 0.0, 1.0),
    Key("accuracy", "right", 0.0, 1.0, "1 / K", "share"),
    Key("free", "any"),
)


def record(values, strata=None, scores=None, keys=KEYS, **metrics):
    values = {key: each.double() for key, each in values.items()}
    strata = {} if strata is None else dict.fromkeys(values, strata)
    estimates = {key: Estimate(float(_mean(each, strata.get(key))), valid=len(each)) for key, each in values.items()}
    estimates |= {f"novelty/{name}": Estimate(float(each.mean())) for name, each in (scores or {}).items()}
    count = len(next(iter(values.values())))
    return AuditRecord(
        names=tuple(map(str, range(count))), per_probe=values, strata=strata, keys=keys, scores=scores or {},
        metrics={**estimates, **{key: Estimate(each) for key, each in metrics.items()}},
    )  # fmt: skip


def _mean(values, strata):
    """Mean over strata of the means over probes."""
    groups = [values] if strata is None else [values[strata == each] for each in strata.unique()]
    return torch.stack([group.nanmean() for group in groups]).mean()


def only(a, b, *given, **settings):
    (row,) = metric_differences(a, b, *given, **settings)
    return row


def test_differences_are_paired():
    first = torch.rand(40)
    row = only(record({"mass": first}), record({"mass": first * 0.9 + 0.01}))
    change = (first * 0.9 + 0.01 - first).double()
    assert row.difference.value == pytest.approx(float(change.mean()), abs=1e-8)
    assert row.difference[:3] == pytest.approx(summarize(change, bounds=(-1.0, 1.0))[:3], abs=1e-8)
    assert row.a.value == pytest.approx(float(first.mean()), abs=1e-7)
    assert row.words == "share of heat"


def test_metrics_that_are_means_over_classes_stay_so():
    first, second, classes = torch.rand(60), torch.rand(60), torch.arange(60) % 7 % 3
    row = only(record({"mass": first}, classes), record({"mass": second}, classes))
    means = [(second - first)[classes == each].mean() for each in range(3)]
    assert row.difference.value == pytest.approx(float(sum(means) / 3), abs=1e-6)
    assert row.difference.value == pytest.approx(row.b.value - row.a.value, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25])
def test_p_of_one_metric_is_that_of_flipping_signs(shift):
    change = torch.randn(12, generator=torch.Generator().manual_seed(3)).double() * 0.2 + shift
    row = only(record({"free": torch.zeros(12)}), record({"free": change}))
    exact = stats.permutation_test(
        (change.numpy(),),
        lambda x: abs(x.mean()),
        permutation_type="samples",
        alternative="greater",
        n_resamples=10_000,
    )
    assert row.p == pytest.approx(exact.pvalue, abs=0.015)


def test_p_of_flips_is_that_of_mcnemar():
    first = torch.zeros(50)
    second = torch.zeros(50)
    first[:2], second[2:14] = 1, 1
    row = only(record({"accuracy": first}), record({"accuracy": second}))
    assert row.p == pytest.approx(stats.binomtest(2, 14).pvalue, abs=0.005)
    assert row.beyond


def test_what_no_metric_of_equal_models_exceeds_is_rarely_said():
    """The family-wise error rate, over metrics that hang together."""
    generator, false = torch.Generator().manual_seed(0), 0
    keys = tuple(Key(f"m{place}", "any", -99.0, 99.0) for place in range(8))  # bounded: no bootstrap
    for _ in range(200):
        common = torch.randn(40, 1, generator=generator)
        values = common + torch.randn(40, 8, generator=generator)
        given = {key.key: values[:, place] for place, key in enumerate(keys)}
        rows = metric_differences(record({key: torch.zeros(40) for key in given}, keys=keys), record(given, keys=keys))
        false += min(row.p for row in rows) <= 0.05
        assert not any(row.beyond for row in rows if row.p > 0.05)
    assert false <= stats.binom.ppf(0.999, 200, 0.05)
    assert false >= stats.binom.ppf(0.001, 200, 0.05)


def test_a_real_difference_among_many_metrics_is_found():
    keys = tuple(Key(f"m{place}", "any") for place in range(15))
    given = {key.key: torch.randn(40) for key in keys}
    given["m7"] = given["m7"] + 1
    rows = metric_differences(record({key: torch.zeros(40) for key in given}, keys=keys), record(given, keys=keys))
    assert [row.key for row in rows if row.beyond] == ["m7"] == [rows[0].key]


def test_of_equally_certain_differences_the_larger_one_beside_its_spread_is_first():
    keys = tuple(Key(f"m{place}", "any") for place in range(3))
    given = {f"m{place}": torch.randn(40) + shift for place, shift in enumerate((2, 9, 4))}
    rows = metric_differences(record({key: torch.zeros(40) for key in given}, keys=keys), record(given, keys=keys))
    assert len({row.p for row in rows}) == 1
    assert [row.key for row in rows] == ["m1", "m2", "m0"]


def test_probes_without_a_value_are_left_out():
    first, second = torch.rand(40), torch.rand(40)
    second[:5] = math.nan
    row = only(record({"mass": first}), record({"mass": second}))
    assert row.difference.valid == 35
    assert row.difference.value == pytest.approx(float((second - first)[5:].double().mean()))
    assert row.p is not None


@pytest.mark.parametrize("seeds", [0, 3])
def test_what_no_probe_has_in_both_cannot_be_told(seeds):
    values = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)).double()
    halves = torch.arange(40) < 20
    given = [
        record({"mass": each, "free": each.where(halves if place else ~halves, torch.nan)})
        for place, each in enumerate(values)
    ]
    rows = {row.key: row for row in metric_differences(given[0], given[1], given[2 : 2 + seeds])}
    assert math.isnan(rows["free"].difference.value)
    assert (rows["free"].p, rows["free"].beyond) == (None, None)
    # Nor does it count among the metrics of which the largest is taken.
    without = [record({"mass": each}) for each in values]
    assert rows["mass"].p == only(without[0], without[1], without[2 : 2 + seeds]).p


def test_probes_without_a_value_have_no_weight_in_their_class():
    generator = torch.Generator().manual_seed(0)
    classes = (torch.arange(40) >= 20).long()
    change = torch.randn(40, generator=generator) * 0.1 + torch.where(classes == 0, 0.03, 0.08)
    known = (classes == 0) | (torch.arange(40) >= 35)
    row, fewer = (
        only(record({"free": torch.zeros(len(c))}, c), record({"free": each}, c))
        for each, c in ((change.where(known, torch.nan), classes), (change[known], classes[known]))
    )
    assert row.difference.value == pytest.approx(fewer.difference.value)
    assert row.p == pytest.approx(fewer.p, abs=0.02)


def test_no_difference_without_bounds_has_an_interval_to_both_sides():
    same = torch.rand(64).double()
    low, high = only(record({"free": same}), record({"free": same})).difference[1:3]
    assert low == -high
    assert stats.binom.pmf(0, 64, high) == pytest.approx(0.001)


def test_novelty_scores_are_paired_too_and_judged_by_seeds_alone():
    first = torch.rand(40).double()
    given = [record({"mass": first}, scores={"gradnorm": first + shift}) for shift in (0, 1, 0.01, 0.02, 0.03, 0.01)]
    for seeds, beyond in (([], None), (given[2:], True)):
        rows = metric_differences(given[0], given[1], seeds)
        row = next(each for each in rows if each.key == "novelty/gradnorm")
        assert row.difference.value == pytest.approx(1)
        assert row.beyond is beyond


def test_rounding_is_no_difference():
    first = torch.rand(40).double()
    for key in ("mass", "free"):
        row = only(record({key: first}), record({key: first + 1e-7}))
        assert row.difference.value == pytest.approx(1e-7)
        assert row.p == 1
        assert only(record({key: first}), record({key: first + 1e-3})).p <= 0.05


@pytest.mark.parametrize(("count", "within", "beyond"), [(40, 0.06, 0.08), (128, 0.02, 0.025)])
def test_how_small_a_change_passes_for_noise(count, within, beyond):
    """As docs/compare.md says: some 7 % of the range with 40 probes, 2 % with 128."""
    first = torch.full((count,), 0.5)
    for change, wanted in ((within, False), (beyond, True)):
        assert only(record({"mass": first}), record({"mass": first + change})).beyond is wanted


def test_what_is_beyond_noise_has_an_interval_beyond_0():
    change = torch.zeros(40)
    change[:10] = 0.02 + 0.01 * torch.rand(10)  # certain, and small beside what the metric may be
    row = only(record({"mass": torch.full((40,), 0.5)}), record({"mass": 0.5 + change}))
    assert row.p <= 0.05
    assert row.difference.low < 0
    assert not row.beyond


def test_what_is_no_mean_over_probes_has_a_difference_and_no_p():
    row = next(
        each
        for each in metric_differences(
            record({"mass": torch.rand(40)}, **{"group/wga": 0.6}),
            record({"mass": torch.rand(40)}, **{"group/wga": 0.4}),
        )
        if each.key == "group/wga"
    )
    assert row.difference.value == pytest.approx(-0.2)
    assert row.p is None
    assert row.beyond is None


def test_what_is_about_the_run_or_its_rules_is_not_compared():
    values = {"mass": torch.rand(40)}
    more = {
        "gradcam/why/drift": 0.5, "switched": 0.1, "alarm/cue/patch": 2.0, "expectation/failed": 1.0,
        "representation/layer1/cka": 0.9, "novelty/gradnorm/rank_correlation": 0.3,
    }  # fmt: skip
    assert only(record(values, **more), record(values, **more)).key == "mass"


# ---- seeds


def holm(values):
    """Holm 1979, one step after another."""
    found, order, worst = [0.0] * len(values), sorted(range(len(values)), key=values.__getitem__), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(values) - rank) * values[place]))
        found[place] = worst
    return found


def test_differences_are_held_against_those_of_seeds():
    keys = tuple(Key(f"m{place}", "any") for place in range(4))
    noise = torch.randn(6, 4, 40, generator=torch.Generator().manual_seed(1))
    levels = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(2))
    values = noise * 0.01 + levels  # the training moves the level, far more than probes tell
    seeds = [record({f"m{m}": each[m] for m in range(4)}, keys=keys) for each in values]
    a, b = seeds[0], record({f"m{m}": values[1][m] + (30 if m == 2 else 0) for m in range(4)}, keys=keys)
    assert [row.beyond for row in metric_differences(a, b)] == [True] * 4
    rows = metric_differences(a, b, seeds[2:])
    assert [row.key for row in rows if row.beyond] == ["m2"]
    levels = [[each.metrics[f"m{m}"].value for each in seeds[2:]] for m in range(4)]
    errors = [float(a.per_probe[f"m{m}"].std()) / math.sqrt(40) for m in range(4)]
    spreads = [float(torch.tensor(each).double().std()) for each in levels]
    usual = statistics.median(spread / error for spread, error in zip(spreads, errors, strict=True))
    plain = []
    for m in range(4):
        gap = abs(b.metrics[f"m{m}"].value - a.metrics[f"m{m}"].value)
        # A new pair against the spread of the others: Student's t with n - 1 degrees of freedom.
        plain.append(2 * stats.t.sf(gap / (math.sqrt(2) * max(spreads[m], usual * errors[m])), 3))
    expected = dict(zip((f"m{m}" for m in range(4)), holm(plain), strict=True))
    assert {row.key: row.p for row in rows} == pytest.approx({key: max(p, 1 / 10_001) for key, p in expected.items()})


def test_pairs_of_seeds_are_rarely_beyond_seeds():
    generator, false = torch.Generator().manual_seed(0), 0
    keys = tuple(Key(f"m{place}", "any", -99.0, 99.0) for place in range(10))
    for _ in range(100):
        levels = torch.randn(7, 10, 1, generator=generator)
        values = levels + 0.05 * torch.randn(7, 10, 40, generator=generator)
        made = [record({f"m{m}": each[m] for m in range(10)}, keys=keys) for each in values]
        false += any(row.beyond for row in metric_differences(made[0], made[1], made[2:]))
    assert false <= stats.binom.ppf(0.999, 100, 0.05)


def test_of_seeds_that_agree_to_the_last_digit_nothing_is_known():
    same = torch.full((40,), 0.5)
    rows = only(record({"mass": same}), record({"mass": same + 0.2}), [record({"mass": same})] * 4)
    assert rows.p is None
    assert rows.beyond is None
    assert only(record({"mass": same}), record({"mass": same}), [record({"mass": same})] * 4).beyond is False


def test_seeds_that_agree_on_a_share_leave_room_for_one_probe():
    right = torch.ones(40)
    seeds = [record({"accuracy": right}) for _ in range(5)]
    worse = right.clone()
    worse[0] = 0
    assert not only(record({"accuracy": right}), record({"accuracy": worse}), seeds).beyond
    worse[:20] = 0
    assert only(record({"accuracy": right}), record({"accuracy": worse}), seeds).beyond
