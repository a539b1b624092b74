"""Novelty scores from audit to audit, and ranks against SciPy."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_probes
from xai_callbacks import ConfigurationError
from xai_callbacks.metrics import rank_correlation, separate
from xai_callbacks.metrics.score_judge import ScoreJudge, why_useless

stats = pytest.importorskip("scipy.stats")

ORIGINS = {"energy": "layer `fc`", "odin": "the whole model"}


def scores(seed=0, count=6):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [1000, 4])
def test_rank_correlation_is_that_of_scipy(levels):
    before, after = ((scores(seed, 60) * levels).round() for seed in (0, 1))
    after = before + 2 * after
    assert rank_correlation(before, after) == pytest.approx(stats.spearmanr(before, after).statistic, abs=1e-12)


def test_only_the_order_counts_and_its_reverse_is_minus_one():
    values = scores()
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, torch.ones(6)) != rank_correlation(values, torch.ones(6))  # NaN: no order
    with pytest.raises(ConfigurationError, match="scores of the same images, but got 6 and 5"):
        rank_correlation(values, values[:5])


def test_the_second_audit_is_compared_with_the_first():
    judge = ScoreJudge(tiny_probes(), tiny_probes(4, seed=3))
    novel = {"energy": scores(5, 4)}
    first = judge.judge({"energy": scores(0)}, novel, ORIGINS)
    second = judge.judge({"energy": scores(1)}, novel, ORIGINS)

    assert first.estimates["novelty/energy"].value == pytest.approx(float(scores(0).mean()))
    assert "novelty/energy/rank_correlation" not in first.estimates
    expected = rank_correlation(scores(0), scores(1))
    assert second.estimates["novelty/energy/rank_correlation"].value == pytest.approx(expected)
    for key, estimate in separate(scores(1), scores(5, 4)).items():
        assert second.estimates[f"novelty/energy/{key}"] == estimate
    assert (first.useless, second.useless) == ((), ())
    judge.forget()
    assert "novelty/energy/rank_correlation" not in judge.judge({"energy": scores(1)}, novel, ORIGINS).estimates


@pytest.mark.parametrize("where", ["known", "novel"])
def test_a_useless_score_is_left_out_and_says_which_probe_and_layer(where):
    probes, novel = tiny_probes(), tiny_probes(4, seed=3, names=("a", "b", "c", "d"))
    broken = {"known": scores(0), "novel": scores(5, 4)}
    broken[where][1] = torch.nan
    judged = ScoreJudge(probes, novel).judge(
        {"energy": broken["known"], "odin": scores(1)}, {"energy": broken["novel"], "odin": scores(6, 4)}, ORIGINS
    )
    name, count = ("probe_001", 6) if where == "known" else ("b", 4)
    assert judged.useless == (
        f"The novelty score `energy` of layer `fc` was left out: it is NaN or inf for 1 of {count} probes, first for "
        f"{name!r}.",
    )
    assert list(judged.known) == list(judged.novel) == ["odin"]
    assert not any("energy" in key for key in judged.estimates)


def test_a_score_that_failed_is_not_looked_at_and_says_why():
    judge = ScoreJudge(tiny_probes(), tiny_probes(4, seed=3))
    novel = {"energy": scores(5, 4), "odin": scores(6, 4)}
    judge.judge({"energy": scores(0), "odin": scores(1)}, novel, ORIGINS)
    # What a chunk that failed has left is arbitrary.
    half = scores(2).index_fill(0, torch.tensor([4, 5]), torch.nan)
    judged = judge.judge({"energy": scores(2), "odin": half}, novel, ORIGINS, {"odin": "Expected luck. Try again."})

    assert judged.useless == (
        "The novelty score `odin` of the whole model was left out because it failed: Expected luck. Try again.",
    )
    assert list(judged.known) == list(judged.novel) == ["energy"]
    assert not any("odin" in key for key in judged.estimates)
    third = judge.judge({"energy": scores(3), "odin": scores(4)}, novel, ORIGINS)
    assert "novelty/energy/rank_correlation" in third.estimates
    # There is no last audit to compare with.
    assert "novelty/odin/rank_correlation" not in third.estimates


def test_a_state_goes_on_with_the_same_probes_only():
    judge = ScoreJudge(tiny_probes())
    judge.judge({"energy": scores(0)}, {}, ORIGINS)
    same, other = ScoreJudge(tiny_probes()), ScoreJudge(tiny_probes(seed=9))
    for one in (same, other):
        one.load_state_dict(judge.state_dict())

    assert "novelty/energy/rank_correlation" in same.judge({"energy": scores(1)}, {}, ORIGINS).estimates
    assert "novelty/energy/rank_correlation" not in other.judge({"energy": scores(1)}, {}, ORIGINS).estimates


def test_one_image_is_never_constant():
    assert why_useless(torch.ones(1), ["a"]) is None
    assert "the same" not in str(why_useless(torch.tensor([1.0, 2.0]), ["a", "b"]))
