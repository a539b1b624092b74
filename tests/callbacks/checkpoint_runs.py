"""Offline audits in processes of their own, run by `test_checkpoints.py`: under DDP, and killed at random moments.

    python checkpoint_runs.py ranks|kill FOLDER

What is killed is forked, which is safe here: nothing has started a thread.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tests.callbacks.runs import tiny_module, trainer
from tests.record.samples import same
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import AuditCallback, Auditor, Checkpoint, History, ProbeSet, Schedule, audit_checkpoints
from xai_callbacks.errors import AuditError

KILLS, FORKS = 50, 200
RULES = ["accuracy > 0.9"]


class Counted(Auditor):
    """Leaves one byte a look in a file."""

    def audit(self, model, **given):
        with open(self.looks, "ab", buffering=0) as file:
            file.write(b".")
        return super().audit(model, **given)


def other_net(seed):
    """Of another structure than `tiny_net`."""
    torch.manual_seed(seed)
    return nn.Sequential(tiny_net(), nn.Linear(3, 3))


def checkpoints(folder: Path, count: int = 5) -> dict[str, Checkpoint]:
    """Some nets, every third of another structure, saved where they are not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in range(count):
        make = other_net if seed % 3 == 2 else tiny_net
        path = folder / f"{seed}.pt"
        if not path.exists():
            torch.save({"state_dict": make(seed=seed).state_dict(), "epoch": seed, "global_step": 10 * seed}, path)
        found[f"net_{seed}"] = Checkpoint(path, model=make, hparams={"seed": 0})
    return found


def audited(given: dict[str, Checkpoint], folder: Path, **options) -> dict[str, History]:
    one, auditor = trainer(folder, [], logger=False, **options), Counted(tiny_probes(12))
    folder.mkdir(exist_ok=True)
    auditor.looks = folder / "looks"
    return audit_checkpoints(given, auditor, folder, rules=RULES, trainer=one)


def records_of(folder: Path) -> dict[str, object]:
    """All records of a folder of audits, one a history at most, without times and what happened to be loaded."""
    found = {}
    for place in sorted(folder.glob("*/history")):
        history = History(place)
        assert history.unreadable == {}
        assert len(history) <= 1
        if history.last is not None:
            found[place.parent.name] = replace(history.last, time=0.0, seconds={}, versions={})
    return found


def alike(one: Path, other: Path) -> bool:
    """Whether two folders of audits say the same, bit by bit, of the same probes."""
    first, second = records_of(one), records_of(other)
    probes = {ProbeSet.load(each / "probes.safetensors").fingerprint for each in (one, other)}
    return len(probes) == 1 and first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)


# ---- under DDP


def validated(folder: Path, **options) -> None:
    """One validation of a tiny module."""
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(in_validate=True), on_error="raise")
    one = trainer(folder, [callback], **options)
    torch.manual_seed(0)
    images = torch.utils.data.TensorDataset(pictures(8, seed=6), torch.arange(8) % 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
        one.validate(tiny_module(), torch.utils.data.DataLoader(images, 4), verbose=False)
    torch.save(dict(one.callback_metrics), folder / f"rank_{one.global_rank}.pt")


def ranks(root: Path) -> None:
    """Two processes: five checkpoints, one checkpoint, and some of which some cannot be loaded."""
    many, ddp = checkpoints(root / "nets"), {"devices": 2, "strategy": "ddp"}
    audited(many, root / "five", **ddp)
    audited({"net_0": many["net_0"]}, root / "one", **ddp)
    broken = {**many, "net_1": Checkpoint(root / "none.pt", model=tiny_net)}
    try:
        audited(broken, root / "broken", **ddp)
    except AuditError as error:
        (root / "broken" / f"rank_{os.environ.get('LOCAL_RANK', '0')}.txt").write_text(str(error))
    validated(root / "validated", **ddp)


# ---- killed


def forked(given: dict[str, Checkpoint], folder: Path) -> int:
    process = os.fork()
    if process == 0:
        try:
            os.fsync = lambda file: None  # protects from a loss of power, not from a kill
            audited(given, folder)
            os._exit(0)
        finally:
            os._exit(1)
    return process


def kill(root: Path) -> None:
    """Kill an audit at 50 random moments, each going on with what is left; what is whole is begun anew."""
    given, moments = checkpoints(root / "nets"), random.Random(0)
    begun = time.monotonic()
    audited(given, root / "whole")
    longest = time.monotonic() - begun
    whole, audits, killed, finished = records_of(root / "whole"), root / "audits", 0, 0
    for _ in range(FORKS):
        process = forked(given, audits)
        time.sleep(moments.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0  # it did not fail before
        killed += os.WIFSIGNALED(status)
        found = records_of(audits)
        assert all(same(record, whole[name]) for name, record in found.items())
        if len(found) == len(whole):
            assert alike(audits, root / "whole")
            shutil.rmtree(audits)
            finished += 1
        if killed >= KILLS:
            break
    assert killed == KILLS
    assert finished > 0
    before = {path: path.stat().st_mtime_ns for path in audits.glob("*/history/*.safetensors")}
    assert os.waitpid(forked(given, audits), 0)[1] == 0
    assert alike(audits, root / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())  # what was done is not done again
    assert not list(audits.rglob(".audit*"))
    print(f"{killed} kills, {finished} times all audits were there, {longest:.2f} s without a kill")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"ranks": ranks, "kill": kill}[sys.argv[1]](Path(sys.argv[2]))
