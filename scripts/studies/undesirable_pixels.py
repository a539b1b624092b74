"""Do masks of undesirable pixels do what they say? What hiding them does to the logits of misclassified images.

The class asked about is the true one, which the net does not answer. Masks of `UndesirablePixels`, of what hinders it
(`target`), of what speaks for others (`non-target`) and of what lowers its probability (`general`), hide a fifth of the
image behind the blurred image. Beside them, each with the same area: the same masks in a wrong place (`random`, mean of
four places), those of another image (`other image`), and a fifth of the cells that Grad-CAM marks most for the wrong
answer (`gradcam`). `general` masks and those without gradients are of Fashion-MNIST alone.

Settings were chosen on the first half of the misclassified images, in the order of the files, and are judged on the
second: two small nets on Fashion-MNIST; MobileNetV2 and SqueezeNet on photos of 128 x 128 px, of COCO where the net
does not name the object, and of ImageNet with so much noise that it no longer does. Of COCO, the class is the most
probable of those that name the object. Differences are paired by image.

    python scripts/studies/undesirable_pixels.py --json docs/results/undesirable.json

Takes six minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _imagenet_nets import mobilenet_v2, squeezenet
from _photos import DATA, MEAN, STD, class_names, imagenet_probes, probes_of
from _small_nets import load, train
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import interpolate

from xai_callbacks import Auditor, GradCAM, ProbeSet, UndesirablePixels, WhatHinders, Why
from xai_callbacks.explainers.pixels import baseline_of
from xai_callbacks.explainers.undesirable import covered
from xai_callbacks.metrics.hiding import HidingEffect, hiding_effect, most_relevant
from xai_callbacks.metrics.trust import shifted_maps
from xai_callbacks.record import summarize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _provenance import provenance

AREA, PLACES, CHUNK = 0.2, 4, 32
SEEDS, TRAINED, EPOCHS, SMALL = (1, 2), 15_000, 2, 60
SIDE, PHOTOS, NOISE = 128, 32, 0.2
BOUNDS = {"flips": (0.0, 1.0), "before": (0.0, 1.0), "after": (0.0, 1.0)}
NETS: dict[str, Any] = {"fashion_mnist": train, "mobilenet_v2": mobilenet_v2, "squeezenet1_0": squeezenet}
# Classes of ImageNet that name an object of COCO, where they are few.
NAMED = {
    "airplane": "airliner warplane", "banana": "banana", "bed": "four-poster studio_couch", "bench": "park_bench",
    "bear": "brown_bear American_black_bear ice_bear sloth_bear", "broccoli": "broccoli", "couch": "studio_couch",
    "bus": "minibus school_bus trolleybus", "cat": "tabby tiger_cat Persian_cat Siamese_cat Egyptian_cat",
    "clock": "analog_clock digital_clock wall_clock", "dining table": "dining_table", "horse": "sorrel",
    "elephant": "tusker Indian_elephant African_elephant", "laptop": "laptop notebook", "orange": "orange",
    "motorcycle": "moped motor_scooter", "oven": "stove rotisserie microwave", "pizza": "pizza", "vase": "vase",
    "refrigerator": "refrigerator", "sheep": "ram bighorn", "teddy bear": "teddy", "toilet": "toilet_seat",
    "train": "passenger_car bullet_train electric_locomotive steam_locomotive freight_car", "umbrella": "umbrella",
    "tv": "television screen monitor", "zebra": "zebra",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A net, images that it misclassifies, and their true classes."""

    model: nn.Module
    images: Tensor
    classes: Tensor

    def half(self, second: bool, count: int) -> Case:
        """The first images of a half."""
        start = len(self.classes) // 2 if second else 0
        end = min(start + count, len(self.classes) if second else len(self.classes) // 2)
        return Case(self.model, self.images[start:end], self.classes[start:end])

    def maps(self, explainers: list[Any], question: Why) -> dict[str, Tensor]:
        """Maps `(N, h, w)` of explainers, by their names."""
        channels = self.images.shape[1]
        mean, std = (MEAN, STD) if channels > 1 else ((0.0,), (1.0,))
        probes = ProbeSet.from_tensors(self.images, self.classes, mean=mean, std=std)
        auditor = Auditor(probes, [question], explainers=explainers, novelty=[], measures=[], chunk_size=CHUNK)
        record = auditor.audit(self.model)
        return {each.name: record.maps[each.name].heatmaps[0].float() for each in explainers}

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Outputs `(N, K)`."""
        return torch.cat([self.model(chunk) for chunk in torch.split(images, CHUNK)])

    def effect(self, hidden: Tensor) -> HidingEffect:
        """What masks `(N, h, w)` do."""
        shown = covered(self.images, baseline_of(self.images, "blur"), hidden)
        return hiding_effect(self.logits(self.images), self.logits(shown), self.classes)


def misclassified(model: nn.Module, images: Tensor, named: list[list[int]]) -> Case:
    """The images whose answer is none of their classes, each with the most probable of these."""
    case = Case(model, images, torch.zeros(len(images), dtype=torch.int64))
    logits = case.logits(images)
    best = [each[int(row[each].argmax())] for each, row in zip(named, logits, strict=True)]
    wrong = [int(row.argmax()) not in each for each, row in zip(named, logits, strict=True)]
    return Case(model, images[wrong], torch.tensor(best)[wrong])


def fashion(seed: int) -> Case:
    """A small net, and the test images that it misclassifies."""
    folder = DATA / "fashion_mnist"
    model = train(
        load(folder, "train").draw(TRAINED, torch.Generator().manual_seed(seed)), 10, epochs=EPOCHS, seed=seed
    )
    test = load(folder, "t10k")
    return misclassified(model, test.pixels, [[label] for label in test.labels.tolist()])


def photos(model: nn.Module, column: str) -> list[Case]:
    """Photos of COCO, and noisy ones of ImageNet."""
    model.eval().requires_grad_(False)
    names = class_names()
    with (DATA / "coco/objects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[f"{column}_right"] == "0" and row["object"] in NAMED]
    coco = probes_of([DATA / f"coco/images/{row['image']}.jpg" for row in rows]).images
    classes = [[names.index(name) for name in NAMED[row["object"]].split()] for row in rows]
    clean = imagenet_probes()
    noise = torch.randn(clean.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = clean.images + NOISE * noise / torch.tensor(STD)[:, None, None]
    return [
        misclassified(model, _smaller(coco), classes),
        misclassified(model, _smaller(noisy), [[int(name[:3])] for name in clean.names]),
    ]


def _smaller(images: Tensor) -> Tensor:
    return interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)


def judged(cases: list[Case], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Effects of masks and of their controls over all images, and differences by image."""
    effects: dict[str, list[HidingEffect]] = {}
    for number, case in enumerate(cases):
        masks = case.maps([UndesirablePixels(**each, name=name) for name, each in settings.items()], WhatHinders())
        hidden = {name: -each for name, each in masks.items()}
        cam = interpolate(case.maps([GradCAM()], Why())["gradcam"][:, None], size=(7, 7), mode="bilinear")[:, 0]
        hidden["gradcam"] = most_relevant(cam, AREA)
        found = {name: case.effect(each) for name, each in hidden.items()}
        for kind in ("target", "non-target"):
            moved = [case.effect(shifted_maps(hidden[kind], 10 * number + place)) for place in range(PLACES)]
            found[f"{kind}, random"] = HidingEffect(
                *(torch.stack(each).mean(dim=0) for each in zip(*moved, strict=True))
            )
            found[f"{kind}, other image"] = case.effect(hidden[kind].roll(1, dims=0))
        for name, each in found.items():
            effects.setdefault(name, []).append(each)
    whole = {name: HidingEffect(*map(torch.cat, zip(*each, strict=True))) for name, each in effects.items()}
    return {
        "images": sum(len(case.classes) for case in cases),
        "effects": {name: _summed(each) for name, each in whole.items()},
        "gains": {
            f"{kind} over {other}": _estimate(getattr(whole[kind], key) - getattr(whole[other], key))
            for kind, key in (("target", "target"), ("non-target", "rival"))
            for other in (f"{kind}, random", f"{kind}, other image", "gradcam", "general")
            if other in whole
        },
    }


def _summed(effect: HidingEffect) -> dict[str, Any]:
    found = {name: _estimate(values, name) for name, values in effect._asdict().items()}
    return found | {"target_moved": _estimate(effect.target.abs())}


def _estimate(values: Tensor, name: str = "") -> list[float | None]:
    """Mean, and the ends of its interval."""
    found = summarize(values, bounds=BOUNDS.get(name, (None, None)))
    return [None if each is None else round(each, 3) for each in (found.value, found.low, found.high)]


def holds(found: Mapping[str, Any]) -> dict[str, bool]:
    """What must hold, by the ends of intervals; that a logit is nearly pinned, by a fourth of what is gained."""
    effects, gains = found["effects"], found["gains"]
    target, rival = effects["target"], effects["non-target"]
    return {
        "target mask raises its class": target["target"][1] > 0,
        "each other nearly pinned meanwhile": target["moved"][2] < target["target"][0] / 4,
        "the others in sum": abs(target["others"][0]) < target["target"][0] / 4,
        "and the rival": abs(target["rival"][0]) < target["target"][0] / 4,
        "target beats random": gains["target over target, random"][1] > 0,
        "target beats another image's": gains["target over target, other image"][1] > 0,
        "target beats Grad-CAM": gains["target over gradcam"][1] > 0,
        "non-target mask lowers the rival": rival["rival"][1] > 0,
        "its class nearly pinned meanwhile": rival["target_moved"][2] < rival["rival"][0] / 4,
        "non-target beats random": gains["non-target over non-target, random"][1] > 0,
        "non-target beats another image's": gains["non-target over non-target, other image"][1] > 0,
        "non-target beats Grad-CAM": gains["non-target over gradcam"][1] > 0,
    }


KINDS: dict[str, dict[str, Any]] = {each: {"factors": each} for each in ("target", "non-target", "general")}
WITHOUT = {f"{each}_without_gradients": {"factors": each, "gradients": False} for each in ("target", "non-target")}
TRIED: dict[str, dict[str, Any]] = {
    "defaults": {}, "area .1": {"area": 0.1}, "no area": {"area": None}, "smoothness .1": {"smoothness": 0.1},
    "pinning 1": {"pinning": 1.0}, "pinning 5": {"pinning": 5.0}, "20 steps": {"steps": 20},
    "100 steps": {"steps": 100}, "14 cells": {"cells": 14}, "without gradients": {"gradients": False},
}  # fmt: skip


def tried(case: Case) -> dict[str, Any]:
    """What masks of other settings do, to images that are not judged."""
    found: dict[str, Any] = {}
    for name, changed in TRIED.items():
        explainers = [UndesirablePixels(kind, **changed, name=kind) for kind in ("target", "non-target")]
        for kind, maps in case.maps(explainers, WhatHinders()).items():
            effect = case.effect(-maps)
            figures = {
                key: round(float(getattr(effect, key).mean()), 3) for key in ("target", "rival", "moved", "flips")
            }
            found.setdefault(name, {})[kind] = figures | {"area": round(-float(maps.mean()), 3)}
    return found


def judged_net(name: str) -> dict[str, Any]:
    """All figures of one entry of `NETS`."""
    began = time.process_time()
    if name == "fashion_mnist":
        small = [fashion(seed) for seed in SEEDS]
        found = judged([case.half(second=True, count=SMALL) for case in small], KINDS | WITHOUT)
        found["settings"] = tried(small[0].half(second=False, count=40))
    else:
        coco, noisy = photos(NETS[name](DATA / "weights"), name)
        half = coco.half(second=True, count=PHOTOS)
        more = noisy.half(second=True, count=PHOTOS - len(half.classes))
        found = judged([half, more], {each: KINDS[each] for each in ("target", "non-target")})
    minutes = round((time.process_time() - began) / 60, 1)
    return found | {"holds": holds(found), "cpu_minutes": minutes, "provenance": provenance()}


def main() -> None:
    """Judge nets, and write the figures beside those of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", nargs="+", choices=list(NETS), default=list(NETS), help="which to judge; the rest stays"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.nets:
        found = judged_net(name)
        Console().print_json(json.dumps({name: found}))
        if arguments.json is not None:
            kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            arguments.json.write_text(json.dumps(kept | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
