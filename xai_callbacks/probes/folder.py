"""Probe sets from a folder of images, with an optional manifest and optional masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as geometry

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_normalisation, to_texts
from xai_callbacks.probes.manifest import (
    EXTENSIONS,
    MANIFEST,
    MASKS,
    Listing,
    inside,
    read_class_folders,
    read_manifest,
)
from xai_callbacks.probes.probe_set import ProbeSet

__all__ = ["build_from_folder"]

# Converting these to 8 bit clips instead of scaling: the model would see something else than in training.
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow raises on damaged, truncated, oversized and foreign files.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def build_from_folder(
    root: str | os.PathLike[str],
    *,
    size: int | tuple[int, int],
    resize: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    class_names: Sequence[str] | None,
) -> ProbeSet:
    """Read the folder; the contract is that of `ProbeSet.from_folder`."""
    folder = Path(root)
    if not folder.is_dir():
        raise ProbeSetError(f"Expected `root` to be a folder, but {str(root)!r} is not one.")
    channels = 1 if isinstance(mean, Sequence) and len(mean) == 1 else 3
    means, stds = to_normalisation(mean, std, channels)
    frame = _frame(size, resize)
    classes = to_texts(class_names, "class_names")
    has_manifest = (folder / MANIFEST).exists()
    listing = read_manifest(folder, classes) if has_manifest else read_class_folders(folder, classes)
    opened = [_open_image(folder, file, channels) for file in listing.files]
    shown = [
        np.asarray(frame.applied(image, InterpolationMode.BILINEAR, file))
        for image, file in zip(opened, listing.files, strict=True)
    ]
    masks = _read_masks(folder, listing, [image.size for image in opened], frame)
    pixels = torch.from_numpy(np.stack(shown)).view(len(shown), *frame.size, channels)
    return ProbeSet(
        _normalised(pixels, means, stds),
        listing.labels,
        targets=listing.targets,
        pixels=pixels.expand(-1, -1, -1, 3),
        names=listing.names,
        groups=listing.groups,
        masks=masks,
        class_names=listing.class_names,
        group_names=listing.group_names,
        mean=means,
        std=stds,
    )


@dataclass(frozen=True)
class _Frame:
    """The geometry that images and masks share: shorter side to `resize` (or just filling), then centre crop."""

    size: tuple[int, int]
    resize: int | None

    def applied(self, image: Image.Image, interpolation: InterpolationMode, file: str) -> Image.Image:
        """Resize and crop as torchvision's `Resize` and `CenterCrop` do on PIL images."""
        scaled = geometry.resize(image, self._scaled_size(image), interpolation=interpolation)
        if scaled.height < self.size[0] or scaled.width < self.size[1]:
            raise ProbeSetError(
                f"Expected {file!r} to fill {self.size} (H, W) after its shorter side became {self.resize}, but got "
                f"{(scaled.height, scaled.width)}. Use a larger `resize`, or leave it out."
            )
        cropped: Image.Image = geometry.center_crop(scaled, list(self.size))
        return cropped

    def _scaled_size(self, image: Image.Image) -> list[int]:
        """Return (H, W) after scaling, with the rounding of torchvision: the longer side is cut to a whole number."""
        shorter, longer = sorted((image.height, image.width))
        target = self.resize
        if target is None:
            fill = max(self.size[0] / image.height, self.size[1] / image.width)
            target = max(1, round(fill * shorter))
        other = max(1, int(target * longer / shorter))
        height, width = (target, other) if image.height <= image.width else (other, target)
        if self.resize is None:
            # Rounding down must not leave the picture one pixel short of the crop.
            height, width = max(height, self.size[0]), max(width, self.size[1])
        return [height, width]


def _frame(size: Any, resize: Any) -> _Frame:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(_is_positive(side) for side in sides):
        raise ProbeSetError(f"Expected `size` to be a positive whole number or (H, W), but got {size!r}.")
    if resize is not None and (not _is_positive(resize) or resize < min(sides)):
        raise ProbeSetError(
            f"Expected `resize` to be a whole number of at least {min(sides)}, to fill `size`, but got {resize!r}."
        )
    return _Frame((sides[0], sides[1]), resize)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _open_image(root: Path, file: str, channels: int) -> Image.Image:
    image = _opened(root, file)
    if image.mode in WIDE_MODES:
        raise ProbeSetError(
            f"Expected {file!r} to be an image of 8 bits a channel, but its mode is {image.mode!r}. "
            "Convert it to 8 bit the way your training data were, or use `ProbeSet.from_tensors`."
        )
    if image.mode == "P":
        # Straight to RGB, Pillow warns about palettes with transparency; by way of RGBA the colours are the same.
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _opened(root: Path, file: str) -> Image.Image:
    path = inside(root, file)
    if not path.is_file():
        raise ProbeSetError(f"Expected {file!r} to be an image under the probe folder, but there is no such file.")
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except UNREADABLE as error:
        raise ProbeSetError(
            f"Expected {file!r} to be a readable image, but got {type(error).__name__}: {error}. Replace or drop it."
        ) from error


def _normalised(pixels: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """Scale uint8 `(N, H, W, C)` to [0, 1] and normalise, giving `(N, C, H, W)`."""
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    if mean is None or std is None:
        return images
    shape = (1, -1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def _read_masks(
    root: Path, listing: Listing, sizes: list[tuple[int, int]], frame: _Frame
) -> dict[str, list[Tensor | None]]:
    folder = root / MASKS
    if not folder.is_dir():
        return {}
    regions = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    masks: dict[str, list[Tensor | None]] = {}
    for region in regions:
        files = [f"{MASKS}/{region}/{Path(file).with_suffix('').as_posix()}.png" for file in listing.files]
        masks[region] = [_read_mask(root, file, size, frame) for file, size in zip(files, sizes, strict=True)]
        if all(mask is None for mask in masks[region]) and not _belongs_to_images(root, region):
            raise ProbeSetError(
                f"Expected `{MASKS}/{region}` to hold a mask for at least one probe, e.g. {files[0]!r}, but found "
                "none. A mask has the path of its image and ends in .png."
            )
    return masks


def _belongs_to_images(root: Path, region: str) -> bool:
    """Tell whether any mask of a region has its image; a manifest may list none of the images that have masks."""
    folder = root / MASKS / region
    stems = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.png"))
    return any((root / f"{stem}{extension}").is_file() for stem in stems for extension in EXTENSIONS)


def _read_mask(root: Path, file: str, size: tuple[int, int], frame: _Frame) -> Tensor | None:
    if not inside(root, file).is_file():
        return None
    mask = _opened(root, file)
    if mask.size != size:
        raise ProbeSetError(
            f"Expected mask {file!r} to be {size[1]} x {size[0]} (H x W), as its image, but got "
            f"{mask.height} x {mask.width}. Save the mask at the size of the image."
        )
    whole = Image.fromarray(np.where(_nonzero(mask), np.uint8(255), np.uint8(0)))
    return torch.from_numpy(np.array(frame.applied(whole, InterpolationMode.NEAREST, file)) > 0)


def _nonzero(mask: Image.Image) -> npt.NDArray[np.bool_]:
    """Return where a mask is nonzero: any colour channel, and not fully transparent."""
    values = np.asarray(mask)
    if mask.mode in ("RGBA", "LA"):
        return np.asarray((values[..., :-1] > 0).any(axis=-1) & (values[..., -1] > 0))
    return np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=-1))
