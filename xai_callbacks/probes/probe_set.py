"""The probe set: a fixed set of images and what is known of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import checks
from xai_callbacks.probes.display import display_pixels
from xai_callbacks.probes.fingerprint import fingerprint_of

__all__ = ["ProbeSet"]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class ProbeSet:
    """A fixed set of N probes, checked once, at construction.

    Build one with `from_dataset`, `from_folder`, `from_tensors` or `load`. All tensors are detached CPU copies of what
    was given: later changes to the originals do not reach the set. Treat them as read-only.

    Attributes:
        images: `(N, C, H, W)` float32, exactly as the model expects them; finite.
        pixels: `(N, H, W, 3)` uint8, for display.
        labels: `(N,)` int64 class indexes; None when unknown or in regression.
        targets: `(N,)` float32 regression targets; None in classification.
        names: N unique names.
        groups: `(N,)` int64 group indexes, -1 where unknown; None without groups.
        masks: Region name to `(N, H, W)` bool; True is inside. An all-False row is a probe without that region.
            By convention `core` is what a class should be recognised by, `spurious` is a cue that must not matter.
        class_names: Name of each class, by index.
        group_names: Name of each group, by index.
        mean: Mean of the normalisation that `images` went through, one value a channel, in [0, 1] pixel units.
        std: Standard deviation of that normalisation, likewise.
        fingerprint: 16 hex characters that name the content: everything above but `mean` and `std`.
    """

    images: Tensor
    pixels: Tensor
    labels: Tensor | None
    targets: Tensor | None
    names: tuple[str, ...]
    groups: Tensor | None
    masks: dict[str, Tensor]
    class_names: tuple[str, ...] | None
    group_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fingerprint: str

    def __init__(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[int] | None = None,
        *,
        targets: Tensor | Sequence[float] | None = None,
        pixels: Tensor | None = None,
        names: Sequence[str] | None = None,
        groups: Tensor | Sequence[int] | None = None,
        masks: Mapping[str, Tensor | Sequence[Tensor | None]] | None = None,
        class_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Check everything and keep own copies; see `from_tensors`."""
        _check_task(labels, targets, class_names)
        # Tensors made in inference mode could never take part in a gradient, which is what probes are for.
        with torch.inference_mode(mode=False), torch.no_grad():
            checked_names = checks.to_names(names, images)
            checked = checks.to_images(images, checked_names)
            channels, size = checked.shape[1], (checked.shape[2], checked.shape[3])
            means, stds = checks.to_normalisation(mean, std, channels)
            classes, kinds = checks.to_texts(class_names, "class_names"), checks.to_texts(group_names, "group_names")
            content: dict[str, Any] = {
                "images": checked,
                "labels": checks.to_labels(labels, checked_names, classes),
                "targets": checks.to_targets(targets, checked_names),
                "groups": checks.to_groups(groups, checked_names, kinds),
                "masks": checks.to_masks(masks, checked_names, size),
                "pixels": (
                    display_pixels(checked, means, stds)
                    if pixels is None
                    else checks.to_pixels(pixels, checked_names, size)
                ),
            }
        content |= {"names": checked_names, "class_names": classes, "group_names": kinds, "mean": means, "std": stds}
        content["fingerprint"] = _fingerprint(content)
        for name, value in content.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_tensors(
        cls,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[int] | None = None,
        *,
        targets: Tensor | Sequence[float] | None = None,
        pixels: Tensor | None = None,
        names: Sequence[str] | None = None,
        groups: Tensor | Sequence[int] | None = None,
        masks: Mapping[str, Tensor | Sequence[Tensor | None]] | None = None,
        class_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ProbeSet:
        """Build a probe set from tensors in memory.

        Args:
            images: `(N, C, H, W)` floats as the model expects them, or N tensors `(C, H, W)`.
            labels: `(N,)` class indexes.
            targets: `(N,)` regression values; not together with `labels`.
            pixels: `(N, H, W, 3)` uint8 for display; derived from `images` when left out (`display.display_pixels`).
            names: Unique names; `probe_000`, ... when left out.
            groups: `(N,)` group indexes, -1 for unknown.
            masks: Region name to `(N, H, W)` masks (bool, or nonzero integers = inside), or N masks `(H, W)` where
                None is a probe without the region.
            class_names: Name of each class of the model, by index.
            group_names: Name of each group, by index.
            mean: Mean of the normalisation that the images went through, one value a channel.
            std: Its standard deviation.

        Raises:
            ProbeSetError: Something is malformed; the message names the probe.
        """
        return cls(
            images,
            labels,
            targets=targets,
            pixels=pixels,
            names=names,
            groups=groups,
            masks=masks,
            class_names=class_names,
            group_names=group_names,
            mean=mean,
            std=std,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset[Any] | Sequence[Any],
        per_class: int = 4,
        *,
        by: Literal["label", "group"] = "label",
        seed: int = 0,
        fields: Mapping[str, int | str | Mapping[str, int | str]] | None = None,
        class_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ProbeSet:
        """Choose a stratified, reproducible probe set from a map-style dataset.

        The same dataset and seed give the same fingerprint, whatever the state of the random generators: random
        augmentation runs under a seed of its own, and the global random streams are left exactly as they were.

        Labels are read without decoding images where the dataset tells them (`targets`, `labels`, `TensorDataset`,
        through `Subset` and `ConcatDataset`). Otherwise items are read in a seeded order until every class is full,
        if the number of classes is known, else to the end.

        Float labels mean regression, unless class names are known: then `per_class * 10` probes are spread evenly
        over the sorted targets (of 1000 or more randomly drawn items where targets are only found in the items).

        Args:
            dataset: Items `(image, label)`, or whatever `fields` describes. Images are float tensors `(C, H, W)`,
                that is, after the transform that the model is evaluated with.
            per_class: Probes from each class or group. Where there are fewer, all are taken, with a warning.
            by: Draw from each `"label"` or from each `"group"` (which needs `fields["group"]`; unknown groups, -1,
                are left out).
            seed: Which probes are drawn, 0 to 2**32 - 1.
            fields: Where things are in an item, as an index, key or attribute. Keys are `image`, `label`, `target`,
                `group`, `name` and `masks`, e.g. `{"image": "x", "label": "y", "masks": {"core": "seg"}}`.
            class_names: Names by class index; taken from `dataset.classes` when left out.
            group_names: Names by group index.
            mean: Normalisation of the images; taken from a `Normalize` in `dataset.transform` when left out.
            std: Likewise.

        Raises:
            ProbeSetError: The dataset or an item cannot be used; the message names the item.
        """
        from xai_callbacks.probes.dataset import build_from_dataset

        return build_from_dataset(
            dataset,
            per_class,
            by=by,
            seed=seed,
            fields=fields,
            class_names=class_names,
            group_names=group_names,
            mean=mean,
            std=std,
        )

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        *,
        size: int | tuple[int, int] = 224,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> ProbeSet:
        """Build a probe set from a folder of images with an optional manifest `probes.csv` and optional masks.

        Without a manifest the subfolders of `root` are the classes. Masks lie at `masks/<region>/<image path>.png`;
        nonzero is inside. No path may leave `root`. The layout is described in `docs/probes.md`.

        Args:
            root: The folder.
            size: Final size in pixels, one number or `(H, W)`.
            resize: Length of the shorter side in pixels before the centre crop to `size`; by default the smallest
                that fills `size`. Masks go through the same geometry.
            mean: Normalisation after scaling to [0, 1]. One value alone means a model of grey images.
            std: Likewise.
            class_names: Names by class index; the sorted names found when left out.

        Raises:
            ProbeSetError: Something is malformed; the message names the file or the row.
        """
        from xai_callbacks.probes.folder import build_from_folder

        return build_from_folder(root, size=size, resize=resize, mean=mean, std=std, class_names=class_names)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeSet:
        """Read a probe set written by `save`; nothing in the file is executed.

        Raises:
            ProbeSetError: The file is missing, damaged, changed since it was written, or of a newer format.
        """
        from xai_callbacks.probes.files import load_probes

        return load_probes(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to one safetensors file, whole or not at all; folders are made as needed."""
        from xai_callbacks.probes.files import save_probes

        save_probes(self, path)

    @property
    def task(self) -> Literal["classification", "regression"]:
        """`"regression"` if the set has targets."""
        return "classification" if self.targets is None else "regression"

    def __len__(self) -> int:
        """Return the number of probes."""
        return len(self.names)

    def select(self, indices: Sequence[int] | Tensor) -> ProbeSet:
        """Return a new set of the probes at `indices`, in that order.

        Args:
            indices: Indexes from -N to N - 1, each probe at most once, or a bool tensor `(N,)`.

        Raises:
            ProbeSetError: No index, an index out of range, or a probe twice.
        """
        rows = _rows(indices, len(self))
        index = torch.tensor(rows, dtype=torch.int64)
        return ProbeSet(
            self.images[index],
            labels=None if self.labels is None else self.labels[index],
            targets=None if self.targets is None else self.targets[index],
            pixels=self.pixels[index],
            names=[self.names[row] for row in rows],
            groups=None if self.groups is None else self.groups[index],
            masks={region: mask[index] for region, mask in self.masks.items()},
            class_names=self.class_names,
            group_names=self.group_names,
            mean=self.mean,
            std=self.std,
        )

    def class_name(self, k: int) -> str:
        """Return the name of class `k`, or the number itself where no name is known."""
        if self.class_names is not None and 0 <= k < len(self.class_names):
            return self.class_names[k]
        return str(k)

    def __repr__(self) -> str:
        """Return one line: how many probes of what, and the fingerprint."""
        parts = [f"{len(self)} probes", "x".join(str(side) for side in self.images.shape[1:]), self.task]
        if self.class_names is not None:
            parts.append(f"{len(self.class_names)} classes")
        if self.masks:
            parts.append("masks " + ", ".join(self.masks))
        return f"ProbeSet({'; '.join(parts)}; {self.fingerprint})"


def _check_task(labels: object, targets: object, class_names: object) -> None:
    if targets is None:
        return
    if labels is not None:
        raise ProbeSetError("Expected `labels` or `targets`, but got both. Targets are for regression only.")
    if class_names is not None:
        raise ProbeSetError("Expected `class_names` to come with `labels`, but got `targets`. Leave `class_names` out.")


def _fingerprint(content: Mapping[str, Any]) -> str:
    tensors = {name: content[name] for name in ("images", "pixels", "labels", "targets", "groups")}
    tensors |= {f"masks/{region}": mask for region, mask in content["masks"].items()}
    return fingerprint_of(tensors, {name: content[name] for name in ("names", "class_names", "group_names")})


def _rows(indices: Sequence[int] | Tensor, count: int) -> list[int]:
    if isinstance(indices, Tensor) and indices.dtype == torch.bool:
        if tuple(indices.shape) != (count,):
            raise ProbeSetError(f"Expected a bool `indices` to be ({count},), but got {tuple(indices.shape)}.")
        indices = indices.nonzero().flatten()
    try:
        given = [int(index) for index in indices]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeSetError(f"Expected `indices` to be whole numbers, but got {indices!r}.") from error
    for index in given:
        if not -count <= index < count:
            raise ProbeSetError(f"Expected `indices` to be from {-count} to {count - 1}, but got {index}.")
    return [index % count for index in given]
