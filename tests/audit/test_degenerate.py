"""Maps of which there is nothing to say are counted, and not averaged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny import centre_masks, pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet, Why


def test_maps_of_a_dead_net_are_counted_and_not_averaged():
    net = tiny_net()
    auditor = Auditor(tiny_probes())
    auditor.prepare(net)
    with torch.no_grad():  # every ReLU is off: each map is exactly zero
        net[1].weight.zero_()
        net[1].bias.fill_(-1)
    record = auditor.audit(net)

    assert not record.heatmaps.any()
    mass = record.metrics["gradcam/why/relevance_mass/core"]
    assert (mass.valid, mass.degenerate) == (0, 6)
    assert math.isnan(mass.value)
    assert math.isnan(mass.chance)
    assert record.metrics["confidence"].valid == 6


def test_constant_map_is_at_chance_and_not_degenerate():
    net = tiny_net()
    auditor = Auditor(tiny_probes(), [Why(of=0)])
    auditor.prepare(net)
    with torch.no_grad():  # features are 1 everywhere
        net[1].weight.zero_()
        net[1].bias.fill_(1)
        net[6].weight.fill_(1)
    metrics = auditor.audit(net).metrics

    mass = metrics["gradcam/why_0/relevance_mass/core"]
    assert mass.value == pytest.approx(mass.chance)
    assert metrics["gradcam/why_0/relevance_lift/core"].value == pytest.approx(1)
    assert mass.degenerate == 0


def test_dead_probe_is_left_out_of_the_mean_of_the_others():
    images = pictures()
    images[2] = 0.0  # without biases a black image gives a map of zeros
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[4].weight.copy_(torch.tensor([[1.0], [0.5]]).expand(2, 4))
    masks = centre_masks()
    everyone = Auditor(ProbeSet.from_tensors(images, masks=masks), [Why(0)]).audit(net)
    others = [0, 1, 3, 4, 5]
    alive = Auditor(ProbeSet.from_tensors(images, masks=masks).select(others), [Why(0)]).audit(net)

    mass = everyone.metrics["gradcam/why_0/relevance_mass/core"]
    assert (mass.valid, mass.degenerate) == (5, 1)
    assert mass.value == pytest.approx(alive.metrics["gradcam/why_0/relevance_mass/core"].value)


def test_probe_without_a_region_is_neither_valid_nor_degenerate():
    masks = centre_masks()
    masks["core"][1] = False
    metrics = Auditor(tiny_probes(masks=masks)).audit(tiny_net()).metrics
    mass = metrics["gradcam/why_not_certain/relevance_mass/core"]
    assert mass.valid + mass.degenerate == 5
