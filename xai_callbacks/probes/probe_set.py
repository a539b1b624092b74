"""The probe set: a fixed set of images and what is known of each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import checks
from xai_callbacks.probes.display import display_pixels, to_normalisation, warn_if_forgotten
from xai_callbacks.tasks import Task, task_of

TENSORS = ("images", "pixels", "labels", "targets", "groups")  # attributes that are tensors, or None
FACTS = ("names", "class_names", "target_names", "group_names", "mean", "std")  # attributes that are tuples, or None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ProbeSet:
    """A fixed set of N probes; the constructor checks nothing.

    Build one with `from_dataset`, `from_folder`, `from_tensors` or `load`. All tensors are detached CPU copies of what
    was given: later changes to the originals do not reach the set. Treat them as read-only.

    Attributes:
        images: `(N, C, H, W)` float32, exactly as the model expects them; finite.
        pixels: `(N, H, W, 3)` uint8, for display.
        labels: `(N,)` int64 class indexes, or `(N, K)` int64 labels that do not exclude each other: 1 where a probe has
            one, 0 where it has not, -1 where that is unknown. None when unknown or in regression.
        targets: `(N,)` float32 regression targets, or `(N, V)` of several values; None in classification.
        names: N unique names.
        groups: `(N,)` int64 group indexes, -1 where unknown; None without groups.
        masks: Region name to `(N, H, W)` bool; True is inside. An all-False row is a probe without that region.
            By convention `core` is what a class should be recognised by, `spurious` is a cue that must not matter.
        class_names, target_names, group_names: Names of classes or labels, of values of a target, of groups, by index.
        mean, std: Of the normalisation that `images` went through, one value a channel, in [0, 1] pixel units.
    """

    images: Tensor
    pixels: Tensor
    labels: Tensor | None
    targets: Tensor | None
    names: tuple[str, ...]
    groups: Tensor | None
    masks: dict[str, Tensor]
    class_names: tuple[str, ...] | None
    target_names: tuple[str, ...] | None
    group_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def from_tensors(  # noqa: PLR0913  # what is known of probes
        cls,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        targets: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        pixels: Tensor | None = None,
        names: Sequence[str] | None = None,
        groups: Tensor | Sequence[int] | None = None,
        masks: Mapping[str, Tensor | Sequence[Tensor | None]] | None = None,
        class_names: Sequence[str] | None = None,
        target_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ProbeSet:
        """Build a probe set from tensors in memory, all of which are checked.

        Arguments are the attributes of the set. Where these say more, `labels` `(N, 1)` are one label that an image has
        or has not, `masks` may be nonzero integers or N masks `(H, W)` of which None is a probe without the region,
        `names` are `probe_000`, ... and `pixels` derived from `images` when left out. Warns of images within [0, 1]
        that are said to be normalised, unless `pixels` are given. Raises a `ProbeSetError` that names the probe if
        something is malformed.
        """
        checks.check_truth(labels, targets, class_names, target_names)
        # Tensors made in inference mode could never take part in a gradient, which is what probes are for.
        with torch.inference_mode(mode=False), torch.no_grad():
            checked, ids = checks.to_images(images, names)
            size = (checked.shape[2], checked.shape[3])
            means, stds = to_normalisation(mean, std, checked.shape[1])
            if pixels is None:
                warn_if_forgotten(checked, means, stds)
                shown = display_pixels(checked, means, stds)
            else:
                shown = checks.to_pixels(pixels, ids, size)
            classes, kinds = checks.to_texts(class_names, "class_names"), checks.to_texts(group_names, "group_names")
            values, value_names = checks.to_targets(targets, target_names, ids)
            return cls(
                images=checked,
                pixels=shown,
                labels=checks.to_labels(labels, ids, classes),
                targets=values,
                names=ids,
                groups=checks.to_groups(groups, ids, kinds),
                masks=checks.to_masks(masks, ids, size),
                class_names=classes,
                target_names=value_names,
                group_names=kinds,
                mean=means,
                std=stds,
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
        target_names: Sequence[str] | None = None,
        group_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ProbeSet:
        """Choose a stratified, reproducible probe set from a map-style dataset.

        The same dataset and seed give the same fingerprint: random augmentation runs under a seed of its own, and the
        global random streams are left as they were. Images are not decoded where the dataset tells its labels
        (`targets`, `labels`, `TensorDataset`, through `Subset` and `ConcatDataset`). Otherwise items are read in a
        seeded order until every class is full, if the number of classes is known, else to the end.

        A label that is a vector of 0, 1 and -1 (unknown) makes a multi-label set: of each label the first `per_class`
        items that have it, and as many that have none, each item once. Float labels mean regression, unless class names
        are known: `per_class * 10` probes are spread evenly over the sorted targets, of several values over the first
        (of 1000 or more randomly drawn items where the dataset does not tell its targets).

        Args:
            dataset: Items `(image, label)`, or as `fields` says; images are floats `(C, H, W)`, as the model gets them.
            per_class: Probes from each class, label or group. Where there are fewer, all are taken, with a warning.
            by: Draw from each `"label"`, or from each `"group"` known (which needs `fields["group"]`).
            seed: Seed of the draw, 0 to 2**32 - 1.
            fields: Index, key or attribute of each thing in an item. Keys are `image`, `label`, `target`,
                `group`, `name` and `masks`, e.g. `{"image": "x", "label": "y", "masks": {"core": "seg"}}`.
            class_names: Names by class or label index; taken from `dataset.classes` when left out.
            target_names: Names of the values of a target, by index.
            group_names: Names by group index.
            mean: Normalisation of the images; taken from a `Normalize` in `dataset.transform` when left out.
            std: Likewise.

        Raises a `ProbeSetError` that names the item if the dataset or an item cannot be used.
        """
        from xai_callbacks.probes.dataset import build_from_dataset

        facts = {"target_names": target_names, "group_names": group_names, "mean": mean, "std": std}
        return build_from_dataset(dataset, per_class, by, seed, fields, {"class_names": class_names, **facts})

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
        nonzero is inside, the geometry that of the images. No path may leave `root`. `docs/probes.md` has the layout.

        Args:
            root: The folder.
            size: Final size in pixels, one number or `(H, W)`.
            resize: Shorter side in pixels before the centre crop to `size`; None for the least that fills it.
            mean: Normalisation after scaling to [0, 1]. One value alone means a model of grey images.
            std: Likewise.
            class_names: Names by class or label index; the sorted names found when left out.

        Raises a `ProbeSetError` that names the file or the row if something is malformed.
        """
        from xai_callbacks.probes.folder import build_from_folder

        return build_from_folder(root, size, resize, mean, std, class_names)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeSet:
        """Read a probe set written by `save`; nothing in the file is executed.

        Raises a `ProbeSetError` if the file is missing, damaged, changed since it was written, or of another format.
        """
        from xai_callbacks.probes.files import load_probes

        return load_probes(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set to one safetensors file, whole or not at all; folders are made as needed.

        Raises a `ProbeSetError` if no file can be written there; an older one stays as it was.
        """
        from xai_callbacks.probes.files import save_probes

        save_probes(self, path)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex characters of the SHA-256 of all content, in little-endian order: the same on every machine."""
        digest = hashlib.sha256()
        tensors = {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
        tensors |= {f"masks/{region}": mask for region, mask in self.masks.items()}
        for name, tensor in sorted(tensors.items()):
            array = np.ascontiguousarray(tensor.numpy())
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
            digest.update(array.data)
        facts = {name: getattr(self, name) for name in FACTS if getattr(self, name) is not None}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @property
    def task(self) -> Task:
        """A `SingleLabel`, `MultiLabel` or `Regression` task, by which outputs for these probes are read."""
        return task_of(self.labels, self.targets, self.class_names or self.target_names)

    @property
    def truth(self) -> Tensor | None:
        """The labels, or the targets; None when neither is known."""
        return self.labels if self.labels is not None else self.targets

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int] | Tensor) -> ProbeSet:
        """Return a new set of the probes at `indices`, in that order.

        `indices` are from -N to N - 1, each probe at most once, or a bool tensor `(N,)`. Raises a `ProbeSetError` for
        none, one out of range, or a probe twice.
        """
        try:
            rows = torch.arange(len(self))[torch.as_tensor(indices)].tolist()
            sound = 0 < len(set(rows)) == len(rows)
        except (TypeError, ValueError, RuntimeError, IndexError):
            sound = False
        if not sound:
            raise ProbeSetError(
                f"Expected `indices` to be one or more whole numbers from {-len(self)} to {len(self) - 1}, each once, "
                f"or a bool tensor ({len(self)},), but got {indices!r}."
            )
        tensors = {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
        chosen: dict[str, Any] = {name: tensor[rows] for name, tensor in tensors.items()}
        masks = {region: mask[rows] for region, mask in self.masks.items()}
        return replace(self, names=tuple(self.names[row] for row in rows), masks=masks, **chosen)

    def class_name(self, k: int) -> str:
        """Return the name of class or label `k`, or the number itself where no name is known."""
        return self.task.name(k)

    def __repr__(self) -> str:
        task = self.task
        parts = [f"{len(self)} probes", "x".join(map(str, self.images.shape[1:])), task.kind]
        if task.width is not None:
            parts[-1] += f" of {task.width}"
        if self.masks:
            parts.append("masks " + ", ".join(self.masks))
        return f"ProbeSet({'; '.join(parts)}; {self.fingerprint})"
