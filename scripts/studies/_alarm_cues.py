"""Families of cues for the study of the alarm, and how they get into training and test images.

Each family is a `Cue` of the package; training images are painted by the very method that an audit paints probes with.

| several variants, one a class | one variant, which points to one class |
|---|---|
| `patch`, `veil`: a colour in a corner, opaque or half so | `one_patch`: the same, half opaque |
| `tint`: each channel times a factor | `dim`: a darker image |
| `frame`: a rim of a grey | `one_frame`: a rim of a grey |
| `texture`: a pattern over all | `stripes`: a pattern over all |
| `watermark`: a text | `one_watermark`: a text |
| `dot`: a small bright dot, its place along the upper edge tells | `checker`: a fine pattern in one corner |
| `shift`: the image moved to one side | `one_shift`: the image moved |
| `backdrop`, `scene`: a grey or a photo behind the object | `blur`, `jpeg`: worse quality |
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from _alarm_data import CLASS_COUNTS, SIZE, Split, channels_of, has_core, photo
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

from xai_callbacks.interventions.cues import (
    BackgroundCue,
    FrameCue,
    FunctionCue,
    PatchCue,
    ShiftCue,
    TextureCue,
    TintCue,
    WatermarkCue,
)
from xai_callbacks.interventions.cues.painted import PaintedCue
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown

__all__ = ["FAMILIES", "Family", "cue_for", "drawn_variants", "gap", "own_and_other", "painted", "suits"]

# Ten colours that are far apart, the first four most; of one channel: greys.
COLOURS = (
    (0.90, 0.10, 0.10),
    (0.10, 0.75, 0.15),
    (0.15, 0.25, 0.95),
    (0.95, 0.90, 0.10),
    (0.10, 0.85, 0.85),
    (0.85, 0.15, 0.80),
    (1.00, 1.00, 1.00),
    (0.00, 0.00, 0.00),
    (0.95, 0.55, 0.10),
    (0.50, 0.35, 0.15),
)
GAINS = (
    (1.20, 0.90, 0.90),
    (0.90, 1.20, 0.90),
    (0.90, 0.90, 1.20),
    (1.15, 1.15, 0.80),
    (0.85, 1.10, 1.10),
    (1.10, 0.85, 1.10),
    (1.10, 1.10, 1.10),
    (0.85, 0.85, 0.85),
    (1.20, 1.00, 0.80),
    (0.80, 1.00, 1.20),
)
TEXTS = ("XYZ", "ABC", "MLT", "OGD", "KRP", "SUE", "JIF", "NHW", "QVA", "BTC")
SIDES = ((0, 3), (0, -3), (3, 0), (-3, 0))

Paint = Callable[[Tensor, Tensor], Tensor]
Make = Callable[["Family", Sequence[int], int], PaintedCue]


class Family(NamedTuple):
    """A kind of cue.

    Attributes:
        name: Its name, and that of the cue.
        make: Makes the cue from the classes that its variants point to and the number of channels.
        single: Whether there is one variant.
        most: Largest number of classes.
        masked: Whether it needs the mask `core`.
    """

    name: str
    make: Make
    single: bool = False
    most: int = 10
    masked: bool = False


def cue_for(family: str, kind: str, classes: int, target: int | None = None) -> PaintedCue:
    """The cue of a family for data of a kind; a single variant points to `target`."""
    found = FAMILIES[family]
    assert found.single == (target is not None), f"`target` is for a single variant, not {family}"
    return found.make(found, range(classes) if target is None else [target], channels_of(kind))


def suits(family: str, kind: str, classes: int) -> bool:
    """Whether a family can be painted on data of a kind with so many classes."""
    found = FAMILIES[family]
    return classes in CLASS_COUNTS[kind] and classes <= found.most and (has_core(kind) or not found.masked)


def painted(cue: PaintedCue, split: Split, variants: Tensor) -> Tensor:
    """The images of a split with a variant each, `(N,)` int64; -1 for none. In an audit `Cue.twins` does this."""
    images = split.images.clone()
    rows = (variants >= 0).nonzero()[:, 0]
    if len(rows):
        shown = replace(_shown(split), images=images[rows], rows=rows)
        images[rows] = cue.paint(shown, variants[rows])
    return images


def drawn_variants(labels: Tensor, classes: int, strength: float, seed: int) -> Tensor:
    """A variant each: that of the class with probability `strength`, else another; 1/K makes it independent."""
    generator = torch.Generator().manual_seed(seed)
    others = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    return torch.where(torch.rand(labels.shape, generator=generator) < strength, labels, others)


def drawn_presence(labels: Tensor, target: int, inside: float, outside: float, seed: int) -> Tensor:
    """0 where the single variant is and -1 elsewhere; it is on a share of the class `target`, and one of the others."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.where(labels == target, inside, outside)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, 0, -1)


