"""The training that is repeated with and without what is examined: a small residual net learns scikit-learn's digits.

The net has what explainers stumble over: BatchNorm, in-place ReLU, `out += identity` (torchvision's own `BasicBlock`)
and dropout; the images are augmented at random. All of it is drawn from the global random streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from xai_callbacks._lightning import LightningModule


@dataclass(frozen=True)
class Digits:
    """Images are `(N, 3, 32, 32)` in [0, 1]."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @property
    def probes(self) -> tuple[Tensor, Tensor]:
        """The first eight validation images and their labels: what is to be explained."""
        return self.val[0][:8], self.val[1][:8]

    @property
    def background(self) -> Tensor:
        """The reference images that SHAP-like methods ask for."""
        return self.train[0][:16]

    def loaders(self) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, ...]]]:
        """Of training and of validation."""
        train = DataLoader(Augmented(*self.train), batch_size=24, shuffle=True)
        return train, DataLoader(TensorDataset(*self.val), batch_size=48)


def load_digits() -> Digits:
    """Real handwritten digits bundled with scikit-learn (no download), enlarged from 8 to 32 px."""
    from sklearn.datasets import load_digits as bundled

    bunch = bundled()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    return Digits((images[:288].clone(), labels[:288]), (images[288:384].clone(), labels[288:384]))


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random shift, rotation and contrast at each read, drawn from the global torch RNG."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.augment = v2.Compose([v2.RandomAffine(15, translate=(0.1, 0.1)), v2.ColorJitter(contrast=0.3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.augment(self.images[index]), self.labels[index]


class SmallResNet(nn.Module):
    """A stem and three of torchvision's residual blocks; the last feature map is `(N, 64, 4, 4)` for 32 px images."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            BasicBlock(16, 16),
            BasicBlock(16, 32, 2, nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))),
            BasicBlock(32, 64, 2, nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, H, W)`."""
        logits: Tensor = self.head(self.dropout(self.pool(self.backbone(images)).flatten(1)))
        return logits


class DigitsModule(LightningModule):
    """Cross entropy, accuracy and Adam, as a user would write it; the net is `.net`."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.net = SmallResNet()
        if frozen:
            self.net.backbone.requires_grad_(False).eval()
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)`."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_acc", self.val_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, so that there is optimizer state to compare."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=2e-3)
