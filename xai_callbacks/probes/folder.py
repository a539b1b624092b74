"""Probe sets from a folder of images, with an optional manifest and optional masks; faults name the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.display import normalised, to_normalisation, to_numbers
from xai_callbacks.probes.manifest import MANIFEST, class_index, default_names, read_manifest
from xai_callbacks.probes.paths import inside, no_file, to_path
from xai_callbacks.probes.probe_set import ProbeSet

__all__ = ["build_from_folder"]

MASKS = "masks"
# The extensions of torchvision's ImageFolder, so that both see the same images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Those of `EXTENSIONS`; others may start programs, as EPS does, whatever the file is called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Converting these to 8 bit clips instead of scaling: the model would see something else than in training.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Modes in which black is zero, and another colour is not.
_MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", *_WIDE_MODES)
# Pixels of an image that was resized and is yet to be cropped.
_MOST_PIXELS = 2**26


def build_from_folder(
    root: str | os.PathLike[str],
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
    frame = _to_frame(size, resize)
    classes = to_texts(class_names, "class_names")
    has_manifest = os.path.lexists(folder / MANIFEST)
    files, given = read_manifest(folder, classes) if has_manifest else _read_class_folders(folder, classes)
    # One by one, so that no more than one large picture is in memory.
    shown, sizes = zip(*(_read_image(folder, file, channels, frame) for file in files), strict=True)
    pixels = torch.stack(shown)
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    if means is not None and stds is not None:
        images = normalised(images, means, stds)
    masks = _read_masks(folder, files, sizes, frame)
    return ProbeSet(images, pixels=pixels.expand(-1, -1, -1, 3), masks=masks, mean=means, std=stds, **given)


class _Frame(NamedTuple):
    """The geometry that images and masks share: shorter side to `resize` (or just filling), then centre crop."""

    height: int
    width: int
    resize: int | None

    def applied(self, image: Image.Image, resampling: Image.Resampling, file: str) -> Image.Image:
        """Resize and crop exactly as torchvision's `Resize` and `CenterCrop` do on PIL images."""
        shorter = min(image.size)
        fill = max(self.height / image.height, self.width / image.width)
        target = max(1, round(fill * shorter)) if self.resize is None else self.resize
        # The longer side is cut to a whole number.
        height, width = (
            target if side == shorter else max(1, int(target * side / shorter)) for side in (image.height, image.width)
        )
        if self.resize is None:
            # Rounding down must not leave the picture one pixel short of the crop.
            height, width = max(height, self.height), max(width, self.width)
        size = (self.height, self.width)
        if height * width > _MOST_PIXELS:
            raise ProbeSetError(
                f"Expected {file!r}, {image.height:,} x {image.width:,} pixels (H x W), to have at most "
                f"{_MOST_PIXELS:,} when it is resized to fill {size}, but it would have {height:,} x {width:,}. "
                "Crop it to a more even shape, or make `size` or `resize` smaller."
            )
        if height < self.height or width < self.width:
            raise ProbeSetError(
                f"Expected {file!r} to fill {size} (H, W) after its shorter side became {self.resize}, but got "
                f"{(height, width)}. Use a larger `resize`, or leave it out."
            )
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return image.resize((width, height), resampling).crop((left, top, left + self.width, top + self.height))


