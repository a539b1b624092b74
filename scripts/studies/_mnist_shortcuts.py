"""Decoy-MNIST, Coloured MNIST and the two-class Coloured MNIST of IRM, as their public code makes them, and their nets.

Ross: `dtak/rrr` (Ross et al. 2017). CDEP: `laura-rieger/deep-explanation-penalization` (Rieger et al. 2020). LfF:
`alinlab/LfF` (Nam et al. 2020). IRM: `facebookresearch/InvariantRiskMinimization` (Arjovsky et al. 2019). Written anew
from reading them; random numbers differ from theirs, distributions do not, but for the ten colours of LfF, see
`palette`.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "SHADES",
    "Cued",
    "coloured",
    "conflicting_colours",
    "decoyed",
    "digits",
    "irm_environment",
    "irm_mlp",
    "lenet",
    "lff_mlp",
    "palette",
    "planned_colours",
    "ross_mlp",
]

CLASSES = 10

SHADES = tuple(255 - 25 * label for label in range(CLASSES))
"""Grey of the decoy that goes with each digit in training."""

# Deviation of a colour at severity 4 of LfF, and how far its ten colours, and black, must lie apart here.
_COLOUR_DEVIATION = 0.005
_APART = 0.3


@dataclass(frozen=True, eq=False)
class Cued:
    """Images with a label and a cue.

    Attributes:
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64.
        cues: Class that the cue goes with in training, `(N,)` int64.
        region: Where the cue lies, `(N, H, W)` bool; None if everywhere.
    """

    images: Tensor
    labels: Tensor
    cues: Tensor
    region: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: Tensor | slice) -> Cued:
        """Some of them."""
        region = None if self.region is None else self.region[chosen]
        return Cued(self.images[chosen], self.labels[chosen], self.cues[chosen], region)


def digits(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels `(N, 28, 28)` uint8 and labels `(N,)` int64 of the split `train` or `t10k` in the idx files of MNIST."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=16).copy())
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=8).copy())
    return pixels.view(-1, 28, 28), labels.long()


def decoyed(pixels: Tensor, labels: Tensor, shades: Tensor, generator: torch.Generator, *, side: int) -> Cued:
    """Digits with a grey square flush in one of the four corners, each equally likely.

    Args:
        pixels: `(N, 28, 28)` uint8.
        labels: `(N,)` int64.
        shades: Grey of each square, `(N,)` in [0, 255]. In training `255 - 25 label`; in Ross's test that of a digit
            drawn at random, the own one included; in CDEP's test, which reverses the scale, `25 label`.
        generator: Draws the corners.
        side: Side of the square: 4 in Ross, 5 in CDEP.

    Returns:
        The cue is the digit whose shade in training is nearest.
    """
    height, width = pixels.shape[1:]
    corners = torch.zeros(4, height, width, dtype=torch.bool)
    for corner in range(4):
        top, left = (corner // 2) * (height - side), (corner % 2) * (width - side)
        corners[corner, top : top + side, left : left + side] = True
    region = corners[torch.randint(4, (len(pixels),), generator=generator)]
    images = torch.where(region, shades.to(torch.uint8)[:, None, None], pixels)
    nearest = (shades[:, None] - torch.tensor(SHADES)).abs().argmin(dim=1)
    return Cued(images[:, None], labels, nearest, region)


def planned_colours(labels: Tensor, conflicting: float) -> Tensor:
    """Which of ten colours each image gets, `(N,)`, as LfF plans it: by counting, nothing is drawn.

    In each class the first images get colour 0, the next colour 1, and so on; the class's own colour goes to a share of
    `1 - conflicting`, each other colour to a ninth of the rest, to rounding. 0.9 makes colours and digits independent.
    """
    shares = torch.full((CLASSES, CLASSES), conflicting / (CLASSES - 1), dtype=torch.float64)
    shares.fill_diagonal_(1 - conflicting)
    colours = torch.empty_like(labels)
    for label, row in enumerate(shares):
        own = (labels == label).nonzero()[:, 0]
        ends = (len(own) * row.cumsum(dim=0)).round().long()
        colours[own] = torch.searchsorted(ends, torch.arange(len(own)), right=True).clamp(max=CLASSES - 1)
    return colours


def conflicting_colours(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A colour that is never that of the digit, each other one equally likely, `(N,)`."""
    return (labels + torch.randint(1, CLASSES, labels.shape, generator=generator)) % CLASSES


