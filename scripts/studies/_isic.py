"""ISIC 2017 as a real shortcut: the images, which of them show a coloured patch, and what is cut out of which.

2,150 dermoscopic images, 404 of melanoma, at 256 x 256, reduced to 128. Round coloured stickers, meant to calibrate
the camera, lie on 141 benign naevi of children (the SONIC study) and on nothing else of that study; three more images
show a sheet or a sticker of another kind, one of them a melanoma. `patches.csv` lists 116 of these 144 as seen by eye
and `patch_masks` marks where; `MISSED` lists the others, which were found while this script was written.
"""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_callbacks import ProbeSet
from xai_callbacks.interventions.cues import Cue, PasteCue, Twins
from xai_callbacks.interventions.fills import apply_fill
from xai_callbacks.interventions.regions import placebo_masks
from xai_callbacks.interventions.shown import Shown

__all__ = ["CLASSES", "MEAN", "STD", "Lesions", "hold_out", "normalised", "patch_cues", "patch_probes", "read"]

CLASSES = ("benign", "melanoma")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 128

# Patches that `patches.csv` does not call one: orange like skin, red, white or grey, or a sliver at the border.
MISSED = frozenset(
    f"ISIC_000{number}"
    for number in (
        *(2439, 2453, 2616, 2647, 2829, 2836, 2976, 3051, 4309, 6350, 7528, 7693, 8236, 8396),
        *(8406, 8507, 8524, 8552, 8659, 8785, 8807, 8879, 8993, 8998, 9188, 9252, 9504, 9599),
    )
)
# Where the mask leaves a patch, a ring of one, or a second one; and patches of another kind than the stickers. These
# take part in the training and in the accuracies, not as probes.
UNMARKED = frozenset(
    f"ISIC_00{number:05}"
    for number in (
        *(999, 2469, 2885, 2948, 4168, 4985, 5555, 6114, 6612, 6815, 6940, 7235, 7475, 7557),
        *(8145, 8256, 9297, 9533, 9564, 12469, 13333, 14136),
    )
)


@dataclass(frozen=True, eq=False)
class Lesions:
    """Images and what is known of them.

    Attributes:
        names: Names of the images, such as `ISIC_0000882`.
        pixels: `(N, 3, S, S)` uint8.
        labels: `(N,)` int64, index into `CLASSES`.
        patched: Which show a patch, `(N,)` bool.
        masks: Where the patch lies, `(N, S, S)` bool; all False without one, and where the mask misses part of it.
        validation: Which are of the official validation split, `(N,)` bool.
    """

    names: tuple[str, ...]
    pixels: Tensor
    labels: Tensor
    patched: Tensor
    masks: Tensor
    validation: Tensor

    @cached_property
    def marked(self) -> Tensor:
        """Which have a mask, `(N,)` bool."""
        return self.masks.flatten(1).any(dim=1)


def read(folder: Path, *, names: Sequence[str] | None = None, size: int = SIZE) -> Lesions:
    """Read the images.

    Args:
        folder: With `train`, `val`, `train.csv`, `val.csv`, `patches.csv` and `patch_masks`.
        names: Only these.
        size: Side of the images in pixels.

    Raises:
        SystemExit: There is no such folder; the message says what is expected.
    """
    if not (folder / "patches.csv").is_file():
        raise SystemExit(
            f"Expected --data to be a folder with ISIC 2017 at 256 x 256 (train, val, train.csv, val.csv, patches.csv, "
            f"patch_masks), but got {folder}."
        )
    listed = {
        row["image_id"]: (split, int(float(row["melanoma"])))
        for split in ("train", "val")
        for row in _rows(folder / f"{split}.csv")
    }
    seen = {row["image_id"] for row in _rows(folder / "patches.csv") if row["patch_by_eye"] == "yes"} | MISSED
    chosen = tuple(sorted(listed) if names is None else names)
    return Lesions(
        chosen,
        torch.stack([_image(folder / listed[name][0] / f"{name}.jpg", size) for name in chosen]),
        torch.tensor([listed[name][1] for name in chosen]),
        torch.tensor([name in seen for name in chosen]),
        torch.stack([_mask(folder / "patch_masks" / f"{name}.png", size) for name in chosen]),
        torch.tensor([listed[name][0] == "val" for name in chosen]),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _image(path: Path, size: int) -> Tensor:
    with Image.open(path) as image:
        reduced = image.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(reduced).copy()).permute(2, 0, 1)


def _mask(path: Path, size: int) -> Tensor:
    if not path.is_file() or path.stem in UNMARKED:
        return torch.zeros(size, size, dtype=torch.bool)
    with Image.open(path) as mask:
        return torch.from_numpy(np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 0)


