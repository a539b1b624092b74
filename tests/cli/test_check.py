"""`xai-audit check`: exit codes, and JUnit XML as CI systems read it."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from tests.cli.audited import HOSTILE, LITERAL, from_the_future, write_run
from xai_callbacks.cli import main

SOUND, LEANING = "cue/patch/effect < 0.3", "cue/patch/effect > 0.3"


@pytest.mark.parametrize(
    ("run", "expect", "strict", "status"),
    [
        ("sound", [SOUND], False, 0),
        ("sound", [SOUND, "accuracy > 90 %"], True, 0),
        ("leaning", [SOUND], False, 1),
        ("leaning", ["accuracy > 50 %", SOUND], False, 1),
        ("sound", ["gradcam/why/relevance_mass/core > 0 for class red"], False, 2),  # 20 probes are too few
        ("sound", ["gradcam/why/relevance_mass/core > 0 for class red"], True, 1),
        ("leaning", [SOUND, "gradcam/why/relevance_mass/core > 0 for class red"], False, 1),
        ("sound", ["cue/path/effect < 0.3"], False, 3),
        ("sound", ["accuracy"], False, 3),
        ("sound", ["accuracy > 90 % from epoch 7"], False, 2),  # due for no model
        ("sound", ["accuracy > 90 % from epoch 7"], True, 1),
        ("sound", [SOUND, "accuracy > 90 % until epoch 0"], True, 1),
        ("leaning", [SOUND, "accuracy > 90 % from epoch 7"], False, 1),
        ("nobody", [SOUND], False, 3),
    ],
)
def test_exit_codes(runs, run, expect, strict, status, capsys):
    assert main(["check", str(runs / run), "--expect", *expect, *(["--strict"] if strict else [])]) == status
    assert bool(capsys.readouterr().err) == (status == 3)


def test_all_models_are_judged_and_expectations_may_be_given_one_by_one(runs, capsys):
    words = ["check", str(runs), "--expect", SOUND, "--expect", "accuracy > .5", "--json"]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name]["cue/patch/effect < 0.3"]["state"] for name in found} == {
        "leaning": "fail",
        "sound": "pass",
    }
    assert all("accuracy > 0.5" in found[name] for name in found)


def test_a_failure_says_by_how_much(runs, capsys):
    main(["check", f"{runs}/leaning", "--expect", SOUND])
    name, line = capsys.readouterr().out.splitlines()
    assert name == "leaning"
    assert line.startswith("FAIL  cue/patch/effect < 0.3: fail by 0.")


def test_an_expectation_that_is_due_for_no_model_was_not_checked(tmp_path, capsys):
    write_run(tmp_path / "early", audits=1)
    sentence = "accuracy > 0.5 from epoch 1"
    assert main(["check", str(tmp_path), "--expect", sentence]) == 2
    told = (
        "?     accuracy > 0.5 from epoch 1: not due before epoch 1. Nothing was checked, which is not enough evidence."
    )
    assert told in capsys.readouterr().out
    write_run(tmp_path / "late", audits=2)  # it is due for this one
    assert main(["check", str(tmp_path), "--expect", sentence, "--strict"]) == 0
    assert "-     accuracy > 0.5 from epoch 1: not due before epoch 1.\n" in capsys.readouterr().out


def test_the_latest_audit_is_that_of_the_largest_number(tmp_path, capsys):
    run = write_run(tmp_path / "run", audits=1)
    (first,) = run.rglob("audit_*.safetensors")
    first.rename(first.with_name("audit_999999.safetensors"))
    first.with_name("audit_1000000.safetensors").write_bytes(b"half a rec")
    first.with_name("audit_notes.safetensors").touch()
    assert main(["check", str(run), "--expect", "accuracy > 0.1"]) == 3
    assert "error: Expected a file of `AuditRecord.save`" in capsys.readouterr().err


def test_junit_has_a_case_for_each_expectation(runs, tmp_path):
    few = "gradcam/why/relevance_mass/core > 0 for class red"
    junit = tmp_path / "new" / "audit.xml"
    assert main(["check", str(runs), "--expect", SOUND, few, "--junit", str(junit)]) == 1
    root = ET.parse(junit).getroot()

    assert root.tag == "testsuites"
    assert root.attrib == {"name": "xai-audit check", "tests": "4", "failures": "1", "skipped": "2", "errors": "0"}
    suites = {suite.get("name"): suite for suite in root}
    assert suites["leaning"].attrib | {"name": ""} == {
        "name": "", "tests": "2", "failures": "1", "skipped": "1", "errors": "0",
    }  # fmt: skip
    case, too_few = suites["leaning"]
    assert (case.tag, case.get("classname"), case.get("name")) == ("testcase", "leaning", SOUND)
    assert float(case.get("time")) == 0
    (failure,) = case
    assert failure.tag == "failure"
    assert failure.get("message").startswith("cue/patch/effect < 0.3: fail by")
    assert [each.tag for each in too_few] == ["skipped"]
    assert list(suites["sound"][0]) == []

    main(["check", str(runs), "--expect", few, "--strict", "--junit", str(junit)])
    assert ET.parse(junit).getroot().get("failures") == "2"


def test_hostile_names_stay_text_in_junit_and_on_the_console(tmp_path, capsys):
    write_run(tmp_path / HOSTILE.replace("/", ""), audits=1)
    junit = tmp_path / "audit.xml"
    literal = LITERAL.replace("/", "")
    assert main(["check", str(tmp_path), "--expect", "accuracy > .5", "--junit", str(junit)]) == 0
    assert ET.parse(junit).getroot()[0].get("name") == literal
    assert literal in capsys.readouterr().out


@pytest.mark.parametrize("words", [["check", "--expect", "accuracy > 0"], ["compare"], ["report"], ["watch", "--once"]])
def test_a_latest_audit_of_the_future_is_refused_in_one_line(tmp_path, words, capsys):
    run = from_the_future(write_run(tmp_path / "run", audits=1))
    more = [str(write_run(tmp_path / "other", audits=1))] if words[0] == "compare" else []
    assert main([words[0], str(run), *more, *words[1:]]) == 3
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    assert "It is of version 99, newer than 1. Update xai_callbacks." in told


def test_an_earlier_audit_that_is_damaged_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "audit/history/audit_000000.safetensors").write_bytes(b"half a rec")
    assert main(["check", str(run), "--expect", "accuracy > 0.1"]) == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: Expected a file of `AuditRecord.save`")
    assert told.count("\n") == 1
