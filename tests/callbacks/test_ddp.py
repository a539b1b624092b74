"""Two real processes under DDP on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import image_steps, read_events, scalar_steps

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 240  # seconds; a rank that waits for the other for ever is what this guards against


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What both ranks saw of a plain, an audited and an early stopped training."""
    folder = tmp_path_factory.mktemp("ddp")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LOCAL_", "MASTER_", "NODE_"))}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ddp_run.py")), str(folder)],
        cwd=folder, env={**inherited, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        pytest.fail(f"two processes did not finish within {TIMEOUT} s: they wait for each other")
    finally:
        end(process)
    assert process.returncode == 0, output
    return folder


def end(process):
    """The whole group: a rank that hangs has children of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all have ended by themselves
    process.communicate()


def ranks(outcomes, run):
    return [torch.load(outcomes / run / f"rank_{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_training_finishes_on_both_ranks(outcomes):
    for run in ("plain", "audited"):
        assert [(rank["world"], rank["epochs"]) for rank in ranks(outcomes, run)] == [(2, 3), (2, 3)]


def test_weights_and_random_streams_are_bit_identical_with_and_without(outcomes):
    for plain, audited in zip(ranks(outcomes, "plain"), ranks(outcomes, "audited"), strict=True):
        assert all(torch.equal(value, audited["state"][name]) for name, value in plain["state"].items())
        assert plain["streams"] == audited["streams"]
        assert torch.equal(plain["metrics"]["val_loss"], audited["metrics"]["val_loss"])


def test_both_ranks_know_the_same_metrics(outcomes):
    first, second = (rank["metrics"] for rank in ranks(outcomes, "audited"))
    names = [name for name in first if name.startswith("audit/")]
    assert "audit/why/relevance_mass/core" in names
    for name in names:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_only_rank_zero_writes(outcomes):
    assert ["xai-callbacks-writer" in rank["threads"] for rank in ranks(outcomes, "audited")] == [True, False]
    (path,) = (outcomes / "audited").rglob("events*")
    events = read_events(path.parent)
    steps = [0, *scalar_steps(events, "val_loss")]
    assert len(steps) == 4
    assert scalar_steps(events, "audit/confidence") == steps
    assert image_steps(events, "audit_panel/000_probe_000") == steps


def test_early_stopping_on_an_audit_stops_both_ranks(outcomes):
    assert [rank["epochs"] for rank in ranks(outcomes, "stopped")] == [1, 1]
