"""Models that checkpoints of tests belong to, found by their paths."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule
from torch import nn

from tests.tiny import TinyNet

PATH = "tests.checkpoints.modules.Small"


class Small(LightningModule):
    """Saves its hyperparameters, and builds its net of them."""

    def __init__(self, channels: int = 4, classes: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.net = TinyNet(classes, channels)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Late(Small):
    """Builds a part in `configure_model` only, and reads what it wrote itself."""

    def configure_model(self):
        self.scale = nn.Parameter(torch.zeros(1))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 7

    def on_load_checkpoint(self, checkpoint):
        self.found = checkpoint["mine"]


class Wanting(Small):
    """Does not say in its checkpoints what it was built of."""

    def __init__(self, net):
        LightningModule.__init__(self)
        self.net = net


NUMBER = 3


def plain(channels: int = 4):
    return TinyNet(3, channels)


def no_model():
    return NUMBER


def broken():
    raise OSError("no such disk\nand more")
