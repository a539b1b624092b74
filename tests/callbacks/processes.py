"""Scripts in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 240  # seconds; a rank that waits for the other for ever is what this guards against


def run_apart(name, *arguments, cwd):
    """Run a script beside this file; ranks are found by the variables of its own environment."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_", "MASTER_", "NODE_"))}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)],
        cwd=cwd, env={**inherited, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{name} did not finish within {TIMEOUT} s: processes wait for each other")
    finally:
        end(process)
    assert process.returncode == 0, output


def end(process):
    """The whole group: a rank that hangs has children of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all have ended by themselves
    process.communicate()
