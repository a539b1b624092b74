"""GradCon's terms against a loop of single images, and the reconstruction error against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.access import Subject
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty import ConvAutoencoder, GradConScore, GradientConstraint, ReconstructionError


def images(count=4, seed=1):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def trained(steps=4):
    torch.manual_seed(0)
    model = ConvAutoencoder()
    constraint = GradientConstraint(model.decoder, 0.03)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        batch = images(8, seed=100 + step)
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch).sigmoid(), batch)
        (loss + constraint(loss)).backward()
        constraint.update()
        optimizer.step()
    return model, constraint.references


def test_terms_are_those_of_a_loop_of_single_images():
    model, references = trained()
    error, alignment = GradConScore(references, prefix="decoder.").terms(Subject(model), images())

    parameters = [model.get_parameter(f"decoder.{name}") for name in references]
    for index, image in enumerate(images()):
        loss = F.mse_loss(model(image[None]).sigmoid(), image[None])
        gradients = torch.autograd.grad(loss, parameters)
        cosines = [
            F.cosine_similarity(gradient.flatten(), mean.flatten(), dim=0)
            for gradient, mean in zip(gradients, references.values(), strict=True)
        ]
        assert float(error[index]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(alignment[index]) == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-4)
    score = GradConScore(references, prefix="decoder.", beta=0.5).score(Subject(model), images())
    torch.testing.assert_close(score, error - 0.5 * alignment)


def test_the_loss_of_the_gradient_does_not_change_the_error():
    model, references = trained()
    squared = GradConScore(references, prefix="decoder.").terms(Subject(model), images())
    entropy = GradConScore(references, prefix="decoder.", loss="bce").terms(Subject(model), images())

    torch.testing.assert_close(entropy.error, squared.error)
    assert not torch.allclose(entropy.alignment, squared.alignment)


def test_reconstruction_error_is_the_mean_over_pixels():
    model, _ = trained()
    found = ReconstructionError().score(Subject(model), images())

    assert found.dtype == torch.float64
    expected = (model.reconstruct(images()) - images()).square().mean(dim=(1, 2, 3)).detach().double()
    torch.testing.assert_close(found, expected)
    entropy = F.binary_cross_entropy(model.reconstruct(images()), images(), reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(
        ReconstructionError("bce").score(Subject(model), images()), entropy.detach().double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_scores_nan_alone(broken):
    model, references = trained()
    spoilt = images()
    spoilt[1, 0, 3, 3] = broken
    for score in (GradConScore(references, prefix="decoder."), ReconstructionError()):
        expected, found = score.score(Subject(model), images()), score.score(Subject(model), spoilt)
        assert found[1].isnan()
        torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_references_that_do_not_belong_to_the_model_are_refused():
    model, references = trained()
    with pytest.raises(ConfigurationError, match="`references` to hold mean gradients"):
        GradConScore({})
    with pytest.raises(ConfigurationError, match=r"to have `0.weight` .* no such parameter. Set `prefix`"):
        GradConScore(references).score(Subject(model), images())
    with pytest.raises(ConfigurationError, match="but got one of shape"):
        GradConScore({"0.weight": torch.ones(2, 2)}, prefix="decoder.").score(Subject(model), images())
    zeros = {name: torch.zeros_like(mean) for name, mean in references.items()}
    with pytest.raises(ConfigurationError, match="Train with the `GradientConstraint` first"):
        GradConScore(zeros, prefix="decoder.").score(Subject(model), images())


def test_arguments_and_models_that_make_no_sense_are_refused():
    _, references = trained(steps=2)
    with pytest.raises(ConfigurationError, match="`beta`"):
        GradConScore(references, beta=0)
    with pytest.raises(ConfigurationError, match="`loss` to be one of"):
        GradConScore(references, loss="l1")
    with pytest.raises(ConfigurationError, match="`kind` to be one of"):
        ReconstructionError("l1")
    with pytest.raises(ConfigurationError, match="one shape"):
        ReconstructionError().score(Subject(nn.Sequential(nn.Flatten(), nn.Linear(784, 3))), images())
