"""Scores of the feature space against slow twins, scikit-learn, and pytorch-ood where that is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import feature_space
from xai_callbacks.novelty.base import Inliers, LastLayerScore
from xai_callbacks.novelty.feature_space import KNearest, Mahalanobis, ViM

FEATURES, CLASSES = 8, 3
LEARNERS = [Mahalanobis, KNearest, ViM]


def inliers(count=60, *, width=FEATURES, classes=CLASSES, seed=0, labelled=True, dtype=torch.float64, offset=0.0):
    """Classes around their own centres with an uneven spread, and a head that tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % max(classes, 2)
    centres = 4 * torch.randn(max(classes, 2), width, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing
    features = (centres[labels] + noise + offset).to(dtype)
    weight = centres[:classes].to(dtype)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype)
    return Inliers(features, features @ weight.T + bias, labels if labelled else None, weight, bias)


def strangers(of, count=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = 5 * torch.randn(count, of.features.shape[1], generator=generator, dtype=torch.float64)
    features = features.to(of.features.dtype)
    return features, features @ of.weight.T + of.bias


def fitted(score, of):
    score.fit(of)
    return score


# ---- Mahalanobis


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


# ---- k nearest


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


# ---- ViM


def virtual_logit(of, features, logits, dimensions):
    """Numpy, from the singular vectors of the features instead of the eigenvectors of their covariance."""
    origin = -np.linalg.pinv(of.weight.numpy()) @ of.bias.numpy()
    centred = of.features.numpy() - origin
    beyond = np.linalg.svd(centred, full_matrices=True)[2][dimensions:]
    alpha = of.logits.numpy().max(axis=1).mean() / np.linalg.norm(centred @ beyond.T, axis=1).mean()
    virtual = alpha * np.linalg.norm((features.numpy() - origin) @ beyond.T, axis=1)
    return virtual - np.log(np.exp(logits.numpy()).sum(axis=1))


@pytest.mark.parametrize(("dimensions", "used"), [(1, 1), (3, 3), (7, 7), (None, 4)])
def test_vim_is_the_formula_by_singular_vectors(dimensions, used):
    known = inliers()
    features, logits = strangers(known)
    found = fitted(ViM(dimensions), known).score(features, logits)

    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), virtual_logit(known, features, logits, used), rtol=1e-9)


def test_vim_is_that_of_pytorch_ood():
    detectors = pytest.importorskip("pytorch_ood.detector")
    known = inliers()
    features, logits = strangers(known)
    theirs = detectors.ViM(None, d=3, w=known.weight, b=known.bias).fit_features(known.features, known.labels)
    found = fitted(ViM(3), known).score(features, logits)

    torch.testing.assert_close(found.float(), theirs.predict_features(features), rtol=1e-4, atol=1e-4)


def test_vim_of_one_sigmoid_logit_is_that_of_its_two_classes():
    known = inliers(classes=1)
    features, logits = strangers(known)
    two = Inliers(
        known.features,
        torch.cat([-known.logits, known.logits], dim=1) / 2,
        known.labels,
        torch.cat([-known.weight, known.weight]) / 2,
        torch.cat([-known.bias, known.bias]) / 2,
    )

    expected = fitted(ViM(3), two).score(features, torch.cat([-logits, logits], dim=1) / 2)
    torch.testing.assert_close(fitted(ViM(3), known).score(features, logits), expected, rtol=1e-9, atol=1e-9)


def test_mean_virtual_logit_of_the_familiar_is_their_mean_largest_logit():
    known = inliers()
    found = fitted(ViM(3), known).score(known.features, known.logits)
    virtual = found + known.logits.logsumexp(dim=1)

    torch.testing.assert_close(virtual.mean(), known.logits.amax(dim=1).mean())


@pytest.mark.parametrize(("width", "principal"), [(2, 1), (767, 383), (768, 512), (2047, 512), (2048, 1000)])
def test_vim_takes_the_dimensions_of_its_authors(width, principal):
    # Too few images: the message tells how many dimensions it would have taken.
    with pytest.raises(ConfigurationError, match=f"{principal + 1} familiar images or more for {principal} principal"):
        ViM().fit(inliers(1, width=width))


@pytest.mark.parametrize(("dimensions", "width"), [(8, 8), (9, 8), (None, 1)])
def test_vim_refuses_dimensions_that_leave_nothing(dimensions, width):
    with pytest.raises(ConfigurationError, match=f"at least 1 and below the {width} features"):
        ViM(dimensions).fit(inliers(width=width))


