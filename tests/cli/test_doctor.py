"""`xai-audit doctor`: exit codes, and what is said of a callback that disturbs and of one that does not."""

from __future__ import annotations

import json

import pytest

from tests.callbacks.runs import package
from xai_callbacks.cli import main


class Harmless(package("pytorch_lightning").Callback):
    """Does nothing."""


class Forgetful(package("pytorch_lightning").Callback):
    """Leaves the model in eval mode."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.eval()


def forgetful():
    return Forgetful()


NOT_A_CALLBACK = 3


@pytest.mark.parametrize(("target", "status"), [("Harmless", 0), ("Forgetful", 1), ("forgetful", 1)])
def test_exit_code_says_whether_anything_is_disturbed(target, status, capsys):
    words = ["doctor", f"{__name__}:{target}", "--scenarios", "plain"]
    assert main(words) == status
    printed = capsys.readouterr().out
    assert ("disturbs nothing in" in printed) == (status == 0)
    assert main([*words, "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] == (status == 0)
    assert bool(told["disturbances"]) == (status == 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere:Callback"], "Expected 'nowhere:Callback' to be package.module:name"),
        ([f"{__name__}:Nobody"], "has no attribute 'Nobody'"),
        ([f"{__name__}:NOT_A_CALLBACK"], "Expected"),
        ([f"{__name__}:Harmless", "--scenarios", "plane"], "plane"),
    ],
)
def test_what_is_none_is_refused_in_one_line(words, expected, capsys):
    assert main(["doctor", *words]) == 3
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    assert expected in told
