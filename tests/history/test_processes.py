"""Histories that several processes use, and that are left by a process that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("what", "amount"), [("read", "1"), ("kill", "50")])
def test_a_history_is_whole_at_every_moment(tmp_path, what, amount):
    """Read while it is written; and after the writer was killed at 50 random moments."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.history.killed", what, str(tmp_path / "audits"), amount],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
