"""Parsers of all commands: built when they are asked for, with errors of one sentence."""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
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


class Finished(SystemExit):
    """A parser has done all that was asked, such as --help; code of a user that is imported raises its base."""


class Command(NamedTuple):
    """A command as it was understood."""

    run: Callable[[Any], int]
    args: Namespace  # with the classes of the configuration made
    options: tuple[str, ...]  # all that it has, such as --out
    positionals: dict[str, str]  # how help shows what has no option, such as PATH, by the name it has in `args`


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of examples."""


class _Parser(ArgumentParser):
    """A parser that raises where others print thirty lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message) from ex

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Finished(status)

    def _check_value_key(self, action: Any, value: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        """Refuse what a configuration has in place of a list, of which jsonargparse says what Python does."""
        if getattr(action, "nargs", None) in ("*", "+") and not isinstance(value, list | None):
            raise TypeError(f"Expected a list of {key}, but got {value!r}. Write {key}: [{value}]")
        return super()._check_value_key(action, value, key, *args, **kwargs)


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
    actions = parsers.get(asked, root)._actions
    options = tuple(option for action in actions for option in action.option_strings)
    positionals = {each.dest: str(each.metavar) for each in actions if not each.option_strings and each.metavar}
    try:
        given = root.parse_args(list(argv))
        given = getattr(root, "instantiate", root.instantiate_classes)(given)
    except SystemExit:
        if complete:  # which goes past `exit` of its parser
            raise Finished from None
        raise
    except UsageError as error:
        said = _in_short(str(error), [*" ".join(COMMANDS).split(), *options])
        raise UsageError(f"{said} See {parsers.get(asked, root).prog} --help.") from error
    home = importlib.import_module(f"xai_callbacks.cli.{COMMANDS[asked][0]}")
    return Command(getattr(home, asked.rpartition(" ")[2]), given[asked.replace(" ", ".")], options, positionals)


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
    noise = r"Parser key .*|Does not validate.*|Subtypes:.*|Errors:|Given value.*|Expected a <class '\w+'>"
    telling = [line for line in lines if line and not re.fullmatch(noise, line)]
    kinds = [kind for kind in re.findall(r"- Expected a <class '(\w+)'>", message) if kind != "NoneType"]
    given = found[1] if (found := re.search(r"Given value: (.*)", message)) else ""
    said = telling[0] if telling else f"Expected a {' or '.join(kinds)}, but got {given}" if kinds else lines[0]
    if lines[0].startswith('expected "'):
        said = f"Expected a command, one of {' '.join(re.findall(r'{.*}', said))}"
    if said.startswith("Unexpected config"):
        said = "Expected --config to be a YAML file of options by name, but there are none in it"
    words = {name.lstrip("-"): name for name in known}
    if missing := re.search(r'required: (.+)|key "(.+)" is required', said, re.IGNORECASE):
        names = [name.rpartition(".")[2] for name in (missing[1] or missing[2]).split(", ")]
        wanted = " and ".join(words.get(name.replace("_", "-"), name) for name in names)
        said, key = f"Expected {wanted}, but {'it was' if len(names) == 1 else 'they were'} not given", ""
    said = re.sub(r"<class '([\w.]+)'>", r"\1", said).removeprefix("Validation failed: ").rstrip(".:")
    said = re.sub(r"\ba (?=int\b)", "an ", said).replace(". Got value: ", ", but got ")
    said = re.sub(r"a typing\.Literal\[(.+?)\]", r"one of \1", said)
    said = re.sub("Expected a dot import path string: (.*)", r"Expected the name of a class, but got \1", said)
    near = _near(r"(?:option|invalid choice:|arguments:|for key) ['\"]?(-*[\w.-]+)", said, words)
    near = near or _near(r"class, but got ([\w.]+)|class_path '([\w.]+)|list, but got ([A-Z]\w+)$", said, _classes())
    hint = f" Did you mean {near}?" if near else ""
    if kinds == ["list"] and not telling:
        hint += f" Add to a list by --{key}+={near or given}."
    return f"{f'--{key}: ' if key else ''}{said}.{hint}"


def _near(pattern: str, said: str, known: Mapping[str, str]) -> str:
    """What may have been meant by the word that a pattern finds; empty if it finds none, or nothing is like it."""
    found = re.search(pattern, said)
    wrong = "" if found is None else next(filter(None, found.groups()))
    near = get_close_matches(wrong.lstrip("-").partition("=")[0].rpartition("xai_callbacks.")[2], known, n=1)
    return known[near[0]] if near and known[near[0]] != wrong else ""


def _classes() -> dict[str, str]:
    """Public names of the package by themselves."""
    return {name: name for name in sys.modules[__name__.partition(".")[0]].__all__}
