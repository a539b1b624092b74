"""`xai-audit check`: expectations on audits, as exit code and as JUnit XML."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from jsonargparse import ArgumentParser

from xai_callbacks.cli.named import models_at
from xai_callbacks.cli.output import FAIL, OK, UNDECIDED, console, say, shown, write_json

if TYPE_CHECKING:
    from xai_callbacks.record import Finding

_SHOWN = {
    "pass": ("pass", "green"),
    "fail": ("FAIL", "red"),
    "not enough evidence": ("?   ", "yellow"),
    "not due": ("-   ", ""),
}


def check_arguments(parser: ArgumentParser) -> None:
    """Add the options of `check`."""
    parser.add_argument("paths", nargs="+", type=str, metavar="PATH", help="Runs, or folders of audited checkpoints.")
    parser.add_argument("--expect", nargs="+", action="extend", required=True, help="What must hold.")
    parser.add_argument("--junit", type=str, help="Also write JUnit XML, to this file.")
    parser.add_argument("--strict", action="store_true", help="Whether too little evidence fails.")


def check(args: Any) -> int:
    """Hold the latest audit of each model against expectations.

    Exit code 1 if one fails; else 2 if there is too little evidence for one, such as fewer than 30 probes, or as it was
    due for no model; else 0.

    Examples:
      xai-audit check runs/demo/strength-0.95 --expect "accuracy > 90 %" "cue/patch/effect < 0.05" --junit audit.xml
    """
    from xai_callbacks.rules.conclusions import as_rules, judged

    rules = as_rules(args.expect)
    found = _unchecked({name: judged(rules, history) for name, history in models_at(args.paths).items()})
    if args.junit:
        Path(args.junit).parent.mkdir(parents=True, exist_ok=True)
        Path(args.junit).write_bytes(junit(found, strict=args.strict))
    if args.json:
        write_json({name: {each.key.partition("/")[2]: each for each in findings} for name, findings in found.items()})
    for name, findings in () if args.json else found.items():
        say(console(), name, "bold")
        for each in findings:
            mark, style = _SHOWN[each.state]
            say(console(), f"{mark}  {each.sentence}", style)
    states = {each.state for findings in found.values() for each in findings}
    if "fail" in states or (args.strict and "not enough evidence" in states):
        return FAIL
    return UNDECIDED if "not enough evidence" in states else OK


def _unchecked(found: "Mapping[str, Sequence[Finding]]") -> "dict[str, list[Finding]]":
    """The findings; those of an expectation that was due for no model are too little evidence, as nobody looked."""
    due = {each.key for findings in found.values() for each in findings if each.state != "not due"}
    told = " Nothing was checked, which is not enough evidence."
    return {
        name: [
            each if each.key in due else replace(each, state="not enough evidence", sentence=each.sentence + told)
            for each in findings
        ]
        for name, findings in found.items()
    }


def junit(found: "Mapping[str, Sequence[Finding]]", *, strict: bool) -> bytes:
    """JUnit XML of findings by model: a suite a model, a case an expectation; too little evidence is a skipped case."""
    root = ET.Element("testsuites", name="xai-audit check")
    for name, findings in found.items():
        suite = ET.SubElement(root, "testsuite", name=shown(name))
        for each in findings:
            label = shown(each.key.partition("/")[2])
            case = ET.SubElement(suite, "testcase", classname=shown(name), name=label, time="0")
            fails = each.state == "fail" or (strict and each.state == "not enough evidence")
            if each.state != "pass":
                ET.SubElement(case, "failure" if fails else "skipped", message=shown(each.sentence))
        for node in (suite, root):
            for count, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
                node.set(count, str(len(list(node.iter(tag)))))
            node.set("errors", "0")
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml
