"""`xai-audit compare`, `watch` and `report` on runs of which it is known who leans on the cue."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.audited import HOSTILE, LITERAL, write_run
from xai_callbacks.cli import main
from xai_callbacks.cli.watch import sparkline


def test_the_verdict_comes_first_and_names_the_shortcut_model(runs, capsys):
    assert main(["compare", f"{runs}/sound", f"{runs}/leaning"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Ship sound: accuracy ")
    assert lines[1].startswith("Do not ship leaning.")
    (row,) = (line.split() for line in lines if line.split()[:1] == ["cue/patch/effect"])
    assert row[1:4] == ["0", "1", "1"]
    assert row[-2:] == ["beyond", "noise"]
    assert next(line for line in lines if line.split()[:1] == ["accuracy"]).split()[-2:] == ["within", "noise"]
    assert any("more metrics with --all" in line for line in lines)
    assert main(["compare", f"{runs}/sound", f"{runs}/leaning", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(lines)


def test_json_is_that_of_the_comparison(runs, capsys):
    assert main(["compare", str(runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["baseline"] == "leaning"
    assert set(told["models"]) == {"leaning", "sound"}
    assert told["verdict"][0].startswith("Ship sound")


def test_a_baseline_is_named(runs, tmp_path, capsys):
    assert main(["compare", str(runs), "--baseline", "sound", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["baseline"], list(told["models"])) == ("sound", ["sound", "leaning"])
    page = tmp_path / "report.html"
    assert main(["report", str(runs), "--baseline", "sound", "--out", str(page)]) == 0
    assert "Ship sound" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    for command in ("compare", "report"):
        assert main([command, str(runs), "--baseline", "sond"]) == 3
        told = capsys.readouterr().err
        assert told == "error: Expected --baseline to be the name of a model, 'leaning', 'sound', but got 'sond'.\n"


def test_seeds_say_what_noise_is(runs, tmp_path, capsys):
    seeds = [str(write_run(tmp_path / f"seed{place}", 0.01 * place)) for place in range(3)]
    assert main(["compare", f"{runs}/sound", f"{runs}/leaning", "--seeds", *seeds]) == 0
    assert "noise is told by seeds" in capsys.readouterr().out
    assert main(["compare", f"{runs}/sound", f"{runs}/leaning", "--seeds", *seeds[:2]]) == 3
    assert "audits of 3 trainings or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "expected"),
    [([], "two or more, but got 1"), (["other"], "probe"), (["nowhere"], "no audits")],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, others, expected, capsys):
    write_run(tmp_path / "other", count=34)
    assert main(["compare", f"{runs}/sound", *(str(tmp_path / other) for other in others)]) == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert expected in told or "there are none" in told


def test_hostile_names_of_models_and_probes_are_shown_literally(tmp_path, capsys):
    names = [f"<script>{place}[bold]x[/]" for place in range(40)]
    for folder, gain in (("a", 0.0), (HOSTILE.replace("/", ""), -20.0)):
        write_run(tmp_path / folder, gain, names=names)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / HOSTILE.replace("/", ""))]) == 0
    printed = capsys.readouterr().out
    assert LITERAL.replace("/", "") in printed
    assert "[bold]x[/]" in printed
    assert "\x1b" not in printed


def test_watch_shows_the_newest_metrics_with_their_course(runs, capsys):
    assert main(["watch", f"{runs}/leaning", "--once"]) == 0
    printed = capsys.readouterr().out
    assert "Audit 2: epoch 1, step 1" in printed
    (row,) = (line.split() for line in printed.splitlines() if line.split()[:1] == ["cue/patch/effect"])
    assert row[-1] == "▁█"
    assert "uses no patch: cue/patch/effect < 0.3: fail" in printed
    assert main(["watch", f"{runs}/leaning", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["cue/patch/effect"]["value"] == pytest.approx(1)


def watched(run, naps, monkeypatch):
    """Status of `watch` while each of its naps does something, until Ctrl-C."""
    left = iter(naps)

    def nap(seconds):
        if (act := next(left, None)) is None:
            raise KeyboardInterrupt
        act()

    monkeypatch.setattr("time.sleep", nap)
    return main(["watch", str(run)])


def test_watch_prints_each_new_audit(runs, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(runs / "leaning", tmp_path / "run")
    newest = run / "audit/history/audit_000001.safetensors"
    later = newest.read_bytes()
    newest.unlink()
    naps = [lambda: None, lambda: newest.write_bytes(later)]
    assert watched(run, naps, monkeypatch) == 130
    printed, told = capsys.readouterr()
    assert [line.strip() for line in printed.splitlines() if line.startswith("Audit ")] == [
        "Audit 1: epoch 0, step 0",
        "Audit 2: epoch 1, step 1",
    ]
    assert told == ""


def test_watch_goes_on_where_an_audit_cannot_be_read(runs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "sound", run)
    history = run / "audit/history"
    later = (history / "audit_000001.safetensors").read_bytes()
    (history / "audit_000001.safetensors").write_bytes(b"x")  # from the first look on
    aside = tmp_path / "aside"

    def touched():
        (history / "other").touch()

    naps = [
        lambda: (history / "audit_000002.safetensors").write_bytes(b"x"),
        lambda: history.rename(aside),
        lambda: aside.rename(history),
        touched,
        lambda: (history / "audit_000003.safetensors").write_bytes(later),
    ]
    assert watched(run, naps, monkeypatch) == 130
    printed, told = capsys.readouterr()
    assert [line.strip() for line in printed.splitlines() if line.startswith("Audit ")] == [
        "Audit 1: epoch 0, step 0",
        "Audit 2: epoch 1, step 1",
    ]
    damaged, other, gone = told.splitlines()
    assert "audit_000001.safetensors' is none" in damaged
    assert "audit_000002.safetensors' is none" in other
    assert "there are none in" in gone


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0, 1.0], "▁█"),
        ([3.0, float("nan"), 3.0], "▁ ▁"),
        ([float("inf"), 0.0, 7.0, 3.0], " ▁█▄"),
        ([float("nan")], " "),
        ([], ""),
        ([*range(100)], "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███"[:24]),
    ],
)
def test_sparkline(values, drawn):
    assert len(sparkline(values)) == len(drawn)
    if len(values) < 10:
        assert sparkline(values) == drawn
    else:
        assert list(sparkline(values)) == sorted(sparkline(values))
