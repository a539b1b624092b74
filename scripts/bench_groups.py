"""What `GroupAccuracy` over the whole validation set costs: validation epochs with it against ones without.

    python scripts/bench_groups.py --json docs/results/groups_bench.json

Two ordinary trainings: the small convolutional net of the demonstration at 32 x 32 pixels, batches of 64, and
MobileNetV2 at 128 x 128, batches of 32. In one fit, validation epochs with the callback and epochs that it lets pass
follow each other in changing order; figures are ratios of such neighbours, so that they hold on a machine whose speed
drifts. An epoch is timed from before the first hook to after the last, with the logger's work, by the clock and by the
CPU time of this process, which other processes disturb less. Ratios are medians over the pairs with a 95 % bootstrap
interval. Beside them stands what can be told without a pair: the CPU time inside the hooks of the callback, as a share
of an epoch without it. Weights and images are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from _provenance import provenance, write_json
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from xai_callbacks import AuditCallback, GroupAccuracy, ProbeSet, Schedule
from xai_callbacks.demo import SmallCNN

MODELS = ("small_cnn", "mobilenet_v2")
CLASSES, CUES = 10, 4
SETTINGS = {"small_cnn": (32, 64, 5000), "mobilenet_v2": (128, 32, 128)}
"""Pixels, images in a batch, validation images."""
WARM_UP = 2
"""Epochs that are not counted: what is slow only once."""


class Classifier(pl.LightningModule):
    """A classifier as users write it: loss and accuracy are logged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Alternating(AuditCallback):
    """With the callback, without, without, with, and so on: what it does in validation, or nothing at all."""

    def __init__(self, probes: ProbeSet, watch: GroupAccuracy) -> None:
        never = Schedule(every_n_epochs=None, at_start=False)
        super().__init__(probes, watches=[watch], schedule=never, on_error="raise")
        self.validations = 0
        self.spent = 0.0

    @property
    def on(self) -> bool:
        """Whether it takes part in the current validation."""
        return self.validations % 4 in (0, 3)

    def on_validation_start(self, *given: Any) -> None:
        """Listen."""
        self.spent = 0.0
        self._timed(super().on_validation_start, given)

    def on_validation_batch_start(self, *given: Any) -> None:
        """Read labels and cues."""
        self._timed(super().on_validation_batch_start, given)

    def on_validation_batch_end(self, *given: Any) -> None:
        """Take the logits."""
        self._timed(super().on_validation_batch_end, given)

    def on_validation_epoch_end(self, *given: Any) -> None:
        """Judge and log."""
        self._timed(super().on_validation_epoch_end, given)

    def _timed(self, hook: Callable[..., None], given: tuple[Any, ...]) -> None:
        if self.on:
            begun = time.process_time()
            hook(*given)
            self.spent += time.process_time() - begun


class Stopwatch(pl.Callback):
    """Times validation epochs; stands first in the list, so that it starts before the other callback."""

    def __init__(self, audit: Alternating) -> None:
        self.audit = audit
        self.seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        self.in_hooks: list[float] = []
        self._begun = (0.0, 0.0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._begun = (time.perf_counter(), time.process_time())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop: what all callbacks do at the end of the epoch has been done."""
        spent = (time.perf_counter() - self._begun[0], time.process_time() - self._begun[1])
        if trainer.current_epoch >= WARM_UP:
            self.seconds[self.audit.on].append(spent)
            if self.audit.on:
                self.in_hooks.append(self.audit.spent)
        self.audit.validations += 1


def model(name: str) -> nn.Module:
    """The net, with random weights."""
    torch.manual_seed(0)
    if name == "small_cnn":
        return SmallCNN(classes=CLASSES)
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return net


def images(name: str, count: int) -> TensorDataset:
    """Random images with labels and cues."""
    size = SETTINGS[name][0]
    generator = torch.Generator().manual_seed(1)
    labels, cues = (torch.randint(high, (count,), generator=generator) for high in (CLASSES, CUES))
    return TensorDataset(torch.rand(count, 3, size, size, generator=generator), labels, cues)


def measure(name: str, pairs: int) -> Stopwatch:
    """Train on a batch an epoch and validate on everything."""
    _, batch, count = SETTINGS[name]
    data = images(name, count)
    probes = ProbeSet.from_tensors(data.tensors[0][:4], data.tensors[1][:4])
    audit = Alternating(probes, GroupAccuracy(2, num_cues=CUES, aligned=[label % CUES for label in range(CLASSES)]))
    watch = Stopwatch(audit)
    with TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=WARM_UP + 2 * pairs,
            limit_train_batches=1,
            num_sanity_val_steps=0,
            callbacks=[watch, audit],
            logger=TensorBoardLogger(folder, name=""),
            log_every_n_steps=1,
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Classifier(model(name)), DataLoader(data, batch), DataLoader(data, batch))
        assert float(trainer.callback_metrics["audit/group/n_min"]) > 0
    return watch


def compare(name: str, pairs: int) -> dict[str, Any]:
    """Paired ratios of one model."""
    watch = measure(name, pairs)
    seconds = watch.seconds
    figures: dict[str, Any] = {"validation_images": SETTINGS[name][2], "batch": SETTINGS[name][1]}
    for index, clock in enumerate(("wall", "cpu")):
        with_group, without = (
            torch.tensor([spent[index] for spent in seconds[on]], dtype=torch.float64) for on in (True, False)
        )
        ratios = with_group / without
        figures[f"{clock}_seconds_without"] = round(float(without.median()), 4)
        figures[f"{clock}_seconds_added"] = round(float((with_group - without).median()), 4)
        figures[f"{clock}_ratio"] = round(float(ratios.median()), 4)
        figures[f"{clock}_ratio_ci"] = [round(end, 4) for end in median_interval(ratios)]
    figures["cpu_seconds_in_hooks"] = round(statistics.median(watch.in_hooks), 4)
    figures["cpu_share_of_hooks"] = round(figures["cpu_seconds_in_hooks"] / figures["cpu_seconds_without"], 4)
    return figures


def median_interval(values: Tensor, resamples: int = 4000) -> list[float]:
    """Percentile bootstrap interval of the median, 95 %."""
    generator = torch.Generator().manual_seed(0)
    drawn = values[torch.randint(len(values), (resamples, len(values)), generator=generator)]
    medians = drawn.quantile(0.5, dim=1)
    return [float(end) for end in medians.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print it, and keep it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="pairs of validation epochs a model")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    result: dict[str, Any] = {"models": {}}
    for name in options.models:
        figures = result["models"][name] = compare(name, options.pairs)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    if options.json:
        facts = {"seed": 0, "pairs": options.pairs, **provenance("pytorch-lightning")}
        write_json(options.json, {**result, **facts})
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