def _to_frame(size: Any, resize: Any) -> _Frame:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(_is_positive(side) for side in sides):
        raise ProbeSetError(f"Expected `size` to be a positive whole number or (H, W), but got {size!r}.")
    if resize is not None and (not _is_positive(resize) or resize < min(sides)):
        raise ProbeSetError(f"Expected `resize` to be a whole number of {min(sides)} or more, but got {resize!r}.")
    return _Frame(*sides, resize)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_class_folders(root: Path, class_names: tuple[str, ...] | None) -> tuple[list[str], dict[str, Any]]:
    """List the images of class subfolders, as torchvision's `ImageFolder` does; `masks` is no class."""
    folders = [folder for folder in _folders(root) if folder != MASKS]
    classes = tuple(folders) if class_names is None else class_names
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        inside(root, folder)
        label = class_index(folder, classes, f"folder {folder!r}")
        paths = sorted(path for path in (root / folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
        files += [path.relative_to(root).as_posix() for path in paths if not os.path.isdir(path)]
        labels += [label] * (len(files) - len(labels))
    if not files:
        raise ProbeSetError(
            f"Expected {str(root)!r} to hold {MANIFEST!r} or one subfolder of images a class, but found no image. "
            f"List loose images in {MANIFEST!r} with columns file,label."
        )
    return files, {"labels": labels, "names": default_names(files), "class_names": classes}


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, but for those that begin with a dot."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.name[0] != "." and os.path.isdir(entry))
    except OSError as error:
        raise ProbeSetError(f"Expected {str(folder)!r} to be a folder that can be read, but got: {error}.") from error


def _read_image(root: Path, file: str, channels: int, frame: _Frame) -> tuple[Tensor, tuple[int, int]]:
    """Pixels `(H, W, channels)` uint8, and the size (W, H) of the file."""
    image = _opened(root, file)
    if image.mode in _WIDE_MODES:
        raise ProbeSetError(
            f"Expected {file!r} to be an image of 8 bits a channel, but its mode is {image.mode!r}. "
            "Convert it to 8 bit the way your training data were, or use `ProbeSet.from_tensors`."
        )
    wanted = "L" if channels == 1 else "RGB"
    try:
        # Straight to RGB, Pillow warns about palettes with transparency; by way of RGBA the colours are the same.
        converted = (image.convert("RGBA") if image.mode == "P" else image).convert(wanted)
    except Exception as error:  # of Pillow or its colour management
        raise ProbeSetError(
            f"Expected {file!r} to be an image that becomes {wanted}, but its mode is {image.mode!r}: {error}. "
            f"Convert it to RGB the way your training data were."
        ) from error
    framed = frame.applied(converted, Image.Resampling.BILINEAR, file)
    return torch.from_numpy(np.array(framed)).view(frame.height, frame.width, channels), image.size


def _read_masks(
    root: Path, images: Sequence[str], sizes: Sequence[tuple[int, int]], frame: _Frame
) -> dict[str, list[Tensor | None]]:
    folder = root / MASKS
    if not os.path.lexists(folder):
        return {}
    if not os.path.isdir(folder):
        raise ProbeSetError(f"Expected {MASKS!r} to be a folder of folders of masks, one a region, but it is none.")
    masks: dict[str, list[Tensor | None]] = {}
    for region in _folders(folder):
        files = [f"{MASKS}/{region}/{Path(file).with_suffix('').as_posix()}.png" for file in images]
        masks[region] = [_read_mask(root, file, size, frame) for file, size in zip(files, sizes, strict=True)]
        # A manifest may list none of the images that have masks.
        stems = (path.relative_to(folder / region).with_suffix("") for path in (folder / region).rglob("*.png"))
        known = (no_file(root / f"{stem}{extension}") is None for stem in stems for extension in EXTENSIONS)
        if all(mask is None for mask in masks[region]) and not any(known):
            raise ProbeSetError(
                f"Expected `{MASKS}/{region}` to hold a mask for at least one probe, e.g. {files[0]!r}, but found "
                "none. A mask has the path of its image and ends in .png."
            )
    return masks


def _read_mask(root: Path, file: str, size: tuple[int, int], frame: _Frame) -> Tensor | None:
    """Mask `(H, W)` bool: inside, any colour channel is nonzero, and it is not transparent; None without a file."""
    if not os.path.lexists(inside(root, file)):
        return None
    mask = _opened(root, file)
    if mask.mode not in _MASK_MODES:
        raise ProbeSetError(
            f"Expected mask {file!r} to be grey or RGB, but got mode {mask.mode!r}. Save it as a grey PNG."
        )
    if mask.size != size:
        raise ProbeSetError(
            f"Expected mask {file!r} to be {size[1]} x {size[0]} (H x W), as its image, but got "
            f"{mask.height} x {mask.width}. Save the mask at the size of the image."
        )
    nonzero = np.atleast_3d(np.asarray(mask)) != 0
    within = nonzero[..., :-1].any(axis=-1) & nonzero[..., -1] if mask.mode in ("RGBA", "LA") else nonzero.any(axis=-1)
    whole = Image.fromarray(within.astype(np.uint8) * 255)
    return torch.from_numpy(np.array(frame.applied(whole, Image.Resampling.NEAREST, file)) > 0)


def _opened(root: Path, file: str) -> Image.Image:
    path = inside(root, file)
    if why := no_file(path):
        raise ProbeSetError(f"Expected {file!r} to be an image under the probe folder, but {why}.")
    try:
        with warnings.catch_warnings():
            # Of twice the pixels that Pillow thinks safe it would only warn.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                image.load()
                return image.copy()
    except Exception as error:  # on damaged files, Pillow raises whatever its decoders stumble over
        bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        advice = "Make it smaller, or raise `PIL.Image.MAX_IMAGE_PIXELS`." if bomb else "Replace or drop it."
        raise ProbeSetError(
            f"Expected {file!r} to be a readable image, but got {type(error).__name__}: {error} {advice}"
        ) from error