def palette(generator: torch.Generator) -> Tensor:
    """Ten colours, `(10, 3)` in [0, 1]: uniform at random, drawn again until each is distinct from all, and from black.

    LfF keeps its ten in a binary file, which could not be read; the paper says they are distinct and random.
    """
    while True:
        colours = torch.rand(CLASSES, 3, generator=generator)
        if float(torch.pdist(torch.cat([colours, torch.zeros(1, 3)])).min()) >= _APART:
            return colours


def coloured(pixels: Tensor, labels: Tensor, cues: Tensor, colours: Tensor, generator: torch.Generator) -> Cued:
    """Digits painted in their colours, each with a little noise, on black.

    Args:
        pixels: `(N, 28, 28)` uint8.
        labels: `(N,)` int64.
        cues: Which colour each gets, `(N,)` int64.
        colours: `(10, 3)` in [0, 1].
        generator: Draws the noise.
    """
    noisy = colours[cues] + _COLOUR_DEVIATION * torch.randn(len(cues), 3, generator=generator)
    painted = noisy.clamp(0, 1)[:, :, None, None] * pixels[:, None]
    return Cued(painted.to(torch.uint8), labels, cues)


def irm_environment(pixels: Tensor, labels: Tensor, flipped: float, generator: torch.Generator) -> Cued:
    """An environment of IRM: is the digit below 5, a quarter of the labels wrong, red or green by the label.

    Args:
        pixels: `(N, 28, 28)` uint8; every other row and column is kept.
        labels: `(N,)` int64, digits.
        flipped: Share of images whose colour is the other one's.
        generator: Draws wrong labels and other colours.

    Returns:
        Images `(N, 2, 14, 14)`; labels as they are, wrong ones included.
    """
    wrong, other = (torch.rand(len(labels), generator=generator) < share for share in (0.25, flipped))
    answers = (labels < 5) ^ wrong
    cues = (answers ^ other).long()
    small = pixels[:, ::2, ::2]
    images = torch.zeros(len(small), 2, *small.shape[1:], dtype=torch.uint8)
    images[torch.arange(len(small)), cues] = small
    return Cued(images, answers.long(), cues)


class Scaled(nn.Module):
    """Images times a factor, plus an offset."""

    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, images: Tensor) -> Tensor:
        """Of images in [0, 1], what the net was published with."""
        return images * self.factor + self.offset


class TwoLogits(nn.Module):
    """One logit as two, the first of them 0."""

    def forward(self, logit: Tensor) -> Tensor:
        """`(N, 1)` to `(N, 2)`."""
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def ross_mlp() -> nn.Sequential:
    """784-50-30-10 on pixels in [0, 255]; weights and biases start as N(0, 0.1)."""
    net = _mlp(255.0, (784, 50, 30, 10))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def lff_mlp() -> nn.Sequential:
    """2352-100-100-100-10 on pixels in [0, 1 / 255]: the public code divides by 255 twice."""
    return _mlp(1 / 255, (2352, 100, 100, 100, 10))


def irm_mlp() -> nn.Sequential:
    """392-256-256-1, Glorot's uniform weights, no biases at first; here with two logits."""
    net = _mlp(1.0, (392, 256, 256, 1))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net.append(TwoLogits())


def lenet() -> nn.Sequential:
    """The net of CDEP: two convolutions 5 x 5 (20, 50), each pooled, and two linear layers (256, 10)."""
    return nn.Sequential(
        Scaled(2.0, -1.0),
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, CLASSES)),
    )


def _mlp(factor: float, widths: tuple[int, ...]) -> nn.Sequential:
    net = nn.Sequential(Scaled(factor), nn.Flatten())
    for before, after in pairwise(widths):
        net.extend([nn.Linear(before, after), nn.ReLU()])
    return net[:-1]
