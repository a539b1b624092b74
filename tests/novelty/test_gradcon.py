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

    torch.testing.assert_close(entropy[0], squared[0])
    assert not torch.allclose(entropy[1], squared[1])


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
    with pytest.raises(ConfigurationError, match=r"name of a GradientConstraint, or to hold mean gradients, .* \{\}"):
        GradConScore({})
    with pytest.raises(ConfigurationError, match=r"to have `0.weight` .* no such parameter. Set `prefix`"):
        GradConScore(references).score(Subject(model), images())
    with pytest.raises(ConfigurationError, match="but got one of shape"):
        GradConScore({"0.weight": torch.ones(2, 2)}, prefix="decoder.").score(Subject(model), images())
    zeros = {name: torch.zeros_like(mean) for name, mean in references.items()}
    with pytest.raises(ConfigurationError, match="Train with the `GradientConstraint` first"):
        GradConScore(zeros, prefix="decoder.").score(Subject(model), images())


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


@pytest.mark.parametrize("select", [None, "autoencoder"])
def test_a_constraint_that_is_named_is_followed_as_the_training_goes_on(select):
    module, score = constrained(), GradConScore("constraint")
    for seed in (100, 101):
        step(module, seed)
        prefix = "decoder." if select else "autoencoder.decoder."
        now = {name: mean.clone() for name, mean in module.constraint.references.items()}
        with undisturbed(module):
            subject = Subject(module, select=select)
            found = score.terms(subject, images())
            expected = GradConScore(now, prefix=prefix).terms(subject, images())
        assert found[1].abs().min() > 1e-3
        for got, wanted in zip(found, expected, strict=True):
            assert torch.equal(got, wanted)


def test_a_model_that_is_moved_takes_a_constraint_that_is_named_along():
    module, named = constrained(), GradConScore("constraint")
    step(module)
    frozen = GradConScore(module.constraint.references, prefix="autoencoder.decoder.")
    before = named.score(Subject(module.eval()), images())
    module._apply(torch.clone)  # as a move to another device does
    assert torch.equal(named.score(Subject(module), images()), before)
    step(module, seed=7)

    module.eval()
    now = GradConScore(module.constraint.references, prefix="autoencoder.decoder.").score(Subject(module), images())
    assert torch.equal(named.score(Subject(module), images()), now)
    assert not torch.equal(frozen.score(Subject(module), images()), now)


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
    with pytest.raises(ConfigurationError, match="no `prefix` beside the name"):
        GradConScore("constraint", prefix="decoder.")
    with pytest.raises(ConfigurationError, match="name of a GradientConstraint"):
        GradConScore("")
    module.constraint = GradientConstraint(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="weights of `constraint` to be parameters of the model, but `weight`"):
        GradConScore("constraint").score(subject, images())


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
