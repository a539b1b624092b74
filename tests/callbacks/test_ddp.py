"""Two real processes under DDP on the CPU."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tests.callbacks.ddp_run import Grouped, grouped_images
from tests.callbacks.processes import run_apart
from tests.tiny import CLASSES, image_steps, read_events, scalar_steps
from xai_callbacks.metrics import GroupMetrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What both ranks saw of a plain, an audited and an early stopped training."""
    folder = tmp_path_factory.mktemp("ddp")
    run_apart("ddp_run.py", folder, cwd=folder)
    return folder


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
    assert "audit/gradcam/why/relevance_mass/core" in names
    for name in names:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_only_rank_zero_writes(outcomes):
    first, second = ranks(outcomes, "audited")
    assert first["audits"][0][1]
    assert [step for step, _ in first["audits"]] == [step for step, _ in second["audits"]]
    assert (first["folder"], second["folder"]) == (outcomes / "audited" / "tb" / "audit" / "history", None)
    assert not [name for name in second["threads"] if name.startswith("xai-callbacks")]
    (path,) = (outcomes / "audited").rglob("events*")
    events = read_events(path.parent)
    steps = [0, *scalar_steps(events, "val_loss")]
    assert len(steps) == 4
    assert scalar_steps(events, "audit/confidence") == steps
    assert image_steps(events, "audit_panel/000_probe_000") == steps


def test_early_stopping_on_an_audit_stops_both_ranks(outcomes):
    assert [rank["epochs"] for rank in ranks(outcomes, "stopped")] == [1, 1]


def by_group(state, rows=slice(None)):
    """What a single process makes of the images, by the metric; as the callback shows it."""
    module = Grouped()
    module.load_state_dict(state)
    images, labels, cues = (tensor[rows] for tensor in grouped_images().tensors)
    metric = GroupMetrics(3, 1 + int(cues.max()), min_count=1)
    with torch.no_grad():
        metric.update(module.eval()(images), labels, cues)
    # Names of classes and cues where the metric has numbers.
    named = {f"/{index}_": f"/{name}_" for index, name in enumerate(CLASSES)}
    values = {key: value for key, value in metric.compute().items() if not key.endswith(("_low", "_high"))}
    return {f"audit/{re.sub(r'/[0-2]_', lambda found: named[found[0]], key)}": value for key, value in values.items()}


def groups_of(rank):
    return {key: float(value) for key, value in rank["metrics"].items() if key.startswith("audit/group/")}


@pytest.mark.parametrize(("run", "rows"), [("grouped", slice(None)), ("one_sided", slice(None, None, 2))])
def test_groups_are_those_of_the_images_of_both_ranks(outcomes, run, rows):
    """Also where one rank has none, or is the only one to see a cue."""
    for rank in ranks(outcomes, run):
        assert rank["epochs"] == 3
        assert groups_of(rank) == pytest.approx(by_group(rank["state"], rows), rel=1e-6, abs=1e-6, nan_ok=True)


def test_rank_that_cannot_read_its_batches_keeps_nobody_waiting_and_nothing_is_counted(outcomes):
    first, second = ranks(outcomes, "spoilt")
    assert [first["epochs"], second["epochs"]] == [3, 3]
    for rank, reason in ((first, "another one could not"), (second, "no such file on this machine")):
        assert {"audit/group/wga", "audit/group/n_min"} <= groups_of(rank).keys()
        assert all(math.isnan(value) for value in groups_of(rank).values())
        (message,) = (message for message in rank["warnings"] if "could not be watched" in message)
        assert reason in message


def test_an_alarm_that_stops_one_rank_stops_both_although_audits_fail_on_the_other(outcomes):
    first, second = ranks(outcomes, "alarm")
    assert [first["epochs"], second["epochs"]] == [1, 1]
    assert float(first["metrics"]["audit/alarm/cue/patch"]) == 2
    assert [step for step, _ in second["audits"]] == [0]
    assert math.isnan(float(second["metrics"]["audit/alarm/cue/patch"]))
    (message,) = (message for message in second["warnings"] if "An audit failed and training goes on" in message)
    assert "on this process only" in message


def test_a_rank_that_finds_no_probes_has_no_rank_audited_and_keeps_nobody_waiting(outcomes):
    for rank in ranks(outcomes, "unattached"):
        assert rank["epochs"] == 3
        assert not rank["auditor"]
        assert rank["audits"] == []


def test_a_watch_that_fails_on_one_rank_keeps_nobody_waiting(outcomes):
    first, second = ranks(outcomes, "unseen")
    assert [first["epochs"], second["epochs"]] == [3, 3]
    assert [step for step, _ in first["audits"]] == [step for step, _ in second["audits"]] == [0, 1, 3, 5]
    assert float(first["metrics"]["audit/processes"]) == 2
    concluded = [float(second["metrics"][f"audit/expectation/{state}"]) for state in ("passed", "undecided")]
    assert sum(concluded) == 1
    assert any("Broken could not watch" in message for message in second["warnings"])
