"""Where novelty lies: the map against autograd on the whole graph, shares against one backward pass an image."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import pictures, tiny_net
from xai_callbacks import ConfigurationError, Energy, GradNorm, MaxLogit, TargetLayerError
from xai_callbacks.access import FeatureLayout, Subject
from xai_callbacks.novelty import JointEnergy, layer_shares, novelty_map
from xai_callbacks.tasks import MultiLabel, Regression

LAYOUT = FeatureLayout("NCHW", (8, 8))


def parts(net):
    """The net up to its last feature map, and from there to the head."""
    layers = list(net)
    return nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:6]), layers[6]


def located(net, score, images=None):
    """The map of a forward pass whose graph begins at the images, as an audit may have it."""
    images = pictures() if images is None else images
    body, pool, head = parts(net)
    activation = body(images)
    features = pool(activation)
    return novelty_map(activation, LAYOUT, features, head(features), score)


@pytest.mark.parametrize("score", [GradNorm(), Energy(), MaxLogit()], ids=lambda score: score.name)
def test_the_map_is_activations_times_the_gradient_of_the_score(score):
    net = tiny_net().eval()
    found = located(net, score)

    body, pool, head = parts(net)
    activations = body(pictures()).detach().requires_grad_()
    features = pool(activations)
    values = score.score(features, head(features))
    (gradient,) = torch.autograd.grad(values.sum(), activations)
    torch.testing.assert_close(found, (activations * gradient).sum(dim=1).detach())
    assert (found.shape, found.dtype, found.requires_grad) == ((6, 8, 8), torch.float32, False)


def test_cells_add_up_to_a_score_that_is_homogeneous_in_the_layer():
    """Without a bias, the largest logit is linear in the activations, so the cells sum to the score itself."""
    net = tiny_net().eval()
    with torch.no_grad():
        net[6].bias.zero_()

    expected = -net(pictures()).amax(dim=1).detach()
    torch.testing.assert_close(located(net, MaxLogit()).sum(dim=(1, 2)), expected)


def test_cells_of_a_joint_energy_are_those_of_its_logits_weighed_by_their_probabilities():
    net = tiny_net().eval()
    body, pool, head = parts(net)
    activations = body(pictures()).detach().requires_grad_()
    logits = head(pool(activations))
    expected = torch.zeros(6, 8, 8)
    for index in range(3):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), activations, retain_graph=True)
        weight = logits[:, index].sigmoid()[:, None, None]
        expected -= (weight * (activations * gradient).sum(dim=1)).detach()

    torch.testing.assert_close(located(net, JointEnergy()), expected)


def test_tokens_are_laid_out_without_their_prefix():
    torch.manual_seed(0)
    tokens, head = torch.randn(2, 7, 4, requires_grad=True), nn.Linear(4, 3)
    features = tokens.mean(dim=1)
    found = novelty_map(tokens, FeatureLayout("NLC", (2, 3), prefix=1), features, head(features), Energy())

    (gradient,) = torch.autograd.grad(Energy().score(tokens.mean(dim=1), head(tokens.mean(dim=1))).sum(), tokens)
    torch.testing.assert_close(found, (tokens * gradient).sum(dim=2)[:, 1:].view(2, 2, 3).detach())


def test_an_image_that_is_not_finite_has_no_map():
    net, images = tiny_net().eval(), pictures()
    images[1, 0, 0, 0] = torch.nan
    found = located(net, Energy(), images)

    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[[0, 2, 3, 4, 5]], located(net, Energy())[[0, 2, 3, 4, 5]])


class Careless(Energy):
    """Writes into what it gets."""

    def score(self, features, logits):
        features.mul_(0)
        return super().score(features, logits.mul_(2))


def test_others_go_on_using_the_graph():
    body, pool, head = parts(tiny_net().eval())
    activation = body(pictures())
    features = pool(activation)
    outputs = head(features)
    before = outputs.detach().clone()
    (alone,) = torch.autograd.grad(outputs.amax(dim=1).sum(), activation, retain_graph=True)
    for score in (Careless(), Energy(), Energy()):
        novelty_map(activation, LAYOUT, features, outputs, score)

    assert torch.equal(outputs, before)
    assert torch.equal(torch.autograd.grad(outputs.amax(dim=1).sum(), activation)[0], alone)


class Steps(Energy):
    def score(self, features, logits):
        return super().score(features, logits).round().detach()


def test_a_score_that_no_gradient_leads_from_is_refused():
    net = tiny_net().eval()
    with pytest.raises(TargetLayerError, match="`energy` to depend on the layer"):
        located(net, Steps())
    features = torch.rand(6, 4, requires_grad=True)
    for activation in (torch.rand(6, 4, 8, 8), torch.rand(6, 4, 8, 8, requires_grad=True)):
        with pytest.raises(TargetLayerError, match=r"no gradient reaches it. Name a later layer"):
            novelty_map(activation, LAYOUT, features, net[6](features), Energy())


def test_shares_are_those_of_single_images():
    net = tiny_net().eval()
    found = layer_shares(Subject(net), pictures())
    assert list(found) == ["0", "1", "6"]
    for index, image in enumerate(pictures()):
        loss = F.cross_entropy(net(image[None]), torch.full((1, 3), 1 / 3))
        squares = {
            name: float(gradient.square().sum())
            for (name, _), gradient in zip(
                net.named_parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
            )
        }
        for layer, shares in found.items():
            own = squares[f"{layer}.weight"] + squares[f"{layer}.bias"]
            assert float(shares[index]) == pytest.approx(own / sum(squares.values()), rel=1e-4)


def test_a_frozen_net_has_no_layer_shares():
    with pytest.raises(ConfigurationError, match="Unfreeze some"):
        layer_shares(Subject(tiny_net().requires_grad_(False)), pictures())


def test_shares_of_labels_are_those_of_a_binary_loss():
    net = tiny_net().eval()
    found = layer_shares(Subject(net, MultiLabel(width=3)), pictures())
    for index, image in enumerate(pictures()):
        loss = F.binary_cross_entropy_with_logits(net(image[None]), torch.full((1, 3), 0.5))
        squares = [float(each.square().sum()) for each in torch.autograd.grad(loss, list(net.parameters()))]
        head = (squares[-2] + squares[-1]) / sum(squares)
        assert float(found["6"][index]) == pytest.approx(head, rel=1e-4)


def test_a_temperature_has_a_share_of_its_own():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.temperature = tiny_net(), nn.Parameter(torch.tensor(1.5))

        def forward(self, images):
            return self.net(images) / self.temperature

    found = layer_shares(Subject(Tempered().eval()), pictures())

    assert list(found) == ["", "net.0", "net.1", "net.6"]
    assert bool((found[""] > 0).all())
    torch.testing.assert_close(torch.stack(list(found.values())).sum(dim=0), torch.ones(6).double())


def test_regression_nets_have_no_layer_shares():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    with pytest.raises(ConfigurationError, match="Expected probes with labels for `layer_shares`, but got regression"):
        layer_shares(Subject(net, Regression()), pictures())
