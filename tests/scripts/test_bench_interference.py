"""The interference bench must see every kind of disturbance, and must see none where there is none."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from _interference_runs import SCENARIOS, Digits, Hook, Run, Scenario, Snapshot, train
from _interference_tools import OURS, TOOLS, ExplainerCallback, Tool, plain
from bench_interference import CONTROL, NOT_REPRODUCIBLE, Row, as_json, compare, measure, table_of, verdict
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

PLAIN = SCENARIOS[0]
ONE_EPOCH = Scenario("one", "one epoch without validation", "on_train_epoch_end", epochs=1, validate=False)
TWO_EPOCHS = replace(ONE_EPOCH, name="two", epochs=2)


def make_snapshot() -> Snapshot:
    return Snapshot(
        parameters={"conv.weight": torch.tensor([1.0, -2.0]), "head.bias": torch.tensor([0.5])},
        buffers={"bn.running_mean": torch.tensor([0.25]), "bn.num_batches_tracked": torch.tensor(3)},
        optimizer={"0.0.exp_avg": torch.tensor([0.1, 0.2]), "0.0.step": torch.tensor(3.0)},
        metrics={"val_acc": torch.tensor([[3.0, 0.5], [7.0, 0.75]], dtype=torch.float64)},
        losses=torch.tensor([2.0, 1.5, 1.25, 1.0], dtype=torch.float64),
        rng={"python": "a", "numpy": "b", "torch": "c"},
        eval_layers_by_step=(frozenset({"frozen"}),) * 4,
        eval_layers=frozenset({"frozen"}),
        hooks={"conv": 1},
        attributes=frozenset({"conv.stride"}),
        requires_grad=frozenset({"conv.weight", "head.bias"}),
        grads={"conv.weight": torch.tensor([0.5, 0.5])},
    )


def test_two_equal_snapshots_have_no_difference() -> None:
    assert compare(make_snapshot(), make_snapshot()) == ()


NEXT = torch.nextafter(torch.tensor([0.5]), torch.tensor([1.0]))

DISTURBANCES = {
    "a weight off by one ulp": (
        {"parameters": {"conv.weight": torch.tensor([1.0, -2.0]), "head.bias": NEXT}},
        {"parameters": "weights differ (max |d| 6.0e-08)"},
    ),
    "a weight of another type": (
        {"parameters": {"conv.weight": torch.tensor([1.0, -2.0]).double(), "head.bias": torch.tensor([0.5])}},
        {"parameters": "weights differ (max |d| 0.0e+00)"},
    ),
    "a weight that is nan": (
        {"parameters": {"conv.weight": torch.tensor([1.0, torch.nan]), "head.bias": torch.tensor([0.5])}},
        {"parameters": "weights differ (max |d| nan)"},
    ),
    "a BatchNorm statistic": (
        {"buffers": {"bn.running_mean": torch.tensor([0.26]), "bn.num_batches_tracked": torch.tensor(3)}},
        {"buffers": "BatchNorm buffers differ"},
    ),
    "a BatchNorm counter": (
        {"buffers": {"bn.running_mean": torch.tensor([0.25]), "bn.num_batches_tracked": torch.tensor(4)}},
        {"buffers": "BatchNorm buffers differ"},
    ),
    "optimizer state": (
        {"optimizer": {"0.0.exp_avg": torch.tensor([0.1, 0.3]), "0.0.step": torch.tensor(3.0)}},
        {"optimizer": "optimizer state differs"},
    ),
    "optimizer state gone": (
        {"optimizer": {"0.0.step": torch.tensor(3.0)}},
        {"optimizer": "optimizer state differs"},
    ),
    "a metric of one epoch": (
        {"metrics": {"val_acc": torch.tensor([[3.0, 0.5], [7.0, 0.5]], dtype=torch.float64)}},
        {"metrics": "logged metrics differ"},
    ),
    "a metric at another step": (
        {"metrics": {"val_acc": torch.tensor([[4.0, 0.5], [7.0, 0.75]], dtype=torch.float64)}},
        {"metrics": "logged metrics differ"},
    ),
    "a metric missing": ({"metrics": {}}, {"metrics": "logged metrics differ"}),
    "the loss of the third step": (
        {"losses": torch.tensor([2.0, 1.5, 1.0, 1.0], dtype=torch.float64)},
        {"losses": "loss differs from step 3 of 4 on"},
    ),
    "fewer steps": (
        {"losses": torch.tensor([2.0, 1.5], dtype=torch.float64)},
        {"losses": "2 training steps instead of 4"},
    ),
    "two random streams": ({"rng": {"python": "a", "numpy": "x", "torch": "y"}}, {"rng": "RNG moved (numpy, torch)"}),
    "steps in eval mode": (
        {"eval_layers_by_step": (frozenset({"frozen"}), *(frozenset({"frozen", ".", "conv"}),) * 3)},
        {"steps": "75% of steps in eval mode"},
    ),
    "steps with a frozen layer in train mode": (
        {"eval_layers_by_step": (*(frozenset({"frozen"}),) * 2, *(frozenset(),) * 2)},
        {"steps": "50% of steps with frozen layers in train mode"},
    ),
    "a layer left in eval mode": (
        {"eval_layers": frozenset({"frozen", "conv"})},
        {"eval_layers": "1 layers left in eval mode"},
    ),
    "a layer left in train mode": ({"eval_layers": frozenset()}, {"eval_layers": "1 layers left in train mode"}),
    "hooks left": ({"hooks": {"conv": 2, "head": 4}}, {"hooks": "5 hooks left"}),
    "a hook removed": ({"hooks": {}}, {"hooks": "hooks removed or moved"}),
    "a hook moved": ({"hooks": {"head": 1}}, {"hooks": "hooks removed or moved"}),
    "an attribute left": (
        {"attributes": frozenset({"conv.stride", "conv.input"})},
        {"attributes": "attributes on layers: 1 new"},
    ),
    "a parameter frozen": (
        {"requires_grad": frozenset({"head.bias"})},
        {"requires_grad": "trainable parameters: 1 lost"},
    ),
    "a pending gradient changed": (
        {"grads": {"conv.weight": torch.tensor([0.5, 0.0])}},
        {"grads": ".grad: 1 changed"},
    ),
    "a pending gradient wiped": ({"grads": {}}, {"grads": ".grad: 1 wiped"}),
    "a gradient where there was none": (
        {"grads": {"conv.weight": torch.tensor([0.5, 0.5]), "head.bias": torch.tensor([0.0])}},
        {"grads": ".grad: 1 new"},
    ),
    "a new parameter": (
        {"parameters": {**make_snapshot().parameters, "act.x": torch.tensor([0.0])}},
        {"state_dict": "1 new state_dict keys: checkpoints no longer load"},
    ),
    "a buffer gone": (
        {"buffers": {"bn.running_mean": torch.tensor([0.25])}},
        {"state_dict": "0 new state_dict keys, 1 gone: checkpoints no longer load"},
    ),
}


@pytest.mark.parametrize(("change", "expected"), DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_each_disturbance_is_found_and_named_alone(change: dict[str, object], expected: dict[str, str]) -> None:
    found = compare(make_snapshot(), replace(make_snapshot(), **change))
    assert {difference.what: difference.words for difference in found} == expected


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
    assert row.run is not None
    assert row.run.deliveries == 1
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
        return ExplainerCallback(explode, digits, "on_validation_end", toggle_mode=False)

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
        snapshot = replace(reference, rng={**reference.rng, "torch": digest})
        rows.append(Row(tool, PLAIN, Run(snapshot, deliveries=4), compare(reference, snapshot)))
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
