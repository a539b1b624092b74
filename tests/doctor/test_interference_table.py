"""All tools of the interference bench in all of its scenarios: what its table shows is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _interference_tools import TOOLS

from xai_callbacks.doctor import diagnose
from xai_callbacks.doctor.digits import load_digits
from xai_callbacks.doctor.training import SCENARIOS

ROWS = json.loads((Path(__file__).parents[2] / "docs/results/interference.json").read_text(encoding="utf-8"))["rows"]
HOOKS = {scenario.name: scenario.hook for scenario in SCENARIOS}
TOOL = {tool.title: tool for tool in TOOLS if tool.attach is not None}

KINDS = {
    "weights differ": "parameters",
    "buffers differ": "buffers",
    "optimizer state": "optimizer",
    "logged metrics": "metrics",
    "loss differs": "losses",
    "state_dict keys": "state_dict",
    "of steps": "steps",
    "layers left": "eval_layers",
    "RNG moved": "rng",
    "hooks left": "hooks",
    "trainable parameters": "requires_grad",
    ".grad": "grads",
    "raised": "raised",
    "training crashed": "crash",
}


def kinds(sentences):
    """Of disturbances, from the words of the table; what a crash says may contain any of them."""
    return {
        next(
            kind for words, kind in KINDS.items() if words in sentence.partition(": ")[0] or sentence.startswith(words)
        )
        for sentence in sentences
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "scenario", "sentences"),
    [
        pytest.param(row["tool"], row["scenario"], row["differences"], id=f"{TOOL[row['tool']].key}, {row['scenario']}")
        for row in ROWS
        if row["tool"] in TOOL
    ],
)
def test_the_doctor_finds_what_the_table_shows(title, scenario, sentences):
    tool = TOOL[title]
    if tool.package is not None:
        pytest.importorskip(tool.package, reason=f"{tool.package} comes with the extra `bench`")
    assert tool.attach is not None

    diagnosis = diagnose(lambda: tool.attach(load_digits(), HOOKS[scenario]), scenarios=[scenario])

    assert kinds(sentences) <= {each.what for each in diagnosis.disturbances}, str(diagnosis)
    assert diagnosis.healthy == (not sentences), str(diagnosis)