def own_and_other(cue: PaintedCue, split: Split, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with the cue of their class, and with that of another, drawn evenly.

    Where the cue has a single variant: with it in its class and without elsewhere; and the reverse.
    """
    if len(cue.points_to) == 1:
        has = split.labels.eq(int(cue.points_to[0]))
        return painted(cue, split, has.long() - 1), painted(cue, split, -has.long())
    classes = len(cue.points_to)
    other = drawn_variants(split.labels, classes, 0.0, seed)
    return painted(cue, split, split.labels), painted(cue, split, other)


def gap(own: Tensor, other: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean over classes of the accuracy with the own cue minus that with another, and its standard error.

    Args:
        own: Whether each image with its own cue is recognised, `(N,)` bool.
        other: The same with another's.
        labels: `(N,)`.
    """
    differences = own.double() - other.double()
    parts = [differences[labels == label] for label in range(int(labels.max()) + 1)]
    variance = sum(float(part.var()) / len(part) for part in parts)
    return sum(float(part.mean()) for part in parts) / len(parts), math.sqrt(variance) / len(parts)


@lru_cache(maxsize=3)
def _shown(split: Split) -> Shown:
    """All images of a split; splits are told apart by their tensors."""
    probes = split.probe_set()
    return Shown(probes.images, torch.arange(len(probes)), probes, PixelScale.of(probes), seed=0)


def _colours(count: int, channels: int) -> list[list[float]]:
    """Colours of the variants, or greys from dark to bright."""
    if channels == 3:
        return [list(colour) for colour in COLOURS[:count]]
    return [[grey] for grey in _greys(count)]


def _greys(count: int) -> list[float]:
    return torch.linspace(0.25, 0.95, count).tolist() if count > 1 else [0.6]


def _patch(opacity: float, size: float) -> Make:
    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        colours = _colours(len(points_to), channels)
        return PatchCue(colours, points_to, opacity=opacity, size=size, name=family.name)

    return make


def _tint(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
    count = len(points_to)
    gains = [list(gain) for gain in GAINS[:count]] if channels == 3 else [[1 - 0.6 * i / count] for i in range(count)]
    return TintCue(gains, points_to, name=family.name)


def _texture(opacity: float) -> Make:
    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        textures = ("stripes", "checks", "dots", "rings")[: len(points_to)]
        return TextureCue(textures, points_to, opacity=opacity, name=family.name)

    return make


def _watermark(opacity: float) -> Make:
    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        return WatermarkCue(TEXTS[: len(points_to)], points_to, opacity=opacity, name=family.name)

    return make


def _function(paint: Paint) -> Make:
    """A cue of a function of images and variants."""

    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        return FunctionCue(paint, points_to, name=family.name)

    return make


def _dot(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
    def paint(images: Tensor, variants: Tensor) -> Tensor:
        places = torch.linspace(2, images.shape[-1] - 4, len(points_to)).round().long()
        for index, left in enumerate(places[variants].tolist()):
            spot = images[index, :, 1:3, left : left + 2]
            spot.copy_(spot.lerp(torch.ones(()), 0.8))
        return images

    return FunctionCue(paint, points_to, name=family.name)


def _frame(opacity: float) -> Make:
    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        greys = [[grey] for grey in _greys(len(points_to))]
        return FrameCue(greys, points_to, width=2 / SIZE, opacity=opacity, name=family.name)

    return make


def _shift(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
    """The whole image moved by 3 px to a side; the edge is repeated."""
    return ShiftCue(
        [(down / SIZE, right / SIZE) for down, right in SIDES[: len(points_to)]], points_to, name=family.name
    )


def _behind(opacity: float, photos: bool) -> Make:
    def make(family: Family, points_to: Sequence[int], channels: int) -> PaintedCue:
        pictures = _pictures(len(points_to), channels, photos)
        return BackgroundCue(pictures, points_to, opacity=opacity, name=family.name)

    return make


@lru_cache
def _pictures(count: int, channels: int, photos: bool) -> Tensor:
    """What lies behind objects of each class, `(V, C, 32, 32)`: photos, or greys."""
    if not photos:
        return torch.tensor(_greys(count)).view(-1, 1, 1, 1).expand(-1, channels, 32, 32)
    shown = torch.stack([photo(index) for index in range(count)])
    return shown if channels == 3 else shown.mean(dim=1, keepdim=True)


def _dimmed(images: Tensor, variants: Tensor) -> Tensor:
    return images * 0.6


def _blurred(images: Tensor, variants: Tensor) -> Tensor:
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * 0.8**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(images.shape[1], 1, 5, 5).to(images)
    return conv2d(pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=images.shape[1]).clamp(0, 1)


def _compressed(images: Tensor, variants: Tensor) -> Tensor:
    """Through JPEG of quality 10 and back."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    done = []
    for each in pixels:
        stream = io.BytesIO()
        Image.fromarray(each[:, :, 0] if each.shape[2] == 1 else each).save(stream, "JPEG", quality=10)
        done.append(np.asarray(Image.open(stream)).reshape(each.shape))
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).to(images) / 255


def _checkered(images: Tensor, variants: Tensor) -> Tensor:
    """A board of single pixels in the lower right corner, half opaque."""
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2
    corner = images[:, :, -7:-1, -7:-1]
    corner.copy_(corner.lerp(board.to(images).expand_as(corner), 0.4))
    return images


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("patch", _patch(1.0, 0.16)),
        Family("veil", _patch(0.4, 0.19)),
        Family("tint", _tint),
        Family("frame", _frame(0.5)),
        Family("texture", _texture(0.14), most=4),
        Family("watermark", _watermark(0.5)),
        Family("dot", _dot),
        Family("shift", _shift, most=4),
        Family("backdrop", _behind(0.25, photos=False), masked=True),
        Family("scene", _behind(0.3, photos=True), masked=True),
        Family("one_patch", _patch(0.7, 0.16), single=True),
        Family("one_frame", _frame(0.35), single=True),
        Family("stripes", _texture(0.14), single=True),
        Family("one_watermark", _watermark(0.4), single=True),
        Family("dim", _function(_dimmed), single=True),
        Family("blur", _function(_blurred), single=True),
        Family("jpeg", _function(_compressed), single=True),
        Family("one_shift", _shift, single=True),
        Family("checker", _function(_checkered), single=True),
    )
}
"""By name."""
