"""Folders of pictures, masks and manifests, for the tests of probe sets from a folder."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(height=8, width=8, seed=0, channels=3):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def manifest(root, text="file,label\ncat/1.png,cat\n"):
    (root / "probes.csv").write_text(text, encoding="utf-8")
