"""A module and data for LightningCLI, in both packages, as a user's project would have them."""

from __future__ import annotations

import lightning.pytorch
import pytorch_lightning

from tests.callbacks.runs import loader, module_class


class OldModule(module_class("pytorch_lightning")):
    """For `pytorch_lightning`."""

    def __init__(self, lr: float = 0.1):
        super().__init__(lr=lr)


class NewModule(module_class("lightning.pytorch")):
    """For `lightning`."""

    def __init__(self, lr: float = 0.1):
        super().__init__(lr=lr)


class _Loaders:
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(2, seed=6)


class OldData(_Loaders, pytorch_lightning.LightningDataModule):
    """For `pytorch_lightning`."""


class NewData(_Loaders, lightning.pytorch.LightningDataModule):
    """For `lightning`."""
