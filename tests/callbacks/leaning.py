"""A module that comes to lean on a cue at a known pace, and probes for it: every effect can be computed by hand."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import BATCHES, package, quiet, trainer, with_checkpoints
from xai_callbacks import PatchCue, ProbeSet, ShortcutMonitor

SIZE = 8
COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
NAMES = ("red", "green")
SPURIOUS = torch.zeros(SIZE, SIZE, dtype=torch.bool)
SPURIOUS[:3, :3] = True
CORE = torch.zeros(SIZE, SIZE, dtype=torch.bool)
CORE[4:7, 4:7] = True
START, LEANS_FROM = 0.02, 2


class LeaningNet(nn.Module):
    """Logit of a class: `gain` times the mean of its colour in the cue's region, and that of all the rest."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.gain = nn.Parameter(torch.tensor(START))
        # Tells the weights of any two steps apart.
        self.clock = nn.Parameter(torch.tensor(0.0))
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(2, 3)[:, :, None, None])

    def forward(self, images):
        seen = self.features(images)
        return self.gain * seen[..., SPURIOUS].mean(dim=-1) + seen[..., ~SPURIOUS].mean(dim=-1)


def leaning_module(name="pytorch_lightning", **given):
    return leaning_class(name)(**given)


def leaning_class(name):
    class LeaningModule(package(name).LightningModule):
        """From epoch `since` on, each step adds `pace` to the gain; until then, and beside, nothing is learnt."""

        def __init__(self, since: int = LEANS_FROM, pace: float = 0.1):
            super().__init__()
            self.net = LeaningNet()
            self.since, self.pace = since, pace

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            leans = float(self.current_epoch >= self.since)
            return -self.net.clock - leans * self.pace * self.net.gain

        def validation_step(self, batch, batch_idx):
            images, labels = batch
            self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

        def configure_optimizers(self):
            return torch.optim.SGD([self.net.gain, self.net.clock], lr=1.0)

    return LeaningModule


def effect_after(epoch, since=LEANS_FROM, pace=0.1):
    """Effect of the patch at the end of an epoch: that of logits (g, 0) rather than (0, g)."""
    gain = START + pace * BATCHES * max(0, epoch + 1 - since)
    # What the object adds to the logit of its class: nine pixels of 48, by the mean of which the rim around the region
    # is filled. Grey adds as much to either.
    rest = 9 / 48
    return _sigmoid(rest + gain) - _sigmoid(rest - gain)


def _sigmoid(value):
    return 1 / (1 + math.exp(-value))


def objects(count, seed=0):
    """Grey noise with an object in the colour of the class."""
    images = 0.2 * torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).expand(-1, 3, -1, -1)
    labels = torch.arange(count) % 2
    colours = torch.tensor(COLOURS)[labels][:, :, None, None]
    return torch.where(CORE, colours, images).contiguous(), labels


def leaning_probes(count=32, **fields):
    images, labels = objects(count)
    masks = {"core": CORE.expand(count, -1, -1), "spurious": SPURIOUS.expand(count, -1, -1)}
    given = {"labels": labels, "class_names": NAMES, "masks": masks, **fields}
    return ProbeSet.from_tensors(images, **given)


def patch(at="spurious", **given):
    return PatchCue(COLOURS, NAMES, at=at, **{"size": 0.375, **given})


def object_loader(batches=BATCHES, batch_size=4, seed=1):
    return DataLoader(TensorDataset(*objects(batches * batch_size, seed)), batch_size=batch_size)


def monitor(cue=None, probes=None, **given):
    given = {"on_error": "raise", "max_panels": 0, **given}
    return ShortcutMonitor(probes or leaning_probes(), cue or patch(), **given)


def fit(folder, *callbacks, name="pytorch_lightning", module=None, ckpt_path=None, **options):
    """Train a model that leans on the cue from epoch 2 on, for four epochs; returns the trainer."""
    one = trainer(folder, list(callbacks), name, **with_checkpoints(callbacks, {"max_epochs": 4, **options}))
    module = leaning_module(name) if module is None else module
    with quiet():
        one.fit(module, object_loader(), object_loader(2), ckpt_path=ckpt_path)
    return one
