"""A tiny module and its data, so that a whole diagnosis takes a fraction of a second."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.tiny import TinyNet, pictures


class TinyModule(pl.LightningModule):
    """Logs `loss` and `val_loss`; the second convolution is never used, so it has no gradients."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()
        self.idle = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class TinyData(pl.LightningDataModule):
    """Pictures of three classes, in batches of four."""

    def __init__(self, images=16, validates=True):
        super().__init__()
        self.images, self.validates = images, validates

    def _loader(self, **options):
        dataset = TensorDataset(pictures(self.images), torch.arange(self.images) % 3)
        return DataLoader(dataset, batch_size=4, **options)

    def train_dataloader(self):
        return self._loader(shuffle=True)

    def val_dataloader(self):
        return self._loader() if self.validates else []
