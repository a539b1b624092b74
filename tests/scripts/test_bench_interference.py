"""The interference bench must see every kind of disturbance, and must see none where there is none."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from _interference_tools import OURS, TOOLS, Tool, plain
from bench_interference import CONTROL, NOT_REPRODUCIBLE, Row, as_json, measure, table_of, verdict
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from xai_callbacks.doctor.comparing import compare
from xai_callbacks.doctor.digits import Digits
from xai_callbacks.doctor.snapshot import Snapshot, take_snapshot
from xai_callbacks.doctor.training import SCENARIOS, ExplainerCallback, Hook, Run, Scenario, train

PLAIN = SCENARIOS[0]
ONE_EPOCH = Scenario("one", "one epoch without validation", "on_train_epoch_end", epochs=1, validate=False)
TWO_EPOCHS = replace(ONE_EPOCH, name="two", epochs=2)


def make_snapshot() -> Snapshot:
    return replace(take_snapshot(torch.nn.Linear(2, 1), [], {}), rng={"torch": "c"})


@pytest.fixture(scope="module")
def reference() -> Run:
    return train(ONE_EPOCH)


def test_a_training_repeated_with_nothing_attached_is_identical(reference: Run) -> None:
    row = measure(CONTROL, ONE_EPOCH, reference)
    assert row.identical
    assert row.outcome == "identical"
    assert row.sentences() == []
    assert len(reference.snapshot.losses) == 12


def test_a_callback_that_does_nothing_is_identical(reference: Run) -> None:
    tool = Tool("noop", "no-op", None, None, plain(lambda net, images, labels, background: None))
    row = measure(tool, ONE_EPOCH, reference)
    assert row.deliveries == 1
    assert row.identical


def test_another_seed_is_another_training(reference: Run) -> None:
    found = {difference.what for difference in compare(reference.snapshot, train(ONE_EPOCH, seed=1).snapshot)}
    assert {"parameters", "buffers", "optimizer", "metrics", "losses", "rng"} <= found


def test_a_single_random_draw_changes_the_training() -> None:
    tool = Tool("draw", "draw", None, None, plain(lambda net, images, labels, background: torch.rand(1)))
    row = measure(tool, TWO_EPOCHS, train(TWO_EPOCHS))
    assert row.outcome == "changed"
    assert "loss differs from step 13 of 24 on" in row.sentences()
    assert "RNG moved (torch)" in row.sentences()


def leave_traces(net: torch.nn.Module, images: Tensor, labels: Tensor, background: Tensor) -> None:
    net.register_forward_hook(lambda *_: None)
    next(net.parameters()).register_hook(lambda grad: None)
    net.eval()
    net.trace = 1
    net.zero_grad()


def test_traces_after_the_last_step_are_told_from_a_changed_training(reference: Run) -> None:
    row = measure(Tool("traces", "traces", None, None, plain(leave_traces)), ONE_EPOCH, reference)
    assert row.training_identical
    assert not row.identical
    assert row.outcome == "traces left"
    assert row.sentences() == [
        "33 layers left in eval mode",
        "2 hooks left",
        "attributes on layers: 1 new",
        ".grad: 29 wiped",
    ]


def explode(*_: object) -> None:
    msg = "first line\nsecond line"
    raise ValueError(msg)


def test_what_a_plain_callback_raises_is_its_own_outcome_and_training_goes_on(reference: Run) -> None:
    row = measure(Tool("raise", "raise", None, None, plain(explode)), ONE_EPOCH, reference)
    assert row.training_identical
    assert not row.identical
    assert row.outcome == "raised, same"
    assert row.sentences() == ["raised: ValueError: first line"]


class Crash(Callback):
    """Raises at the sixth batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if batch_idx == 5:
            explode()


def test_an_error_that_ends_the_training_is_a_crash(reference: Run) -> None:
    row = measure(Tool("crash", "crash", None, None, lambda digits, hook: Crash()), ONE_EPOCH, reference)
    assert not row.training_identical
    assert row.outcome == "crashed"
    assert row.sentences() == ["training crashed after 5 steps: ValueError: first line"]


def test_a_callback_that_is_never_called_is_not_called_identical(reference: Run) -> None:
    def attach(digits: Digits, hook: Hook) -> Callback:
        return ExplainerCallback(explode, "on_validation_end", *digits.probes)

    row = measure(Tool("idle", "idle", None, None, attach), ONE_EPOCH, reference)
    assert not row.identical
    assert row.outcome == "did nothing"


def test_a_library_that_is_absent_is_reported_as_not_installed(reference: Run) -> None:
    for package in ("no_such_library", "no_such_library.inner"):
        row = measure(Tool("none", "none", package, "no-such-library", plain(explode)), ONE_EPOCH, reference)
        assert row.outcome == "not installed"
        assert not row.identical
        assert not row.training_identical


OUR_TOOL = next(tool for tool in TOOLS if tool.package == OURS)


def rows_for_verdict(control: str = "c", ours: str = "c") -> list[Row]:
    reference = make_snapshot()
    rows = []
    for tool, digest in ((CONTROL, control), (OUR_TOOL, ours)):
        snapshot = replace(reference, rng={"torch": digest})
        rows.append(Row(tool, PLAIN, Run(snapshot), compare(reference, snapshot), deliveries=4))
    return rows


@pytest.mark.parametrize(
    ("rows", "status", "sentence"),
    [
        (rows_for_verdict(), 0, "left all 1 of its trainings bit-identical"),
        (rows_for_verdict(ours="x"), 1, "AuditCallback left a difference"),
        (rows_for_verdict(control="x"), NOT_REPRODUCIBLE, "not reproducible"),
    ],
    ids=["identical", "ours differs", "control differs"],
)
def test_the_exit_status_says_who_is_to_blame(rows: list[Row], status: int, sentence: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    assert verdict(rows, console) == status
    assert sentence in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_json_holds_one_row_a_tool_and_scenario_with_a_plain_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/bench_interference.py", "--json", "x.json"])
    rows = [*rows_for_verdict(ours="x"), Row(Tool("none", "none", "no_such", None, None), PLAIN)]
    data = json.loads(json.dumps(as_json(rows, 1.25)))
    assert [(row["tool"], row["scenario"], row["identical"], row["outcome"]) for row in data["rows"]] == [
        ("nothing, again (control)", "plain", True, "identical"),
        ("xai_callbacks AuditCallback", "plain", False, "traces left"),
        ("none", "plain", False, "not installed"),
    ]
    assert data["rows"][1]["differences"] == ["RNG moved (torch)"]
    assert data["command"] == "python scripts/bench_interference.py --json x.json"
    assert data["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"date", "machine"} <= data.keys()


def test_the_table_fits_into_a_hundred_columns() -> None:
    rows = [Row(tool, scenario) for tool in TOOLS for scenario in SCENARIOS]
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of(rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 100
    assert all("…" not in line for line in lines)
