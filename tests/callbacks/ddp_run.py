"""Run by `test_ddp.py` in two processes of its own: trainings under DDP, whose outcome each rank writes to a file."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping

from tests.callbacks.runs import TinyModule, loader, tensorboard_logger, trainer
from tests.tiny import random_streams, tiny_probes
from xai_callbacks import AuditCallback


class Threads(Callback):
    """Whether this process draws pictures."""

    def __init__(self):
        self.seen = set()

    def on_validation_end(self, trainer, pl_module):
        self.seen |= {thread.name for thread in threading.enumerate()}


def run(folder: Path, *, attached: bool, stopping: bool = False) -> None:
    """Train once; `rank_<n>.pt` holds weights, metrics and what this rank did."""
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = []
    if attached:
        callbacks.append(AuditCallback(tiny_probes(), max_panels=1, watch_validation=True, on_error="raise"))
    if stopping:
        callbacks.append(EarlyStopping("audit/confidence", mode="max", stopping_threshold=0.0))
    threads = Threads()
    torch.manual_seed(0)
    module = TinyModule()
    logger = tensorboard_logger(folder)
    one = trainer(folder, [*callbacks, threads], devices=2, strategy="ddp", max_epochs=3, logger=logger)
    one.fit(module, loader(), loader(2, seed=6))
    outcome = {
        "world": one.world_size,
        "epochs": one.current_epoch,
        "state": module.state_dict(),
        "streams": random_streams(),
        "metrics": dict(one.callback_metrics),
        "threads": threads.seen,
    }
    torch.save(outcome, folder / f"rank_{one.global_rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    run(root / "plain", attached=False)
    run(root / "audited", attached=True)
    run(root / "stopped", attached=True, stopping=True)
