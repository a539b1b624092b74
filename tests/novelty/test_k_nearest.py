"""`KNearest` against scikit-learn and pytorch-ood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from tests.novelty.features import CLASSES, FEATURES, fitted, inliers, strangers
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.feature_space import KNearest


@pytest.mark.parametrize("k", [1, 2, 10, 59])
def test_k_nearest_is_the_distance_that_scikit_learn_finds(k):
    known = inliers()
    features, logits = strangers(known)
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (known.features, features)]
    search = NearestNeighbors(algorithm="brute", metric="euclidean").fit(unit[0].numpy())
    expected = search.kneighbors(unit[1].numpy(), n_neighbors=k)[0][:, -1]

    np.testing.assert_allclose(fitted(KNearest(k), known).score(features, logits).numpy(), expected, rtol=1e-12)


def test_k_nearest_is_that_of_pytorch_ood():
    detectors = pytest.importorskip("pytorch_ood.detector")
    known = inliers()
    features, logits = strangers(known)
    theirs = detectors.KNN(None, k=7).fit_features(known.features, known.labels)

    torch.testing.assert_close(fitted(KNearest(7), known).score(features, logits), theirs.predict_features(features))


def test_k_nearest_resolves_distances_that_products_cannot():
    known = inliers()
    near = known.features.clone()
    near[:, 0] += 1e-11 * near.norm(dim=1)
    found = fitted(KNearest(1), known).score(near, known.logits)

    expected = torch.stack([a / a.norm() - b / b.norm() for a, b in zip(near, known.features, strict=True)]).norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert fitted(KNearest(1), known).score(known.features, known.logits).tolist() == [0.0] * 60


@pytest.mark.parametrize("factor", [1e-45, 1e-3, 1e38])
def test_k_nearest_ignores_the_length_of_features(factor):
    known = inliers()
    features, logits = strangers(known)
    score = fitted(KNearest(), known)

    torch.testing.assert_close(score.score(features * factor, logits), score.score(features, logits))


def test_k_nearest_has_an_answer_for_features_of_zeros():
    known = inliers()
    score = fitted(KNearest(), known)

    torch.testing.assert_close(score.score(torch.zeros(2, FEATURES), torch.zeros(2, CLASSES)), torch.ones(2).double())


@pytest.mark.parametrize(("count", "k"), [(10, 10), (1, 1), (3, 50)])
def test_k_nearest_refuses_a_bank_that_is_too_small(count, k):
    with pytest.raises(ConfigurationError, match=f"{k + 1} familiar images or more for `KNearest` .* got {count}"):
        KNearest(k).fit(inliers(count))
    fitted(KNearest(k), inliers(k + 1))


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_k_nearest_refuses_an_impossible_k(k):
    with pytest.raises(ConfigurationError, match="Expected `k` to be an integer of 1 or more"):
        KNearest(k)
