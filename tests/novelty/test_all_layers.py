"""Gradients of all layers against batches of one and autograd, closed forms of the last layer, and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import GradientNorm, PurviewDistance
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.last_layer import ConfoundingLabels
from xai_callbacks.tasks import MultiLabel, Regression

TINY = torch.finfo(torch.float32).tiny


def net(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, classes),
    ).eval()


def images(count=6, seed=1):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def purview_features(subject, batch):
    """Logarithms of the squared norms, `(N, P)`."""
    return torch.cat(list(PurviewDistance().features(subject, batch).values()), dim=1)


def losses(z, label, exclusive=True):
    """The losses as they are defined, of one image's logits `(K,)`."""
    if not exclusive and label != "all":
        wanted = [0.5 if label == "uniform" else float(value > 0) for value in z]
        pairs = zip(wanted, z.sigmoid(), strict=True)
        return -sum(one * p.log() + (1 - one) * (1 - p).log() for one, p in pairs) / len(z)
    p = z.softmax(dim=0)
    if label == "uniform":
        return -sum(value.log() / len(z) for value in p)
    if label == "predicted":
        return -p[z.argmax()].log()
    return sum(-torch.sigmoid(value).log() for value in z) / len(z)


def slow(model, batch, label, exclusive=True):
    """Squared norms `(N, P)`: a batch of one at a time, one backward pass each, in double precision."""
    model = model.double()
    rows = []
    for image in batch.double():
        loss = losses(model(image[None])[0], label, exclusive)
        gradients = torch.autograd.grad(loss, [each for each in model.parameters() if each.requires_grad])
        rows.append(torch.stack([gradient.square().sum() for gradient in gradients]))
    model.float()
    return torch.stack(rows)


@pytest.mark.parametrize(("label", "sign"), [("uniform", -1), ("all", 1), ("predicted", 1)])
def test_gradient_norm_is_the_loop_over_single_images(label, sign):
    model = net()
    found = GradientNorm(label).score(Subject(model), images())

    assert found.dtype == torch.float64
    torch.testing.assert_close(found, sign * slow(model, images(), label).sum(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("label", "sign"), [("uniform", -1), ("all", 1), ("predicted", 1)])
def test_of_labels_that_do_not_exclude_each_other_each_counts_by_itself(label, sign):
    model = net()
    found = GradientNorm(label).score(Subject(model, MultiLabel(width=5)), images())

    torch.testing.assert_close(found, sign * slow(model, images(), label, False).sum(dim=1), rtol=1e-5, atol=0)


def test_sigmoids_of_labels_are_read_as_the_logits_before_them():
    model = net()
    subject = Subject(nn.Sequential(model, nn.Sigmoid()), MultiLabel(width=5))
    subject.probabilities = True

    expected = slow(model, images(), "uniform", False).sum(dim=1)
    torch.testing.assert_close(-GradientNorm().score(subject, images()), expected, rtol=1e-3, atol=0)


class Tempered(nn.Module):
    """Logits over a temperature without dimensions."""

    def __init__(self, shape=()):
        super().__init__()
        self.net, self.temperature = net(), nn.Parameter(torch.full(shape, 1.5))

    def forward(self, batch):
        return self.net(batch) / self.temperature


def test_a_parameter_without_dimensions_has_a_column():
    model = Tempered().eval()
    expected = slow(model, images(), "all").log()

    found = purview_features(Subject(model), images())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, purview_features(Subject(Tempered((1,)).eval()), images()))


def test_features_are_logarithms_of_the_norms_of_the_loop_in_the_order_of_the_parameters():
    model = net()
    expected = slow(model, images(), "all").log()
    found = purview_features(Subject(model), images())

    assert found.dtype == torch.float64
    assert found.shape == (6, len(list(model.parameters())))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_column_of_the_head_is_the_closed_form():
    model, batch = net(), images()
    closed = ConfoundingLabels().score(model[:-1](batch).detach(), model(batch).detach())

    torch.testing.assert_close(purview_features(Subject(model), batch)[:, -2].exp(), closed, rtol=1e-5, atol=0)


def test_one_sigmoid_logit_is_read_as_two_classes():
    single = net(classes=1)
    double = net(classes=2)
    double.load_state_dict(single.state_dict() | {name: double.state_dict()[name] for name in ("6.weight", "6.bias")})
    with torch.no_grad():
        double[6].weight.copy_(torch.cat([-single[6].weight, single[6].weight]) / 2)
        double[6].bias.copy_(torch.cat([-single[6].bias, single[6].bias]) / 2)
    one = purview_features(Subject(single), images())
    two = purview_features(Subject(double), images())

    # All layers before the head see the same gradient.
    torch.testing.assert_close(one[:, :-2], two[:, :-2], rtol=0, atol=1e-5)


