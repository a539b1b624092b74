"""Rows of the gallery: maps over photos, and the examples of the papers that explainers come from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _photos import DATA, MEAN, STD, class_names, coco_probes, probes_of
from _quality_net import PatchQuality, photos
from half_masks import FILLS, HALVES, filled
from implicit_saliency import fixations, shown
from numpy.typing import NDArray
from PIL import Image
from quality_contrasts import SIDE, audited
from quality_contrasts import probes_of as quality_probes
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.functional import gaussian_blur

from xai_callbacks import (
    VOICE,
    Auditor,
    AuditRecord,
    DeepSHAP,
    GradCAM,
    ImplicitSaliency,
    ProbeSet,
    UndesirablePixels,
    WhatHinders,
    Why,
    WhyNotCertain,
    WhyRatherThan,
)
from xai_callbacks.explainers import Explainer
from xai_callbacks.questions import Question
from xai_callbacks.render import ColorScale, overlay
from xai_callbacks.render.colors import LINEAR_SHARE

STRONGEST, FINEST = 0.995, 56  # share of the cells from which on colours are strongest; cells a side
ASKED = 58.0  # DMOS of a photo of which it is asked why it is not 75
FOUND = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "found_regions.png"


class Tile(NamedTuple):
    """One picture and the words below it."""

    pixels: NDArray[np.uint8]
    words: str = ""
    height: int = 150


class Row(NamedTuple):
    """Tiles side by side, and what they are."""

    name: str
    about: str
    tiles: Sequence[Tile]


def heated(probes: ProbeSet, index: int, heatmap: Tensor) -> NDArray[np.uint8]:
    """A photo under a map, on a scale of its own: the page compares where maps lie, not how strong they are."""
    height, width = heatmap.shape
    cells = adaptive_avg_pool2d(heatmap[None].float(), (min(height, FINEST), min(width, FINEST)))[0]
    strongest = float(cells.abs().flatten().quantile(STRONGEST)) or 1.0
    # The colour scale is logarithmic, as it has to hold for a whole training run; here it is made linear again.
    linear = np.sinh((cells / strongest).clamp(-1, 1).numpy() * math.asinh(1 / LINEAR_SHARE)) * LINEAR_SHARE
    return overlay(probes.pixels[index].numpy(), linear, ColorScale(limit=1.0))


def audit(model: nn.Module, probes: ProbeSet, questions: Sequence[Question], *explainers: Explainer) -> AuditRecord:
    """Some explainers on some photos."""
    auditor = Auditor(probes, list(questions), explainers=list(explainers), novelty=[], measures=[], chunk_size=8)
    return auditor.audit(model)


def answer(record: AuditRecord, index: int = 0) -> str:
    """What the net says of a photo, and how surely."""
    assert record.predictions is not None
    assert record.confidences is not None
    name = record.class_names[int(record.predictions[index])].replace("_", " ")
    return f"{name}, {100 * float(record.confidences[index]):.0f} %"


def contrasts(model: nn.Module, photo: str, fact: str, foils: Sequence[str]) -> Row:
    """A photo of the papers: why its class, rather than which other, and what explanations of foils have in common."""
    probes = probes_of([DATA / f"papers_photos/{photo}.jpg"])
    questions = [Why(fact), *(WhyRatherThan(foil) for foil in foils), WhyNotCertain()]
    spreads = [VOICE(statistic="mean", name="mean"), VOICE(name="variance")]
    record = audit(model, probes, questions, GradCAM(), *spreads)
    tiles = [Tile(probes.pixels[0].numpy(), answer(record))]
    for title, maps in zip(record.titles, record.heatmaps, strict=True):
        tiles.append(Tile(heated(probes, 0, maps[0]), title[0].replace("_", " ")))
    tiles += [
        Tile(heated(probes, 0, record.maps[name].heatmaps[0, 0]), f"{name} over 100 foils (VOICE)")
        for name in ("mean", "variance")
    ]
    return Row(photo.replace("_", " "), "Grad-CAM of contrasts (Prabhushankar et al., ICIP 2020)", tiles)


def quality() -> Row:
    """A blurred photo whose score is near 58: why not 100, 75, 50, 25? Patch by patch."""
    model, clean = PatchQuality(DATA / "weights").eval(), photos(DATA, 2, SIDE)[1:]
    blurs = [gaussian_blur(clean, [13, 13], [deviation / 10] * 2) for deviation in range(6, 40)]
    with torch.no_grad():
        scores = [float(model(each)) for each in blurs]
        best = min(range(len(blurs)), key=lambda index: abs(scores[index] - ASKED))
        probes = quality_probes(blurs[best], model(clean)[:, 0], torch.zeros_like(clean, dtype=torch.bool))
    record = audited(model, probes, (100.0, 75.0, 50.0, 25.0), stride=8)
    tiles = [Tile(probes.pixels[0].numpy(), f"score {scores[best]:.0f}, higher is worse")]
    for title, maps in zip(record.titles, record.heatmaps, strict=True):
        tiles.append(Tile(heated(probes, 0, maps[0]), title[0]))
    return Row("image quality", "HiResCAM of each patch of CNNIQA, as in 'Why 0.58, rather than 0.75?'", tiles)


def hindered(model: nn.Module, count: int = 3) -> Iterator[Row]:
    """Photos of COCO that the net gets wrong: what hinders the class of the object, and what speaks for others."""
    known, probes = class_names(), coco_probes()
    with (DATA / "coco/objects.csv").open(newline="") as file:
        named = {row["image"]: row["object"].replace(" ", "_") for row in csv.DictReader(file)}
    for index, name in enumerate(probes.names):
        one = probes.select([index])
        if named[name] not in known or count == 0:
            continue
        kinds = [UndesirablePixels(kind, name=kind) for kind in ("target", "non-target")]
        record = audit(model, one, [WhatHinders(named[name])], *kinds)
        if answer(record).startswith(named[name].replace("_", " ")):
            continue
        count -= 1
        tiles = [Tile(heated(one, 0, record.maps[kind].heatmaps[0, 0]), f"{kind} factors") for kind in record.maps]
        yield Row(f"not {named[name].replace('_', ' ')}", "Undesirable pixels (Kang et al., 2019), in blue", [
            Tile(one.pixels[0].numpy(), answer(record)), *tiles
        ])  # fmt: skip


def half_filled(model: nn.Module) -> Row:
    """The man in the cowboy hat with half of the photo overwritten: answers, and Deep SHAP of them."""
    whole = probes_of([DATA / "imagenet_photos/515_cowboy_hat.jpg"])
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    pixels, tiles = whole.pixels.permute(0, 3, 1, 2) / 255, []
    for half, fill in (("", ""), *((half, fill) for half in HALVES for fill in FILLS)):
        images = filled(pixels, half, fill) if half else pixels
        shown_pixels = (images * 255).round().byte().permute(0, 2, 3, 1)
        probes = ProbeSet.from_tensors(
            (images - mean) / std, class_names=class_names(), pixels=shown_pixels, mean=MEAN, std=STD
        )
        record = audit(model, probes, [Why()], DeepSHAP())
        tiles.append(Tile(heated(probes, 0, record.heatmaps[0, 0]), f"{half} {fill} {answer(record)}".strip()))
    return Row("half of the photo filled", "Deep SHAP against the blur of what is shown", tiles)


def fixated(model: nn.Module, count: int = 2) -> Iterator[Row]:
    """Photos of OSIE: where people looked, implicit saliency, and Grad-CAM."""
    seen = fixations(DATA / "osie/fixations.csv")
    for name in list(seen)[:count]:
        path = next(iter(sorted((DATA / "osie/images").glob(f"{Path(name).stem}.*"))))
        image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image).copy())[None]
        mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
        images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        probes = ProbeSet.from_tensors(images, class_names=class_names(), pixels=pixels, mean=MEAN, std=STD)
        record = audit(model, probes, [Why()], ImplicitSaliency(), GradCAM())
        maps = {
            "where 15 people looked": shown(seen[name].double()),
            "implicit saliency": record.maps["implicit_saliency"].heatmaps[0, 0],
            f"Grad-CAM of {answer(record)}": record.maps["gradcam"].heatmaps[0, 0],
        }
        tiles = [Tile(heated(probes, 0, heatmap), words) for words, heatmap in maps.items()]
        yield Row(f"photo {path.stem}", "Implicit saliency (Sun et al., ICIP 2020)", [
            Tile(probes.pixels[0].numpy()), *tiles
        ])  # fmt: skip


def circled() -> Row:
    """The picture of docs/found_regions.md."""
    picture = Tile(np.asarray(Image.open(FOUND).convert("RGB")), "made by scripts/studies/found_regions.py", 700)
    return Row("lesions beside a cloth", "Found regions of maps by two nets", [picture])
