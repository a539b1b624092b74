"""Probe sets from a folder of images, with an optional manifest and optional masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.listing import EXTENSIONS, MANIFEST, MASKS, Listing, read_class_folders
from xai_callbacks.probes.manifest import read_manifest
from xai_callbacks.probes.normalisation import normalised, to_normalisation, to_numbers
from xai_callbacks.probes.paths import entries, inside, no_file, to_path
from xai_callbacks.probes.pictures import Frame, open_image, open_mask, to_frame
from xai_callbacks.probes.probe_set import ProbeSet

__all__ = ["build_from_folder"]


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
    folder = to_path(root, "root")
    if not os.path.isdir(folder):
        raise ProbeSetError(f"Expected `root` to be a folder, but {str(root)!r} is not one.")
    channels = 1 if mean is not None and len(to_numbers(mean, "mean")) == 1 else 3
    means, stds = to_normalisation(mean, std, channels)
    frame = to_frame(size, resize)
    classes = to_texts(class_names, "class_names")
    has_manifest = os.path.lexists(folder / MANIFEST)
    listing = read_manifest(folder, classes) if has_manifest else read_class_folders(folder, classes)
    # One by one, so that no more than one large picture is in memory.
    shown, sizes = zip(*(_read_image(folder, file, channels, frame) for file in listing.files), strict=True)
    pixels = torch.stack(shown)
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    return ProbeSet(
        images if means is None or stds is None else normalised(images, means, stds),
        listing.labels,
        targets=listing.targets,
        pixels=pixels.expand(-1, -1, -1, 3),
        names=listing.names,
        groups=listing.groups,
        masks=_read_masks(folder, listing, sizes, frame),
        class_names=listing.class_names,
        target_names=listing.target_names,
        group_names=listing.group_names,
        mean=means,
        std=stds,
    )


def _read_image(root: Path, file: str, channels: int, frame: Frame) -> tuple[Tensor, tuple[int, int]]:
    """Pixels `(H, W, channels)` uint8, and the size (W, H) of the file."""
    image = open_image(root, file, channels)
    framed = frame.applied(image, Image.Resampling.BILINEAR, file)
    return torch.from_numpy(np.array(framed)).view(*frame.size, channels), image.size


def _read_masks(
    root: Path, listing: Listing, sizes: Sequence[tuple[int, int]], frame: Frame
) -> dict[str, list[Tensor | None]]:
    folder = root / MASKS
    if not os.path.lexists(folder):
        return {}
    if not os.path.isdir(folder):
        raise ProbeSetError(f"Expected {MASKS!r} to be a folder of folders of masks, one a region, but it is none.")
    masks: dict[str, list[Tensor | None]] = {}
    for region in (entry.name for entry in entries(folder) if os.path.isdir(entry)):
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
    return any(no_file(root / f"{stem}{extension}") is None for stem in stems for extension in EXTENSIONS)


def _read_mask(root: Path, file: str, size: tuple[int, int], frame: Frame) -> Tensor | None:
    if not os.path.lexists(inside(root, file)):
        return None
    mask, nonzero = open_mask(root, file)
    if mask.size != size:
        raise ProbeSetError(
            f"Expected mask {file!r} to be {size[1]} x {size[0]} (H x W), as its image, but got "
            f"{mask.height} x {mask.width}. Save the mask at the size of the image."
        )
    whole = Image.fromarray(np.where(nonzero, np.uint8(255), np.uint8(0)))
    return torch.from_numpy(np.array(frame.applied(whole, Image.Resampling.NEAREST, file)) > 0)