def hold_out(lesions: Lesions, *, patched: int, melanomas: int, others: int, seed: int = 0) -> Tensor:
    """Which images no net is trained on, `(N,)` bool: the validation split and some of the training split.

    Args:
        lesions: The images.
        patched: How many benign ones with a patch that is marked.
        melanomas: How many melanomas without.
        others: How many benign ones without.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    held, melanoma = lesions.validation.clone(), lesions.labels == 1
    groups = (
        (lesions.marked & ~melanoma, patched),
        (melanoma & ~lesions.patched, melanomas),
        (~melanoma & ~lesions.patched, others),
    )
    for members, count in groups:
        rows = (members & ~lesions.validation).nonzero()[:, 0]
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return held


def normalised(pixels: Tensor) -> Tensor:
    """As the net expects them, `(N, 3, S, S)` float32."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def patch_probes(lesions: Lesions, held: Tensor) -> ProbeSet:
    """Benign images with a patch, region `spurious`, and melanomas without; all held out."""
    wanted = held & torch.where(lesions.labels == 1, ~lesions.patched, lesions.marked)
    rows = wanted.nonzero()[:, 0]
    return ProbeSet.from_tensors(
        normalised(lesions.pixels[rows]),
        lesions.labels[rows],
        pixels=lesions.pixels[rows].permute(0, 2, 3, 1),
        names=[lesions.names[row] for row in rows],
        masks={"spurious": lesions.masks[rows]},
        class_names=CLASSES,
        mean=MEAN,
        std=STD,
    )


class Kept(Cue):
    """A cue that paints each probe once and keeps it: the inpainting takes longer than the net.

    Args:
        name: See `Cue`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, "benign")
        self._kept: dict[tuple[str, ...], Twins] = {}

    def twins(self, shown: Shown) -> Twins:
        """See `Cue.twins`."""
        key = (shown.probes.fingerprint, str(shown.seed), *shown.names)
        if key not in self._kept:
            self._kept[key] = self.painted(shown)
        return self._kept[key]

    @abstractmethod
    def painted(self, shown: Shown) -> Twins:
        """The same, painted."""


class RealPatch(Kept):
    """`PasteCue` of the patches: cut out of benign images and pasted into melanomas, and inpainted where they lie."""

    def __init__(self) -> None:
        super().__init__("patch")
        self.paste = PasteCue("benign", region="spurious", fill="road", name="patch")

    def check(self, probes: ProbeSet) -> None:
        """See `Cue.check`."""
        self.paste.check(probes)

    def painted(self, shown: Shown) -> Twins:
        """See `Cue.twins`."""
        return self.paste.twins(shown)


class Control(Kept):
    """Changes the very region that `RealPatch` changes, so that whatever a change hides, all hide.

    Args:
        real: The patches.
        name: See `Cue`.
    """

    def __init__(self, real: RealPatch, name: str) -> None:
        super().__init__(name)
        self.real = real

    def region(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Where the patch is put or lies, `(n, H, W)`, and which probes it is put into, `(n, 1, 1, 1)`."""
        twins = self.real.twins(shown)
        assert twins.region is not None  # narrows the types: what is pasted has both
        assert twins.added is not None
        return twins.region, twins.added[:, None, None, None]


class GreyPatch(Control):
    """The patch without its colour: pasted in grey, or turned grey where it lies. Same place, shape and lightness."""

    def __init__(self, real: RealPatch) -> None:
        super().__init__(real, "grey")

    def painted(self, shown: Shown) -> Twins:
        """See `Cue.twins`."""
        region, added = self.region(shown)
        patched = self.real.twins(shown).present
        grey = torch.where(region[:, None], _grey(patched), patched)
        absent = torch.where(added, shown.images, grey)
        return self.real.twins(shown)._replace(
            present=torch.where(added, grey, shown.images), absent=absent, neutral=absent
        )


class SkinPatch(Control):
    """A patch of skin: of one colour, the mean of the rest, in place of a pasted patch; inpainted beside a real one.

    In a melanoma it hides what the patch would hide. In an image with a patch it takes out as much elsewhere, filled
    as the patch would be; there is no pair where the patch is too large to be moved beside itself.
    """

    def __init__(self, real: RealPatch) -> None:
        super().__init__(real, "skin")

    def painted(self, shown: Shown) -> Twins:
        """See `Cue.twins`."""
        region, added = self.region(shown)
        lent = region & added[:, 0]
        elsewhere = placebo_masks(region & ~lent, shown.seed, shown.names)
        absent = apply_fill(shown.images, elsewhere, self.real.paste.fill, names=shown.names, seed=shown.seed)
        missing = ~added[:, 0, 0, 0] & ~elsewhere.flatten(1).any(dim=1)
        twins = self.real.twins(shown)
        return twins._replace(
            present=apply_fill(shown.images, lent, "local_mean", names=shown.names, seed=shown.seed),
            absent=absent,
            neutral=absent,
            points_to=twins.points_to.masked_fill(missing, -1),
        )


def patch_cues() -> tuple[Kept, ...]:
    """The cue, and its two controls."""
    real = RealPatch()
    return real, GreyPatch(real), SkinPatch(real)


def _grey(images: Tensor) -> Tensor:
    """Luminance, in all channels (Rec. 601)."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(dim=1, keepdim=True).expand_as(images)
