"""A small autoencoder whose decoder is under a gradient constraint, and its training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.novelty import GradientConstraint

STRENGTH = 0.3


class Tiny(nn.Module):
    """Images `(N, 1, 6, 6)` to the same; the decoder has a transposed convolution, a convolution and biases."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Tanh())
        self.decoder = nn.Sequential(nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1))

    def forward(self, images):
        return self.decoder(self.encoder(images)).sigmoid()


class Module(nn.Module):
    """A user's module: network and constraint side by side."""

    def __init__(self, strength=STRENGTH, dtype=torch.float32):
        super().__init__()
        self.net = Tiny().to(dtype)
        self.constraint = GradientConstraint(self.net.decoder, strength)


def batches(count=6, size=4, seed=1):
    return torch.rand(count, size, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(module, optimizer, images, accumulate=1):
    """Steps as Lightning takes them; one penalty a batch."""
    penalties = []
    for k, batch in enumerate(images):
        loss = F.mse_loss(module.net(batch), batch)
        penalty = module.constraint(loss)
        penalties.append(penalty.item())
        ((loss + penalty) / accumulate).backward()
        if (k + 1) % accumulate == 0:
            module.constraint.update()
            optimizer.step()
            optimizer.zero_grad()
    return penalties


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=0.01)
