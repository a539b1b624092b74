"""Every command in the README and in `docs/command_line.md` is one, with these options; the README's story holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from xai_callbacks.cli import main
from xai_callbacks.cli.parser import COMMANDS, parse

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ("README.md", "docs/command_line.md")]


def commands(text):
    """The words of each command in the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["xai-audit"]]


GIVEN = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("words", GIVEN, ids=" ".join)
def test_every_command_of_the_pages_is_understood(words, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert parse(words).run.__module__.startswith("xai_callbacks.cli.")


def test_every_command_is_on_the_page_and_so_are_exit_codes():
    page = PAGES[1].read_text(encoding="utf-8")
    named = {" ".join(words[: 2 if words[0] == "probes" else 1]) for words in commands(page)}
    assert named == {name for name, (module, _) in COMMANDS.items() if module}
    for code in ("| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 130, 141 |"):
        assert code in page


def test_every_option_that_the_page_names_exists(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for name, (module, _) in COMMANDS.items():
        if module:
            main([*name.split(), "--help"])
    helped = capsys.readouterr().out
    text = re.sub(r"```.*?```", "", PAGES[1].read_text(encoding="utf-8"), flags=re.DOTALL)
    options = set(re.findall(r"--[a-z_.-]+[a-z_]", text)) - {"--print_completion", "--auditor.explainers.help"}
    assert len(options) > 12
    assert {option for option in options if option not in helped} == set()


@pytest.mark.slow
def test_the_story_of_the_readme(tmp_path, monkeypatch, capsys):
    """As typed, but on fewer images for fewer epochs."""
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    story = commands(PAGES[0].read_text(encoding="utf-8").partition("## Compare checkpoints")[2])[:4]
    assert [words[0] for words in story] == ["demo", "demo", "compare", "report"]
    for words in story[:2]:
        assert main([*words, "--epochs", "4", "--train-images", "1500"]) == 0
    capsys.readouterr()
    assert main(story[2]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Ship strength-0.1: ")
    assert second.startswith("Do not ship strength-0.95. Alarm: the model answers by the cue 'patch'")
    assert main(story[3]) == 0
    assert "Ship strength-0.1" in Path("report.html").read_text(encoding="utf-8")
    assert opened == [(tmp_path / "report.html").as_uri()]
