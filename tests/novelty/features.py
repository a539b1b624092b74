"""Features of familiar images, with a head that tells their classes apart, and of strangers."""

from __future__ import annotations

import torch

from xai_callbacks.novelty.base import Inliers

FEATURES, CLASSES = 8, 3


def inliers(count=60, *, width=FEATURES, classes=CLASSES, seed=0, labelled=True, dtype=torch.float64, offset=0.0):
    """Classes around their own centres with an uneven spread, and a head that tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % max(classes, 2)
    centres = 4 * torch.randn(max(classes, 2), width, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing
    features = (centres[labels] + noise + offset).to(dtype)
    weight = centres[:classes].to(dtype)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype)
    return Inliers(features, features @ weight.T + bias, labels if labelled else None, weight, bias)


def strangers(of, count=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = 5 * torch.randn(count, of.features.shape[1], generator=generator, dtype=torch.float64)
    features = features.to(of.features.dtype)
    return features, features @ of.weight.T + of.bias


def fitted(score, of):
    score.fit(of)
    return score
