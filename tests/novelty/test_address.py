"""Where novelty lies: the map against autograd on the whole graph, shares against one backward pass an image."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ConfigurationError, Energy, GradNorm, MaxLogit, TargetLayerError
from xai_callbacks.access import Subject, name_layer, trace_model, undisturbed
from xai_callbacks.novelty import layer_shares, novelty_map


def subject_and_layer(net):
    subject = Subject(net)
    return subject, name_layer(trace_model(subject, pictures(2)), "2", None)


@pytest.mark.parametrize("score", [GradNorm(), Energy(), MaxLogit()], ids=lambda score: score.name)
def test_the_map_is_activations_times_the_gradient_of_the_score(score):
    net = tiny_net().eval()
    subject, layer = subject_and_layer(net)
    with undisturbed(net):
        found = novelty_map(subject, layer, "6", pictures(), score)

    activations = net[2](net[1](net[0](pictures()))).detach().requires_grad_()
    features = net[4](net[3](activations))
    values = score.score(features, net[6](features))
    (gradient,) = torch.autograd.grad(values.sum(), activations)
    torch.testing.assert_close(found, (activations * gradient).sum(dim=1).detach())
    assert found.shape == (6, 8, 8)


def test_cells_add_up_to_a_score_that_is_homogeneous_in_the_layer():
    """Without a bias, the largest logit is linear in the activations, so the cells sum to the score itself."""
    net = tiny_net().eval()
    with torch.no_grad():
        net[6].bias.zero_()
    subject, layer = subject_and_layer(net)
    found = novelty_map(subject, layer, "6", pictures(), MaxLogit())

    expected = -net(pictures()).amax(dim=1).detach()
    torch.testing.assert_close(found.sum(dim=(1, 2)), expected)


def test_an_image_that_is_not_finite_has_no_map():
    net = tiny_net().eval()
    subject, layer = subject_and_layer(net)
    images = pictures()
    images[1, 0, 0, 0] = torch.nan
    found = novelty_map(subject, layer, "6", images, Energy())

    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[0], novelty_map(subject, layer, "6", pictures(), Energy())[0])


def test_a_frozen_backbone_under_no_grad_is_located_too():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Sequential(*list(tiny_net())[:3]), nn.Sequential(*list(tiny_net())[3:])

        def forward(self, images):
            with torch.no_grad():
                features = self.backbone(images)
            return self.head(features)

    net, plain = Frozen().eval(), tiny_net().eval()
    subject = Subject(net)
    layer = name_layer(trace_model(subject, pictures(2)), "backbone.2", None)
    found = novelty_map(subject, layer, "head.3", pictures(), Energy())
    expected = novelty_map(*subject_and_layer(plain), "6", pictures(), Energy())
    torch.testing.assert_close(found, expected)


def test_a_score_without_a_gradient_is_refused():
    class Steps(Energy):
        def score(self, features, logits):
            return super().score(features, logits).round().detach()

    net = tiny_net().eval()
    subject, layer = subject_and_layer(net)
    with pytest.raises(TargetLayerError, match="`energy` to depend on the target layer `2`"):
        novelty_map(subject, layer, "6", pictures(), Steps())


@pytest.mark.parametrize("label", ["uniform", "all", "predicted"])
def test_shares_are_those_of_single_images(label):
    net = tiny_net().eval()
    found = layer_shares(Subject(net), pictures(), label)
    assert list(found) == ["0", "1", "6"]
    for index, image in enumerate(pictures()):
        logits = net(image[None])
        target = {"uniform": torch.full((1, 3), 1 / 3), "predicted": logits.argmax(dim=1)}.get(label)
        loss = (
            F.binary_cross_entropy_with_logits(logits, torch.ones(1, 3))
            if target is None
            else F.cross_entropy(logits, target)
        )
        squares = {
            name: float(gradient.square().sum())
            for (name, _), gradient in zip(
                net.named_parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
            )
        }
        for layer, shares in found.items():
            own = squares[f"{layer}.weight"] + squares[f"{layer}.bias"]
            assert float(shares[index]) == pytest.approx(own / sum(squares.values()), rel=1e-4)


def test_an_auditor_locates_novelty_when_asked_to():
    net = tiny_net()
    with pytest.raises(ConfigurationError, match="Unfreeze some"):
        Auditor(tiny_probes(), locate_novelty=True).audit(tiny_net().requires_grad_(False))
    auditor = Auditor(tiny_probes(), novelty=[Energy()], locate_novelty=True, chunk_size=4)
    record = auditor.audit(net)
    subject, layer = subject_and_layer(net.eval())

    torch.testing.assert_close(record.novelty_maps["energy"], novelty_map(subject, layer, "6", pictures(), Energy()))
    for name, shares in layer_shares(subject, pictures()).items():
        torch.testing.assert_close(record.layer_shares[name], shares)
    assert Auditor(tiny_probes(), novelty=[]).audit(net).novelty_maps == {}


def test_regression_nets_have_no_layer_shares():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    with pytest.raises(ConfigurationError, match="Expected a classifier"):
        layer_shares(Subject(net, task="regression"), pictures())
