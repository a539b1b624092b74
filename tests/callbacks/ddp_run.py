"""Run by `test_ddp.py` in two processes of its own: trainings under DDP, whose outcome each rank writes to a file."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path
from unittest import mock

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.leaning import leaning_class, leaning_probes, object_loader, patch
from tests.callbacks.runs import TinyModule, loader, tensorboard_logger, trainer
from tests.tiny import pictures, random_streams, tiny_probes
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    CueTrial,
    Estimate,
    GroupAccuracy,
    Key,
    Schedule,
    ValidationNovelty,
    Watch,
)
from xai_callbacks.callbacks.watch import Seen, reduced


class Threads(Callback):
    """Whether this process draws pictures."""

    def __init__(self):
        self.seen = set()

    def on_validation_end(self, trainer, pl_module):
        self.seen |= {thread.name for thread in threading.enumerate()}


class Grouped(TinyModule):
    """Validation batches have cues."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch[:2], batch_idx)


class Blind(leaning_class("pytorch_lightning")):
    """Leans on the cue from the start; the second process has no memory left for audits once training has begun."""

    def __init__(self):
        super().__init__(since=0, pace=1.0)
        self.net.features.requires_grad_(False)  # not used for the loss

    def forward(self, images):
        if self.trainer.global_step > 0 and self.global_rank == 1:
            raise torch.OutOfMemoryError("on this process only")
        return self.net(images)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(batch[0]).mean(), sync_dist=True)


class Broken(Watch):
    """Counts processes, and cannot tell of it in the second one."""

    def keys(self, auditor):
        return [Key("processes", "number of processes", of="nothing")]

    def begin(self, model, auditor):
        pass

    def after(self, outputs):
        pass

    def stop(self):
        pass

    def forget(self):
        pass

    def end(self, trainer):
        count = float(reduced(trainer, torch.ones(1, dtype=torch.float64), "sum"))
        if trainer.global_rank == 1:
            raise KeyError("in this process only")
        return Seen({"processes": Estimate(count)})


def grouped_images() -> TensorDataset:
    """Ten images, five for each of two processes, with three cues of which only the second process sees the last."""
    return TensorDataset(pictures(10, seed=6), torch.arange(10) % 3, torch.arange(10) % 2 * 2 - torch.arange(10) // 8)


def run(folder: Path, audit: AuditCallback | None, *others: Callback, module=None, loaders=None) -> None:
    """Train once; `rank_<n>.pt` holds weights, metrics and what this rank did."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = Threads()
    torch.manual_seed(0)
    module = TinyModule() if module is None else module()
    loaders = (loader(), loader(2, seed=6)) if loaders is None else loaders
    callbacks = [*([] if audit is None else [audit]), *others, threads]
    one = trainer(folder, callbacks, devices=2, strategy="ddp", max_epochs=3, logger=tensorboard_logger(folder))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        one.fit(module, *loaders)
    outcome = {
        "world": one.world_size,
        "epochs": one.current_epoch,
        "state": module.state_dict(),
        "streams": random_streams(),
        "metrics": dict(one.callback_metrics),
        "threads": threads.seen,
        "warnings": [str(warning.message) for warning in found],
        "audits": [] if audit is None else [(each.step, each.run) for each in audit.history],
        "folder": None if audit is None else audit.history.folder,
        "auditor": audit is not None and audit.auditor is not None,
    }
    torch.save(outcome, folder / f"rank_{one.global_rank}.pt")


def grouped(folder: Path, watch: GroupAccuracy, on_error: str = "raise") -> None:
    """Train once with groups."""
    audit = AuditCallback(tiny_probes(), max_panels=1, watches=[watch], on_error=on_error)
    run(folder, audit, module=Grouped, loaders=(loader(), DataLoader(grouped_images(), batch_size=2)))


def fails_on_one(batch):
    """A file that one process cannot read, for its second batch and later."""
    if torch.distributed.get_rank() == 1 and int(batch[1][0]) != 1:
        raise OSError("no such file on this machine")
    return batch[2]


def labels_on_one(batch):
    """Nothing to judge for the second process."""
    return batch[1][: 0 if torch.distributed.get_rank() else None]


def cues_on_one(batch):
    """The cues of these."""
    return batch[2][: len(labels_on_one(batch))]


def drawn_on_one(trainer):
    """Probes, which the second process cannot read."""
    if trainer.global_rank == 1:
        raise OSError("no such file on this machine")
    return tiny_probes()


def plain(root: Path) -> None:
    """Audits as they come."""
    run(root / "plain", None)
    run(root / "audited", AuditCallback(tiny_probes(), max_panels=1, watches=[ValidationNovelty()], on_error="raise"))
    stopping = EarlyStopping("audit/confidence", mode="max", stopping_threshold=0.0)
    run(root / "stopped", AuditCallback(tiny_probes(), max_panels=1, on_error="raise"), stopping)


def groups(root: Path) -> None:
    """What is seen of the validation set."""
    grouped(root / "grouped", GroupAccuracy(2, min_count=1))
    grouped(root / "spoilt", GroupAccuracy(fails_on_one, min_count=1), on_error="warn")
    grouped(root / "one_sided", GroupAccuracy(cues_on_one, label=labels_on_one, min_count=1))


def faults(root: Path) -> None:
    """What fails in one process only."""
    auditor = Auditor(leaning_probes(), novelty=[], trials=[CueTrial(patch())])
    alarm = AuditCallback(auditor, rules=[AlarmRule(audits=1, stop=True)], max_panels=0)
    run(root / "alarm", alarm, module=Blind, loaders=(object_loader(), object_loader()))
    with mock.patch("xai_callbacks.callbacks.attaching._drawn", drawn_on_one):
        run(root / "unattached", AuditCallback(max_panels=0))
    within = Schedule(None, every_n_train_steps=2)  # at the step of each validation, just before it
    run(root / "unseen", AuditCallback(tiny_probes(), watches=[Broken()], rules=["accuracy > 0.01"], schedule=within))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("TQDM_DISABLE", "1")
    for part in (plain, groups, faults):
        part(Path(sys.argv[1]))
