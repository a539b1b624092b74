"""Tiny Lightning runs in either of Lightning's two packages."""

from __future__ import annotations

import csv
import importlib
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.tiny import pictures, tiny_net

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
BATCHES = 4

# What Lightning says of these small runs, and rightly so.
NOISE = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


def package(name):
    return importlib.import_module(name)


def tiny_module(name="pytorch_lightning", **given):
    """What a user would write: loss in training, loss in validation, plain SGD."""
    return module_class(name)(**given)


def module_class(name):
    class TinyModule(package(name).LightningModule):
        def __init__(self, net=None, lr=0.1):
            super().__init__()
            self.net = tiny_net() if net is None else net
            self.lr = lr

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            images, labels = batch
            loss = nn.functional.cross_entropy(self(images), labels)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            images, labels = batch
            self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    return TinyModule


TinyModule = module_class("pytorch_lightning")


def loader(batches=BATCHES, batch_size=4, seed=5):
    count = batches * batch_size
    return DataLoader(TensorDataset(pictures(count, seed=seed), torch.arange(count) % 3), batch_size=batch_size)


def trainer(folder, callbacks, name="pytorch_lightning", **options):
    """A trainer on one CPU process without bars; a CSV logger and no checkpoints unless told otherwise."""
    logger = options.pop("logger", "csv")
    if logger == "csv":
        logger = csv_logger(folder, name)
    elif logger == "tensorboard":
        logger = tensorboard_logger(folder, name)
    given = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        **options,
    }
    return package(name).Trainer(default_root_dir=folder, callbacks=callbacks, logger=logger, **given)


def fit(folder, *callbacks, name="pytorch_lightning", module=None, val=True, ckpt_path=None, **options):
    """Train a tiny module with the callbacks in this order; returns the trainer."""
    one = trainer(folder, list(callbacks), name, **with_checkpoints(callbacks, options))
    module = tiny_module(name) if module is None else module
    with quiet():
        one.fit(module, loader(), loader(2, seed=6) if val else None, ckpt_path=ckpt_path)
    return one


def with_checkpoints(callbacks, options):
    """Options of a trainer that saves checkpoints if one of the callbacks does."""
    saves = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    return {"enable_checkpointing": saves, **options}


@contextmanager
def quiet():
    """Without what Lightning says of these small runs."""
    with warnings.catch_warnings():
        for noise in NOISE:
            warnings.filterwarnings("ignore", message=noise)
        yield


def csv_logger(folder, name="pytorch_lightning"):
    return package(f"{name}.loggers").CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1)


def tensorboard_logger(folder, name="pytorch_lightning", **options):
    return package(f"{name}.loggers").TensorBoardLogger(folder, name="", version="tb", **options)


def rows(folder):
    """Rows of the CSV logger, empty cells left out, numbers as written."""
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def steps_of(folder, key):
    return [int(row["step"]) for row in rows(folder) if key in row]


@contextmanager
def caught():
    """Every warning inside, in order, none raised."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def audit_warnings(found):
    return [str(warning.message) for warning in found if "audit" in str(warning.message).lower()]


def differing(one, other):
    """Names of what is not equal bit by bit."""
    different = [name for name, value in one.items() if not isinstance(value, dict) and value != other[name]]
    for name, value in one.items():
        if isinstance(value, dict):
            assert value.keys() == other[name].keys()
            different += [f"{name}.{key}" for key in value if not equal(value[key], other[name][key])]
    return different


def equal(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
