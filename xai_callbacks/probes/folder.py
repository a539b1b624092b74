"""Probe sets from a folder of images, with an optional manifest and optional masks; faults name the file."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks.errors import ProbeSetError, in_words
from xai_callbacks.probes.checks import to_texts
from xai_callbacks.probes.display import to_normalisation, warn_user
from xai_callbacks.probes.files import to_path
from xai_callbacks.probes.manifest import MANIFEST, class_index, default_names, file_inside, read_manifest, stem
from xai_callbacks.probes.probe_set import ProbeSet

MASKS = "masks"
# The extensions of torchvision's ImageFolder, so that both see the same images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Those of `EXTENSIONS`; others may start programs, as EPS does, whatever the file is called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 2**26  # pixels of an image that was resized and is yet to be cropped


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
    channels = 1 if mean is not None and np.size(mean) == 1 else 3
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
        images = (images - images.new_tensor(means).view(-1, 1, 1)) / images.new_tensor(stds).view(-1, 1, 1)
    masks = _read_masks(folder, files, sizes, frame)
    coloured = pixels.expand(-1, -1, -1, 3)
    return ProbeSet.from_tensors(images, pixels=coloured, masks=masks, mean=means, std=stds, **given)


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
        if height * width > _MOST_PIXELS or height < self.height or width < self.width:
            raise ProbeSetError(
                f"Expected {file!r}, {image.height:,} x {image.width:,} pixels (H x W), to fill {self.height} x "
                f"{self.width} with at most {_MOST_PIXELS:,} pixels when it is resized, but it would have {height:,} x "
                f"{width:,}. Crop it to a more even shape, or choose another `size` or a larger `resize`."
            )
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return image.resize((width, height), resampling).crop((left, top, left + self.width, top + self.height))


def _to_frame(size: Any, resize: Any) -> _Frame:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ProbeSetError(f"Expected `size` to be a positive whole number or (H, W), but got {size!r}.")
    if resize is not None and (type(resize) is not int or resize < min(sides)):
        raise ProbeSetError(f"Expected `resize` to be a whole number of {min(sides)} or more, but got {resize!r}.")
    return _Frame(*sides, resize)


def _read_class_folders(root: Path, class_names: tuple[str, ...] | None) -> tuple[list[str], dict[str, Any]]:
    """List the images of class subfolders, as torchvision's `ImageFolder` does; `masks` is no class."""
    folders = [folder for folder in _folders(root) if folder != MASKS]
    classes = tuple(folders) if class_names is None else class_names
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
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
    return sorted(entry.name for entry in folder.iterdir() if entry.name[0] != "." and os.path.isdir(entry))


def _read_image(root: Path, file: str, channels: int, frame: _Frame) -> tuple[Tensor, tuple[int, int]]:
    """Pixels `(H, W, channels)` uint8, and the size (W, H) of the file."""
    image = _opened(root, file, "L" if channels == 1 else "RGB")
    framed = frame.applied(image, Image.Resampling.BILINEAR, file)
    return torch.from_numpy(np.array(framed)).view(frame.height, frame.width, channels), image.size


def _read_masks(
    root: Path, images: Sequence[str], sizes: Sequence[tuple[int, int]], frame: _Frame
) -> dict[str, list[Tensor | None]]:
    masks: dict[str, list[Tensor | None]] = {}
    for region in _folders(root / MASKS) if os.path.isdir(root / MASKS) else ():
        files = [f"{MASKS}/{region}/{stem(file)}.png" for file in images]
        masks[region] = [_read_mask(root, file, size, frame) for file, size in zip(files, sizes, strict=True)]
        if all(mask is None for mask in masks[region]):
            warn_user(
                f"Expected `{MASKS}/{region}` to hold a mask for at least one probe, e.g. {files[0]!r}, but found none."
                " A mask has the path of its image and ends in .png."
            )
    return masks


def _read_mask(root: Path, file: str, size: tuple[int, int], frame: _Frame) -> Tensor | None:
    """Mask `(H, W)` bool: inside, any colour channel is nonzero, and it is not transparent; None without a file."""
    if not os.path.lexists(root / file):
        return None
    mask = _opened(root, file)
    if mask.size != size:
        raise ProbeSetError(
            f"Expected mask {file!r} to be {size[1]} x {size[0]} (H x W), as its image, but got "
            f"{mask.height} x {mask.width}. Save the mask at the size of the image."
        )
    nonzero = np.atleast_3d(np.asarray(mask)) != 0
    within = nonzero[..., :-1].any(axis=-1) & nonzero[..., -1] if mask.mode in ("RGBA", "LA") else nonzero.any(axis=-1)
    whole = Image.fromarray(within.astype(np.uint8) * 255)
    return torch.from_numpy(np.array(frame.applied(whole, Image.Resampling.NEAREST, file)) > 0)


def _opened(root: Path, file: str, mode: str | None = None) -> Image.Image:
    """A picture, converted to a mode of 8 bits a channel if one is given."""
    path = file_inside(root, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes with transparency
            # Of twice the pixels that Pillow thinks safe it would only warn.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if mode is not None and image.mode[0] in "IF":
                    # Converting clips instead of scaling: the model would see something else than in training.
                    raise ValueError(f"mode {image.mode!r} has more than 8 bits")
                return image.copy() if mode is None else image.convert(mode)
    except Exception as error:  # on damaged files, Pillow raises whatever its decoders stumble over
        raise ProbeSetError(
            f"Expected {file!r} to be a readable image of 8 bits a channel and up to `PIL.Image.MAX_IMAGE_PIXELS` in "
            f"size, but got {in_words(error)} Convert it the way your training data were, or drop it."
        ) from error
