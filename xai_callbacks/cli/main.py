"""`main`: runs one command; errors are one line, exit codes are those that `--help` names."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from xai_callbacks.cli.output import ERROR, OK, error_console, say
from xai_callbacks.cli.parser import Finished, UsageError, parse
from xai_callbacks.errors import XAICallbacksError, in_words

# What arguments of functions are called on the command line, where that is not their own name.
_CALLED = {"source": "checkpoints", "root": "folder", "given": "target", "models": "paths", "paths": "run"}
_PHRASES = {
    "`path` to be a file of `ProbeSet.save`": "`probes` to be a file of probes",
    "`path` to be that of a file": "`out` to be that of a file",
    "`path` to be where": "`out` to be where",
    "another folder, or another name for the checkpoint": "another --out, or name the checkpoint: NAME=FILE",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `xai-audit` with these words, None for those of the command line; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = _told
        try:
            return _run(argv)
        except (Exception, KeyboardInterrupt, SystemExit) as end:
            if (status := _ended(end)) is not None:
                return status
            if "--debug" in argv:
                traceback.print_exc()
            say(error_console(), f"error: {_sentence(end)}", "red")
            return ERROR


def _run(argv: Sequence[str]) -> int:
    complete = any(word.startswith(("--print_completion", "--print_shtab")) for word in argv)
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for modules that a user names; last, so that nothing is shadowed
    command = parse(argv, complete=complete)
    try:
        status = command.run(command.args)
    except XAICallbacksError as error:
        raise UsageError(in_options(str(error), command.options, command.positionals)) from error
    sys.stdout.flush()
    return status


def _ended(end: BaseException) -> int | None:
    """The status of what ends quietly: Ctrl-C, a pipe such as `| head`, and --help and the like; None for an error."""
    # Lightning and rich turn the first two into a SystemExit.
    cause = end.__context__ if isinstance(end, SystemExit) and end.__context__ is not None else end
    if isinstance(cause, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 141
    if isinstance(cause, KeyboardInterrupt):
        return 130
    return OK if isinstance(end, Finished) else None


def in_options(message: str, options: Sequence[str], positionals: Mapping[str, str] | None = None) -> str:
    """A message about arguments in Python as one about options: --model x for model='x', --trust for trust=True.

    Arguments without an option are told by how help shows them, such as PATH for `paths`, see `Command`.
    """
    # Reversed, so that the first of a name counts: those of the command come before those of the auditor.
    named = {option.rpartition(".")[2].lstrip("-").replace("-", "_"): option for option in reversed(options)}
    named |= positionals or {}
    named |= {name: named[called] for name, called in _CALLED.items() if called in named and name not in named}

    def option(found: re.Match[str]) -> str:
        name, value = found["argument"] or found["keyword"], found["text"] or found["open"] or ""
        return f"{named[name]} {value}".rstrip() if name in named else found[0]

    argument, keyword = r"`(?P<argument>\w+)`", r"\b(?P<keyword>\w+)="
    value = r"""(?:True\b|(?P<quote>["'])(?P<text>.+?)(?P=quote)|(?P<open>[\[{]))"""
    for phrase, words in _PHRASES.items():
        message = message.replace(phrase, words)
    return re.sub(f"{argument}|{keyword}{value}", option, message)


def _sentence(error: BaseException) -> str:
    if isinstance(error, UsageError | XAICallbacksError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"Expected your code to return, but it raised {in_words(error)} Add --debug to see where it comes from."
    expected = isinstance(error, OSError | ImportError)
    return in_words(error) if expected else f"{in_words(error)} Add --debug to see where it comes from."


def _told(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning in one line; those for programmers are left out."""
    if not issubclass(category, DeprecationWarning | FutureWarning):
        say(error_console(), f"warning: {message}", "yellow")
