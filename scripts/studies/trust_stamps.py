"""What the tests of `Trust` say of every explainer that is cheap enough to be asked about random weights.

`shapes`: small nets trained on four shapes, one a seed, whose cue says nothing of the class; 96 probes.
`mobilenet`: MobileNetV2 on photos of COCO whose object it names.

Three controls know nothing of the model: `edges`, a Sobel filter of the image; `centre`, the same blob for all images;
`noise`, another map for each image. Noise counts how often what knows nothing passes the deletion test.

    python scripts/studies/trust_stamps.py --json docs/results/trust.json

Takes ten minutes on one CPU thread, of which MobileNetV2 takes seven.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _imagenet_nets import mobilenet_v2
from _shapes import draw, drawn_cues, net, painted, probe_set, train
from PIL import Image
from torch import Tensor, nn

from xai_callbacks import Auditor, AuditRecord, Explainer, ProbeSet, Trust, Why, WhyRatherThan
from xai_callbacks.explainers import (
    Deconvnet,
    GradCAM,
    Gradient,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    InputXGradient,
    LayerCAM,
    Observation,
    Plan,
    SmoothGrad,
)
from xai_callbacks.metrics import sobel_magnitude

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _provenance import ROOT, provenance

DATA = ROOT.parent / "shared" / "data"
SEEDS, NOISES, EPOCHS, IMAGES, PROBES = 8, 4, 20, 1500, 96
PHOTOS = 32  # two more than are needed for an interval
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Control(Explainer):
    """A map that does not look at the model."""

    units = "relative"

    def __init__(self, kind: str, seed: int = 0) -> None:
        super().__init__(f"{kind}_{seed}" if kind == "noise" else kind)
        self.kind, self.seed = kind, seed

    def prepare(self, trace: Any, reference: Tensor | None) -> Plan:
        """Needs nothing."""
        return Plan(reason="no model")

    def explain(self, observation: Observation, plan: Plan) -> Tensor:
        """The same map whatever is asked."""
        images = observation.images.detach()
        if self.kind == "edges":
            maps = sobel_magnitude((images - images.amin()) / (images.amax() - images.amin())).float()
        elif self.kind == "centre":
            line = torch.linspace(-2, 2, 7).square()
            maps = (-line - line[:, None]).exp().expand(len(images), 7, 7)
        else:  # of the image alone, whichever are shown with it
            seeds = [hash((self.seed, image.double().sum().item())) % 2**31 for image in images]
            maps = torch.stack([torch.randn(7, 7, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return maps.expand(len(observation.posed), *maps.shape)


def explainers(*, small: bool) -> list[Explainer]:
    """Explainers of at most eight forward passes an image, and controls; for a `small` net all of them."""
    found: list[Explainer] = [GradCAM(), LayerCAM(), Gradient(), Gradient(saliency="magnitude", name="gradient_size")]
    found += [InputXGradient(), GuidedBackprop(), Deconvnet(), GuidedGradCAM(), Control("edges")]
    if small:
        found += [HiResCAM(), SmoothGrad(4), Control("centre"), *(Control("noise", seed) for seed in range(NOISES))]
    return found


def shapes(seed: int) -> AuditRecord:
    """A small net, trained and audited."""
    pictures = draw(IMAGES, 100 + seed)
    images = painted(pictures, drawn_cues(pictures.labels, 0.25, 200 + seed), "patch")
    model = net(seed)
    train(model, images, pictures.labels, EPOCHS, seed, lambda _epoch: None)
    return audited(model, probe_set("patch", PROBES, 300 + seed), explainers(small=True))


def photos() -> ProbeSet:
    """Photos of COCO whose object MobileNetV2 names, as it expects them."""
    with (DATA / "coco/objects.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["mobilenet_v2_right"] == "1"][:PHOTOS]
    pixels = torch.stack([_cropped(Image.open(DATA / f"coco/images/{name}.jpg").convert("RGB")) for name in names])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    return ProbeSet.from_tensors(images.contiguous(), names=names, mean=MEAN, std=STD, pixels=pixels)


def _cropped(photo: Image.Image) -> Tensor:
    factor = 256 / min(photo.size)
    photo = photo.resize((round(photo.width * factor), round(photo.height * factor)), Image.Resampling.BILINEAR)
    left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
    return torch.from_numpy(np.array(photo.crop((left, top, left + 224, top + 224))))


def audited(model: nn.Module, probes: ProbeSet, methods: Sequence[Explainer]) -> AuditRecord:
    """One audit with tests."""
    asked = [Why(), WhyRatherThan()]
    auditor = Auditor(probes, asked, explainers=[*methods], novelty=[], measures=[Trust()])
    record = auditor.audit(model.eval())
    if record.failed:
        raise RuntimeError(" ".join(record.failed))
    return record


def of_maps(record: AuditRecord) -> dict[str, dict[str, Any]]:
    """Verdict and values of each map."""
    return {
        key: {"verdict": verdict}
        | {
            test.removeprefix(f"{key}/trust/"): {
                name: None if value is None else round(value, 3)
                for name, value in zip(("mean", "low", "high", "chance"), estimate[:4], strict=True)
            }
            for test, estimate in record.metrics.items()
            if test.startswith(f"{key}/trust/")
        }
        for key, verdict in record.trust.items()
    }


def counted(records: Sequence[AuditRecord]) -> dict[str, dict[str, int]]:
    """How many nets gave each verdict, by map; the four maps of noise together."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        for key, verdict in record.trust.items():
            found.setdefault(re.sub(r"^noise_\d+", "noise", key), Counter())[verdict] += 1
    return {key: dict(counts.most_common()) for key, counts in found.items()}


def main() -> None:
    """Audit all nets, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures; they are printed if left out")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of small nets")
    parser.add_argument("--without-mobilenet", action="store_true", help="leave the photos out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = [shapes(seed) for seed in range(arguments.seeds)]
    accuracies = [round(record.metrics["accuracy"].value, 3) for record in records]
    found: dict[str, Any] = {
        "shapes": {
            "nets": len(records),
            "probes": PROBES,
            "accuracy": accuracies,
            "verdicts": counted(records),
            "first_net": of_maps(records[0]),
        }
    }
    if not arguments.without_mobilenet:
        probes = photos()
        record = audited(mobilenet_v2(DATA / "weights"), probes, explainers(small=False))
        found["mobilenet"] = {"probes": len(probes), "maps": of_maps(record)}
    text = json.dumps({"provenance": provenance(), **found}, indent=1)
    if arguments.json is None:
        print(text)
    else:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
