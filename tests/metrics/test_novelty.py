"""Known against novel scores: sklearn, slow twins, values worked out by hand, and two real processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.metrics.novelty import novelty_auroc, rank_correlation, separate, why_useless
from xai_callbacks.record import Estimate

NAMES = ["auroc", "aupr_novel", "aupr_known", "fpr_at_95tpr_id", "fpr_at_95tpr_ood"]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def judged(known: torch.Tensor, novel: torch.Tensor) -> dict[str, float]:
    return {name: estimate.value for name, estimate in separate(known, novel, resamples=1).items()}


# Few distinct values, so that ties are the rule.
groups = st.lists(st.integers(-4, 4), min_size=1, max_size=45).map(lambda values: vector(*map(float, values)))


# ---- values


def sklearn_judgements(known: torch.Tensor, novel: torch.Tensor) -> dict[str, float]:
    scores = torch.cat([known, novel]).numpy()
    is_novel = np.r_[np.zeros(len(known)), np.ones(len(novel))]

    def fpr(truth: np.ndarray, scores: np.ndarray) -> float:
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        return float(false[np.argmax(true >= 0.95)])

    return {
        "auroc": roc_auc_score(is_novel, scores),
        "aupr_novel": average_precision_score(is_novel, scores),
        "aupr_known": average_precision_score(1 - is_novel, -scores),
        "fpr_at_95tpr_id": fpr(1 - is_novel, -scores),
        "fpr_at_95tpr_ood": fpr(is_novel, scores),
    }


@given(groups, groups)
def test_judgements_agree_with_sklearn_on_tied_scores(known, novel):
    assert judged(known, novel) == pytest.approx(sklearn_judgements(known, novel), rel=1e-12, abs=1e-12)


def test_judgements_agree_with_sklearn_on_scores_without_ties():
    known, novel = normal(731, 0), normal(412, 1, shift=0.8)

    assert judged(known, novel) == pytest.approx(sklearn_judgements(known, novel), rel=1e-12)


def test_ties_count_half():
    # Of four pairs: 2 > 1, 1 = 1, 2 = 2, 1 < 2.
    assert novelty_auroc(vector(1, 2), vector(2, 1)) == 0.5
    # 3 > 1, 3 > 2, 2 > 1, 2 = 2.
    assert novelty_auroc(vector(1, 2), vector(3, 2)) == 3.5 / 4


def test_average_precision_takes_tied_images_together():
    # Picked first: one novel of one; then, at score 2, two of three; then all, two of four.
    known, novel = vector(1, 2), vector(3, 2)

    assert judged(known, novel)["aupr_novel"] == 1 / 2 * 1 + 1 / 2 * 2 / 3
    # From below: one known of one; then, at score 2, two of three.
    assert judged(known, novel)["aupr_known"] == 1 / 2 * 1 + 1 / 2 * 2 / 3


def test_the_two_conventions_of_fpr_differ():
    # To accept 19 of the 20 known images, nothing novel need be let in. To catch the novel image that hides at -1, all
    # known ones must be flagged: it is one of three, more than 5 % of them.
    known, novel = torch.arange(20.0), vector(-1, 30, 31)

    assert judged(known, novel)["fpr_at_95tpr_id"] == 1 / 3
    assert judged(known, novel)["fpr_at_95tpr_ood"] == 1.0


def test_ninety_five_percent_are_reached_by_nineteen_of_twenty():
    known = torch.arange(20.0)

    # The threshold is 18, the 19th score; the novel image at 18.5 is out, the one at 18 is in.
    assert judged(known, vector(18.5))["fpr_at_95tpr_id"] == 0.0
    assert judged(known, vector(18.0))["fpr_at_95tpr_id"] == 1.0
    # From above, 19 of 20 novel images are flagged at 1.
    assert judged(vector(0.5), known)["fpr_at_95tpr_ood"] == 0.0
    assert judged(vector(1.0), known)["fpr_at_95tpr_ood"] == 1.0


@pytest.mark.parametrize("count", [20, 40, 60, 80, 100, 140, 180, 220, 2000])
def test_ninety_five_percent_are_counted_without_rounding(count):
    known = torch.arange(float(count))
    last = count * 19 // 20 - 1  # the lowest threshold that accepts enough

    assert judged(known, vector(last + 0.5))["fpr_at_95tpr_id"] == 0.0
    assert judged(known, vector(last - 0.5))["fpr_at_95tpr_id"] == 1.0


def test_perfect_and_inverted_scores_are_the_ends():
    low, high = vector(1, 2, 3), vector(4, 5, 6)

    assert judged(low, high) == dict(zip(NAMES, (1.0, 1.0, 1.0, 0.0, 0.0), strict=True))
    assert judged(high, low)["auroc"] == 0.0
    assert judged(high, low)["fpr_at_95tpr_id"] == judged(high, low)["fpr_at_95tpr_ood"] == 1.0


def test_constant_score_is_chance():
    known, novel = torch.zeros(30), torch.zeros(10)

    assert judged(known, novel) == dict(zip(NAMES, (0.5, 0.25, 0.75, 1.0, 1.0), strict=True))


def test_chance_levels_are_what_unrelated_scores_get():
    estimates = separate(normal(30_000, 0), normal(10_000, 1), resamples=1)

    for estimate in estimates.values():
        assert estimate.value == pytest.approx(estimate.chance, abs=0.02)
    assert [estimate.chance for estimate in estimates.values()] == [0.5, 0.25, 0.75, 0.95, 0.95]


@given(groups, groups)
def test_strictly_increasing_transforms_change_nothing(known, novel):
    expected = judged(known, novel)

    for transform in (torch.exp, lambda scores: 3 * scores - 7, lambda scores: scores**3):
        assert judged(transform(known), transform(novel)) == expected


@given(groups, groups)
def test_turning_the_score_and_swapping_the_groups_mirrors(known, novel):
    forward, mirrored = judged(known, novel), judged(-novel, -known)

    assert mirrored["auroc"] == pytest.approx(forward["auroc"], abs=1e-12)
    for one, other in (("aupr_novel", "aupr_known"), ("fpr_at_95tpr_id", "fpr_at_95tpr_ood")):
        assert (mirrored[one], mirrored[other]) == pytest.approx((forward[other], forward[one]), abs=1e-12)
    assert novelty_auroc(novel, known) == pytest.approx(1 - forward["auroc"], abs=1e-12)


def test_scores_of_any_floating_type_that_carry_gradients_are_judged():
    known, novel = vector(1, 2), vector(3, 2)

    assert judged(known.bfloat16().requires_grad_(), novel.float().requires_grad_()) == judged(known, novel)


# ---- intervals


def test_estimates_hold_the_values_and_count_all_images():
    known, novel = normal(50, 0), normal(40, 1, shift=1.0)

    estimates = separate(known, novel)

    assert list(estimates) == NAMES
    assert {name: estimate.value for name, estimate in estimates.items()} == judged(known, novel)
    assert novelty_auroc(known, novel) == estimates["auroc"].value
    for estimate in estimates.values():
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.valid, estimate.degenerate) == (90, 0)


@pytest.mark.parametrize("sizes", [(29, 100), (100, 29)])
def test_without_thirty_images_in_either_group_there_is_no_interval(sizes):
    few = separate(normal(sizes[0], 0), normal(sizes[1], 1, shift=1.0))

    assert all((estimate.low, estimate.high) == (None, None) for estimate in few.values())
    assert few["auroc"].chance == 0.5
    assert all(None not in estimate for estimate in separate(normal(30, 0), normal(30, 1)).values())


def delong_variance(known: np.ndarray, novel: np.ndarray) -> float:
    """DeLong et al. 1988, pair by pair."""
    won = (novel[:, None] > known) + 0.5 * (novel[:, None] == known)
    return won.mean(1).var(ddof=1) / len(novel) + won.mean(0).var(ddof=1) / len(known)


@pytest.mark.parametrize("decimals", [12, 0])
def test_interval_of_auroc_is_as_wide_as_delongs(decimals):
    known, novel = normal(150, 0).round(decimals=decimals), normal(90, 1, shift=1.0).round(decimals=decimals)
    error = math.sqrt(delong_variance(known.numpy(), novel.numpy()))

    estimate = separate(known, novel, resamples=10_000)["auroc"]

    width = 2 * stats.norm.ppf(0.975) * error
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.06)


def test_intervals_agree_with_a_slow_bootstrap_of_sklearn():
    known, novel = normal(45, 0), normal(35, 1, shift=1.0)
    rng = np.random.default_rng(0)
    draws = [sklearn_judgements(known[rng.integers(45, size=45)], novel[rng.integers(35, size=35)]) for _ in range(800)]

    estimates = separate(known, novel, resamples=5000)

    for name, estimate in estimates.items():
        values = [draw[name] for draw in draws]
        # The end of 800 draws is off by some 10 % of their spread; FPR moves in steps of 1 / 35.
        tolerance = 0.4 * np.std(values) + (1 / 35 if name.startswith("fpr") else 0)
        assert (estimate.low, estimate.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=tolerance)


def test_interval_covers_the_true_auroc_as_often_as_it_says():
    trials, shift = 500, 1.0
    truth = stats.norm.cdf(shift / math.sqrt(2))
    covered = 0
    for seed in range(trials):
        known, novel = normal(50, 2 * seed), normal(50, 2 * seed + 1, shift)
        estimate = separate(known, novel, resamples=200, seed=seed)["auroc"]
        covered += estimate.low <= truth <= estimate.high

    # Percentile intervals of 50 against 50 fall short of their level by a point or so.
    assert stats.binomtest(covered, trials, 0.94).pvalue > 0.01


def test_estimates_of_two_epochs_are_paired():
    known, novel = normal(60, 0), normal(60, 1, shift=1.0)
    sharpened = novel + 1e-9  # one epoch later, hardly changed

    first, second = separate(known, novel), separate(known, sharpened)

    assert first == second
    assert separate(known, novel, seed=1)["auroc"].low != first["auroc"].low


def test_groups_of_equal_size_are_not_drawn_alike():
    # Were the same places drawn in both, the copy would beat its original in every resample just as often.
    scores = normal(60, 0)

    estimate = separate(scores, scores)["auroc"]

    error = math.sqrt(delong_variance(scores.numpy(), scores.numpy()))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_drawing_in_blocks_of_bounded_memory_changes_nothing(monkeypatch):
    known, novel = normal(40, 0), normal(50, 1, shift=1.0)
    whole = separate(known, novel, resamples=50)

    monkeypatch.setattr("xai_callbacks.metrics.novelty._BLOCK", 90 * 7)

    assert separate(known, novel, resamples=50) == whole


def test_perfect_separation_has_a_point_for_an_interval():
    estimates = separate(torch.arange(40.0), torch.arange(40.0) + 100)

    assert estimates["auroc"] == Estimate(1.0, 1.0, 1.0, 0.5, 80, 0)
    assert estimates["fpr_at_95tpr_id"] == Estimate(0.0, 0.0, 0.0, 0.95, 80, 0)


def test_global_random_state_is_neither_read_nor_advanced():
    known, novel = normal(40, 0), normal(40, 1)
    before = torch.get_rng_state()
    first = separate(known, novel)

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert separate(known, novel) == first


# ---- refusals


@pytest.mark.parametrize("function", [novelty_auroc, separate])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_counted_and_the_first_is_named(function, wrong):
    bad = vector(0.0, 1.0, wrong, 2.0, wrong)

    with pytest.raises(AuditError, match=r"`novel` to be finite scores, but got 2 of 5 .* the first at index 2"):
        function(vector(0.0, 1.0), bad)
    with pytest.raises(AuditError, match="`known`"):
        function(bad, vector(0.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": torch.zeros(0)}, r"Expected `known` to be the scores of one image or more.*\(0,\).*some of each"),
        ({"novel": torch.zeros(0)}, "Expected `novel` to be the scores of one image or more"),
        ({"novel": torch.zeros(2, 1)}, r"Expected `novel`.*\(2, 1\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        separate(**{"known": vector(1.0), "novel": vector(2.0)} | arguments)


# ---- ranks, and scores that say nothing


@pytest.mark.parametrize("levels", [1000, 4])
def test_rank_correlation_is_that_of_scipy(levels):
    before, noise = ((normal(60, seed) * levels).round() for seed in (0, 1))
    after = before + 2 * noise
    assert rank_correlation(before, after) == pytest.approx(stats.spearmanr(before, after).statistic, abs=1e-12)


def test_only_the_order_counts_and_its_reverse_is_minus_one():
    values = normal(6, 0)
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert math.isnan(rank_correlation(values, torch.ones(6)))  # no order
    with pytest.raises(ConfigurationError, match="scores of the same images, but got 6 and 5"):
        rank_correlation(values, values[:5])


def test_a_useless_score_says_which_probe_it_is_not_finite_for():
    names = ("a", "b", "c")
    assert why_useless(vector(1, math.nan, math.inf), names) == "it is NaN or inf for 2 of 3 probes, first for 'b'"
    assert why_useless(vector(2, 2, 2), names) == "it is 2 for all 3 probes, so that it tells none from another"
    assert why_useless(vector(1, 2, 2), names) is None
    assert why_useless(vector(1), ["a"]) is None  # one image is never constant
