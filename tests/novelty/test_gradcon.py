"""GradCon's terms against a loop of single images, and the reconstruction error against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty import ConvAutoencoder, GradConScore, GradientConstraint, ReconstructionError
from xai_callbacks.reference import AutoencoderModule


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
    model.constraint = constraint
    return model, constraint.references


def test_terms_are_those_of_a_loop_of_single_images():
    model, references = trained()
    error, alignment = GradConScore("constraint").terms(Subject(model), images())

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
    score = GradConScore("constraint", beta=0.5).score(Subject(model), images())
    torch.testing.assert_close(score, error - 0.5 * alignment)


def test_the_loss_of_the_gradient_does_not_change_the_error():
    model, _ = trained()
    squared = GradConScore("constraint").terms(Subject(model), images())
    entropy = GradConScore("constraint", loss="bce").terms(Subject(model), images())

    torch.testing.assert_close(entropy[0], squared[0])
    assert not torch.allclose(entropy[1], squared[1])


def test_reconstruction_error_is_the_mean_over_pixels():
    model, _ = trained()
    found = ReconstructionError().score(Subject(model), images())

    assert found.dtype == torch.float64
    expected = (model.reconstruct(images()) - images()).square().mean(dim=(1, 2, 3)).detach().double()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_scores_nan_alone(broken):
    model, _ = trained()
    spoilt = images()
    spoilt[1, 0, 3, 3] = broken
    for score in (GradConScore("constraint"), ReconstructionError()):
        expected, found = score.score(Subject(model), images()), score.score(Subject(model), spoilt)
        assert found[1].isnan()
        torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])


def step(module, seed=100):
    """One training step of a module with a constraint, without a trainer."""
    module.train()
    batch, optimizer = images(8, seed=seed), torch.optim.SGD(module.parameters(), lr=0.1)
    loss = F.mse_loss(module(batch).sigmoid(), batch)
    (loss + module.constraint(loss)).backward()
    module.constraint.update()
    optimizer.step()
    optimizer.zero_grad()


def constrained():
    torch.manual_seed(0)
    return AutoencoderModule(loss="mse", constraint=0.03)


def by_hand(module):
    """Error and alignment, an image at a time."""
    weights, means = module.constraint.weights, module.constraint.references
    errors, alignments = [], []
    for image in images():
        error = F.mse_loss(module(image[None]).sigmoid(), image[None])
        gradients = torch.autograd.grad(error, list(weights.values()))
        pairs = zip(gradients, means.values(), strict=True)
        cosines = [F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0) for a, b in pairs]
        errors.append(error.detach().double())
        alignments.append(torch.stack(cosines).mean())
    return torch.stack(errors), torch.stack(alignments)


@pytest.mark.parametrize("select", [None, "autoencoder"])
def test_a_constraint_that_is_named_is_followed_as_the_training_goes_on(select):
    module, score = constrained(), GradConScore("constraint")
    for seed in (100, 101):
        step(module, seed)
        with undisturbed(module):
            found = score.terms(Subject(module, select=select), images())
            expected = by_hand(module)
        assert found[1].abs().min() > 1e-3
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_model_that_is_moved_takes_a_constraint_that_is_named_along():
    module, named = constrained(), GradConScore("constraint")
    step(module)
    before = named.score(Subject(module.eval()), images())
    module._apply(torch.clone)  # as a move to another device does
    assert torch.equal(named.score(Subject(module), images()), before)
    step(module, seed=7)

    found = named.terms(Subject(module.eval()), images())
    for got, wanted in zip(found, by_hand(module), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_before_the_first_update_of_a_named_constraint_the_score_is_the_error():
    subject = Subject(constrained().eval())
    error, alignment = GradConScore("constraint").terms(subject, images())

    assert torch.equal(alignment, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(GradConScore("constraint").score(subject, images()), error)
    torch.testing.assert_close(error, ReconstructionError().score(subject, images()))


def test_names_that_lead_to_no_constraint_of_the_model_are_refused():
    module = constrained()
    subject = Subject(module)
    with pytest.raises(ConfigurationError, match=r"`references` to name a submodule .* Did you mean 'constraint'"):
        GradConScore("constrain").score(subject, images())
    with pytest.raises(ConfigurationError, match="'autoencoder' is a ConvAutoencoder"):
        GradConScore("autoencoder").score(subject, images())
    module.constraint = GradientConstraint(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="weights of `constraint` to be parameters of the model, but `weight`"):
        GradConScore("constraint").score(subject, images())


def test_arguments_and_models_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="`beta`"):
        GradConScore("constraint", beta=0)
    with pytest.raises(ConfigurationError, match="`loss` to be one of"):
        GradConScore("constraint", loss="l1")
    with pytest.raises(ConfigurationError, match="one shape"):
        ReconstructionError().score(Subject(nn.Sequential(nn.Flatten(), nn.Linear(784, 3))), images())
