"""Scenes to find lesions in: several real ones on skin, beside a cloth whose pattern looks like them.

From ISIC 2017: lesions are the middle of images that are darker there than around, skin is cut from corners. The cloth
is painted. A scene is as a photo of a hand on a table, with whatever seams pasting leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from _isic import normalised, read
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CELL", "SIDE", "Material", "Scenes", "build", "joined", "material", "scenes", "training"]

CELL = 64  # side of the images that nets are trained on
SIDE = 4 * CELL
CLOTH = 176  # first column of the cloth
DISC = 24  # radius of a pasted lesion


class Material(NamedTuple):
    """What scenes and training images are made of, all `(N, 3, S, S)` in [0, 1]."""

    lesions: Tensor  # of 128 pixels, the lesion in the middle
    skin: Tensor  # of 64 pixels


class Scenes(NamedTuple):
    """Scenes and what lies where."""

    images: Tensor  # (N, 3, SIDE, SIDE) in [0, 1]
    lesions: tuple[Tensor, ...]  # of each scene (n, SIDE, SIDE) bool
    cloth: Tensor  # (N, SIDE, SIDE) bool


def material(folder: Path, split: str, count: int) -> Material:
    """Lesions and skin of the first images of a split."""
    names = sorted(path.stem for path in (folder / split).glob("*.jpg"))[:count]
    images = read(folder, names=names, size=256).pixels.float() / 255
    small = F.avg_pool2d(images, 2)
    middle, around = _disc(128, 20), ~_disc(128, 58) & _disc(128, 64)
    bright = small.mean(dim=1)
    darker = bright[:, around].mean(dim=1) - bright[:, middle].mean(dim=1)
    corners = torch.cat([images[..., a : a + CELL, b : b + CELL] for a in (8, 184) for b in (8, 184)])
    grey = corners.mean(dim=1).flatten(1)
    return Material(small[darker > 0.15], corners[(grey.mean(dim=1) > 0.45) & (grey.std(dim=1) < 0.05)])


def _disc(side: int, radius: float, feather: float = 0.0) -> Tensor:
    """A disc in the middle, bool, or with a feathered border in [0, 1]."""
    line = torch.arange(side) - (side - 1) / 2
    far = (line[:, None].square() + line.square()).sqrt()
    return far < radius if feather == 0 else ((radius - far) / feather + 0.5).clamp(0, 1)


def _draw(given: Tensor, generator: torch.Generator) -> Tensor:
    return given[int(torch.randint(len(given), (), generator=generator))]


def cloth(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A cloth `(3, height, width)` with a pattern of brown spots, in a colour and at a distance of its own."""
    base = torch.tensor([0.62, 0.72, 0.85]) + 0.12 * torch.randn(3, generator=generator)
    found = base[:, None, None] + 0.02 * torch.randn(3, height, width, generator=generator)
    found[:, ::4] -= 0.03
    found[..., ::4] -= 0.03
    step, spot = int(torch.randint(36, 52, (), generator=generator)), _draw_spots(generator)
    for top in range(-step // 2, height, step):
        for left in range(-step // 2, width, step):
            _paste(found, spot[0], spot[1], top + step // 2, left + step // 2)
    return found.clamp(0, 1)


def _draw_spots(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A spot `(3, 40, 40)` and its opacity `(40, 40)`: brown, mottled, with a ragged border."""
    brown = torch.tensor([0.42, 0.27, 0.20]) + 0.05 * torch.randn(3, generator=generator)
    mottled = F.interpolate(torch.randn(1, 1, 8, 8, generator=generator), (40, 40), mode="bilinear")[0]
    ragged = F.interpolate(torch.randn(1, 1, 6, 6, generator=generator), (40, 40), mode="bicubic")[0, 0]
    line = torch.arange(40) - 19.5
    far = (line[:, None].square() + line.square()).sqrt()
    return brown[:, None, None] + 0.06 * mottled, ((13 + 2.5 * ragged - far) / 3 + 0.5).clamp(0, 1)


def _paste(image: Tensor, part: Tensor, opacity: Tensor, row: int, column: int) -> None:
    """Paste with its middle at a pixel, in place; what lies outside is lost."""
    side = part.shape[-1]
    top, left = row - side // 2, column - side // 2
    rows = slice(max(0, top), min(image.shape[-2], top + side))
    columns = slice(max(0, left), min(image.shape[-1], left + side))
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    if rows.start < rows.stop and columns.start < columns.stop:
        cover = opacity[inside]
        image[:, rows, columns] = image[:, rows, columns] * (1 - cover) + part[:, *inside] * cover


def scenes(given: Material, count: int, seed: int, numbers: Sequence[int] = (1, 2, 3)) -> Scenes:
    """Scenes with a cloth and so many lesions, in turn; with 0 alone there is no cloth either."""
    generator, plain = torch.Generator().manual_seed(seed), tuple(numbers) == (0,)
    images, masks = [], []
    for index in range(count):
        image = _mirrored(_draw(given.skin, generator))
        if not plain:
            image[..., CLOTH:] = cloth(SIDE, SIDE - CLOTH, generator)
        places = _places(numbers[index % len(numbers)], generator)
        here = torch.zeros(len(places), SIDE, SIDE, dtype=torch.bool)
        for place, mask in zip(places, here, strict=True):
            lesion = F.interpolate(_draw(given.lesions, generator)[None, :, 32:96, 32:96], (56, 56), mode="area")[0]
            border = ~_disc(56, DISC) & _disc(56, 28)
            skin = image[:, place[0] - 28 : place[0] + 28, place[1] - 28 : place[1] + 28]
            lesion += (skin[:, border].mean(dim=1) - lesion[:, border].mean(dim=1))[:, None, None]
            _paste(image, lesion.clamp(0, 1), _disc(56, DISC, 6), *place)
            mask[place[0] - 28 : place[0] + 28, place[1] - 28 : place[1] + 28] = _disc(56, DISC)
        images.append(image)
        masks.append(here)
    where = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    where[..., CLOTH:] = not plain
    return Scenes(torch.stack(images), tuple(masks), where)


def joined(first: Scenes, second: Scenes) -> Scenes:
    """All scenes of both."""
    images, cloth = torch.cat([first.images, second.images]), torch.cat([first.cloth, second.cloth])
    return Scenes(images, (*first.lesions, *second.lesions), cloth)


def _mirrored(skin: Tensor) -> Tensor:
    """Skin `(3, 64, 64)` laid out over a scene, each tile the mirror image of the next."""
    row = torch.cat([skin, skin.flip(-1)] * 2, dim=-1)
    return torch.cat([row, row.flip(-2)] * 2, dim=-2).clone()


def _places(count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Middles of lesions on the skin, 80 pixels apart or more."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        row = int(torch.randint(30, SIDE - 30, (), generator=generator))
        column = int(torch.randint(30, CLOTH - 30, (), generator=generator))
        if all((row - y) ** 2 + (column - x) ** 2 >= 80**2 for y, x in found):
            found.append((row, column))
    return found


def training(given: Material, count: int, seed: int, *, lookalikes: bool) -> tuple[Tensor, Tensor]:
    """Images `(count, 3, 64, 64)`, normalised, half of them of one lesion each, and their labels.

    The rest is skin; with `lookalikes` half of it is cloth.
    """
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        if index % 2:
            inset = int(torch.randint(0, 33, (), generator=generator))
            image = _draw(given.lesions, generator)[:, inset : 128 - inset, inset : 128 - inset]
        elif lookalikes and index % 4 == 0:
            image = cloth(CELL, CELL, generator)
        else:
            image = _draw(given.skin, generator)
        image = F.interpolate(image[None], (CELL, CELL), mode="area")[0]
        turned = torch.rot90(image, int(torch.randint(4, (), generator=generator)), (1, 2))
        images.append(turned)
    return normalised(torch.stack(images) * 255), torch.arange(count) % 2


def build(seed: int) -> nn.Module:
    """Four convolutions, global average pooling and one linear layer: Grad-CAM is CAM, and HiResCAM the same."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if after != before else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
