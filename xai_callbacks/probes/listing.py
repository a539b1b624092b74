"""Which images a probe folder holds and what is known of each, where its subfolders are the classes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.cells import class_index
from xai_callbacks.probes.paths import entries, inside

__all__ = ["EXTENSIONS", "MANIFEST", "MASKS", "Listing", "default_names", "read_class_folders"]

MANIFEST = "probes.csv"
MASKS = "masks"
# The extensions of torchvision's ImageFolder, so that both see the same images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """Parallel lists over the probes; paths are relative to the probe folder, with forward slashes."""

    files: list[str]
    names: list[str]
    labels: list[int] | list[list[int]] | None = None
    targets: list[list[float]] | None = None
    groups: list[int] | None = None
    class_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    group_names: tuple[str, ...] | None = None


def read_class_folders(root: Path, class_names: tuple[str, ...] | None) -> Listing:
    """List the images of class subfolders, as torchvision's `ImageFolder` does; `masks` is no class.

    Raises:
        ProbeSetError: There are no images, or a folder is not among `class_names`.
    """
    folders = [entry.name for entry in entries(root) if os.path.isdir(entry) and entry.name != MASKS]
    classes = tuple(folders) if class_names is None else class_names
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        inside(root, folder)
        label = class_index(folder, classes, f"folder {folder!r}")
        paths = sorted(path for path in (root / folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
        found = [path.relative_to(root).as_posix() for path in paths if not os.path.isdir(path)]
        files += found
        labels += [label] * len(found)
    if not files:
        raise ProbeSetError(
            f"Expected {str(root)!r} to hold {MANIFEST!r} or one subfolder of images a class, but found no image. "
            f"List loose images in {MANIFEST!r} with columns file,label."
        )
    return Listing(files, default_names(files), labels, class_names=classes)


def default_names(files: list[str]) -> list[str]:
    """Name each probe by its path without suffix, or with it where two paths differ in nothing else."""
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    shared = Counter(stems)
    return [file if shared[stem] > 1 else stem for stem, file in zip(stems, files, strict=True)]
