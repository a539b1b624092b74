"""Panels of real, trained nets on the photos of the contrastive-explanations papers.

    python scripts/render_real_nets.py --data ../shared/data --out runs/real_nets

Asks why a bull mastiff is not a boxer and a spoonbill not a flamingo, of MobileNetV2, SqueezeNet and DeiT-tiny. Needs
a folder with `weights/*.safetensors`, `papers_photos/*.jpg` and `imagenet_classes.json`; prints what each net answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from xai_callbacks import Auditor, ProbeSet, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.sinks import PictureBook

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Photo, label, and the class it is held against.
CASES = (
    ("bull_mastiff_boxer_cat", 243, 242),
    ("spoonbill", 129, 130),
    ("flamingo", 130, 129),
)


class TensorFlowPadding(nn.Conv2d):
    """A strided convolution that pads right and below only, as the net from which the weights came does."""

    def forward(self, images: Tensor) -> Tensor:
        """Pad, then convolve."""
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def mobilenet_v2(weights: Path) -> nn.Module:
    """MobileNetV2 with the padding its weights were trained with."""
    model: nn.Module = torchvision.models.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size == (3, 3):
            module.padding = (0, 0)
            module.__class__ = TensorFlowPadding
    return loaded(model, weights / "mobilenet_v2_imagenet.fp16.safetensors")


def squeezenet(weights: Path) -> nn.Module:
    """SqueezeNet 1.0, whose head is a convolution and a pooling layer."""
    return loaded(torchvision.models.squeezenet1_0(weights=None), weights / "squeezenet1_0_imagenet.fp16.safetensors")


def deit_tiny(weights: Path) -> nn.Module:
    """DeiT-tiny, a vision transformer."""
    model = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
    return loaded(model, weights / "deit_tiny_imagenet.fp16.safetensors")


def loaded(model: nn.Module, path: Path) -> nn.Module:
    """The model with weights kept in half precision."""
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model


MODELS = {"mobilenet_v2": mobilenet_v2, "squeezenet1_0": squeezenet, "deit_tiny": deit_tiny}


def photo_probes(data: Path) -> ProbeSet:
    """The photos as the nets expect them: shorter side 256, centre crop 224, normalised."""
    classes = json.loads((data / "imagenet_classes.json").read_text())
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = []
    for name, _, _ in CASES:
        with Image.open(data / "papers_photos" / f"{name}.jpg") as photo:
            images.append(prepare(photo.convert("RGB")))
    return ProbeSet.from_tensors(
        torch.stack(images),
        torch.tensor([label for _, label, _ in CASES]),
        names=[name for name, _, _ in CASES],
        class_names=[str(name).replace("_", " ") for name in classes],
        mean=MEAN,
        std=STD,
    )


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Render one panel a net and photo; returns the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/real_nets"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args(arguments)
    if not (options.data / "weights").is_dir():
        parser.error(
            f"--data: expected a folder with weights, papers_photos and imagenet_classes.json, got {options.data}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    probes, written = photo_probes(options.data), []
    for name in options.models:
        model = MODELS[name](options.data / "weights")
        for index, (photo, _, foil) in enumerate(CASES):
            probe = probes.select([index])
            record = Auditor(probe, (Why(), WhyRatherThan(foil=foil), WhyNotCertain())).audit(model)
            path = options.out / f"{photo}_{name}.png"
            Image.fromarray(PictureBook(probe, max_panels=1).panel(record, 0)).save(path)
            written.append(path)
            print(f"{name}: {PictureBook(probe, 1).caption(record, 0)} for {photo}, at `{record.layer}` -> {path}")
    return written


if __name__ == "__main__":
    main()
