import pytest
import torch
from torch import nn

from xai_callbacks.novelty import ConfoundingLabels, GradNorm

BATCH, FEATURES = 6, 5


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


def test_larger_is_more_novel():
    features = torch.ones(2, FEATURES)
    undecided, certain = torch.zeros(4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    scores = GradNorm().score(features, torch.stack([undecided, certain]))
    assert scores[0] == 0
    assert scores[0] > scores[1]
    nothing, everything = torch.full((4,), -9.0), torch.full((4,), 9.0)
    scores = ConfoundingLabels().score(features, torch.stack([nothing, everything]))
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize("score", [GradNorm(), ConfoundingLabels()])
def test_half_precision_is_scored_in_double(score):
    features, logits = torch.randn(3, FEATURES).half(), torch.randn(3, 4).half()
    found = score.score(features, logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, score.score(features.double(), logits.double()))


@pytest.mark.parametrize("score", [GradNorm(), ConfoundingLabels()])
def test_each_image_is_scored_by_itself(score):
    features, logits = torch.randn(BATCH, FEATURES), torch.randn(BATCH, 4)
    together = score.score(features, logits)
    assert together.shape == (BATCH,)
    alone = torch.cat([score.score(features[i : i + 1], logits[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("score", [GradNorm(), ConfoundingLabels()])
def test_scores_of_extreme_logits_are_finite(score):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    found = score.score(torch.ones(2, FEATURES), logits)
    assert found.isfinite().all()
