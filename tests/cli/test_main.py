"""The entrance: help, one-line errors, exit codes, and that nothing heavy is imported for them."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonargparse
import pytest
import torch

from tests.callbacks.leaning import LeaningNet, leaning_probes
from tests.cli.audited import HOSTILE, LITERAL
from xai_callbacks.cli import main
from xai_callbacks.cli.main import in_options
from xai_callbacks.cli.output import shown
from xai_callbacks.cli.parser import COMMANDS, parse

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "xai_callbacks.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
AUDIT = ["audit", "a.pt", "--probes", "p", "--out", "o"]
LEAVES = [name for name, (module, _) in COMMANDS.items() if module]


def error_of(argv, capsys, status=3):
    """The one line on stderr; nothing is on stdout."""
    assert main(argv) == status
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    return told.rstrip("\n")


def test_help_names_every_command_and_imports_nothing_heavy():
    code = "import sys; from xai_callbacks.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    help_text, _, modules = done.stdout.rpartition("\n[")

    assert all(name.split()[0] in help_text for name in COMMANDS)
    assert "Exit codes: 0 fine, 1 fail, 2 not enough evidence, 3 error" in help_text
    assert not {"'torch'", "'numpy'", "'pytorch_lightning'", "'PIL'"} & set(modules.split(", "))


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_help_with_examples_and_exit_codes(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out

    assert f"usage: xai-audit {name} " in printed
    assert f"  xai-audit {name} " in printed[printed.index("Examples:") :]
    assert "Exit codes: 0 fine" in printed
    for option in ("--config", "--print_config", "--json", "--debug"):
        assert option in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "Expected a command, one of {demo,probes,audit,"),
        (["probes"], "Expected a command, one of {build,inspect,verify}"),
        (["comprae"], "Did you mean compare? See xai-audit --help."),
        (["probes", "biuld"], "Did you mean build? See xai-audit probes --help."),
        (["check", "x", "--expct", "a > 1"], "Did you mean --expect? See xai-audit check --help."),
        (["check", "x"], "Expected --expect, but it was not given. See xai-audit check --help."),
        (["compare"], "Expected paths, but it was not given. See xai-audit compare --help."),
        (["watch", "x", "--every", "soon"], "--every: "),
        (["audit", "a.pt"], "Expected --"),
        ([*AUDIT, "--auditor.explainers", "GradCM"], "--auditor.explainers: Expected a list, but got GradCM. Did you"),
        ([*AUDIT, "--auditor.explainers", "GradCM"], "Did you mean GradCAM? Add to a list by --auditor.explainers+="),
        ([*AUDIT, "--auditor.trials", "CueTrial"], "got CueTrial. Add to a list by --auditor.trials+=CueTrial. See"),
        ([*AUDIT, "--auditor.explainers+=GradCam"], "the name of a class, but got GradCam. Did you mean GradCAM?"),
        ([*AUDIT, "--weights", "best"], "--weights: Expected one of 'averaged', 'raw', but got best. See"),
        (["probes", "build", "x", "--size", "big"], "--size: Expected an int or tuple, but got big. See"),
        (["audit", "a.pt", "--out", "o"], "Expected --probes, but it was not given. See xai-audit audit --help."),
    ],
)
def test_usage_errors_are_one_line_with_a_way_out(argv, expected, capsys):
    told = error_of(argv, capsys)
    assert told.startswith("error: ")
    assert expected in told
    assert "<class" not in told


def test_wrong_values_of_a_configuration_are_one_sentence(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("probes: p\nout: o\nauditor:\n  questions:\n    - class_path: xai_callbacks.Wy\n")
    told = error_of(["audit", "--config", str(tmp_path / "c.yaml")], capsys)
    assert "xai_callbacks.Wy" in told
    assert len(told) < 300

    (tmp_path / "c.yaml").write_text("probes: p\nout: o\nprobs: 3\n")
    assert "Did you mean --probes?" in error_of(["audit", "--config", str(tmp_path / "c.yaml")], capsys)
    for nothing in ("", "# nothing", "text", "[1]"):
        (tmp_path / "c.yaml").write_text(nothing)
        told = error_of(["audit", "--config", str(tmp_path / "c.yaml")], capsys)
        # Old versions of jsonargparse go on to what is missing then.
        missing = any(f"Expected --{name}, but it was not given. See xai-" in told for name in ("probes", "out"))
        assert missing or "to be a YAML file of options by name, but there are none in it. See xai-" in told
    assert "nowhere.yaml" in error_of(["audit", "--config", "nowhere.yaml"], capsys)


@pytest.mark.parametrize(
    ("words", "content", "expected"),
    [
        (["compare"], "paths: 3", "Expected a list of paths, but got 3. Write paths: [3]. See xai-audit compare"),
        (["compare"], "paths: runs", "Expected a list of paths, but got 'runs'. Write paths: [runs]."),
        (AUDIT, "auditor: {explainers: [{class_path: xai_callbacks.GradCM}]}", "Did you mean GradCAM?"),
    ],
)
def test_one_value_in_a_configuration_is_no_list_and_no_class_of_that_name(tmp_path, words, content, expected, capsys):
    (tmp_path / "bad.yaml").write_text(content)
    assert expected in error_of([*words, "--config", str(tmp_path / "bad.yaml")], capsys)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Pass the `model`, as in model='a.B', and `hparams`.", "Pass the --model, as in --model a.B, and --hparams."),
        ("Pass trust=True only if you know.", "Pass --trust only if you know."),
        ('Pass weights="averaged" or weights="raw".', "Pass --weights averaged or --weights raw."),
        ("Expected `chunk_size` to be 1.", "Expected --auditor.chunk_size to be 1."),
        ("Say fields={'image': 0}.", "Say --fields {'image': 0}."),
        (
            "Expected `path` of `ProbeSet.save`, Why(of='label').",
            "Expected `path` of `ProbeSet.save`, Why(of='label').",
        ),
        ("Pass `probes`.", "Pass --probes."),
    ],
)
def test_arguments_are_options_in_errors_of_a_command(message, expected):
    options = ["--probes", "--model", "--hparams", "--trust", "--weights", "--fields", "--auditor.chunk_size"]
    assert in_options(message, [*options, "--auditor.probes"]) == expected


def test_print_config_is_a_configuration(tmp_path, capsys):
    assert main(["watch", "run", "--every", "3", "--print_config"]) == 0
    (tmp_path / "watch.yaml").write_text(capsys.readouterr().out)
    assert main(["watch", "--config", str(tmp_path / "watch.yaml"), "run", "--print_config"]) == 0
    assert "every: 3.0" in capsys.readouterr().out


def test_debug_shows_where_an_error_comes_from(capsys):
    assert main(["compare", "nowhere", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err
    assert "Expected PATH to lead to audits" in error_of(["compare", "nowhere"], capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["audit", "w.pt", "--probes", "nothere", "--out", "o", "--model", "json.loads"], "Expected --probes to be a"),
        (["audit", "w.pt", "--probes", "p", "--out", "w.pt", "--model", "json.loads"], "Expected --out to be where a"),
        (["audit", "nothere", "--probes", "p", "--out", "o", "--model", "json.loads"], "Expected CHECKPOINT to be a"),
        (["report", "{}/sound", "--out", "o"], "Expected --out to be that of a file, but 'o' is a folder"),
        (["report", "{}/sound", "--out", ""], "Expected --out to be that of a file, but it is empty. Name a file."),
        (["report", "{}/sound", "--probes", "nothere"], "Expected --probes to be a file of probes"),
        (["report", "{}/sound", "--seeds", "nothere"], "Expected --seeds to lead to audits"),
        (["report", "{}/sound", "--seeds", "{}/leaning"], "Expected no --seeds, as one model is compared with none."),
        (["compare", "{}/sound"], "Expected PATH to be two or more, but got 1"),
        (["check", "nothere", "--expect", "accuracy > 0"], "Expected PATH to lead to audits"),
        (["watch", "nothere"], "Expected RUN to lead to audits"),
        (["doctor", "json:__doc__"], "Expected TARGET to be a Lightning callback"),
        (["probes", "build", "nothere"], "Expected FOLDER to be a folder"),
        (["probes", "verify", "nothere"], "Expected PROBES to be a file of probes"),
        (["probes", "inspect", "nothere"], "Expected PROBES to be a file of probes"),
    ],
)
def test_errors_of_a_command_name_what_help_shows(runs, words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leaning_probes(4).save("p")
    torch.save(LeaningNet().state_dict(), "w.pt")
    (tmp_path / "o").mkdir()
    assert expected in error_of([word.format(runs) for word in words], capsys)


def test_an_unforeseen_error_says_how_to_see_more(monkeypatch, capsys):
    def broken(path):
        raise ZeroDivisionError("of one\nor the other")

    monkeypatch.setattr("xai_callbacks.probes.ProbeSet.load", broken)
    told = error_of(["probes", "verify", "x"], capsys)
    assert told == "error: ZeroDivisionError: of one. Add --debug to see where it comes from."


def test_names_are_shown_literally_in_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert LITERAL in error_of(["compare", HOSTILE], capsys)
    assert shown(f"{HOSTILE}\n\udc80\u202e") == LITERAL + r"\n\udc80\u202e"


def test_ctrl_c_and_a_broken_pipe_end_quietly(runs, monkeypatch, capfd):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("xai_callbacks.cli.probes.verify", stopped)
    assert main(["probes", "verify", "x"]) == 130
    assert capfd.readouterr() == ("", "")

    for option in ("", "--json"):
        words = " ".join([*PROGRAM, "compare", str(runs / "sound"), str(runs / "leaning"), option])
        piped = ["bash", "-c", f"{words} | true; echo ${{PIPESTATUS[0]}}"]
        done = subprocess.run(piped, env=ENVIRONMENT, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "{}:Net"],
        ["audit", "w.pt", "--probes", "p", "--out", "o", "--model", "{}:Net"],
        ["audit", "w.pt", "--probes", "p", "--out", "o", "--model", "{}.Net", "--auditor.explainers+={}.Mine"],
        ["probes", "build", "--dataset", "{}:data"],
    ],
)
@pytest.mark.parametrize("code", ["", "'no config'", "7"])
def test_code_of_a_user_that_exits_is_an_error_and_no_success(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leaning_probes(4).save("p")
    torch.save(LeaningNet().state_dict(), "w.pt")
    module = f"exits_{abs(hash(code))}_{abs(hash(tuple(words)))}"
    (tmp_path / f"{module}.py").write_text(f"import sys\nsys.exit({code})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = error_of([word.format(module) for word in words], capsys)
    assert "SystemExit" in told
    assert code.strip("'") in told


def test_a_call_of_a_user_that_exits_is_an_error_and_costs_itself_alone(tmp_path, monkeypatch, capsys):
    def exits(*given, **named):
        raise SystemExit(7)

    monkeypatch.chdir(tmp_path)
    leaning_probes(4).save("p")
    for name in ("a.pt", "b.pt"):
        torch.save(LeaningNet().state_dict(), name)
    words = ["audit", "--probes", "p", "--out", "o", "--model", "tests.callbacks.leaning.LeaningNet"]
    monkeypatch.setattr("tests.callbacks.leaning.LeaningNet.forward", exits)
    assert "'b': SystemExit: 7." in error_of([*words, "a.pt", "b.pt"], capsys)
    monkeypatch.setattr("tests.callbacks.leaning.LeaningNet.__init__", exits)
    assert "LeaningNet raised SystemExit: 7. Pass its arguments" in error_of([*words, "a.pt"], capsys)
    monkeypatch.setattr("xai_callbacks.cli.probes.verify", exits)
    expected = "error: Expected your code to return, but it raised SystemExit: 7. Add --debug to see where it comes"
    assert expected in error_of(["probes", "verify", "x"], capsys)


def test_a_watch_ends_on_ctrl_c_without_a_traceback(runs):
    words = [*PROGRAM, "watch", str(runs / "sound"), "--every", "0.1"]
    # In the background of a shell Ctrl-C is ignored, here and in what is started from here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith("Audit 2: epoch 1, step 1") for line in lines)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            printed, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert told == ""
    assert "\x1b" not in printed


def test_json_is_all_there_is_on_stdout(runs, capsys):
    for words in (["compare", f"{runs}/sound", f"{runs}/leaning"], ["watch", f"{runs}/sound"]):
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_colours_only_on_a_terminal(runs, monkeypatch, capsys):
    words = ["check", f"{runs}/sound", "--expect", "accuracy > .5"]
    assert main(words) == 0
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert main(words) == 0
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(words) == 0
    assert "\x1b[3" not in capsys.readouterr().out


def test_completion_knows_the_options_of_every_command(capsys):
    pytest.importorskip("shtab", reason="jsonargparse completes by shtab")
    settings = getattr(jsonargparse, "set_parsing_settings", lambda: None)
    if "add_print_completion_argument" not in inspect.signature(settings).parameters:
        pytest.skip("this version of jsonargparse completes in another way")
    assert main(["--print_completion", "shtab-bash"]) == 0
    script = capsys.readouterr().out
    assert all(option in script for option in ("--strength", "--junit", "--auditor.chunk_size", "--scenarios"))


def test_all_commands_are_built_for_completion():
    assert parse(["watch", "run"], complete=True).args.every == 2.0
