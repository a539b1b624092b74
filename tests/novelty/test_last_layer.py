import math

import pytest
import torch
from torch import nn

from xai_callbacks.novelty.base import LastLayerScore
from xai_callbacks.novelty.last_layer import (
    ConfoundingLabels,
    Energy,
    Entropy,
    GradNorm,
    GradTrust,
    JointEnergy,
    MaxLogit,
    MaxSoftmax,
)

BATCH, FEATURES = 6, 5
SCORES = [GradNorm(), ConfoundingLabels(), GradTrust()]
ALL = [*SCORES, MaxSoftmax(), MaxLogit(), Energy(), JointEnergy(), Entropy()]


def loop(loss, classes):
    """Batch-of-one autograd over the weight of the head: the slow twin."""
    head = nn.Linear(FEATURES, classes).double()
    features = torch.randn(BATCH, FEATURES, dtype=torch.float64)
    gradients = [torch.autograd.grad(loss(head(row[None])), head.weight)[0] for row in features]
    return features, head(features).detach(), gradients


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradnorm_is_the_negative_l1_norm_of_the_gradient_toward_uniform(classes):
    uniform = torch.full((1, classes), 1 / classes, dtype=torch.float64)
    features, logits, gradients = loop(lambda z: nn.functional.cross_entropy(z, uniform), classes)
    expected = -torch.stack([gradient.abs().sum() for gradient in gradients])
    torch.testing.assert_close(GradNorm().score(features, logits), expected)


def test_gradnorm_of_a_single_sigmoid_logit_uses_its_one_row():
    half = torch.full((1, 1), 0.5, dtype=torch.float64)
    features, logits, gradients = loop(lambda z: nn.functional.binary_cross_entropy_with_logits(z, half), 1)
    expected = -torch.stack([gradient.abs().sum() for gradient in gradients])
    torch.testing.assert_close(GradNorm().score(features, logits), expected)


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_confounding_labels_is_the_squared_norm_of_the_gradient_toward_all_ones(classes):
    ones = torch.ones(1, classes, dtype=torch.float64)
    features, logits, gradients = loop(lambda z: nn.functional.binary_cross_entropy_with_logits(z, ones), classes)
    expected = torch.stack([gradient.square().sum() for gradient in gradients])
    torch.testing.assert_close(ConfoundingLabels().score(features, logits), expected)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradtrust_is_the_negative_ratio_of_row_variances_of_the_squared_gradient(classes):
    wanted = torch.full((1, classes), 1 / classes, dtype=torch.float64)
    _, logits, gradients = loop(lambda z: nn.functional.mse_loss(z, wanted), classes)
    variances = [gradient.square().var(dim=1) for gradient in gradients]
    expected = -torch.stack([variance.max() / variance.mean() for variance in variances])

    torch.testing.assert_close(GradTrust().score(torch.zeros(BATCH, FEATURES), logits), expected)


def test_gradtrust_of_one_sigmoid_logit_is_that_of_its_two_classes():
    logit = torch.linspace(-3, 3, 7)[:, None]
    found = GradTrust().score(torch.ones(7, FEATURES), logit)

    torch.testing.assert_close(found, GradTrust().score(torch.ones(7, FEATURES), torch.cat([-logit, logit], 1) / 2))
    torch.testing.assert_close(found, found.flip(0))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e90])
def test_gradtrust_lies_between_minus_k_and_minus_one_whatever_the_scale(scale):
    # Two classes and 1/K = 0.5: logits of +-scale in float64 around it.
    logits = torch.tensor([[0.5, 0.5 + scale], [0.5 + scale, 0.5], [0.5, 0.5]], dtype=torch.float64)
    expected = torch.tensor([-2.0, -2.0, -1.0], dtype=torch.float64) if scale >= 1 else -torch.ones(3).double()

    assert GradTrust().score(torch.ones(3, 1), logits).tolist() == expected.tolist()


def test_gradtrust_ignores_the_features_and_the_sign_of_a_residual():
    residual = torch.tensor([[2.0, 1.0, -1.0, 0.5]], dtype=torch.float64)
    found = torch.cat(
        [GradTrust().score(h, 0.25 + z) for h in (torch.ones(1, 3), torch.rand(1, 3)) for z in (residual, -residual)]
    )

    torch.testing.assert_close(found, torch.full((4,), -16 / ((16 + 1 + 1 + 1 / 16) / 4), dtype=torch.float64))


def test_larger_is_more_novel():
    features = torch.ones(2, FEATURES)
    undecided, certain = torch.zeros(4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    scores = GradNorm().score(features, torch.stack([undecided, certain]))
    assert scores[0] == 0
    assert scores[0] > scores[1]
    nothing, everything = torch.full((4,), -9.0), torch.full((4,), 9.0)
    scores = ConfoundingLabels().score(features, torch.stack([nothing, everything]))
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize("score", ALL, ids=lambda score: score.name)
def test_half_precision_is_scored_in_double(score):
    features, logits = torch.randn(3, FEATURES).half(), torch.randn(3, 4).half()
    found = score.score(features, logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, score.score(features.double(), logits.double()))


@pytest.mark.parametrize("score", ALL, ids=lambda score: score.name)
def test_each_image_is_scored_by_itself(score):
    features, logits = torch.randn(BATCH, FEATURES), torch.randn(BATCH, 4)
    together = score.score(features, logits)
    assert together.shape == (BATCH,)
    alone = torch.cat([score.score(features[i : i + 1], logits[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_extreme_logits_are_finite(score):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    found = score.score(torch.ones(2, FEATURES), logits)
    assert found.isfinite().all()


def test_confounding_labels_of_a_confident_logit_does_not_round_to_zero():
    found = ConfoundingLabels().score(torch.ones(1, 1), torch.full((1, 1), 40.0))

    torch.testing.assert_close(found, torch.tensor([math.exp(-80)], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", ALL, ids=lambda score: score.name)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["features", "logits"])
def test_what_is_not_finite_scores_nan_and_spoils_no_other_image(score, value, place):
    given = {"features": torch.randn(3, FEATURES), "logits": torch.randn(3, 4)}
    sound = score.score(**given)
    given[place][1, 2] = value
    found = score.score(**given)

    assert found.isnan().tolist() == [False, True, False]
    assert found[[0, 2]].tolist() == sound[[0, 2]].tolist()


@pytest.mark.parametrize("score", ALL, ids=lambda score: score.name)
def test_scores_of_the_last_layer_need_no_fit(score):
    assert isinstance(score, LastLayerScore)
    assert not score.learns


def test_gradnorm_is_that_of_pytorch_ood():
    detectors = pytest.importorskip("pytorch_ood.detector")
    head, features = nn.Linear(FEATURES, 7), torch.randn(BATCH, FEATURES)
    theirs = detectors.GradNorm(head, param_filter="weight".__eq__)(features)

    torch.testing.assert_close(GradNorm().score(features, head(features).detach()).float(), theirs)
