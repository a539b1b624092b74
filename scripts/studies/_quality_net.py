"""A net of image quality that judges patches and averages, and photos of which one half is corrupted."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

__all__ = ["CORRUPTIONS", "PATCH", "PatchQuality", "corrupted", "photos"]

PATCH = 32
CORRUPTIONS = ("blur", "noise", "jpeg")


class CNNIQA(nn.Module):
    """No-reference quality of a patch (Kang et al., CVPR 2014): global max and min of one convolution, three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 50, 7)
        self.fc1, self.fc2, self.fc3 = nn.Linear(100, 800), nn.Linear(800, 800), nn.Linear(800, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """DMOS of normalised patches `(M, 1, 32, 32)`, `(M, 1)`: higher is worse."""
        features = self.conv1(patches)
        pooled = torch.cat([features.amax(dim=(2, 3)), features.amin(dim=(2, 3))], dim=1)
        scores: Tensor = self.fc3(self.fc2(self.fc1(pooled).relu()).relu())
        return scores


class PatchQuality(nn.Module):
    """Mean score of the patches side by side of photos `(N, 1, H, W)` in [0, 1], sides a multiple of 32; `(N, 1)`.

    Args:
        weights: Folder of `cnniqa_live.safetensors`.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.net = CNNIQA()
        self.net.load_state_dict(load_file(weights / "cnniqa_live.safetensors"))

    def forward(self, images: Tensor) -> Tensor:
        """Cut, normalise each patch by itself, judge and average."""
        patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(1, 3)
        scores: Tensor = self.net(_normalised(patches.flatten(0, 1)[:, None]))
        return scores.reshape(len(images), -1).mean(dim=1, keepdim=True)


def _normalised(patches: Tensor) -> Tensor:
    """Less the mean of the 3 x 3 pixels around each, over their deviation + 1."""
    padded = F.pad(patches, (1, 1, 1, 1), mode="replicate")
    mean = F.avg_pool2d(padded, 3, 1)
    deviation = (F.avg_pool2d(padded.square(), 3, 1) - mean.square()).clamp_min(0).sqrt()
    return (patches - mean) / (deviation + 1)


def photos(folder: Path, count: int, side: int) -> Tensor:
    """The middle of grey photos of COCO, not resized, `(N, 1, side, side)` in [0, 1]."""
    found = []
    for path in sorted((folder / "coco" / "images").glob("*.jpg"))[:count]:
        with Image.open(path) as photo:
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            grey = photo.convert("L").crop((left, top, left + side, top + side))
        found.append(torch.from_numpy(np.asarray(grey).copy()).float() / 255)
    return torch.stack(found)[:, None]


def corrupted(images: Tensor, kind: str, halves: Tensor) -> Tensor:
    """Photos with one half corrupted, where `halves` `(N, 1, H, W)` says; rounded to 256 levels of grey.

    `blur`: Gaussian, deviation 2 px. `noise`: normal, deviation .1. `jpeg`: quality 10, of the whole photo.
    """
    if kind == "blur":
        worse = gaussian_blur(images, [13, 13], [2.0, 2.0])
    elif kind == "noise":
        worse = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    else:
        worse = torch.stack([_jpeg(each) for each in images])
    return torch.where(halves, (worse.clamp(0, 1) * 255).round() / 255, images)


def _jpeg(image: Tensor) -> Tensor:
    held = BytesIO()
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(held, "JPEG", quality=10)
    return torch.from_numpy(np.asarray(Image.open(held)).copy()).float()[None] / 255
