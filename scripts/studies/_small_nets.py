"""What the novelty tables share: images of 28 x 28 pixels, a small classifier, and every score of it."""

from __future__ import annotations

import gzip
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.novelty.base import Inliers, LastLayerScore, ModelScore, NoveltyScore
from xai_callbacks.novelty.feature_space import KNearest, Mahalanobis, ViM
from xai_callbacks.novelty.fisher import PurviewDistance
from xai_callbacks.novelty.last_layer import (
    ConfoundingLabels,
    Energy,
    Entropy,
    GradNorm,
    GradTrust,
    MaxLogit,
    MaxSoftmax,
)
from xai_callbacks.novelty.losses import GradientNorm
from xai_callbacks.novelty.odin import ODIN

__all__ = ["Images", "SmallCNN", "accuracy", "all_scores", "load", "mean_and_interval", "score_groups", "train"]

CHUNK = 250

# 97.5 % quantiles of Student's t, by degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels `(N, 1, 28, 28)` in [0, 1] and their labels `(N,)`."""

    pixels: Tensor
    labels: Tensor

    def of_classes(self, classes: Sequence[int]) -> Images:
        """Those of some classes, relabelled 0, 1, ... in the order given."""
        renumber = torch.full((10,), -1)
        renumber[list(classes)] = torch.arange(len(classes))
        labels = renumber[self.labels]
        return Images(self.pixels[labels >= 0], labels[labels >= 0])

    def draw(self, count: int, generator: torch.Generator) -> Images:
        """Some of them at random, each once."""
        chosen = torch.randperm(len(self.labels), generator=generator)[:count]
        return Images(self.pixels[chosen], self.labels[chosen])


def load(folder: Path, split: str) -> Images:
    """One of the splits `train` and `t10k` from the idx files of MNIST or Fashion-MNIST."""
    pixels = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", header=16).view(-1, 1, 28, 28).float() / 255
    return Images(pixels, _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", header=8).long())


def _read_idx(path: Path, header: int) -> Tensor:
    with gzip.open(path) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())


class SmallCNN(nn.Module):
    """Three blocks of convolution, batch norm, ReLU and pooling; global average pooling; one linear head.

    Args:
        classes: Number of classes.
        mean: Mean of the training pixels, subtracted.
        std: Their standard deviation, divided by.
    """

    def __init__(self, classes: int, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        widths = (1, 16, 32, 64)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                    nn.MaxPool2d(2) if after < widths[-1] else nn.AdaptiveAvgPool2d(1),
                )
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Input of the head, `(N, 64)`."""
        pooled: Tensor = self.blocks((images - self.mean) / self.std)
        return pooled.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def train(images: Images, classes: int, *, epochs: int, seed: int) -> SmallCNN:
    """Adam with a one-cycle rate, batches of 64, no augmentation."""
    torch.manual_seed(seed)
    model = SmallCNN(classes, float(images.pixels.mean()), float(images.pixels.std()))
    batches = len(images.labels) // 64
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images.labels))[: batches * 64].view(batches, 64):
            optimizer.zero_grad()
            F.cross_entropy(model(images.pixels[batch]), images.labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: SmallCNN, images: Images) -> float:
    """Share of images whose class is predicted."""
    predicted = torch.cat([model(chunk).argmax(dim=1) for chunk in torch.split(images.pixels, CHUNK)])
    return float((predicted == images.labels).double().mean())


def all_scores() -> list[NoveltyScore]:
    """Every score of a classifier, with its defaults; nothing is tuned."""
    return [
        *(MaxSoftmax(), MaxLogit(), Energy(), Entropy(), _odin(), Mahalanobis(), KNearest(), ViM()),
        *(GradNorm(), ConfoundingLabels(), GradTrust()),
        *(GradientNorm("uniform"), GradientNorm("all"), GradientNorm("predicted"), PurviewDistance()),
    ]


def _odin() -> ODIN:
    """Its published step is meant for pixels with a standard deviation of 1; those here have about 1/3."""
    return ODIN(epsilon=0.0014 / 3)


def score_groups(
    model: SmallCNN, scores: Sequence[NoveltyScore], familiar: Images, groups: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Fit the scores on familiar images, and score groups of others: `(N,)` by score and group.

    With the controls `pixel_mean`, the mean pixel of an image, and `pixel_mean_distance`, from that of familiar images.
    """
    centre = familiar.pixels.mean()
    found: dict[str, dict[str, Tensor]] = {
        "pixel_mean": {name: pixels.mean(dim=(1, 2, 3)) for name, pixels in groups.items()},
        "pixel_mean_distance": {name: (pixels.mean(dim=(1, 2, 3)) - centre).abs() for name, pixels in groups.items()},
    }
    with undisturbed(model):
        inliers = _inliers(model, familiar)
        seen = {name: _last_layer(model, pixels) for name, pixels in groups.items()}
        subject = Subject(model)
        for score in scores:
            if isinstance(score, LastLayerScore):
                if score.learns:
                    score.fit(inliers)
                found[score.name] = {name: score.score(*pair) for name, pair in seen.items()}
            elif isinstance(score, ModelScore):
                if score.learns:
                    score.fit(subject, familiar.pixels, chunk_size=CHUNK)
                found[score.name] = {name: _in_chunks(score, subject, pixels) for name, pixels in groups.items()}
    return found


def _inliers(model: SmallCNN, familiar: Images) -> Inliers:
    features, logits = _last_layer(model, familiar.pixels)
    return Inliers(features, logits, familiar.labels, model.head.weight.detach(), model.head.bias.detach())


@torch.no_grad()
def _last_layer(model: SmallCNN, pixels: Tensor) -> tuple[Tensor, Tensor]:
    features = torch.cat([model.features(chunk) for chunk in torch.split(pixels, CHUNK)])
    return features, model.head(features)


def _in_chunks(score: ModelScore, subject: Subject, pixels: Tensor) -> Tensor:
    return torch.cat([score.score(subject, chunk) for chunk in torch.split(pixels, CHUNK)])


def mean_and_interval(values: Sequence[float]) -> dict[str, float | list[float] | None]:
    """Mean over seeds with the 95 % interval of Student's t, cut to [0, 1]; no interval for one seed."""
    mean, low, high = statistics.fmean(values), None, None
    if 2 <= len(values) <= len(_T) + 1:
        half = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
        low, high = round(max(0.0, mean - half), 4), round(min(1.0, mean + half), 4)
    return {"mean": round(mean, 4), "low": low, "high": high, "per_seed": [round(value, 4) for value in values]}
