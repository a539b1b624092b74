"""The summary of expectations as plain text and as Markdown. ASCII marks: not every console has more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

from xai_callbacks.expectations.check import Outcome, Verdict
from xai_callbacks.expectations.expectation import Expectation

__all__ = ["WIDTH", "Line", "lines_of", "markdown_table", "text_table"]

WIDTH = 100
"""Characters of the plain text, at most."""

# One character an audit, as pytest has them; what is longer is cut at the front.
_MARKS = {
    Outcome.PASS: (".", "pass"),
    Outcome.FAIL: ("F", "FAIL"),
    Outcome.NOT_ENOUGH_EVIDENCE: ("?", "?"),
    Outcome.NOT_DUE: ("-", "-"),
}
_MOST_AUDITS = 12
_GAP = "  "
_HEADERS = ("", "expectation", "measured", "failed first", "audits")
_WIDTHS = (4, 40, 24, 12, _MOST_AUDITS)
_LEGEND = "F FAIL   . pass   ? not enough evidence   - not due"


class Line(NamedTuple):
    """What is said of one expectation.

    Attributes:
        expectation: The expectation.
        verdict: What the latest audit said; None before the first.
        failed: When it first failed; empty if only one audit is told of.
        outcomes: What each audit said, the first one first.
    """

    expectation: Expectation
    verdict: Verdict | None
    failed: str = ""
    outcomes: tuple[Outcome, ...] = ()


def lines_of(verdicts: Sequence[Verdict]) -> list[Line]:
    """The lines of one audit alone."""
    return [Line(verdict.expectation, verdict) for verdict in verdicts]


def text_table(title: str, lines: Sequence[Line]) -> str:
    """A table of at most `WIDTH` columns; cells too long for theirs go on below."""
    told = [_cells(line) for line in lines]
    columns = [index for index in range(len(_HEADERS)) if any(cells[index] for cells in told)]
    widths = {
        index: min(_WIDTHS[index], max(len(_HEADERS[index]), *(len(cells[index]) for cells in told)))
        for index in columns
    }
    rows = [*wrap(title, WIDTH), ""]
    if not told:
        return rows[0]
    rows += [_row([_HEADERS[index] for index in columns], list(widths.values()))]
    for line, cells in zip(lines, told, strict=True):
        parts = [wrap(cells[index], widths[index], break_on_hyphens=False) or [""] for index in columns]
        for place in range(max(map(len, parts))):
            rows.append(_row([part[place] if place < len(part) else "" for part in parts], list(widths.values())))
        indent = " " * (widths.get(0, 0) + len(_GAP))
        rows += wrap(_why(line), WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join([*rows, "", _LEGEND] if any(line.outcomes for line in lines) else rows)


def markdown_table(title: str, lines: Sequence[Line]) -> str:
    """The same in Markdown; names cannot break out of their cells."""
    rows = [_escaped(title), "", "| " + " | ".join(_HEADERS) + " |", "|---" * len(_HEADERS) + "|"]
    for line in lines:
        cells = list(_cells(line))
        cells[2] = _why(line) or cells[2]
        rows.append("| " + " | ".join(map(_escaped, cells)) + " |")
    return "\n".join([*rows, "", _escaped(_LEGEND)] if lines else rows[:1])


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    expectation, verdict = line.expectation, line.verdict
    mark = "" if verdict is None else _MARKS[verdict.outcome][1]
    name = f"{expectation.name}: {expectation}" if expectation.name else str(expectation)
    measured = "" if verdict is None or verdict.outcome is Outcome.NOT_DUE else verdict.measured
    audits = "".join(_MARKS[outcome][0] for outcome in line.outcomes[-_MOST_AUDITS:])
    return mark, name, measured, line.failed, audits


def _why(line: Line) -> str:
    """What the columns do not say."""
    verdict = line.verdict
    if verdict is None or verdict.outcome in (Outcome.PASS, Outcome.FAIL):
        return ""
    return verdict.reason


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)
