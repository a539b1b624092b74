"""Processes that write a history while others read it, or kill them; run by `test_processes.py` on its own.

It forks, which is safe here: nothing has started a thread.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.record.samples import small
from xai_callbacks.history import History


def write(folder: Path, told: int) -> None:
    """Append, replace and thin for ever; say after each append how many audits there are."""
    os.fsync = lambda file: None  # protects from a loss of power, not from a kill; without it more is written
    history = History(folder, keep=3)
    while True:
        step = len(history)
        history.append(small(step, ("gradcam", "slow") if step % 5 == 0 else ("gradcam",)))
        os.write(told, step.to_bytes(4, "little"))
        history.replace_last(checkpoint=f"{step}.ckpt")
        if step % 17 == 16:
            history.truncate(step - 2)
            os.write(told, (step - 2).to_bytes(4, "little"))


def check(history: History) -> None:
    """Assert that nothing is broken, nothing is missing, and each record is of its own step."""
    assert history.unreadable == {}
    assert [record.step for record in history.without_tensors()] == list(range(len(history)))
    for record in history:
        assert record.thinned or float(record.outputs[0, 0]) == record.step
        assert record.checkpoint in (None, f"{record.step}.ckpt")


def forked(folder: Path) -> tuple[int, int]:
    """A process that writes, and the end of a pipe that tells what it has written."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            write(folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    return process, reading


def end(process: int, reading: int, told: bytes = b"") -> int:
    """Kill it; return the last audit it told of."""
    os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL  # it did not fail before
    with os.fdopen(reading, "rb") as pipe:
        return int.from_bytes((told + pipe.read())[-4:], "little")


def kill(folder: Path, times: int) -> None:
    """Kill a writer at random moments, each time in the history that was left."""
    moments = random.Random(0)
    for _ in range(times):
        process, reading = forked(folder)
        first = os.read(reading, 4)
        time.sleep(moments.uniform(0, 0.05))
        told = end(process, reading, first)
        history = History(folder)
        check(history)
        # Between the last word and the kill, one more may have been written, or up to two dropped.
        assert told - 1 <= len(history) <= told + 2, (told, len(history))
        assert len(history.kept()) >= min(2, len(history))
    history.truncate(2**31)
    assert list(folder.glob(".*")) == []


def read(folder: Path, seconds: float) -> None:
    """Read a history all the time while a process writes it."""
    process, reading = forked(folder)
    until, seen = time.monotonic() + seconds, set()
    while time.monotonic() < until:
        history = History(folder, keep=3)
        assert history.unreadable == {}
        steps = [record.step for record in history.without_tensors()]
        assert steps == sorted(set(steps))
        for record in history:
            assert record.thinned or float(record.outputs[0, 0]) == record.step
        seen.add(len(history))
    end(process, reading)
    check(History(folder))
    assert len(seen) > 5


if __name__ == "__main__":
    what, where, amount = sys.argv[1:]
    (kill(Path(where), int(amount)) if what == "kill" else read(Path(where), float(amount)))
