"""Parsers of all commands: built when they are asked for, with errors of one sentence."""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

import jsonargparse
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

EXIT_CODES = "Exit codes: 0 fine, 1 fail, 2 not enough evidence, 3 error; 130 on Ctrl-C."
_ABOUT = "See why image classifiers decide as they do: audit, compare, report and test them."

# The module of each command has `<last word>_arguments(parser)` and `<last word>(args) -> int`.
COMMANDS = {
    "demo": ("demo", "Train a small net on digits with a decoy, audited; say what it leans on."),
    "probes": ("", "Build, inspect and verify sets of probe images."),
    "probes build": ("probes", "Build a probe set from a folder or a dataset."),
    "probes inspect": ("probes", "Show what is in a probe set."),
    "probes verify": ("probes", "Read a probe set and check its fingerprint."),
    "audit": ("audit", "Audit checkpoints on probes."),
    "compare": ("compare", "Compare models: which one to ship, and why."),
    "report": ("compare", "Write one HTML page about a model, or about several side by side."),
    "check": ("check", "Hold audits against expectations, for CI."),
    "watch": ("watch", "Follow a run: its newest metrics and findings."),
    "doctor": ("doctor", "Find what a callback or an explainer disturbs in a training run."),
}


class UsageError(Exception):
    """The command line, or a configuration file, cannot be understood."""


class Command(NamedTuple):
    """A command as it was understood."""

    run: Callable[[Any], int]
    args: Namespace  # with the classes of the configuration made


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of examples."""


class _Parser(ArgumentParser):
    """A parser that raises where others print thirty lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message) from ex


def parse(argv: Sequence[str], *, complete: bool = False) -> Command:
    """Understand a command line; a `UsageError` says in one sentence what is wrong with it, and the way out.

    Args:
        argv: Its words.
        complete: Whether all commands are wanted, for shell completion; else only the one that is named.
    """
    if complete:
        with suppress(AttributeError, TypeError, ValueError):  # older versions offer --print_shtab by themselves
            jsonargparse.set_parsing_settings(add_print_completion_argument=True)
    version = sys.modules[__name__.partition(".")[0]].__version__
    root = _Parser(prog="xai-audit", description=_ABOUT, epilog=EXIT_CODES)
    root.add_argument("--version", action="version", version=version, help="Show the version and exit.")
    places = {"": root.add_subcommands(dest="command", metavar="COMMAND", title="commands", description=None)}
    named = " ".join(argv[: 2 if argv[:1] == ["probes"] else 1])
    parsers: dict[str, ArgumentParser] = {"": root}
    for name, (module, words) in COMMANDS.items():
        above, _, last = name.rpartition(" ")
        if above not in places:
            places[above] = parsers[above].add_subcommands(dest="what", metavar="COMMAND", description=None)
        parsers[name] = places[above].add_subcommand(last, _Parser(description=words, epilog=EXIT_CODES), help=words)
        parsers[name].prog = f"xai-audit {name}"
        if module and (complete or name == named):
            _fill(parsers[name], importlib.import_module(f"xai_callbacks.cli.{module}"), last)
    asked = named if named in parsers else named.partition(" ")[0]
    try:
        given = root.parse_args(list(argv))
        given = getattr(root, "instantiate", root.instantiate_classes)(given)
    except UsageError as error:
        parser = parsers.get(asked, root)
        options = [option for action in parser._actions for option in action.option_strings]
        said = _in_short(str(error), [*" ".join(COMMANDS).split(), *options])
        raise UsageError(f"{said.replace(f' {asked}.', ' ')} See {parser.prog} --help.") from error
    home = importlib.import_module(f"xai_callbacks.cli.{COMMANDS[asked][0]}")
    return Command(getattr(home, asked.rpartition(" ")[2]), given[asked.replace(" ", ".")])


def _fill(parser: ArgumentParser, module: Any, name: str) -> None:
    parser.description = inspect.getdoc(getattr(module, name))
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; those after it go first.")
    getattr(module, f"{name}_arguments")(parser)
    parser.add_argument("--json", action="store_true", help="Print JSON, and nothing else.")
    parser.add_argument("--debug", action="store_true", help="Show where an error comes from.")


def _in_short(message: str, known: Sequence[str]) -> str:
    """The one sentence of a message that tells most, and what may have been meant.

    Messages about values with several types list all types, what is wrong with the value for each, and the value.
    """
    lines = [line.strip(" -") for line in message.splitlines()]
    key = found[1] if (found := re.match(r'Parser key "(.+?)":?', lines[0])) else ""
    noise = (
        r"Parser key .*|Does not validate.*|Subtypes:.*|Errors:|Given value.*|Expected a <class '(NoneType|list)'>.*"
    )
    telling = [line for line in lines if line and not re.fullmatch(noise, line)]
    said = max(telling, key=lambda line: not line.startswith("Expected a <class"), default=lines[0])
    if lines[0].startswith('expected "'):
        said = f"Expected a command, one of {' '.join(re.findall(r'{.*}', said))}"
    if missing := re.search(r'required: (.+)|key "(.+)" is required', said, re.IGNORECASE):
        said, key = f"Expected {missing[1] or missing[2]}, but it was not given", ""
    said = re.sub(r"<class '([\w.]+)'>", r"\1", said).removeprefix("Validation failed: ").rstrip(".")
    wrong = re.search(r"(?:option|invalid choice:|arguments:|for key) ['\"]?(-*[\w.-]+)", said)
    words = {name.lstrip("-"): name for name in known}
    near = get_close_matches(wrong[1].lstrip("-").partition("=")[0], words, n=1) if wrong else []
    hint = f" Did you mean {words[near[0]]}?" if near else ""
    return f"{f'--{key}: ' if key else ''}{said}.{hint}"
