"""A module and data for LightningCLI, in both packages, as a user's project would have them."""

from __future__ import annotations

import lightning.pytorch
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

from tests.callbacks.leaning import leaning_class, object_loader
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


class _Digits:
    def train_dataloader(self):
        return DataLoader(digits(16, 5), batch_size=4)

    def val_dataloader(self):
        return DataLoader(digits(8, 6), batch_size=4)


def digits(count, seed):
    """Images of 28 x 28 pixels in [0, 1]."""
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


class OldDigits(_Digits, pytorch_lightning.LightningDataModule):
    """For `pytorch_lightning`."""


class NewDigits(_Digits, lightning.pytorch.LightningDataModule):
    """For `lightning`."""


class OldData(_Loaders, pytorch_lightning.LightningDataModule):
    """For `pytorch_lightning`."""


class NewData(_Loaders, lightning.pytorch.LightningDataModule):
    """For `lightning`."""


class _Objects:
    def train_dataloader(self):
        return object_loader()

    def val_dataloader(self):
        return object_loader(2)


class OldLeaningModule(leaning_class("pytorch_lightning")):
    """For `pytorch_lightning`."""


class NewLeaningModule(leaning_class("lightning.pytorch")):
    """For `lightning`."""


class OldLeaningData(_Objects, pytorch_lightning.LightningDataModule):
    """For `pytorch_lightning`."""


class NewLeaningData(_Objects, lightning.pytorch.LightningDataModule):
    """For `lightning`."""
