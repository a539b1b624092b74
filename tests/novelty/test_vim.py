"""`ViM` against its formula by singular vectors, and pytorch-ood where that is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.novelty.features import CLASSES, FEATURES, fitted, inliers, strangers
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.base import Inliers
from xai_callbacks.novelty.feature_space import ViM


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
