"""Scenes to degrade, and what each condition does to them at each level."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from xai_callbacks.interventions import CONDITIONS, LEVELS

BLUR = dict(zip(LEVELS, (0.006, 0.012, 0.02, 0.032, 0.048), strict=True))
NOISE = dict(zip(LEVELS, (0.04, 0.08, 0.13, 0.2, 0.3), strict=True))
DARKENING = dict(zip(LEVELS, (0.8, 0.6, 0.42, 0.28, 0.18), strict=True))
OCCLUSION = dict(zip(LEVELS, (0.15, 0.24, 0.34, 0.45, 0.57), strict=True))
JPEG = dict(zip(LEVELS, (25, 14, 8, 4, 2), strict=True))

every_condition = pytest.mark.parametrize("condition", CONDITIONS)
every_level = pytest.mark.parametrize("level", LEVELS)


def scenes(count: int = 4, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    """Smooth blobs with hard edges, in the full range."""
    noise = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)).double().numpy()
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, height / 12, width / 12), mode="wrap"))
    low, high = smooth.amin(dim=(1, 2, 3), keepdim=True), smooth.amax(dim=(1, 2, 3), keepdim=True)
    images = (smooth - low) / (high - low)
    images[..., height // 2 :, : width // 3] = 1 - images[..., height // 2 :, : width // 3]
    return images.float()
