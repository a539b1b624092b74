"""Does the uncertainty of an explanation tell wrong answers from right ones? `VOICE` on a ResNet-20 of CIFAR-10.

The net has seen the 4,000 photos in training, and errs on them once they are compressed as JPEG. Signal to noise and
overlap of `ExplanationUncertainty`, over all nine other classes, are judged by the AUROC of wrong against right
answers (larger = rather wrong; below .5 the other way round), beside one less the largest probability. 95 % intervals
by a bootstrap over photos.

    python scripts/studies/explanation_uncertainty.py --json docs/results/explanation_uncertainty.json

Takes a minute on one CPU thread.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad, relu

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _provenance import provenance, write_json

from xai_callbacks import (
    VOICE,
    Auditor,
    ExplanationUncertainty,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    ProbeSet,
    Why,
)
from xai_callbacks.explainers import LayerExplainer
from xai_callbacks.metrics import separate

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Stages of the net: the last, which is averaged for the linear layer, and the one before.
METHODS: dict[str, tuple[type[LayerExplainer], str]] = {
    "gradcam": (GradCAM, "layer3"),
    "gradcam_plus_plus": (GradCAMPlusPlus, "layer3"),
    "gradcam_early": (GradCAM, "layer2"),
    "hirescam_early": (HiResCAM, "layer2"),
}


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters: every second pixel, and channels of zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.added = outputs // inputs, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        """Convolve, and add the shortcut."""
        added = self.added // 2
        shortcut = pad(given[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, added, added))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(given))))) + shortcut)


class ResNet20(nn.Module):
    """The ResNet of three stages of three blocks for CIFAR-10 (He et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, width), Block(width, width), Block(width, width))
            for before, width in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)`."""
        features = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(images))))))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def compressed(pixels: np.ndarray[Any, Any], quality: int) -> Tensor:
    """Images `(N, H, W, 3)` uint8 after JPEG, `(N, 3, H, W)` in [0, 1]."""
    found = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def judged(values: Tensor, wrong: Tensor) -> dict[str, Any]:
    """AUROC of wrong against right answers, over images that have a value, and the means of both."""
    valid = values.isfinite()
    right_ones, wrong_ones = values[valid & ~wrong], values[valid & wrong]
    auroc = separate(right_ones, wrong_ones)["auroc"]
    return {
        "auroc": [None if each is None else round(each, 4) for each in auroc[:3]],
        "right": round(float(right_ones.mean()), 4),
        "wrong": round(float(wrong_ones.mean()), 4),
        "without_value": int((~valid).sum()),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--quality", type=int, default=75)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = ResNet20()
    model.load_state_dict(load_file(options.data / "weights" / "resnet20_cifar10.safetensors"))
    with np.load(options.data / "cifar10_4000" / "train_first4000.npz") as arrays:
        pixels, labels = arrays["x"][: options.images], arrays["y"][: options.images]
    images = (compressed(pixels, options.quality) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    probes = ProbeSet.from_tensors(images, torch.from_numpy(labels).long(), mean=MEAN, std=STD)
    kinds = {name: kind(layer, name=name) for name, (kind, layer) in METHODS.items()}
    record = Auditor(
        probes,
        [Why()],
        explainers=[*kinds.values(), *(VOICE(each, foils=None, name=f"voice_{name}") for name, each in kinds.items())],
        novelty=[],
        measures=[ExplanationUncertainty(f"voice_{name}", f"{name}/why") for name in kinds],
        chunk_size=100,
    ).audit(model)
    assert record.correct is not None, "the probes have labels"
    assert record.confidences is not None, "the net classifies"
    wrong = record.correct == 0
    result: dict[str, Any] = {
        "accuracy": round(float(record.correct.mean()), 4),
        "one_less_confidence": judged(1 - record.confidences.double(), wrong),
        "uncertainty": {
            name: {part: judged(record.per_probe[f"voice_{name}/{part}"], wrong) for part in ("snr", "iou")}
            for name in kinds
        },
        "setup": {"images": len(images), "jpeg_quality": options.quality, "foils": 9, **provenance()},
    }
    print(f"accuracy {result['accuracy']:.3f}; AUROC of wrong answers:")
    print(f"  1 - p_max {result['one_less_confidence']['auroc']}")
    for name, parts in result["uncertainty"].items():
        print(f"  {name}: " + ", ".join(f"{part} {each['auroc']}" for part, each in parts.items()))
    if options.json:
        write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
