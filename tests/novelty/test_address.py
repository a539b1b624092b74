"""Where novelty lies: the map against autograd on the whole graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import pictures, tiny_net
from xai_callbacks import Energy, GradNorm, MaxLogit, NoveltyMap, TargetLayerError
from xai_callbacks.access import FeatureLayout, Layer, Subject, Tapped
from xai_callbacks.explainers import Observation, Plan
from xai_callbacks.novelty import JointEnergy

LAYOUT = FeatureLayout("NCHW", (8, 8))


def novelty_map(activation, layout, given, output, score):
    """The map that `NoveltyMap` makes of what an audit observed."""
    observation = Observation(
        subject=Subject(nn.Identity()),
        images=pictures(),
        outputs=output,
        posed=(),
        activations={"layer": activation},
        head=Tapped(given, output),
    )
    return NoveltyMap(score).explain(observation, Plan((Layer("layer", layout, True, ""),)))[0]


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
