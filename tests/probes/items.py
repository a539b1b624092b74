"""Datasets whose images tell which item they belong to, and that count what is read."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset


def picture(index, channels=1):
    """Return an image that tells which item it belongs to."""
    return torch.full((channels, 2, 2), index / 10000)


def indexes(probes):
    return [round(value * 10000) for value in probes.images[:, 0, 0, 0].tolist()]


class Items(Dataset):
    """Items made by a function of the index, counting how often each is read."""

    def __init__(self, count, make, **attributes):
        self.count, self.make, self.reads = count, make, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.reads.append(index)
        return self.make(index)


def labelled(count=60, classes=3, **attributes):
    return Items(count, lambda i: (picture(i), i % classes), **attributes)
