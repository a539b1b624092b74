"""Run by `test_ddp.py` in two processes of its own: trainings under DDP, whose outcome each rank writes to a file."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import TinyModule, loader, tensorboard_logger, trainer
from tests.tiny import pictures, random_streams, tiny_probes
from xai_callbacks import AuditCallback
from xai_callbacks.callbacks import Group


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


def grouped_images() -> TensorDataset:
    """Ten images, five for each of two processes, with three cues of which only the second process sees the last."""
    return TensorDataset(pictures(10, seed=6), torch.arange(10) % 3, torch.arange(10) % 2 * 2 - torch.arange(10) // 8)


def run(
    folder: Path, *, attached: bool, stopping: bool = False, group: Group | None = None, on_error: str = "raise"
) -> None:
    """Train once; `rank_<n>.pt` holds weights, metrics and what this rank did."""
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = []
    if attached:
        callbacks.append(
            AuditCallback(tiny_probes(), max_panels=1, watch_validation=group is None, group=group, on_error=on_error)
        )
    if stopping:
        callbacks.append(EarlyStopping("audit/confidence", mode="max", stopping_threshold=0.0))
    threads = Threads()
    torch.manual_seed(0)
    module = TinyModule() if group is None else Grouped()
    validation = loader(2, seed=6) if group is None else DataLoader(grouped_images(), batch_size=2)
    logger = tensorboard_logger(folder)
    one = trainer(folder, [*callbacks, threads], devices=2, strategy="ddp", max_epochs=3, logger=logger)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        one.fit(module, loader(), validation)
    outcome = {
        "world": one.world_size,
        "epochs": one.current_epoch,
        "state": module.state_dict(),
        "streams": random_streams(),
        "metrics": dict(one.callback_metrics),
        "threads": threads.seen,
        "warnings": [str(warning.message) for warning in found],
    }
    torch.save(outcome, folder / f"rank_{one.global_rank}.pt")


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


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    run(root / "plain", attached=False)
    run(root / "audited", attached=True)
    run(root / "stopped", attached=True, stopping=True)
    run(root / "grouped", attached=True, group=Group(2, min_count=1))
    run(root / "spoilt", attached=True, group=Group(fails_on_one, min_count=1), on_error="warn")
    run(root / "one_sided", attached=True, group=Group(cues_on_one, label=labels_on_one, min_count=1))
