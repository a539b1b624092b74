"""Features against one backward pass an image, and the distance against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import FisherNovelty, fisher
from xai_callbacks.tasks import MultiLabel, Regression

EPS = torch.finfo(torch.float32).eps


def gradient_features(subject, images, loss="bce", parameters=None):
    return FisherNovelty(loss, parameters).features(subject, images)


class TinyAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(1, 5, 3, stride=2, padding=1), nn.Tanh())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(5, 6, 4, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 1, 3, padding=1)
        )

    def forward(self, images):
        return self.decoder(self.encoder(images))


def classifier(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def images(count=6, seed=1, size=8):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def bce(outputs, batch):
    return F.binary_cross_entropy_with_logits(outputs, batch, reduction="none").mean(dim=(1, 2, 3))


def mse(outputs, batch):
    return (outputs.sigmoid() - batch).square().mean(dim=(1, 2, 3))


def uniform(outputs, _batch):
    return F.cross_entropy(outputs, torch.full_like(outputs, 1 / outputs.shape[1]), reduction="none")


def slow_gradients(model, batch, loss):
    """One backward pass an image: name to `(N, *shape)`, in double precision."""
    model = model.double()
    weights = {name: each for name, each in model.named_parameters() if each.ndim > 1}
    rows = [
        torch.autograd.grad(loss(model(image[None]), image[None]).sum(), list(weights.values()))
        for image in batch.double()
    ]
    model.float()
    return {name: torch.stack([row[index] for row in rows]) for index, name in enumerate(weights)}


@pytest.mark.parametrize(
    ("model", "loss", "plain"),
    [(TinyAutoencoder(), "bce", bce), (TinyAutoencoder(), "mse", mse), (classifier(), "uniform", uniform)],
    ids=["bce", "mse", "uniform"],
)
def test_features_are_channel_strengths_and_projections_of_each_gradient(model, loss, plain):
    found = gradient_features(Subject(model), images(), loss)
    expected = slow_gradients(model, images(), plain)

    assert list(found) == list(expected)
    for name, gradient in expected.items():
        outputs, inputs = gradient.shape[1:3]
        squares = gradient.square().flatten(3).sum(dim=3) if gradient.ndim > 3 else gradient.square()
        least = EPS * squares.sum(dim=(1, 2))[:, None]
        strengths = torch.cat([squares.sum(dim=2), squares.sum(dim=1)], dim=1).clamp_min(least).log()
        torch.testing.assert_close(found[name][:, : outputs + inputs], strengths, rtol=1e-4, atol=1e-4)
        sketch = found[name][:, outputs + inputs :]
        assert sketch.shape[1] == min(64, gradient[0].numel())


def test_of_labels_uniform_is_a_binary_loss_toward_one_half():
    model = classifier()
    found = gradient_features(Subject(model, MultiLabel(width=3)), images(), "uniform")

    def toward_half(outputs, _batch):
        return F.binary_cross_entropy_with_logits(outputs, torch.full_like(outputs, 0.5), reduction="none").mean(dim=1)

    for name, rows in gradient_features(Subject(model), images(), toward_half).items():
        torch.testing.assert_close(found[name], rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,)], ids=["none", "one"])
def test_a_parameter_without_dimensions_has_its_strength_and_its_projection(shape):
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.temperature = classifier(), nn.Parameter(torch.full(shape, 1.5))

        def forward(self, batch):
            return self.net(batch) / self.temperature

    model = Tempered()
    rows = gradient_features(Subject(model), images(), "uniform", ["temperature"])["temperature"]
    for row, image in zip(rows, images(), strict=True):
        (gradient,) = torch.autograd.grad(uniform(model(image[None]), None).sum(), model.temperature)
        square = float(gradient.double().square())
        assert float(row[0]) == pytest.approx(np.log(square), rel=1e-3)
        assert float(row[1].square()) == pytest.approx(square, rel=1e-3)


def test_every_entry_of_a_gradient_is_in_one_projection_with_a_sign(monkeypatch):
    model = TinyAutoencoder()
    name = "decoder.0.weight"
    entries = slow_gradients(model, images(), bce)[name].flatten(1)
    monkeypatch.setattr(fisher, "_SKETCH", 7)
    few = gradient_features(Subject(model), images(), parameters=[name])[name][:, -7:]
    monkeypatch.setattr(fisher, "_SKETCH", entries.shape[1])
    all_of_them = gradient_features(Subject(model), images(), parameters=[name])[name]

    alone = all_of_them[:, -entries.shape[1] :]
    torch.testing.assert_close(alone.abs(), entries.abs(), rtol=1e-4, atol=1e-9)
    signs = (alone / entries).sign().round()
    assert bool((signs == signs[0]).all())
    folded = torch.stack([alone[:, column::7].sum(dim=1) for column in range(7)], dim=1)
    torch.testing.assert_close(few, folded, rtol=1e-4, atol=1e-9)


def test_inner_products_of_gradients_are_kept_in_expectation(monkeypatch):
    """Over 400 names, the mean inner product of two sketches is that of the gradients within its standard error."""
    monkeypatch.setattr(fisher, "_SKETCH", 4)
    first, second = slow_gradients(TinyAutoencoder(), images(2), bce)["decoder.2.weight"]
    rows = [fisher._reduced(str(name), torch.stack([first, second]))[:, -4:] for name in range(400)]
    products = torch.stack([row[0] @ row[1] for row in rows])

    error = float(products.mean() - first.flatten() @ second.flatten()) / float(products.std() / 20)
    assert abs(error) < 3.5
    assert float(products.std()) > 0


def test_long_axes_are_cut_into_groups_of_neighbours(monkeypatch):
    name = "decoder.0.weight"
    whole = gradient_features(Subject(TinyAutoencoder()), images(), parameters=[name])[name][:, :11].exp()
    monkeypatch.setattr(fisher, "_SKETCH", 3)
    grouped = gradient_features(Subject(TinyAutoencoder()), images(), parameters=[name])[name][:, :6].exp()

    # 5 inputs in groups of 2, 2 and 1; 6 outputs in pairs.
    inputs = [whole[:, 0:2], whole[:, 2:4], whole[:, 4:5]]
    outputs = [whole[:, 5:7], whole[:, 7:9], whole[:, 9:11]]
    expected = torch.stack([part.sum(dim=1) for part in inputs + outputs], dim=1)
    torch.testing.assert_close(grouped, expected, rtol=1e-5, atol=0)


def test_the_distance_is_ledoit_and_wolf_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(fisher, "_SKETCH", 8)
    covariance = pytest.importorskip("sklearn.covariance")
    subject, familiar, others = Subject(TinyAutoencoder()), images(60, seed=2), images(5) ** 3
    score = FisherNovelty()
    score.fit(subject, familiar, chunk_size=13)

    rows, asked = (torch.cat(list(gradient_features(subject, each).values()), dim=1) for each in (familiar, others))
    mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    model = covariance.LedoitWolf().fit(((rows - mean) / spread).numpy())
    assert 0.01 < model.shrinkage_ < 0.99
    expected = torch.from_numpy(model.mahalanobis(((asked - mean) / spread).numpy()))
    torch.testing.assert_close(score.score(subject, others), expected, rtol=1e-3, atol=0)


def test_an_unfamiliar_kind_of_image_scores_higher():
    model = TinyAutoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    stripes = torch.zeros(200, 1, 8, 8)
    stripes[:, :, ::2] = 1
    familiar = (0.8 * stripes + 0.1 * images(200, seed=2)).clamp(0, 1)
    for _ in range(30):
        optimizer.zero_grad()
        bce(model(familiar), familiar).mean().backward()
        optimizer.step()
    score, subject = FisherNovelty(), Subject(model)
    with undisturbed(model):
        score.fit(subject, familiar[:150])
        known, novel = score.score(subject, familiar[150:]), score.score(subject, familiar[150:].transpose(2, 3))

    assert float(known.amax()) < float(novel.amin())
    assert known.dtype == torch.float64


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_scores_nan_alone_and_cannot_be_learnt_from(broken):
    subject, score = Subject(TinyAutoencoder()), FisherNovelty()
    score.fit(subject, images(40, seed=2))
    spoilt = images()
    spoilt[2, 0, 0, 0] = broken
    expected, found = score.score(subject, images()), score.score(subject, spoilt)

    assert found[2].isnan()
    torch.testing.assert_close(found[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])
    with pytest.raises(
        AuditError, match=r"gradients of `encoder.0.weight` .* NaN or inf in 1 of 6 rows, the first at index 2"
    ):
        score.fit(subject, spoilt)
    torch.testing.assert_close(score.score(subject, images()), expected)


def test_a_score_must_be_fitted_for_the_model_it_is_asked_about():
    subject, score = Subject(TinyAutoencoder()), FisherNovelty()
    with pytest.raises(ConfigurationError, match="`fit` has not been called"):
        score.score(subject, images())
    with pytest.raises(ConfigurationError, match="2 familiar images or more to learn from, but got 1"):
        score.fit(subject, images(1))
    score = FisherNovelty("uniform")
    score.fit(Subject(classifier()), images(20))
    with pytest.raises(ConfigurationError, match="Fit it for this model"):
        score.score(Subject(classifier(classes=5)), images())


def test_arguments_and_models_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match=r"`loss` to be one of .*uniform, but got 'l1'"):
        FisherNovelty("l1")
    with pytest.raises(ConfigurationError, match="one shape"):
        gradient_features(Subject(classifier()), images())
    with pytest.raises(ConfigurationError, match="probes with labels for `loss='uniform'`, but got regression"):
        gradient_features(Subject(classifier(1), Regression()), images(), "uniform")
    frozen = TinyAutoencoder().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="require"):
        gradient_features(Subject(frozen), images())
    with pytest.raises(ConfigurationError, match="require grad"):
        gradient_features(Subject(nn.BatchNorm2d(1).eval()), images())


def test_a_loss_of_ones_own_is_asked_for():
    model = TinyAutoencoder()
    found = gradient_features(Subject(model), images(), bce)
    for name, rows in gradient_features(Subject(model), images(), "bce").items():
        torch.testing.assert_close(found[name], rows)


def test_neither_chunks_nor_the_global_random_state_matter():
    subject = Subject(TinyAutoencoder())
    state = torch.get_rng_state()
    whole = gradient_features(subject, images())
    parts = [gradient_features(subject, chunk) for chunk in images().split(4)]

    assert torch.equal(torch.get_rng_state(), state)
    for name, rows in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), rows, rtol=1e-4, atol=1e-6)
