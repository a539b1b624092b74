"""Gradients that are not finite, and what a gradient constraint cannot watch: refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.novelty.constrained import Module, Tiny, adam, batches, fit
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import GradientConstraint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_its_layer_and_spoils_nothing(bad):
    module = Module()
    fit(module, adam(module.net), batches(2).float())
    before = copy.deepcopy(module.constraint.state_dict())
    batch = batches(1)[0].float()
    with pytest.raises(AuditError, match=r"gradient of `0\.weight` to be finite"):
        module.constraint(F.mse_loss(module.net(batch), batch) * bad)
    assert all(torch.equal(value, before[name]) for name, value in module.constraint.state_dict().items())


def test_a_total_gradient_that_is_not_finite_names_its_layer_and_spoils_nothing():
    module = Module()
    fit(module, adam(module.net), batches(2).float())
    before = copy.deepcopy(module.constraint.state_dict())
    module.net.decoder[0].weight.grad = torch.ones_like(module.net.decoder[0].weight)
    module.net.decoder[2].weight.grad = torch.full_like(module.net.decoder[2].weight, float("nan"))
    with pytest.raises(AuditError, match=r"gradient of `2\.weight` to be finite"):
        module.constraint.update()
    assert all(torch.equal(value, before[name]) for name, value in module.constraint.state_dict().items())


def test_frozen_and_unused_weights_are_refused():
    module = Module()
    module.net.decoder[2].weight.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"`2\.weight` to be a parameter that requires grad"):
        GradientConstraint(module.net.decoder)
    net, batch = Tiny(), batches(1)[0].float()
    with pytest.raises(ConfigurationError, match=r"`1\.weight` to have a gradient, .* that the loss depends on"):
        GradientConstraint(nn.ModuleList([net.decoder[0], nn.Linear(2, 2)]))(F.mse_loss(net(batch), batch))


def test_computed_weights_are_refused():
    with pytest.raises(ConfigurationError, match="frozen or computed"):
        GradientConstraint(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential()])
def test_nothing_to_watch_is_refused(module):
    with pytest.raises(ConfigurationError, match="Expected `module` to hold"):
        GradientConstraint(module)


@pytest.mark.parametrize("module", ["decoder", [nn.Linear(1, 1)], None])
def test_what_is_no_module_is_refused(module):
    with pytest.raises(ConfigurationError, match="Expected `module` to be a module"):
        GradientConstraint(module)


@pytest.mark.parametrize("strength", [0, -0.1, float("nan"), float("inf"), True])
def test_a_strength_that_constrains_nothing_is_refused(strength):
    with pytest.raises(ConfigurationError, match="Expected `strength`"):
        GradientConstraint(nn.Linear(2, 2), strength)


def test_update_before_backward_is_refused():
    with pytest.raises(ConfigurationError, match=r"`0\.weight` to have a gradient"):
        Module().constraint.update()
