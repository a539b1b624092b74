"""Small nets, probes, and a reader of TensorBoard's files, for the tests of audit, sinks and callback."""

from __future__ import annotations

import random

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from xai_callbacks import ProbeSet

CLASSES = ("cat", "dog", "owl")


class TinyNet(nn.Sequential):
    """Images `(N, 3, 8, 8)` to logits `(N, classes)`, with BatchNorm and dropout; the last feature map is layer `2`."""

    def __init__(self, classes=3, channels=4):
        super().__init__(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(channels, classes),
        )


def tiny_net(classes=3, channels=4, seed=0):
    torch.manual_seed(seed)
    return TinyNet(classes, channels)


def pictures(count=6, size=8, seed=7):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def centre_masks(count=6, size=8):
    core = torch.zeros(count, size, size, dtype=torch.bool)
    core[:, size // 4 : -size // 4, size // 4 : -size // 4] = True
    return {"core": core, "spurious": ~core}


def tiny_probes(count=6, *, seed=7, **fields):
    """Labelled probes of three classes with two regions each; `fields` overrides what `from_tensors` gets."""
    given = {"labels": torch.arange(count) % 3, "class_names": CLASSES, "masks": centre_masks(count), **fields}
    return ProbeSet.from_tensors(pictures(count, seed=seed), **given)


def random_streams():
    """The whole state of the three random streams, comparable with `==`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


def read_events(folder):
    """Everything in a folder of event files, without TensorBoard's limits on how much is kept."""
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def scalar_steps(events, tag):
    return [event.step for event in events.Scalars(tag)]


def image_steps(events, tag):
    return [event.step for event in events.Images(tag)]
