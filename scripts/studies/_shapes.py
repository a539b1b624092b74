"""Shapes with a cue: data, net and training of `evaluate_detection.py`; everything is drawn from seeds.

Four shapes (disk, square, triangle, cross) of any colour, place and size on a background of low frequency, 32 x 32 px,
with an exact mask of the shape. A cue of four values may go with the four classes: a patch of a colour in a corner
(`patch`), the same at half opacity (`subtle`), or a tint of the whole image (`tint`). `strength` is the probability
that the cue is that of the class; else it is any of the other three, and .25 makes it independent of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from xai_callbacks import ProbeSet
from xai_callbacks.interventions.cues import Cue, PatchCue, TintCue

__all__ = [
    "CLASSES",
    "FAMILIES",
    "SIZE",
    "Pictures",
    "cue_of",
    "draw",
    "net",
    "painted",
    "probe_set",
    "shapes",
    "train",
]

SIZE = 32
CLASSES = ("disk", "square", "triangle", "cross")
FAMILIES = ("patch", "tint", "subtle")
PATCH = 5
NOISE = 0.10
COLOURS = ((0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.15, 0.25, 0.95), (0.95, 0.9, 0.1))
GAINS = ((1.2, 0.95, 0.95), (0.95, 1.2, 0.95), (0.95, 0.95, 1.2), (1.12, 1.12, 0.85))
OPACITY = {"patch": 1.0, "subtle": 0.5}
BATCH, RATE = 64, 4e-3


class Pictures(NamedTuple):
    """Images without a cue, and what is known of them.

    Attributes:
        images: `(N, 3, 32, 32)` in [0, 1].
        labels: `(N,)`.
        core: The shape, `(N, 32, 32)` bool.
        corners: Where a patch would lie, `(N, 32, 32)` bool.
    """

    images: Tensor
    labels: Tensor
    core: Tensor
    corners: Tensor


def shapes(
    count: int, kinds: Sequence[int], generator: torch.Generator, *, radius: tuple[float, float], noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and masks of some of the four shapes, as many of each, on a background of low frequency."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    labels = torch.arange(count)[torch.randperm(count, generator=generator)] % len(kinds)
    size = uniform(*radius, count, 1, 1)
    place = uniform(10.0, SIZE - 10.0, 2, count, 1, 1)
    line = torch.arange(SIZE) + 0.5
    down, right = line[None, :, None] - place[0], line[None, None, :] - place[1]
    near, far = torch.minimum(down.abs(), right.abs()), torch.maximum(down.abs(), right.abs())
    drawn = torch.stack(
        [
            down.hypot(right) < size,
            far < 0.85 * size,
            (down > -size) & (down < 0.75 * size) & (right.abs() < (down + size) / 1.75),
            (near < 0.33 * size) & (far < size),
        ]
    )
    core = drawn[torch.tensor(kinds)[labels], torch.arange(count)]
    background = interpolate(uniform(0.35, 0.6, count, 3, 4, 4), size=(SIZE, SIZE), mode="bicubic")
    bright = torch.rand(count, 3, 1, 1, generator=generator) < 0.5
    colour = torch.where(bright, uniform(0.7, 1.0, count, 3, 1, 1), uniform(0.0, 0.3, count, 3, 1, 1))
    images = torch.where(core[:, None], colour, background)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels, core


def draw(count: int, seed: int) -> Pictures:
    """Draw images, equally many of each class."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, core = shapes(count, range(len(CLASSES)), generator, radius=(5.0, 8.0), noise=NOISE)
    marks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    near, far = slice(1, 1 + PATCH), slice(SIZE - 1 - PATCH, SIZE - 1)
    for corner in range(4):
        marks[corner, far if corner & 2 else near, far if corner & 1 else near] = True
    corners = marks[torch.randint(4, (count,), generator=generator)]
    return Pictures(images, labels, core & ~corners, corners)


def painted(pictures: Pictures, cues: Tensor, family: str) -> Tensor:
    """Images with the cue `cues` `(N,)` of a family."""
    if family == "tint":
        return (pictures.images * torch.tensor(GAINS)[cues][:, :, None, None]).clamp(0, 1)
    colour = torch.tensor(COLOURS)[cues][:, :, None, None]
    blend = pictures.images + OPACITY[family] * (colour - pictures.images)
    return torch.where(pictures.corners[:, None], blend, pictures.images)


def drawn_cues(labels: Tensor, strength: float, seed: int) -> Tensor:
    """A cue for each image: that of its class with probability `strength`, else another."""
    generator = torch.Generator().manual_seed(seed)
    others = (labels + torch.randint(1, len(CLASSES), labels.shape, generator=generator)) % len(CLASSES)
    return torch.where(torch.rand(labels.shape, generator=generator) < strength, labels, others)


def cue_of(family: str) -> Cue:
    """The cue as an audit is told of it."""
    classes = list(range(len(CLASSES)))
    if family == "tint":
        return TintCue(GAINS, classes, name="tint")
    return PatchCue(COLOURS, classes, at="spurious", opacity=OPACITY[family], name=family)


def probe_set(family: str, count: int, seed: int) -> ProbeSet:
    """Probes with a patch whose colour is balanced and independent of the label, or for a tint without one."""
    pictures = draw(count, seed)
    masks = {"core": pictures.core}
    if family == "tint":
        return ProbeSet.from_tensors(pictures.images, pictures.labels, masks=masks, class_names=CLASSES)
    cues = drawn_cues(pictures.labels, 1 / len(CLASSES), seed + 1)
    images = painted(pictures, cues, family)
    return ProbeSet.from_tensors(
        images, pictures.labels, masks={**masks, "spurious": pictures.corners}, class_names=CLASSES
    )


def net(seed: int) -> nn.Module:
    """Four convolutions, global average pooling, one linear layer; weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 48, 1), (48, 48, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(CLASSES)))


def train(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, look: Callable[[int], None]
) -> None:
    """Adam with a rate that falls to zero; `look` is called with the number of epochs done, from 0 on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(labels) // BATCH + 1))
    generator = torch.Generator().manual_seed(seed)
    look(0)
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            if len(batch) < 2:
                continue  # batch norm needs two
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        look(epoch)
