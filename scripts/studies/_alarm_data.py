"""Five kinds of small pictures for the study of the alarm: training, test and probe images, and masks of the objects.

| kind | images | classes | `core` |
|---|---|---|---|
| `shapes` | disk, square, triangle, cross, drawn on smooth colours | 2, 4 | exact |
| `digits` | MNIST, as RGB, padded to 32 px, fainter and noisy | 2, 4, 10 | by threshold |
| `fashion` | Fashion-MNIST, one channel, padded to 32 px, fainter and noisy | 2, 4, 10 | by threshold |
| `cifar` | 4,000 images of CIFAR-10; with 2 and 4 classes several of its classes make one | 2, 4, 10 | none |
| `objects` | objects cut out of COCO photos, set on other photos | 2, 4 | exact |

All are 32 x 32 px in [0, 1]. Training, test and probe images of one data set share no picture. The
objects of `objects` are too few to be divided: training and the rest share them, in other sizes and places and on other
photos. Everything is drawn from the seed.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _shapes import shapes
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from xai_callbacks import ProbeSet

__all__ = ["CLASS_COUNTS", "KINDS", "Data", "Split", "channels_of", "dataset", "has_core", "photo"]

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
TESTED, PROBES = 1000, 128
# Training images by number of classes: few enough that a cue is tempting.
TRAINED = {2: 1000, 4: 1400, 10: 2000}
CLASS_COUNTS = {"shapes": (2, 4), "digits": (2, 4, 10), "fashion": (2, 4, 10), "cifar": (2, 4, 10), "objects": (2, 4)}
KINDS = tuple(CLASS_COUNTS)

NOISE = {"digits": 0.2, "fashion": 0.1}

SHAPES = ("disk", "square", "triangle", "cross")
GARMENTS = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# With few classes of CIFAR-10 there would be too few images: several make one.
CIFAR_GROUPS: dict[int, dict[str, tuple[str, ...]]] = {
    2: {"vehicle": ("airplane", "automobile", "ship", "truck"), "animal": ("bird", "cat", "deer", "dog", "horse")},
    4: {"far": ("airplane", "ship"), "road": ("automobile", "truck"), "pet": ("cat", "dog"), "hoof": ("deer", "horse")},
    10: {name: (name,) for name in CIFAR},
}
COCO_GROUPS = {
    "vehicle": ("bus", "train", "motorcycle", "airplane", "truck", "car", "boat", "bicycle"),
    "animal": ("elephant", "dog", "zebra", "teddy bear", "sheep", "horse", "cat", "bear", "cow", "giraffe", "bird"),
    "food": ("pizza", "broccoli", "banana", "sandwich", "cake", "orange", "hot dog", "carrot", "donut", "apple"),
    "furniture": ("bed", "refrigerator", "couch", "tv", "laptop", "toilet", "oven", "bench", "chair", "microwave"),
}


class Split(NamedTuple):
    """Images and what is known of them.

    Attributes:
        images: `(N, C, 32, 32)` in [0, 1].
        labels: `(N,)`; those of test and probe images go round, so that the first n are balanced for every n.
        core: The object, `(N, 32, 32)` bool, or None.
        names: One for each image.
        class_names: One for each class.
    """

    images: Tensor
    labels: Tensor
    core: Tensor | None
    names: tuple[str, ...]
    class_names: tuple[str, ...]

    def probe_set(self) -> ProbeSet:
        """The same as the package knows it."""
        masks = None if self.core is None else {"core": self.core}
        return ProbeSet.from_tensors(
            self.images, self.labels, names=list(self.names), masks=masks, class_names=self.class_names
        )

    def first(self, count: int) -> Split:
        """The first `count` images."""
        core = None if self.core is None else self.core[:count]
        return Split(self.images[:count], self.labels[:count], core, self.names[:count], self.class_names)


class Data(NamedTuple):
    """Images to learn from, to measure with, and to ask about."""

    train: Split
    test: Split
    probes: Split


class Pool(NamedTuple):
    """Images `(N, C, 32, 32)` with labels `(N,)`, not yet split, and masks."""

    images: Tensor
    labels: Tensor
    core: Tensor | None


def channels_of(kind: str) -> int:
    """1 for grey images, 3 for RGB."""
    return 1 if kind == "fashion" else 3


def has_core(kind: str) -> bool:
    """Whether masks of the objects are known."""
    return kind != "cifar"


@lru_cache(maxsize=12)
def dataset(kind: str, classes: int, seed: int) -> Data:
    """1,000 to 2,000 training, 1,000 test and 128 probe images of `classes` classes.

    With `digits` and `fashion` the seed also settles which classes these are.
    """
    generator = torch.Generator().manual_seed(1000 * KINDS.index(kind) + 100 * classes + seed)
    if kind == "objects":
        names = tuple(COCO_GROUPS)[:classes]
        parts = [
            _objects(names, count, held, generator) for held, count in enumerate((TRAINED[classes], TESTED + PROBES))
        ]
        return _split(parts[0], parts[1], names, generator)
    if kind == "shapes":
        chosen = _some(len(SHAPES), classes, generator)
        count = TRAINED[classes] + TESTED + PROBES
        pool = Pool(*shapes(count, chosen, generator, radius=(6.0, 9.0), noise=0.09))
        return _split(pool, None, tuple(SHAPES[index] for index in chosen), generator)
    if kind == "cifar":
        groups = CIFAR_GROUPS[classes]
        images, labels = _cifar()
        renumber = torch.full((10,), -1)
        for index, members in enumerate(groups.values()):
            renumber[[CIFAR.index(member) for member in members]] = index
        names = tuple(groups)
    else:
        images, labels = _idx({"digits": "mnist", "fashion": "fashion_mnist"}[kind])
        chosen = _some(10, classes, generator)
        renumber = torch.full((10,), -1)
        renumber[chosen] = torch.arange(classes)
        names = tuple(GARMENTS[index] if kind == "fashion" else str(index) for index in chosen)
    labels = renumber[labels]
    picked = torch.cat([_of_class(labels, label, 4000 // classes, generator) for label in range(classes)])
    pixels = images[picked].float() / 255
    core = None
    if kind == "fashion":
        core = max_pool2d(pixels, 3, stride=1, padding=1)[:, 0] > 0.12
    elif kind == "digits":
        core = pixels[:, 0] > 0.25
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    if kind in NOISE:
        pixels = _veiled(pixels, NOISE[kind], generator)
    return _split(Pool(pixels, labels[picked], core), None, names, generator)


def photo(index: int) -> Tensor:
    """A photo of no class at 32 x 32 px, `(3, 32, 32)` in [0, 1]; the first ones are in no data set."""
    side = _osie()[index]
    return _pixels(Image.fromarray(side).resize((SIZE, SIZE), Image.Resampling.BOX))


def _veiled(pixels: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Images of less contrast under noise, lest they be so easy that no cue is needed."""
    contrast = 0.35 + 0.65 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels * contrast + noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def _split(pool: Pool, held: Pool | None, names: tuple[str, ...], generator: torch.Generator) -> Data:
    """Probes and test images from `held`, or first from `pool`; training images from what is left."""
    classes = len(names)
    source = pool if held is None else held
    by_class = [_of_class(source.labels, label, len(source.labels), generator) for label in range(classes)]
    probes = _round(by_class, 0, PROBES)
    start = -(-PROBES // classes)
    test = _round(by_class, start, TESTED)
    end = start + -(-TESTED // classes)
    if held is None:
        train = torch.cat([rows[end : end + TRAINED[classes] // classes] for rows in by_class])
    else:
        train = torch.arange(len(pool.labels))
    train = train[torch.randperm(len(train), generator=generator)]
    return Data(
        _taken(pool, train, "train", names), _taken(source, test, "test", names), _taken(source, probes, "probe", names)
    )


def _round(by_class: list[Tensor], start: int, count: int) -> Tensor:
    """Rows of the first, second, ... class in turn."""
    classes = len(by_class)
    return torch.stack([by_class[index % classes][start + index // classes] for index in range(count)])


def _taken(pool: Pool, rows: Tensor, name: str, class_names: tuple[str, ...]) -> Split:
    core = None if pool.core is None else pool.core[rows]
    names = tuple(f"{name}{index:04d}" for index in range(len(rows)))
    return Split(pool.images[rows].contiguous(), pool.labels[rows], core, names, class_names)


def _some(count: int, wanted: int, generator: torch.Generator) -> list[int]:
    """`wanted` of `count` numbers, in order of size."""
    return sorted(torch.randperm(count, generator=generator)[:wanted].tolist())


def _of_class(labels: Tensor, label: int, most: int, generator: torch.Generator) -> Tensor:
    """Rows of a class in random order, `most` at most."""
    rows = (labels == label).nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


@lru_cache(maxsize=2)
def _idx(folder: str) -> tuple[Tensor, Tensor]:
    """60,000 images `(N, 1, 32, 32)` uint8 and their labels."""
    found = []
    for name, header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(_data_root() / folder / f"train-{name}-ubyte.gz") as file:
            found.append(torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy()))
    return pad(found[0].view(-1, 1, 28, 28), (2, 2, 2, 2)), found[1].long()


@lru_cache(maxsize=1)
def _cifar() -> tuple[Tensor, Tensor]:
    """4,000 images `(N, 3, 32, 32)` uint8 and their labels."""
    with np.load(_data_root() / "cifar10_4000" / "train_first4000.npz") as arrays:
        return torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["y"]).long()


def _objects(names: Sequence[str], count: int, held: int, generator: torch.Generator) -> Pool:
    """Objects at random scale, place, flip and brightness on every other photo, from the first or second on."""
    cut = [_cut_out(name) for name in names]
    behind = _backgrounds()[held::2]
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    images, masks = torch.empty(count, 3, SIZE, SIZE), torch.empty(count, SIZE, SIZE, dtype=torch.bool)
    for index in range(count):
        mine = cut[index % len(names)]
        images[index], masks[index] = _composed(mine[rng.integers(len(mine))], behind[rng.integers(len(behind))], rng)
    return Pool(images, torch.arange(count) % len(names), masks)


def _composed(cut: Image.Image, behind: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One object on one photo, `(3, 32, 32)`, and where it is."""
    side = int(rng.integers(48, min(behind.shape[:2]) + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in behind.shape[:2])
    square = Image.fromarray(behind[top : top + side, left : left + side])
    image = _pixels(square.resize((SIZE, SIZE), Image.Resampling.BOX))
    longest = rng.uniform(16, 28)
    width, height = (max(4, round(length * longest / max(cut.size))) for length in cut.size)
    drawn = _pixels(cut.resize((width, height), Image.Resampling.BOX))
    drawn = drawn.flip(2) if rng.random() < 0.5 else drawn
    down, right = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
    mask = torch.zeros(SIZE, SIZE)
    mask[down : down + height, right : right + width] = drawn[3]
    object_ = torch.zeros(3, SIZE, SIZE)
    object_[:, down : down + height, right : right + width] = (drawn[:3] * rng.uniform(0.8, 1.2)).clamp(0, 1)
    # A soft edge would tell the background from the object: it is one or the other.
    inside = mask >= 0.5
    return torch.where(inside, object_, image), inside


@lru_cache(maxsize=8)
def _cut_out(group: str) -> list[Image.Image]:
    """The largest object of each photo of a group as RGBA, 64 px at most."""
    found = []
    for row in _coco_rows():
        if row["object"] in COCO_GROUPS[group]:
            image, mask = _coco_photo(row["image"])
            alpha = mask == 2
            rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            rgba = np.dstack([image[box], 255 * alpha[box].astype(np.uint8)])
            cut = Image.fromarray(rgba)
            cut.thumbnail((64, 64), Image.Resampling.BOX)
            found.append(cut)
    return found


@lru_cache(maxsize=1)
def _backgrounds() -> list[np.ndarray]:
    """Photos without the objects, 96 px at the shorter side: strips of COCO beside them, and OSIE but for the first."""
    found = list(_osie()[20:])
    for row in _coco_rows():
        image, mask = _coco_photo(row["image"])
        free = np.flatnonzero((mask == 0).all(axis=0))
        runs = np.split(free, np.flatnonzero(np.diff(free) > 1) + 1)
        longest = max(runs, key=len)
        if len(longest) > 120:
            found.append(_small(image[:, longest[0] : longest[-1] + 1]))
    return found


@lru_cache(maxsize=1)
def _osie() -> list[np.ndarray]:
    return [
        _small(np.asarray(Image.open(path).convert("RGB"))) for path in sorted((_data_root() / "osie/images").iterdir())
    ]


def _small(image: np.ndarray) -> np.ndarray:
    scale = 96 / min(image.shape[:2])
    height, width = (max(96, round(length * scale)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


@lru_cache(maxsize=1)
def _coco_rows() -> list[dict[str, str]]:
    with (_data_root() / "coco/objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _coco_photo(name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = _data_root() / "coco"
    return np.asarray(Image.open(folder / f"images/{name}.jpg").convert("RGB")), np.asarray(
        Image.open(folder / f"masks/{name}.png")
    )


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _data_root() -> Path:
    """The folder `shared/data` beside the project."""
    return ROOT.parent / "shared" / "data"