def test_a_sure_prediction_keeps_its_digits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[20.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    batch = torch.ones(1, 1, 2, 2)
    rest = torch.exp(torch.tensor(-20.0, dtype=torch.float64))
    p = torch.tensor([1.0, rest, rest], dtype=torch.float64) / (1 + 2 * rest)
    residual = torch.stack([-(p[1] + p[2]), p[1], p[2]])

    # In float32, 1 - p is 0 here.
    found = GradientNorm("predicted").score(Subject(model), batch)
    torch.testing.assert_close(found, 4 * residual.square().sum()[None], rtol=1e-5, atol=0)


def test_frozen_parameters_have_no_column():
    model = net()
    model[0].requires_grad_(False)
    expected = slow(model, images(), "all")

    torch.testing.assert_close(purview_features(Subject(model), images()), expected.log(), rtol=0, atol=1e-5)
    torch.testing.assert_close(GradientNorm("all").score(Subject(model), images()), expected.sum(dim=1))
    with pytest.raises(ConfigurationError, match="Unfreeze some"):
        purview_features(Subject(model.requires_grad_(False)), images())


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def forward(self, batch):
        return {"logits": self.body(batch), "note": "unused"}


def test_a_parameter_that_is_not_used_has_a_column_of_the_least_norm():
    torch.manual_seed(0)
    found = purview_features(Subject(WithUnused(), output="logits"), images())

    assert found.shape == (6, 4)
    torch.testing.assert_close(found[:, :2].exp(), torch.full((6, 2), TINY, dtype=torch.float64))
    assert (found[:, 2:] > -20).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_scores_nan_and_leaves_the_others_alone(broken):
    subject, batch = Subject(net()), images()
    distance = PurviewDistance()
    distance.fit(subject, images(40, seed=2))
    scores: list[ModelScore] = [*(GradientNorm(label) for label in ("uniform", "all", "predicted")), distance]
    spoilt = batch.clone()
    spoilt[2, 0, 0, 0] = broken
    for score in scores:
        expected, found = score.score(subject, batch), score.score(subject, spoilt)
        assert found[2].isnan(), score.name
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(found[others], expected[others])
    with pytest.raises(AuditError, match=r"gradients of `0.weight` .* NaN or inf in 1 of 6 rows, the first at index 2"):
        PurviewDistance().fit(subject, spoilt)


def test_purview_distance_is_ledoit_and_wolf_of_scikit_learn():
    covariance = pytest.importorskip("sklearn.covariance")
    subject, familiar, others = Subject(net()), images(30, seed=2), images(5) ** 3
    score = PurviewDistance()
    score.fit(subject, familiar, chunk_size=7)

    rows = purview_features(subject, familiar)
    mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    model = covariance.LedoitWolf().fit(((rows - mean) / spread).numpy())
    assert 0.01 < model.shrinkage_ < 0.99
    expected = model.mahalanobis(((purview_features(subject, others) - mean) / spread).numpy())
    torch.testing.assert_close(score.score(subject, others), torch.from_numpy(expected), rtol=1e-4, atol=0)


def test_a_norm_that_never_varies_counts_in_units_of_its_logarithm():
    torch.manual_seed(0)
    subject = Subject(WithUnused(), output="logits")
    score = PurviewDistance()
    score.fit(subject, images(40, seed=2))

    assert score.score(subject, images()).isfinite().all()
    assert float(score.score(subject, images(40, seed=2)).mean()) < 5


def test_brighter_images_are_further_away():
    subject = Subject(net())
    score = PurviewDistance()
    score.fit(subject, images(100, seed=2))
    known, novel = score.score(subject, images(20)), score.score(subject, 5 * images(20))

    assert float(known.amax()) < float(novel.amin())


def test_purview_distance_must_be_fitted_for_the_model_it_scores():
    subject = Subject(net())
    with pytest.raises(ConfigurationError, match="`fit` has not been called"):
        PurviewDistance().score(subject, images())
    with pytest.raises(ConfigurationError, match="2 familiar images or more"):
        PurviewDistance().fit(subject, images(1))
    score = PurviewDistance()
    score.fit(subject, images(20))
    with pytest.raises(
        ConfigurationError,
        match="`PurviewDistance` to have learnt of 4 features an image, but it has learnt of 8",
    ):
        score.score(Subject(WithUnused(), output="logits"), images())


def test_arguments_and_tasks_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="Expected `label` to be one of"):
        GradientNorm("none")
    regression = Subject(net(classes=1), Regression())
    for ask in (GradientNorm().score, purview_features, PurviewDistance().fit):
        with pytest.raises(ConfigurationError, match="Expected probes with labels"):
            ask(regression, images())


def test_scoring_leaves_no_trace_and_works_under_inference_mode():
    model = net()
    expected = GradientNorm("all").score(Subject(model), images())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode(), undisturbed(model):
        found = GradientNorm("all").score(Subject(model), images())

    assert found.tolist() == expected.tolist()
    assert not found.requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("label", ["uniform", "all", "predicted"])
def test_a_softmax_that_is_surer_scores_as_less_novel_where_features_are_equal(label):
    """Orientation: `uniform` and `predicted` take a sure prediction for familiar; `all` takes any large logit so."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(4 * torch.eye(3))
    corner = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    spread = torch.full((1, 3, 1, 1), 3**-0.5)
    sure, unsure = GradientNorm(label).score(Subject(model), torch.cat([corner, spread])).tolist()

    assert (sure < unsure) == (label != "all")
    assert F.softmax(model(corner), dim=1).amax() > F.softmax(model(spread), dim=1).amax()
