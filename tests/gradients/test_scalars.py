"""Parameters without dimensions, wherever they are, have the gradients of the loop and of the same with one entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.gradients.oracle import check, to_uniform
from xai_callbacks.gradients import PerSampleGradients


class LogitScale(nn.Module):
    """A classifier as CLIP has it: cosines with a table of text features, times the exponential of a parameter."""

    def __init__(self, shape):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.text = nn.Parameter(torch.randn(4, 6))
        self.logit_scale = nn.Parameter(torch.full(shape, 0.7))

    def forward(self, images):
        cosines = F.normalize(self.features(images)) @ F.normalize(self.text).T
        return self.logit_scale.exp() * cosines


class Scale(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.full(shape, 0.3))

    def forward(self, x):
        return x * self.scale


class LayerScales(nn.Module):
    """Residual branches, each with a weight of its own in a submodule; one of them is used twice."""

    def __init__(self, shape):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.branches = nn.ModuleList([nn.Sequential(nn.Conv2d(6, 6, 1), nn.Tanh(), Scale(shape)) for _ in range(2)])
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        x = self.stem(images)
        for branch in (*self.branches, self.branches[0]):
            x = x + branch(x)
        return self.head(x.mean(dim=(2, 3)))


class Shared(nn.Module):
    """One scalar in two submodules and in the root, one that a submodule returns by itself, one that goes unused."""

    def __init__(self, shape):
        super().__init__()
        self.first, self.second, self.gate = Scale(shape), Scale(shape), Scale(shape)
        self.second.scale = self.first.scale
        self.idle = nn.Parameter(torch.ones(shape))
        self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.second(torch.tanh(self.layer(self.first(x)))) + self.first.scale
        return self.head(x * self.gate(torch.ones(())))


class Passed(nn.Module):
    """A scalar that goes into a submodule as an argument."""

    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x, factor):
            return self.layer(x) * factor

    def __init__(self, shape):
        super().__init__()
        self.factor, self.times = nn.Parameter(torch.full(shape, 0.4)), Passed.Times()

    def forward(self, x):
        return self.times(self.times(x, self.factor), factor=self.factor.sigmoid())


class Slope(nn.Module):
    """PReLU with one slope, which PyTorch holds as one entry, and a slope without dimensions."""

    def __init__(self, shape):
        super().__init__()
        self.conv, self.head, self.relu = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.PReLU()
        self.slope = nn.Parameter(torch.full(shape, 0.2))

    def forward(self, images):
        x = self.relu(self.conv(images))
        x = torch.where(x > 0.1, x, x * self.slope)
        return self.head(x.mean(dim=(2, 3)))


class Stateful(nn.Module):
    """Buffers without dimensions and without entries, written to in the forward pass, beside a scalar."""

    def __init__(self, shape):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("none", torch.zeros(0))
        self.temperature = nn.Parameter(torch.full(shape, 1.5))

    def forward(self, images):
        self.seen += 1
        return self.head(self.norm(images).mean(dim=(2, 3)) + self.none.sum()) / self.temperature


IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
VECTORS = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double()
NETS = [
    (LogitScale, IMAGES),
    (LayerScales, IMAGES),
    (Shared, VECTORS),
    (Passed, VECTORS),
    (Slope, IMAGES),
    (Stateful, IMAGES),
]
every_net = pytest.mark.parametrize(("kind", "images"), NETS, ids=lambda each: getattr(each, "__name__", ""))


def built(kind, shape):
    torch.manual_seed(0)
    return kind(shape).double().eval()


@every_net
@pytest.mark.parametrize("shape", [(), (1,)], ids=["none", "one"])
def test_scalars_equal_the_loop(kind, images, shape):
    check(built(kind, shape), images, rtol=1e-9)


@every_net
def test_scalars_equal_those_with_one_dimension(kind, images):
    found, expected = (PerSampleGradients(built(kind, shape))(images, to_uniform) for shape in ((), (1,)))

    for name, norms in expected.squared_norms.items():
        torch.testing.assert_close(found.squared_norms[name], norms)


def test_what_is_reduced_has_the_shape_of_the_parameter():
    whole = PerSampleGradients(built(LogitScale, ()))(IMAGES, to_uniform, reduce=lambda _, gradients: gradients)

    assert whole.reduced["logit_scale"].shape == (5,)
    assert whole.reduced["text"].shape == (5, 4, 6)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.none, self.layer = nn.Parameter(torch.zeros(0, 3)), nn.Linear(5, 4)

    def forward(self, x):
        return self.layer(x) + self.none.sum()


def test_a_parameter_without_entries_has_a_gradient_of_zero():
    reading = check(Empty().double(), VECTORS)

    assert not reading.squared_norms["none"].any()