@pytest.mark.parametrize("dimensions", [0, -1, 2.0, True])
def test_vim_refuses_impossible_dimensions(dimensions):
    with pytest.raises(ConfigurationError, match="Expected `dimensions` to be an integer of 1 or more"):
        ViM(dimensions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vim_refuses_features_that_the_principal_dimensions_hold(dtype):
    known = inliers(dtype=dtype)
    plane = torch.randn(3, FEATURES, dtype=dtype)
    flat = torch.randn(60, 3, dtype=dtype) @ plane
    known = known._replace(features=flat, bias=torch.zeros(CLASSES, dtype=dtype))
    with pytest.raises(AuditError, match="reach beyond 4 of 8 dimensions, but those of 60"):
        ViM().fit(known)
    fitted(ViM(2), known)


def test_vim_refuses_logits_that_would_turn_it_round():
    known = inliers()
    with pytest.raises(AuditError, match=r"largest logit to be positive on average .* take what is familiar for novel"):
        ViM().fit(known._replace(logits=known.logits.log_softmax(dim=1)))


# ---- all of them


@pytest.mark.parametrize("learner", LEARNERS)
def test_strangers_are_more_novel_than_the_familiar(learner):
    known, others = inliers(seed=0), inliers(40, seed=0)
    score = fitted(learner(), known)
    familiar = score.score(others.features, others.logits)

    assert score.score(*strangers(known)).median() > familiar.max()


@pytest.mark.parametrize("learner", LEARNERS)
def test_unfitted_score_says_how_to_fit_it(learner):
    score = learner()
    assert isinstance(score, LastLayerScore)
    assert score.learns
    with pytest.raises(ConfigurationError, match=f"`{learner.__name__}` to have learnt .* `fit` has not been called"):
        score.score(torch.ones(2, FEATURES), torch.ones(2, CLASSES))


@pytest.mark.parametrize("learner", LEARNERS)
def test_features_of_another_width_are_refused(learner):
    score = fitted(learner(), inliers())
    with pytest.raises(
        ConfigurationError, match=f"Expected `{learner.__name__}` to have learnt of 9 features .* learnt of 8. Fit it"
    ):
        score.score(torch.ones(2, 9), torch.ones(2, CLASSES))


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["features", "logits", "weight", "bias"])
def test_fit_refuses_what_is_not_finite_and_keeps_what_it_knew(learner, value, field):
    known = inliers()
    score = fitted(learner(), known)
    before = score.score(*strangers(known))
    broken = getattr(known, field).clone()
    broken[2:].view(-1)[0] = value
    with pytest.raises(AuditError, match=rf"the {field} of `inliers` .* NaN or inf in 1 of \d+ rows, .* index 2"):
        score.fit(known._replace(**{field: broken}))

    assert score.score(*strangers(known)).tolist() == before.tolist()


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_scores_nan_and_spoils_no_other_image(learner, value):
    known = inliers()
    score = fitted(learner(), known)
    features, logits = strangers(known, 4)
    sound = score.score(features, logits)
    features[0, 1], logits[2, 1] = value, value
    found = score.score(features, logits)

    assert found.isnan().tolist() == [True, False, True, False]
    torch.testing.assert_close(found[[1, 3]], sound[[1, 3]], rtol=1e-9, atol=0)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_low_precision_is_learnt_and_scored_in_double(learner, dtype):
    known = inliers(dtype=dtype)
    double = Inliers(*(each.double() if each.is_floating_point() else each for each in known))
    features, logits = strangers(known)
    found = fitted(learner(), known).score(features, logits)

    assert found.dtype == torch.float64
    assert found.tolist() == fitted(learner(), double).score(features.double(), logits.double()).tolist()


@pytest.mark.parametrize("learner", LEARNERS)
@given(size=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_image_scores_the_same_in_any_company(learner, size, seed):
    known = inliers()
    score = fitted(learner(), known)
    features, logits = strangers(known, size, seed)
    together = score.score(features, logits)

    assert together.shape == (size,)
    alone = torch.cat([score.score(features[i : i + 1], logits[i : i + 1]) for i in range(size)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_order_of_the_familiar_images_does_not_count(learner):
    known = inliers()
    order = torch.randperm(60)
    shuffled = Inliers(known.features[order], known.logits[order], known.labels[order], known.weight, known.bias)

    expected = fitted(learner(), known).score(*strangers(known))
    torch.testing.assert_close(fitted(learner(), shuffled).score(*strangers(known)), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("learner", LEARNERS)
def test_fitting_again_forgets(learner):
    first, second = inliers(seed=0), inliers(seed=5)
    asked = strangers(second)
    found = fitted(fitted(learner(), first), second).score(*asked)

    assert found.tolist() == fitted(learner(), second).score(*asked).tolist()
    assert found.tolist() != fitted(learner(), first).score(*asked).tolist()


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_empty_batch_has_no_scores(learner):
    score = fitted(learner(), inliers())

    assert score.score(torch.zeros(0, FEATURES), torch.zeros(0, CLASSES)).shape == (0,)


@pytest.mark.parametrize("learner", LEARNERS)
def test_scores_can_be_differentiated_in_the_features(learner):
    known = inliers()
    score = fitted(learner(), known)
    features, logits = strangers(known, 3)

    assert torch.autograd.gradcheck(lambda rows: score.score(rows, logits), features.requires_grad_())


@pytest.mark.parametrize("learner", LEARNERS)
def test_fit_keeps_no_graph(learner):
    known = inliers()
    known = known._replace(features=known.features.requires_grad_(), weight=known.weight.requires_grad_())

    assert not fitted(learner(), known).score(*(each.detach() for each in strangers(known))).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("learner", LEARNERS)
def test_what_was_learnt_on_one_device_scores_on_another(learner):
    known = inliers()
    score = fitted(learner(), known)
    features, logits = strangers(known)
    found = score.score(features.cuda(), logits.cuda())

    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), score.score(features, logits), rtol=1e-9, atol=1e-9)
