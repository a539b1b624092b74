"""A toy task whose answer is a square in one quarter of the image, and how nets learn it in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_callbacks import ProbeSet
from xai_callbacks.access import Subject

__all__ = ["Learned", "farthest", "highest", "planted", "squares", "teach"]

# Green squares are label 0 and red ones label 1: nothing but the square tells the labels apart.
_COLOURS = ((0.1, 1.0, 0.1), (1.0, 0.1, 0.1))
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
# Side of the square, side of the image = 1: a quarter is 0.5.
_SIDE = 0.3
# How far the square may be from the middle of its quarter, so that no cell of a coarse map lies half in another.
_JITTER = 0.06
_BATCH = 16
# Held-out images are looked at every so many steps; training ends once this share is told right.
_EVERY, _LEARNED = 5, 0.97
_WARM_UP = 5


@dataclass(frozen=True)
class Learned:
    """What training came to: steps taken, and the share of held-out images told right."""

    steps: int
    accuracy: float

    @property
    def enough(self) -> bool:
        """Whether the net tells nearly all held-out images right."""
        return self.accuracy >= _LEARNED


def planted(places: Sequence[tuple[int, int]], size: int, generator: torch.Generator) -> Tensor:
    """Images `(N, 3, size, size)`, normalised: noise on grey of varying brightness, and a square each.

    Args:
        places: For each image the quarter of its square, 0 to 3 row by row, and its label.
        size: Side of the images.
        generator: Source of all that is random.
    """
    grey = 0.4 + 0.2 * torch.rand(len(places), 1, 1, 1, generator=generator)
    images = grey + 0.05 * torch.randn(len(places), 3, size, size, generator=generator)
    side, free = round(_SIDE * size), round(_JITTER * size)
    for image, (quarter, label) in zip(images, places, strict=True):
        shift = torch.randint(-free, free + 1, (2,), generator=generator)
        corner = (size // 2 * (quarter // 2), size // 2 * (quarter % 2))
        top, left = (start + size // 4 - side // 2 + int(by) for start, by in zip(corner, shift, strict=True))
        image[:, top : top + side, left : left + side] = torch.tensor(_COLOURS[label])[:, None, None]
    return (images.clamp(0, 1) - _MEAN[0]) / _STD[0]


def squares(size: int) -> tuple[ProbeSet, Tensor]:
    """Eight held-out images of label 1, their squares two a quarter, and the quarter of each."""
    quarters = [0, 1, 2, 3] * 2
    images = planted([(quarter, 1) for quarter in quarters], size, torch.Generator().manual_seed(3))
    probes = ProbeSet.from_tensors(images, torch.ones(len(images), dtype=torch.long), mean=_MEAN, std=_STD)
    return probes, torch.tensor(quarters)


def teach(model: nn.Module, size: int, steps: int, *, min_steps: int = 0, rate: float = 1e-3) -> Learned:
    """Train a net of two outputs from scratch until it can do the task, or the steps are used up.

    Args:
        model: The net; it is left in eval mode.
        size: Side of the images.
        steps: Most steps, of 16 images each.
        min_steps: Fewest steps, however soon the net can do the task.
        rate: Highest learning rate of AdamW: warm-up of five steps, then half a cosine down to a twentieth.
    """
    generator = torch.Generator().manual_seed(1)
    subject = Subject(model)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, 0.525 + 0.475 * math.cos(math.pi * step / steps))
    )
    accuracy, step = 0.0, 0
    while step < steps and (accuracy < _LEARNED or step < min_steps):
        model.train()
        images, labels = _batch(_BATCH, size, generator)
        loss = nn.functional.cross_entropy(subject(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        if step % _EVERY == 0 or step == steps:
            accuracy = _accuracy(model, subject, size)
    return Learned(step, accuracy)


def highest(heatmaps: Tensor) -> Tensor:
    """Index of the quarter in which each heatmap `(N, h, w)` peaks once it is drawn on the image."""
    side = 64
    drawn = nn.functional.interpolate(heatmaps[:, None], size=(side, side), mode="bilinear", align_corners=False)
    place = drawn.flatten(1).argmax(dim=1)
    return 2 * (place // side >= side // 2).long() + (place % side >= side // 2).long()


def farthest(heatmaps: Tensor) -> Tensor:
    """Index of the quarter in which each heatmap stands out, upwards or downwards, from its median."""
    return highest((heatmaps - heatmaps.flatten(1).median(dim=1).values[:, None, None]).abs())


def _batch(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the images of each label."""
    quarters = torch.randint(4, (count,), generator=generator).tolist()
    labels = torch.arange(count) % 2
    return planted(list(zip(quarters, labels.tolist(), strict=True)), size, generator), labels


@torch.no_grad()
def _accuracy(model: nn.Module, subject: Subject, size: int) -> float:
    """Share of 32 held-out images told right."""
    with _renewed_statistics(model):
        for seed in (4, 5, 6):
            subject(_batch(_BATCH, size, torch.Generator().manual_seed(seed))[0])
    model.eval()
    images, labels = _batch(32, size, torch.Generator().manual_seed(2))
    told = torch.cat([subject(chunk).argmax(dim=1) for chunk in torch.split(images, _BATCH)])
    return float((told == labels).float().mean())


@contextmanager
def _renewed_statistics(model: nn.Module) -> Iterator[None]:
    """Take running means and variances anew from the batches shown inside: after few steps they lag behind."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
