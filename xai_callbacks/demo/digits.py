"""Handwritten digits with a decoy: data and model of the demonstration.

Real 8x8 handwritten digits (scikit-learn's bundled set, 1,797 images) are enlarged to 32x32 and laid on coloured
textures. One corner carries a *cue*: a square patch whose colour belongs to a class. In a share ``strength`` of the
training images that class is the digit's own; in the others it is another one, drawn at random. With ten classes
``strength=0.1`` makes the colour independent of the digit, and ``strength=0.95`` makes it a tempting shortcut.

What is known of each image: the class the patch stands for, and two region masks, ``core`` (the strokes, one pixel
wider) and ``spurious`` (the patch). The corner changes from image to image, so that relevance found on the patch
cannot be a border effect or a favourite place of the model.

Everything is drawn from generators seeded here: the same arguments give the same bytes, and the global random state
of Python, NumPy and PyTorch is neither read nor changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xai_callbacks._lightning import LightningDataModule, LightningModule
from xai_callbacks.errors import ConfigurationError

SIZE = 32
PATCH = 6
MARGIN = 1
GLYPH = 24
MAX_SHIFT = 2
CONTRAST = (0.4, 0.8)
PIXEL_NOISE = 0.04
CLASS_NAMES = tuple(str(digit) for digit in range(10))
GROUP_NAMES = ("cue conflicts", "cue agrees")
PROBE_FIELDS: dict[str, Any] = {
    **{key: key for key in ("image", "label", "group", "name")},
    "masks": {"core": "core", "spurious": "spurious"},
}
"""The `fields=` of `ProbeSet.from_dataset` for these images."""

# The eight colours of Okabe and Ito (Color Universal Design, 2008), with white and brown: every two of them differ by
# at least 16 (CIE 1976), in normal vision and as seen with protanopia, deuteranopia and tritanopia (Machado 2009).
CUE_COLOURS = (
    (0, 0, 0),  # black
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
    (255, 255, 255),  # white
    (110, 50, 20),  # brown
)
"""Entry k is the colour of the patch that stands for digit k."""


@dataclass(frozen=True, eq=False)
class DecoyDigits(Dataset[dict[str, Any]]):
    """Rendered images with what is known of them; item ``i`` is a dict.

    Items have the keys ``image`` (3, 32, 32) float32 in [0, 1], ``label`` int, ``core`` and ``spurious`` (32, 32) bool,
    ``group`` int (index into `GROUP_NAMES`) and ``name`` str; `PROBE_FIELDS` tells `ProbeSet.from_dataset` so.

    Attributes:
        images: (N, 3, 32, 32) in [0, 1].
        labels: (N,) the digit shown.
        cues: (N,) the class whose colour the patch has.
        core: (N, 32, 32) the strokes, one pixel wider, without what the patch hides.
        spurious: (N, 32, 32) the patch.
        sources: (N,) index of the source digit in scikit-learn's set.
    """

    images: Tensor
    labels: Tensor
    cues: Tensor
    core: Tensor
    spurious: Tensor
    sources: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "label": int(self.labels[index]),
            "core": self.core[index],
            "spurious": self.spurious[index],
            "group": int(self.groups[index]),
            "name": self.name(index),
        }

    def name(self, index: int) -> str:
        """Name of an image, such as ``digit3-cue7-0815``: what it shows, what the patch says, and the source."""
        return f"digit{int(self.labels[index])}-cue{int(self.cues[index])}-{int(self.sources[index]):04d}"

    @property
    def groups(self) -> Tensor:
        """(N,) index into `GROUP_NAMES`: 1 where the cue agrees with the digit."""
        return (self.cues == self.labels).long()


def make_splits(
    strength: float, *, train_images: int = 3000, held_out: int = 600, seed: int = 0
) -> tuple[DecoyDigits, DecoyDigits, DecoyDigits]:
    """Render the splits ``train``, ``val`` and ``conflict``.

    ``val`` is biased as ``train`` is. ``conflict`` shows the very images of ``val`` (same digit, place, texture and
    noise) with the patch in the colour of a class that the digit is not, so a difference between the accuracies of
    the two is due to the patch alone. No source digit of ``train`` is in ``val`` or ``conflict``. Of all this only
    the colours in ``train`` and ``val`` depend on `strength`: ``conflict`` is the same for every strength, and runs
    of different strengths can be compared on it.

    Args:
        strength: Share of the images of ``train`` and ``val`` whose cue agrees with the digit, in [0, 1].
        train_images: Number of training images. Source digits are used several times, each time at another place,
            contrast and texture.
        held_out: Number of source digits kept for ``val`` and ``conflict``, each rendered once.
        seed: Seed of everything drawn, the partition of the source digits included.

    Raises:
        ConfigurationError: `strength` is outside [0, 1], or there are not enough digits for `held_out`.
    """
    if not 0.0 <= strength <= 1.0:
        raise ConfigurationError(f"Expected `strength` to be in [0, 1], but got {strength}. Pass a share such as 0.95.")
    glyphs, labels = _source_digits()
    if not 10 <= held_out <= len(labels) - 10 or train_images < 10:
        raise ConfigurationError(
            f"Expected `held_out` to be in [10, {len(labels) - 10}] and `train_images` at least 10, "
            f"but got {held_out} and {train_images}. Leave digits for both sides."
        )
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(labels))
    unseen, seen = order[:held_out], order[held_out:]
    train = _render(glyphs, labels, np.resize(seen, train_images), strength, np.random.default_rng([seed, 1]))
    val = _render(glyphs, labels, unseen, strength, np.random.default_rng([seed, 2]))
    return train, val, _paint(val, _other_class(val.labels, np.random.default_rng([seed, 3])))


def _source_digits() -> tuple[Tensor, Tensor]:
    """All source digits (1797, 8, 8) in [0, 1] and their labels (1797,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float() / 16.0, torch.from_numpy(bunch.target).long()


def _render(
    glyphs: Tensor, labels: Tensor, sources: np.ndarray, strength: float, rng: np.random.Generator
) -> DecoyDigits:
    """Lay each source digit on a texture, and a patch in one of its corners."""
    picked = torch.from_numpy(sources)
    label = labels[picked]
    strokes = _place(glyphs[picked], rng)
    contrast = _column(rng.uniform(*CONTRAST, size=len(sources)))
    texture = _textures(len(sources), rng)
    ink = texture + contrast * (1.0 - texture)  # strokes are the texture, lightened
    noise = torch.from_numpy(rng.standard_normal(texture.shape, dtype=np.float32))
    images = texture + strokes.unsqueeze(1) * (ink - texture) + PIXEL_NOISE * noise
    patch = _corner_masks(rng.integers(0, 4, size=len(sources)))
    cues = _draw_cues(label, strength, rng)
    core = F.max_pool2d((strokes > 0.4).float().unsqueeze(1), 3, stride=1, padding=1).squeeze(1).bool()
    plain = DecoyDigits(images.clamp(0.0, 1.0), label, cues, core & ~patch, patch, picked)
    return _paint(plain, cues)


def _place(glyphs: Tensor, rng: np.random.Generator) -> Tensor:
    """Stroke opacity (N, 32, 32) in [0, 1]: the digit enlarged smoothly and shifted a little."""
    large = F.interpolate(glyphs.unsqueeze(1), size=(GLYPH, GLYPH), mode="bicubic", align_corners=False)
    large = large.squeeze(1).clamp(0.0, 1.0)
    start = (SIZE - GLYPH) // 2 + rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, size=(len(glyphs), 2))
    canvas = torch.zeros(len(glyphs), SIZE, SIZE)
    for index, (top, left) in enumerate(start.tolist()):
        canvas[index, top : top + GLYPH, left : left + GLYPH] = large[index]
    return canvas


def _textures(count: int, rng: np.random.Generator) -> Tensor:
    """Backgrounds (count, 3, 32, 32) in [0, 1]: coloured noise of low frequency."""
    total = torch.full((count, 3, SIZE, SIZE), 0.38)
    for cells, amplitude in ((2, 0.08), (5, 0.09), (10, 0.07)):
        grid = amplitude * torch.from_numpy(rng.standard_normal((count, 3, cells, cells), dtype=np.float32))
        total += F.interpolate(grid, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return total.clamp(0.0, 0.9)


def _corner_masks(corners: np.ndarray) -> Tensor:
    """Patch masks (N, 32, 32) bool for corner numbers 0..3 (bit 0: right, bit 1: bottom)."""
    near, far = slice(MARGIN, MARGIN + PATCH), slice(SIZE - MARGIN - PATCH, SIZE - MARGIN)
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    for corner in range(4):
        masks[corner, far if corner & 2 else near, far if corner & 1 else near] = True
    return masks[torch.from_numpy(corners)]


def _draw_cues(labels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """(N,) the digit's own class for a share `strength` of the images, else one of the nine others."""
    agrees = torch.from_numpy(rng.random(len(labels)) < strength)
    return torch.where(agrees, labels, _other_class(labels, rng))


def _other_class(labels: Tensor, rng: np.random.Generator) -> Tensor:
    """(N,) a class that is not the label, uniform over the nine others."""
    return (labels + torch.from_numpy(rng.integers(1, 10, size=len(labels)))) % 10


def _paint(split: DecoyDigits, cues: Tensor) -> DecoyDigits:
    """The same images with the patches in the colours of `cues`."""
    colours = torch.tensor(CUE_COLOURS, dtype=torch.float32)[cues] / 255.0
    images = torch.where(split.spurious.unsqueeze(1), colours[:, :, None, None], split.images)
    return replace(split, images=images, cues=cues)


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float().view(-1, 1, 1, 1)


class DecoyDataModule(LightningDataModule):
    """Loaders over `make_splits`; validation goes over ``val`` (loader 0) and ``conflict`` (loader 1)."""

    def __init__(self, strength: float = 0.95, *, train_images: int = 3000, held_out: int = 600, seed: int = 0) -> None:
        super().__init__()
        self.train, self.val, self.conflict = make_splits(
            strength, train_images=train_images, held_out=held_out, seed=seed
        )
        self.seed = seed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled by a generator of its own, seeded."""
        order = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train, shuffle=True, drop_last=True, generator=order)

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """The biased images, and the same with contradicting patches."""
        return [self._loader(self.val), self._loader(self.conflict)]

    def _loader(self, split: DecoyDigits, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
        # The images are in memory already: pairs of tensors are collated several times faster than dicts of masks.
        pairs = torch.utils.data.TensorDataset(split.images, split.labels)
        return DataLoader(pairs, batch_size=64, **options)


class SmallCNN(LightningModule):
    """Five convolutions, global average pooling, one linear layer; maps of 8x8 cells for images of 32x32.

    Logs ``train_loss``, ``val_loss``, ``val_acc`` (first validation loader) and ``conflict_acc`` (second one: images
    whose cue disagrees with the digit).
    """

    def __init__(self, width: int = 16, lr: float = 3e-3, classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.features = nn.Sequential(
            _block(3, width),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 2 * width),
            _block(2 * width, 4 * width, stride=2),
            _block(4 * width, 4 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 3, 32, 32) in [0, 1]."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy on biased images, accuracy on conflicting ones."""
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        size = len(labels)
        if dataloader_idx == 0:
            self.log("val_loss", F.cross_entropy(logits, labels), batch_size=size, add_dataloader_idx=False)
        self.log("conflict_acc" if dataloader_idx else "val_acc", accuracy, batch_size=size, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        """Adam under one cycle of the learning rate, over the whole run."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
