"""Photos as nets of ImageNet take them: COCO with masks of objects, ImageNet itself, those of the papers."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks import ProbeSet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224


def coco_probes(right: Sequence[str] = (), count: int | None = None) -> ProbeSet:
    """COCO photos with the object as region `core`, those that all nets named in `right` call by its name."""
    with (DATA / "coco/objects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[f"{net}_right"] == "1" for net in right)]
    chosen = [row["image"] for row in rows[:count]]
    masks = [squared(Image.open(DATA / f"coco/masks/{name}.png"), Image.Resampling.NEAREST) for name in chosen]
    regions = torch.stack([torch.from_numpy(np.asarray(mask) > 0) for mask in masks])
    return probes_of([DATA / f"coco/images/{name}.jpg" for name in chosen], {"core": regions})


def imagenet_probes() -> ProbeSet:
    """Photos of ImageNet; their labels stand first in their names."""
    return probes_of(sorted((DATA / "imagenet_photos").glob("*.jpg")))


def probes_of(paths: Sequence[Path], masks: dict[str, Tensor] | None = None) -> ProbeSet:
    """Photos without labels, named by their files; classes have the names of ImageNet."""
    pixels = [torch.from_numpy(np.array(squared(Image.open(path).convert("RGB")))) for path in paths]
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    images = torch.stack([(each.permute(2, 0, 1) / 255 - mean) / std for each in pixels])
    names = [path.stem for path in paths]
    return ProbeSet.from_tensors(
        images, names=names, class_names=class_names(), pixels=torch.stack(pixels), masks=masks, mean=MEAN, std=STD
    )


def squared(image: Image.Image, how: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Resize the short side to 256 pixels and cut 224 x 224 out of the middle, as the nets were tested."""
    scale = 256 / min(image.size)
    width, height = (max(256, round(side * scale)) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return image.resize((width, height), how).crop((left, top, left + SIDE, top + SIDE))


def class_names() -> list[str]:
    """The 1,000 classes; a name that comes twice has its number with it, as names must differ."""
    names = json.loads((DATA / "imagenet_classes.json").read_text())
    names = names if isinstance(names, list) else [names[str(index)] for index in range(len(names))]
    return [f"{name} {index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
