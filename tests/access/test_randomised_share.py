"""Copies of which only the last modules are random."""

import math

import pytest
import torch
from torch import nn

from tests.access.trained import content, equal, pictures, trained
from xai_callbacks.access import randomised_copy
from xai_callbacks.errors import ConfigurationError


class Nested(nn.Module):
    """Four modules with parameters, one of them with parameters and a part of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.block = Scaled()
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, images):
        return self.head(self.block(self.first(images)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(4.0).view(4, 1, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, features):
        return self.norm(features * self.scale)


@pytest.mark.parametrize(
    ("share", "changed"),
    [
        (0.01, ["head.3"]),  # at least one
        (0.2, ["head.3"]),
        (0.4, ["head.3", "block.norm"]),
        (0.5, ["head.3", "block.norm", "block"]),  # rounded up
        (0.8, ["head.3", "block.norm", "block", "first.1"]),
        (1.0, ["head.3", "block.norm", "block", "first.1", "first.0"]),
    ],
)
def test_the_last_modules_go_first_and_the_others_stay_bit_identical(share, changed):
    model = Nested().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    copied = randomised_copy(model, pictures(), seed=0, share=share)

    before, after = content(model), content(copied)
    differ = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert differ == set(changed)
    norms = {name for name, each in copied.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert {name for name in norms if after[f"{name}.num_batches_tracked"] == 1} == norms & set(changed)


def test_the_whole_is_the_default():
    model = trained()
    whole, default = (content(randomised_copy(model, pictures(), 3, **given)) for given in ({"share": 1.0}, {}))
    assert equal(whole, default)


@pytest.mark.parametrize("share", [0, 1.5, "half", math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigurationError, match=r"Expected `share` to be a number in \(0, 1\]"):
        randomised_copy(trained(), pictures(), 0, share=share)
