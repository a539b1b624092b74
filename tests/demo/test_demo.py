from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from xai_callbacks import History, ProbeSet
from xai_callbacks.cli import main
from xai_callbacks.demo import SmallCNN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One tiny run with all outputs in folders that do not exist yet."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--epochs", "1", "--train-images", "640", "--out", f"{folder}/a/logs", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(["demo", *arguments, "--pictures", f"{folder}/c/pictures"])
    return {"folder": folder, "status": status, "report": json.loads(printed.getvalue())}


def test_demo_runs_and_reports_every_audit(run: dict[str, Any]) -> None:
    report = run["report"]

    assert run["status"] == 0
    assert set(report) == {"epochs", "findings", "run"}
    assert [row["epoch"] for row in report["epochs"]] == [0, 1]
    assert [row["step"] for row in report["epochs"]] == [0, 9]
    untrained, trained = report["epochs"]
    assert untrained["val_acc"] is None
    assert 0 <= trained["val_acc"] <= 1
    assert 0 <= trained["conflict_acc"] <= 1
    for row in report["epochs"]:
        for region, area in (("digit", 0.31), ("cue", 36 / 1024)):
            assert row[region]["valid"] == 0 or row[region]["chance"] == pytest.approx(area, abs=0.02)
            assert row[region]["valid"] + row[region]["degenerate"] == 40
        assert row["novelty"]["valid"] == 40
    assert [each["key"] for each in report["findings"]] == ["alarm/cue/patch"]
    assert all(each["sentence"] for each in report["findings"])


def test_demo_keeps_what_a_comparison_needs(run: dict[str, Any]) -> None:
    folder = Path(run["report"]["run"])
    history = History(folder / "audit/history")
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)

    assert folder == run["folder"] / "a/logs/strength-0.95/version_0"
    assert [record.step for record in history] == [0, 9]
    assert ProbeSet.load(folder / "audit/probes.safetensors").fingerprint == history[-1].fingerprint
    SmallCNN(**weights["hyper_parameters"]).load_state_dict(weights["state_dict"])
    assert (folder / "checkpoints/last.ckpt").stat().st_size < 500_000


def test_demo_saves_readable_pictures(run: dict[str, Any]) -> None:
    for name in ("panel", "filmstrip", "most_novel", "looked_used"):
        with Image.open(run["folder"] / f"c/pictures/{name}.png") as picture:
            assert min(picture.size) > 100


def test_demo_logs_for_tensorboard_and_as_csv(run: dict[str, Any]) -> None:
    logs = run["folder"] / "a/logs"

    assert list(logs.rglob("events.out.tfevents.*"))
    header = next(logs.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"val_acc", "conflict_acc", "audit/gradcam/why/relevance_mass/spurious"} <= set(header)


def test_demo_prints_table_findings_and_next_step_within_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--epochs", "1", "--train-images", "128", "--strength", "0.1", "--out", "logs"]) == 0
    printed, complaints = capsys.readouterr()
    head = printed[: printed.index("Novelty: gradient norm")]  # sentences are not broken in a pipe

    assert max(len(line) for line in head.splitlines()[1:]) <= 80
    assert "on cue" in head
    assert "the cue 'patch'" in printed
    assert "tensorboard --logdir logs" in printed
    assert "GPU available" not in printed + complaints


def test_probe_that_was_not_drawn_is_named_and_nothing_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--epochs", "1", "--train-images", "64", "--out", f"{tmp_path}/logs"]

    assert main(["demo", *arguments, "--pictures", f"{tmp_path}/pictures", "--probe", "digit3-nobody"]) == 3
    assert "but got 'digit3-nobody'" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


def test_ctrl_c_while_training_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xai_callbacks.cli.demo.progress", lambda words: contextlib.nullcontext(stopped))
    assert main(["demo", "--epochs", "1", "--train-images", "64", "--out", f"{tmp_path}/logs"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--strength", "1.5"], ["--epochs", "0"], ["--strength", "nan"]])
def test_impossible_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == 3
    assert f"{arguments[1]} does not conform to restriction" in capsys.readouterr().err
