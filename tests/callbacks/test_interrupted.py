"""A training that is killed at random moments and resumed until it is done leaves what an uninterrupted one leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 280  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]


@pytest.mark.parametrize(
    "given",
    [("--kills", "12"), ("--kills", "4", "--ranks", "2"), ("--kills", "4", "--same-folder")],
    ids=["one process", "two processes", "same folder"],
)
def test_history_and_curves_are_those_of_the_uninterrupted_run(tmp_path, given):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.callbacks.interrupted", str(tmp_path / "runs"), *given],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    assert process.returncode == 0, said
    assert f"killed {given[1]} times" in said
