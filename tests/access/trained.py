"""A small net away from its initial values, pictures for it, and whether two states are equal."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Two batch norms with dropout between them, and parameters that the module itself holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.arange(24.0).view(4, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        features = self.second(self.drop(self.first(self.conv(images)).relu()))
        return self.head(features.mean(dim=(2, 3)) @ self.scale)


def trained():
    """A net whose every parameter and statistic is away from its initial value."""
    model = Net().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model(pictures(32) * 3 + 1)
    model.zero_grad()
    model(pictures()).sum().backward()
    return model


def pictures(count=8, size=6):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def content(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
