"""What every score of the feature space must hold to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.novelty.features import CLASSES, FEATURES, fitted, inliers, strangers
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.base import Inliers, LastLayerScore
from xai_callbacks.novelty.feature_space import KNearest, Mahalanobis, ViM

LEARNERS = [Mahalanobis, KNearest, ViM]


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
