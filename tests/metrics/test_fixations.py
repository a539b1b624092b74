"""Scores of saliency, held against closed forms and scikit-learn."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.fixations import auc_judd, cc, nss

SHAPE = (9, 12)


def maps(seed=0, leading=()):
    return torch.rand(*leading, *SHAPE, generator=torch.Generator().manual_seed(seed))


def looked_at(count=20, seed=1):
    chosen = torch.zeros(SHAPE).flatten()
    chosen[torch.randperm(chosen.numel(), generator=torch.Generator().manual_seed(seed))[:count]] = 1
    return chosen.reshape(SHAPE).bool()


def test_nss_is_the_standard_score_at_fixations():
    values, fixated = maps(), looked_at()
    expected = (values[fixated].double().mean() - values.double().mean()) / values.double().std(correction=0)
    assert float(nss(values, fixated)) == pytest.approx(float(expected))
    # A map that is one at the n fixated of N pixels and zero elsewhere has the mean n / N and a variance by it.
    share = 20 / math.prod(SHAPE)
    assert float(nss(fixated, fixated)) == pytest.approx((1 - share) / math.sqrt(share * (1 - share)))


def test_cc_is_pearsons_correlation():
    first, second = maps(), maps(2)
    expected = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1]
    assert float(cc(first, second)) == pytest.approx(float(expected))
    assert float(cc(first, 3 * first + 1)) == pytest.approx(1)
    assert float(cc(first, -first)) == pytest.approx(-1)


@pytest.mark.parametrize("count", [1, 20, 107])
def test_auc_judd_is_the_area_of_scikit_learn_and_what_straight_lines_add(count):
    metrics = pytest.importorskip("sklearn.metrics")
    values, fixated = maps(), looked_at(count)
    plain = metrics.roc_auc_score(fixated.flatten().numpy(), values.flatten().numpy())
    others = values[~fixated]
    above = float((others > values[fixated].min()).double().mean())
    assert float(auc_judd(values, fixated)) == pytest.approx(plain + above / (2 * count))


def test_auc_judd_written_slowly():
    values, fixated = (8 * maps()).floor(), looked_at()  # with many ties
    points = [(0.0, 0.0)]
    for threshold in values[fixated].sort(descending=True).values:
        hits, above = int((values[fixated] >= threshold).sum()), int((values >= threshold).sum())
        points.append(((above - hits) / (values.numel() - 20), hits / 20))
    points.append((1.0, 1.0))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert float(auc_judd(values, fixated)) == pytest.approx(area)


def test_the_best_and_chance():
    fixated = looked_at()
    assert float(auc_judd(fixated.float(), fixated)) == pytest.approx(1)
    assert float(auc_judd(-fixated.float(), fixated)) == pytest.approx(0.5)  # the one threshold lets all pass
    assert float(auc_judd(torch.ones(SHAPE), fixated)) == pytest.approx(0.5)
    random = maps(3, (200,))
    expanded = fixated.expand(200, *SHAPE)
    assert abs(float(nss(random, expanded).mean())) < 0.05
    assert abs(float(cc(random, expanded.float()).mean())) < 0.05
    assert float(auc_judd(random, expanded).mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("score", [nss, cc, auc_judd])
def test_only_the_shape_of_a_map_counts_and_maps_are_scored_one_by_one(score):
    many, fixated = maps(0, (2, 3)), torch.stack([looked_at(20, seed) for seed in range(6)]).reshape(2, 3, *SHAPE)
    found = score(many, fixated)
    assert found.shape == (2, 3)
    torch.testing.assert_close(score(5 * many + 2, fixated), found)
    assert float(found[1, 2]) == pytest.approx(float(score(many[1, 2], fixated[1, 2])))


def test_what_has_no_answer_is_nan():
    flat, nobody = torch.ones(SHAPE), torch.zeros(SHAPE)
    assert nss(flat, looked_at()).isnan()
    assert cc(flat, looked_at()).isnan()
    for score in (nss, cc, auc_judd):
        assert score(maps(), nobody).isnan()
    with pytest.raises(ConfigurationError, match=r"one shape \(\.\.\., h, w\), but got \(9, 12\) and \(12, 9\)"):
        nss(maps(), looked_at().T)
