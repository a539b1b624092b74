"""`xai-audit audit`: many checkpoints, settings on the command line, and files that mean harm."""

from __future__ import annotations

import json
import os
import shlex
import shutil

import pytest
import torch

from tests.callbacks.leaning import LeaningNet, leaning_probes
from tests.cli.audited import write_run
from xai_callbacks import ConfigurationError, History
from xai_callbacks.cli import main
from xai_callbacks.cli.audit import named_sources
from xai_callbacks.errors import require_name

MODEL = ["--model", "tests.callbacks.leaning.LeaningNet"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with probes and two checkpoints of one name."""
    monkeypatch.chdir(tmp_path)
    leaning_probes(40).save("probes.safetensors")
    for name, gain in (("sound", 0.0), ("leaning", 20.0)):
        net = LeaningNet()
        net.gain.data.fill_(gain)
        (tmp_path / name).mkdir()
        torch.save({"state_dict": net.state_dict(), "epoch": 3, "global_step": 30}, f"{name}/last.pt")
    return tmp_path


def audit(*more, checkpoints=("sound/last.pt", "leaning/last.pt")):
    return main(["audit", *checkpoints, "--probes", "probes.safetensors", "--out", "audits", *more])


def test_checkpoints_are_audited_and_can_be_compared(project, capsys):
    cue = '{"class_path": "xai_callbacks.PatchCue", "init_args": {"colours": [[1, 0, 0], [0, 1, 0]], "points_to": [0, 1], "at": "spurious"}}'  # noqa: E501
    trial = f'[{{"class_path": "xai_callbacks.CueTrial", "init_args": {{"cue": {cue}}}}}]'
    assert audit(*MODEL, "--auditor.trials", trial) == 0
    printed = capsys.readouterr().out
    assert "sound: step 30, epoch 3, 40 probes, accuracy 1" in printed
    assert "Next: xai-audit compare audits --baseline sound" in printed
    record = History("audits/leaning/history")[-1]
    assert record.checkpoint == "leaning/last.pt"
    assert [finding.key for finding in record.findings] == ["alarm/cue/patch"]  # by the rule that is the default
    assert main(["compare", "audits/sound", "audits/leaning"]) == 0
    assert "cue/patch/effect" in capsys.readouterr().out


def test_settings_of_the_auditor_may_be_on_the_command_line(project, capsys):
    words = ["--auditor.questions+=Why", "--auditor.questions+=xai_callbacks.WhyRatherThan"]
    words += ["--auditor.questions.foil=label", "--auditor.explainers+=HiResCAM", "--auditor.chunk_size=7"]
    assert audit(*MODEL, *words, "--rules", "[accuracy > 0.9]", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"sound", "leaning"}
    record = History(told["sound"]["folder"])[-1]
    assert record.asked == ("Why(of='predicted')", "WhyRatherThan(foil='label', fact=None)")
    assert (list(record.maps), record.settings["chunk_size"]) == (["hirescam"], 7)
    assert [finding.state for finding in record.findings] == ["pass"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Expected --model, as 'sound/last.pt' holds weights but no model"),
        ([], "as in --model package.module.Class, a function"),
        (["--model", "tests.nothing.Net"], "tests.nothing.Net"),
        ([*MODEL, "--auditor.explainers+=GradCam"], "GradCam"),
        ([*MODEL, "--auditor.explainers+=GradCAM", "--auditor.explainers.target_layr=a"], "target_layr"),
        ([*MODEL, "--weights", "best"], "--weights: "),
        ([*MODEL, "--auditor.chunk_size", "many"], "--auditor.chunk_size: Expected an int, but got many"),
        ([*MODEL, "--rules", "[accurcy > 0.9]"], "accurcy"),
        ([*MODEL, "--auditor.chunk_size", "0"], "Expected --auditor.chunk_size to be"),
        ([*MODEL, "--devices", "x"], "Expected what Lightning can do, but got --devices x. "),
    ],
)
def test_mistakes_are_one_line(project, words, expected, capsys):
    assert audit(*words) == 3
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    assert expected in told
    assert "<class" not in told
    assert "Add --debug" not in told


def test_no_checkpoint_is_no_audit(project, capsys):
    assert audit(checkpoints=()) == 3
    assert "Expected checkpoints, but got none" in capsys.readouterr().err


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_bomb_is_refused_and_costs_itself_alone(project, capsys):
    torch.save({"state_dict": {"gain": _Bomb()}}, "bomb.pt")
    assert audit(*MODEL, checkpoints=("sound/last.pt", "bomb.pt")) == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "posix.mkdir" in told
    assert "Pass --trust only if" in told
    assert "The other is in 'audits'." in told
    assert not (project / "exploded").exists()
    assert len(History("audits/last/history")) == 1


def test_what_was_assumed_is_told_once(project, capsys):
    for name in ("sound", "leaning"):
        weights = torch.load(f"{name}/last.pt")["state_dict"]
        torch.save({f"model.{key}": value for key, value in weights.items()}, f"{name}.pt")
    words = ["sound.pt", "leaning.pt", "plain=sound/last.pt"]
    assert audit(*MODEL, checkpoints=words) == 0
    lines = capsys.readouterr().out.splitlines()
    note = "Names of weights begin with 'model.' in the file, which was left out."
    assert [line for line in lines if "begin with" in line] == [f"sound, leaning: {note}"]
    assert lines[-1].startswith("Next: ")
    assert audit(*MODEL, "--json", checkpoints=words) == 0
    told = json.loads(capsys.readouterr().out)
    assert note in told["sound"]["notes"]
    assert note not in told["plain"]["notes"]


def test_an_audit_that_fails_leaves_nothing(project, capsys):
    torch.save({"other": torch.zeros(3)}, "other.pt")
    assert audit(*MODEL, checkpoints=("other.pt",)) == 3
    assert not (project / "audits").exists()
    (project / "audits").mkdir()
    assert audit(*MODEL, checkpoints=("other.pt",)) == 3
    assert list((project / "audits").iterdir()) == []
    assert audit(*MODEL, checkpoints=("other.pt", "sound/last.pt")) == 3
    assert audit(*MODEL, checkpoints=("other.pt",)) == 3
    assert {path.name for path in (project / "audits").iterdir()} == {"probes.safetensors", "last"}


def test_an_audit_of_another_file_is_never_replaced(project, capsys):
    assert audit(*MODEL, checkpoints=("sound/last.pt",)) == 0
    assert "Next: xai-audit report audits\n" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in project.glob("audits/**/*.safetensors")}
    assert audit(*MODEL, checkpoints=("leaning/last.pt",)) == 3
    told = capsys.readouterr().err
    assert (
        "Expected 'audits/last' to hold an audit of 'leaning/last.pt' or nothing, but it holds one of 'sound/" in told
    )
    assert told.endswith("Choose another --out, or name the checkpoint: NAME=FILE.\n")
    assert {path: path.read_bytes() for path in project.glob("audits/**/*.safetensors")} == before

    assert audit(*MODEL, checkpoints=("after=leaning/last.pt",)) == 0  # what is compared is what was audited here
    assert "Next: xai-audit report audits/after\n" in capsys.readouterr().out
    assert History("audits/after/history")[-1].checkpoint == "leaning/last.pt"
    assert audit(*MODEL, checkpoints=(str(project / "sound/last.pt"), "after=leaning/last.pt")) == 0  # the same file
    assert "Next: xai-audit compare audits --baseline last\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_of_training_is_never_replaced(project, capsys):
    write_run(project / "run", audits=1)
    words = ["--probes", "probes.safetensors", "--out", "run"]
    assert main(["audit", "audit=sound/last.pt", *MODEL, *words]) == 3
    assert "but it holds one of a run of training" in capsys.readouterr().err


def test_next_names_the_audits_where_others_are_beside(project, capsys):
    write_run(project / "audits")
    assert audit(*MODEL, checkpoints=("b=sound/last.pt", "a=leaning/last.pt")) == 0
    assert "Next: xai-audit compare audits/b audits/a\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoints", "out"),
    [
        (["audit=sound/last.pt", "b=leaning/last.pt"], "audits"),
        (["history=sound/last.pt", "audit=leaning/last.pt"], "audits"),
        (["history=sound/last.pt", "version_0=leaning/last.pt"], "history"),
        (["./-dash.pt", "b=leaning/last.pt"], "audits"),
        (["./-dash.pt", "b=leaning/last.pt"], "-out"),
        (["audit=sound/last.pt"], "audits"),
        (["history=sound/last.pt"], "my audits"),
    ],
)
def test_the_next_command_works_whatever_checkpoints_are_called(project, checkpoints, out, capsys):
    shutil.copy("sound/last.pt", "-dash.pt")
    words = ["audit", *checkpoints, "--probes", "probes.safetensors", f"--out={out}", *MODEL]
    assert main(words) == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: xai-audit "))
    command, names = shlex.split(told.removeprefix("Next: xai-audit ")), list(named_sources(checkpoints))
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    if command[0] == "compare":
        assert told["baseline"] == names[0]
        assert set(told["models"]) == set(names)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/x.ckpt", "a/y.ckpt"], ["x", "y"]),
        (["runs/a/last.ckpt"], ["last"]),
        (["runs/a/v0/last.ckpt", "runs/b/v0/last.ckpt"], ["a", "b"]),
        (["epoch=5-step=276.ckpt"], ["epoch_5-step_276"]),
        (["timm/resnet18", "hf/resnet18"], ["timm", "hf"]),
        (["timm/resnet50.a1_in1k", "timm/resnet50.tv_in1k"], ["resnet50.a1_in1k", "resnet50.tv_in1k"]),
        (["hf/org/net.v1", "x/net.v1.pt"], ["hf-org", "x"]),
        (["a.ckpt", "a.ckpt"], ["0-a", "1-a"]),
        (["x/a.pt", "x/a.ckpt"], ["0-a", "1-a"]),
        (["<b>", "[b]"], ["0-_b_", "1-_b_"]),
        (["a b.pt", "ä.pt", ".hidden", "..", ""], ["a_b", "ä", ".hidden", "__", "_"]),
        (["before=timm/a.b", "after=timm/c"], ["before", "after"]),
        (["a=nowhere.pt", "x/b=timm/c"], ["a_nowhere", "c"]),
    ],
)
def test_names_are_short_and_differ(sources, names):
    found = list(named_sources(sources))
    assert found == names
    for name in found:
        require_name("a name", name)


def test_a_file_goes_before_a_name_and_a_name_comes_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("epoch=5.ckpt", "5.ckpt"):
        (tmp_path / name).touch()
    assert named_sources(["epoch=5.ckpt", "e=epoch=5.ckpt"]) == {"epoch_5": "epoch=5.ckpt", "e": "epoch=5.ckpt"}
    with pytest.raises(ConfigurationError, match="of different names, but '5' comes twice"):
        named_sources(["5.ckpt", "5=epoch=5.ckpt"])
