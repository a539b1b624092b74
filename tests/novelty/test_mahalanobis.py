"""`Mahalanobis` against a slow twin, scikit-learn, and pytorch-ood where that is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

from tests.novelty.features import CLASSES, FEATURES, fitted, inliers, strangers
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import feature_space
from xai_callbacks.novelty.feature_space import Mahalanobis


def nearest_class(of, features, shrinkage):
    """Numpy, a class and an image at a time; the covariance by scikit-learn."""
    known, labels = of.features.numpy(), of.labels.numpy()
    means = {label: known[labels == label].mean(axis=0) for label in np.unique(labels)}
    centred = np.stack([row - means[label] for row, label in zip(known, labels, strict=True)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(centred).covariance_
    covariance = covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance)
    return [min((row - mean) @ inverse @ (row - mean) for mean in means.values()) for row in features.numpy()]


@pytest.mark.parametrize("shrinkage", [1e-6, 1e-3, 0.5])
def test_mahalanobis_is_the_distance_under_the_covariance_of_scikit_learn(monkeypatch, shrinkage):
    monkeypatch.setattr(feature_space, "_SHRINKAGE", shrinkage)
    known = inliers()
    features, logits = strangers(known)
    found = fitted(Mahalanobis(), known).score(features, logits)

    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), nearest_class(known, features, shrinkage), rtol=1e-9)


def test_mahalanobis_of_one_class_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(feature_space, "_SHRINKAGE", 1e-14)
    known = inliers()._replace(labels=torch.zeros(60, dtype=torch.long))
    features, logits = strangers(known)
    expected = EmpiricalCovariance().fit(known.features.numpy()).mahalanobis(features.numpy())

    np.testing.assert_allclose(fitted(Mahalanobis(), known).score(features, logits).numpy(), expected, rtol=1e-9)


def test_mahalanobis_is_proportional_to_that_of_pytorch_ood(monkeypatch):
    monkeypatch.setattr(feature_space, "_SHRINKAGE", 1e-12)
    # Theirs does not divide the scatter by N, halves the distance, and adds 1e-6 where ours shrinks: without shrinkage
    # ours is 2 N times as large.
    detectors = pytest.importorskip("pytorch_ood.detector")
    known = inliers(600)
    features, logits = strangers(known)
    theirs = detectors.Mahalanobis(None).fit_features(known.features.float(), known.labels)
    found = fitted(Mahalanobis(), known).score(features, logits)

    torch.testing.assert_close(found, 2 * 600 * theirs.predict_features(features.float()).double(), rtol=1e-3, atol=0)


def test_mahalanobis_without_labels_takes_the_predicted_classes():
    known = inliers(labelled=False)
    features, logits = strangers(known)
    predicted = known._replace(labels=known.logits.argmax(dim=1))

    found = fitted(Mahalanobis(), known).score(features, logits)
    assert found.tolist() == fitted(Mahalanobis(), predicted).score(features, logits).tolist()


def test_mahalanobis_without_labels_takes_the_sign_of_one_sigmoid_logit():
    known = inliers(classes=1, labelled=False)
    known = known._replace(logits=known.logits - known.logits.mean())
    features, logits = strangers(known)
    predicted = known._replace(labels=(known.logits[:, 0] > 0).long())

    assert len(predicted.labels.unique()) == 2
    found = fitted(Mahalanobis(), known).score(features, logits)
    assert found.tolist() == fitted(Mahalanobis(), predicted).score(features, logits).tolist()


def test_mahalanobis_at_a_class_mean_is_zero_and_about_the_number_of_features_for_the_familiar():
    known = inliers(4000)
    score = fitted(Mahalanobis(), known)
    means = torch.stack([known.features[known.labels == label].mean(dim=0) for label in range(CLASSES)])

    assert score.score(means, torch.zeros(CLASSES, CLASSES)).max() < 1e-20
    assert score.score(known.features, known.logits).mean() == pytest.approx(FEATURES, rel=0.05)


def test_mahalanobis_ignores_a_rotation_and_a_large_offset():
    known = inliers()
    features, logits = strangers(known)
    rotation, _ = torch.linalg.qr(torch.randn(FEATURES, FEATURES, dtype=torch.float64))
    moved = known._replace(features=known.features @ rotation + 1e5)

    found = fitted(Mahalanobis(), moved).score(features @ rotation + 1e5, logits)
    torch.testing.assert_close(found, fitted(Mahalanobis(), known).score(features, logits), rtol=1e-7, atol=0)


def test_mahalanobis_has_an_answer_for_fewer_images_than_features_dead_features_and_classes_of_one():
    known = inliers(6, width=20)
    known.features[:, 3] = 0.25
    known = known._replace(labels=torch.tensor([0, 0, 0, 1, 1, 2]))
    features, logits = strangers(known)
    found = fitted(Mahalanobis(), known).score(features, logits)

    np.testing.assert_allclose(found.numpy(), nearest_class(known, features, 1e-3), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_mahalanobis_refuses_features_without_spread(value):
    known = inliers(9)
    same = known._replace(features=torch.full_like(known.features, value))
    with pytest.raises(AuditError, match="9 images in 3 classes without any spread"):
        Mahalanobis().fit(same)
    with pytest.raises(AuditError, match="9 images in 9 classes without any spread"):
        Mahalanobis().fit(known._replace(labels=torch.arange(9)))


def test_mahalanobis_refuses_a_single_image():
    with pytest.raises(ConfigurationError, match="2 familiar images or more for `Mahalanobis`, but got 1"):
        Mahalanobis().fit(inliers(1))
