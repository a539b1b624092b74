"""What commands print: text that cannot be mistaken for markup or control codes, tables, progress, JSON."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from xai_callbacks.record import Estimate

OK, FAIL, UNDECIDED, ERROR = range(4)
_PIPE_WIDTH = 120  # columns of what is not written to a terminal, unless COLUMNS says another


def console() -> Console:
    """Where results go: colours on a terminal, plain text in a pipe or with NO_COLOR; markup is not understood."""
    return _console(stderr=False)


def error_console() -> Console:
    """Where errors, warnings and progress go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    wide = not (sys.stderr if stderr else sys.stdout).isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=_PIPE_WIDTH if wide else None)


def shown(text: object) -> str:
    """Text as it can be shown anywhere: what does not print, such as the start of a colour code, as its escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))


def say(out: Console, text: object, style: str = "") -> None:
    """Print one sentence; in a pipe it stays one line."""
    out.print(Text(shown(text), style), soft_wrap=not out.is_terminal)


def table(title: str, *columns: str, rows: Sequence[tuple[object, ...]]) -> Table:
    """A table of texts: the first column to the left, the others to the right; a `Text` keeps its style."""
    from rich.box import SIMPLE_HEAD

    grid = Table(title=shown(title) or None, title_justify="left", box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        grid.add_column(Text(shown(column)), justify="right" if place else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in row))
    return grid


def number(value: float | None) -> str:
    """A number in three digits; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def estimate(given: "Estimate | None") -> str:
    """A value with its interval."""
    if given is None or given.low is None or given.high is None:
        return number(given and given.value)
    return f"{number(given.value)} [{number(given.low)}, {number(given.high)}]"


def write_json(value: object) -> None:
    """Print JSON, in ASCII."""
    from xai_callbacks.record import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on a terminal; call with what is done, and with all there is."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    out = error_console()
    if not out.is_terminal:  # older versions of rich leave an empty line
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as bars:
        bar = bars.add_task(shown(words), total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
