"""Trainings that are killed at random moments and resumed; run by `test_interrupted.py` on its own.

    python -m tests.callbacks.interrupted FOLDER [--kills 50] [--ranks 2] [--same-folder] [--seed 0]

It forks, which is safe here: nothing has started a thread.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import re
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from tests.callbacks.leaning import leaning_class, leaning_probes, object_loader, patch
from tests.callbacks.runs import trainer
from xai_callbacks import AlarmRule, AuditCallback, Auditor, CueTrial, GroupAccuracy, History

LIMIT = 300  # seconds for one process to say something
RULES = ["accuracy > 0.4", "group/wga > 0.3"]


class Leaning(leaning_class("pytorch_lightning")):
    """Comes to lean on the cue slowly, by steps that do not depend on chance; its clock tells the weights apart."""

    def __init__(self, epochs: int):
        super().__init__(since=epochs // 3, pace=1.2 / epochs)
        self.net.features.requires_grad_(False)  # not used for the loss

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


class Tells(Callback):
    """Says at each hook that it was reached, so that kills find all parts of a run, however slow the machine is."""

    def __init__(self, told: int):
        self._told = told

    def tell(self, *_, **__):
        os.write(self._told, b".")

    on_fit_start = on_train_start = on_train_batch_end = on_validation_start = on_validation_batch_end = tell
    on_validation_epoch_end = on_validation_end = on_train_epoch_end = on_save_checkpoint = on_train_end = tell


def newest(checkpoints: Path) -> Path | None:
    """The checkpoint of the latest epoch."""
    found = {int(re.search(r"epoch=(\d+)", path.name)[1]): path for path in checkpoints.glob("epoch=*.ckpt")}
    return found[max(found)] if found else None


def train(folder: Path, epochs: int, ranks: int, same_folder: bool, told: int) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    auditor = Auditor(leaning_probes(), novelty=[], trials=[CueTrial(patch())])
    watch = GroupAccuracy(lambda batch: batch[1], num_cues=2, min_count=1)
    audit = AuditCallback(auditor, watches=[watch], rules=[AlarmRule(), *RULES], max_panels=1)
    keep = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    spread = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    one = trainer(
        folder, [audit, keep, Tells(told)], logger=CSVLogger(folder, name="", version="csv" if same_folder else None),
        max_epochs=epochs, enable_checkpointing=True, **spread,
    )  # fmt: skip
    path = newest(folder / "checkpoints")
    one.fit(Leaning(epochs), object_loader(), object_loader(2, seed=6), ckpt_path=None if path is None else str(path))


def forked(*given) -> tuple[int, int]:
    """A process that trains, in a group of its own, and the end of a pipe that tells of its hooks."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(reading)
            output = os.open(given[0] / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            train(*given, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(process, process)  # whoever comes first: it may be killed before it has run at all
    return process, reading


def heard(reading: int, hooks: int) -> bool:
    """Wait for so many hooks; False if the process ends before."""
    return all(os.read(reading, 1) for _ in range(hooks))


def attempt(moment: tuple[int, float] | None, *given) -> bool:
    """Train, and kill the process so many hooks and seconds after its start; whether it was killed."""
    process, reading = forked(*given)
    signal.alarm(LIMIT)
    try:
        if moment is not None and heard(reading, moment[0]):
            time.sleep(moment[1])
            os.killpg(process, signal.SIGKILL)
        while os.read(reading, 4096):
            pass
        _, status = os.waitpid(process, 0)
    finally:
        signal.alarm(0)
        os.close(reading)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, (given[0] / "output.txt").read_text()[-4000:]
    return False


def moments(seed: int, epoch: float):
    """Random moments up to some two epochs of so many seconds after the start."""
    generator = random.Random(seed)
    while True:
        yield generator.randrange(18), generator.choice((0.0, 0.1, 1.0)) * generator.uniform(0, epoch)


def plain(record) -> dict[str, object]:
    """All of a record that must not depend on when a process was killed."""
    checkpoint = None if record.checkpoint is None else Path(record.checkpoint).name
    findings = [_plain(finding) for finding in record.findings]
    return {
        "place": (record.step, record.epoch, record.untrained), "weights": record.weights, "checkpoint": checkpoint,
        "metrics": {key: tuple(map(_number, each)) for key, each in record.metrics.items()},
        "findings": findings, "failed": record.failed, "notes": record.notes,
        "logged": {key: _number(value) for key, value in record.logged.items()},
    }  # fmt: skip


def _plain(finding):
    """Without the folder of the last clean checkpoint."""
    onset = finding.onset
    if onset is not None and onset.checkpoint:
        onset = replace(onset, checkpoint=Path(onset.checkpoint).name)
    sentence = re.sub(r"\S*/(epoch=\d+\.ckpt)", r"\1", finding.sentence)
    numbers = tuple(map(_number, (finding.value, *(finding.estimate or ()))))
    return finding.key, finding.state, numbers, sentence, onset, finding.loud, finding.stop


def _number(value):
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def versions(folder: Path) -> list[Path]:
    """Folders of the logs, oldest first."""
    found = {int(path.name.removeprefix("version_")): path for path in folder.glob("version_*")}
    return [found[number] for number in sorted(found)] or [folder / "csv"]


def audits(folder: Path) -> History:
    """The history of the run, where it ended."""
    place = versions(folder)[-1]
    numbered = {int(path.name.partition("_")[2] or 0): path for path in place.glob("audit*") if path.is_dir()}
    return History(numbered[max(numbered)] / "history")


def curves(folder: Path) -> dict[str, dict[int, str]]:
    """By key the last value logged at each step."""
    found: dict[str, dict[int, str]] = {}
    for place in versions(folder):
        path = place / "metrics.csv"
        for row in csv.DictReader(path.open()) if path.exists() else ():
            for key, value in row.items():
                if value and key != "step":
                    found.setdefault(key, {})[int(row["step"])] = value
    return found


def check(whole: Path, killed: Path, same_folder: bool) -> None:
    """Assert that nothing shows that a run was killed."""
    wanted, found = audits(whole), audits(killed)
    assert found.unreadable == {}
    assert [each.step for each in found] == [each.step for each in wanted]
    assert len({each.run for each in found}) == 1
    for one, other in zip(wanted, found, strict=True):
        assert plain(one) == plain(other), differences(plain(one), plain(other))
    assert not list(found.folder.glob(".*"))
    expected, seen = curves(whole), curves(killed)
    assert seen.keys() == expected.keys()
    for key in expected if not same_folder else ():  # Lightning's logger deletes what an earlier process logged there
        assert seen[key] == expected[key], (key, seen[key], expected[key])


def differences(one: dict[str, object], other: dict[str, object]) -> str:
    """What differs."""
    return "\n".join(f"{key}: {one[key]} but {other[key]}" for key in one if one[key] != other[key])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--same-folder", action="store_true")
    given = parser.parse_args(arguments)
    epochs = 8 + given.kills
    settings = (epochs, given.ranks, given.same_folder)
    whole, killed = given.folder / "whole", given.folder / "killed"
    for folder in (whole, killed):
        folder.mkdir(parents=True)
    begin = time.monotonic()
    assert not attempt(None, whole, *settings)
    kills, at = 0, moments(given.seed, (time.monotonic() - begin) / epochs)
    while kills < given.kills and attempt(next(at), killed, *settings):
        kills += 1
    if kills == given.kills:
        assert not attempt(None, killed, *settings)
    check(whole, killed, given.same_folder)
    print(f"killed {kills} times in {epochs} epochs, and nothing shows it")


if __name__ == "__main__":
    main(sys.argv[1:])
