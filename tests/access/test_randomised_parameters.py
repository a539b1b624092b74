"""Parameters of random copies: all drawn anew as when a layer is made, or shuffled where no method draws them."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from tests.access.trained import Net, content, equal, pictures, trained
from xai_callbacks.access import randomised_copy


def test_every_parameter_is_another():
    model = trained()
    copied = randomised_copy(model, pictures(), seed=0)

    for (name, old), new in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert old.shape == new.shape
        assert not torch.equal(old, new), name


def test_seed_decides_which_copy():
    model = trained()
    random.seed(5)
    first = content(randomised_copy(model, pictures(), seed=3))
    torch.manual_seed(99)
    again, other = (content(randomised_copy(model, pictures(), seed=seed)) for seed in (3, 4))

    assert equal(first, again)
    for name in ("conv.weight", "head.bias", "scale"):
        assert not torch.equal(first[name], other[name])


def test_layers_are_drawn_as_when_they_are_made():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(1024, 100))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    conv, norm, _, linear = randomised_copy(model, pictures(), seed=0)

    assert torch.equal(norm.weight, torch.ones(64))
    assert torch.equal(norm.bias, torch.zeros(64))
    for weight, inputs in ((conv.weight, 27), (linear.weight, 1024)):  # uniform within 1 / sqrt(inputs)
        assert 0.97 < weight.abs().max() * inputs**0.5 <= 1.0001
        assert weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.05)


def test_parameters_that_no_method_draws_are_shuffled():
    model = Net()
    copied = randomised_copy(model, pictures(), seed=0)

    assert torch.equal(copied.scale.flatten().sort().values, torch.arange(24.0))
    assert (copied.scale != model.scale).float().mean() > 0.5


def test_parameters_that_a_method_leaves_out_are_shuffled():
    class Half(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.gate = nn.Parameter(torch.arange(10.0))

    copied = randomised_copy(Half(), pictures(), seed=0)

    assert torch.equal(copied.gate.sort().values, torch.arange(10.0))
    assert not torch.equal(copied.gate, torch.arange(10.0))


def test_a_module_has_the_last_word_on_its_parts():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 2)

        def reset_parameters(self):
            nn.init.constant_(self.part.weight, 0.25)

    assert torch.equal(randomised_copy(Whole(), pictures(), seed=0).part.weight, torch.full((2, 2), 0.25))


def test_tied_parameters_stay_tied_and_apart_from_the_model():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    copied = randomised_copy(model, pictures(), seed=0)

    assert copied[1].weight is copied[0].weight
    assert copied[1].weight is not model[1].weight
    assert not torch.equal(copied[1].weight, model[1].weight)


def test_parameters_behind_a_parametrization_are_drawn_anew():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)))
    copied = randomised_copy(model, pictures(), seed=0)

    assert not torch.equal(copied[0].weight, model[0].weight)
    norms = [layer.parametrizations.weight.original0.flatten().sort().values for layer in (copied[0], model[0])]
    assert torch.equal(*norms)


def test_results_with_a_graph_that_modules_keep_do_not_hinder_the_copy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older form, which keeps the weight it computed
        model = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    kept = model(pictures())
    model.kept = kept

    copied = randomised_copy(model, pictures(), seed=0)

    assert model.kept is kept
    assert copied.kept is not kept
    assert not torch.equal(copied.weight_v, model.weight_v)
    assert not torch.equal(copied(pictures()), kept)


def test_frozen_parameters_are_drawn_and_stay_frozen():
    model = trained()
    model.conv.weight.requires_grad_(False)
    copied = randomised_copy(model, pictures(), seed=0)

    assert not torch.equal(copied.conv.weight, model.conv.weight)
    assert [each.requires_grad for each in copied.parameters()] == [each.requires_grad for each in model.parameters()]


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(num_classes=3),
        lambda: VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
        ),
    ],
)
def test_known_architectures_lose_all_they_have_learned(build):
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # the class token and others begin at zero
    copied = randomised_copy(model, pictures(4, 32), seed=0)

    same = [n for (n, p), q in zip(model.named_parameters(), copied.parameters(), strict=True) if torch.equal(p, q)]
    assert same == []
    assert torch.isfinite(copied(pictures(4, 32))).all()
