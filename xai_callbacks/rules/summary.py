"""The findings of a run as plain text. ASCII marks: not every console has more."""

from collections.abc import Sequence
from textwrap import wrap

from xai_callbacks.history import History
from xai_callbacks.record import Finding

_WIDTH = 100
# One character an audit, as pytest has them; what is longer is cut at the front.
MARKS = {"pass": (".", "pass"), "fail": ("F", "FAIL"), "not enough evidence": ("?", "?"), "not due": ("-", "-")}
_MOST_AUDITS = 12
_HEADERS = ("", "first failed", "audits", "expectation")
_LEGEND = "F FAIL   . pass   ? not enough evidence   - not due"
_PREFIX = "expectation/"


def summary(history: History) -> str:
    """Tell what became of expectations and alarms, as text of at most 100 columns; empty if there are none."""
    expected, others = _parted(history)
    parts = [f"{table(_title(history), _rows(expected, history))}\n\n{_LEGEND}"] if expected else []
    return "\n\n".join(parts + ["\n".join(wrap(each.sentence, _WIDTH)) for each in others])


def table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    """A title, and cells in columns under the first row; those of the last column go on below."""
    widths = [max(len(row[place]) for row in rows) + 2 for place in range(len(rows[0]) - 1)]
    lines = [*wrap(title, _WIDTH), ""]
    for row in rows:
        before = "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines += wrap(row[-1], _WIDTH, initial_indent=before, subsequent_indent=" " * len(before))
    return "\n".join(lines)


def _parted(history: History) -> tuple[list[Finding], list[Finding]]:
    """The latest findings of expectations, and of other rules."""
    parted: tuple[list[Finding], list[Finding]] = ([], [])
    for each in () if history.last is None else history.last.findings:
        parted[not (each.key.startswith(_PREFIX) and each.state in MARKS)].append(each)
    return parted


def _title(history: History) -> str:
    record, states = history[-1], [each.state for each in _parted(history)[0]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in MARKS if state in states)
    return f"Expectations at epoch {record.epoch}, step {record.step}: {counts}."


def _rows(expected: Sequence[Finding], history: History) -> list[tuple[str, ...]]:
    """A row an expectation, with its story at audits of the same probes."""
    rows: list[tuple[str, ...]] = [_HEADERS]
    records = history.comparable(history[-1]).without_tensors()
    for finding in expected:
        # An expectation that was changed under its name begins anew.
        same = (finding.key, finding.about, finding.threshold)
        all_of_them = [(record, each) for record in records for each in record.findings]
        story = [(record, each) for record, each in all_of_them if (each.key, each.about, each.threshold) == same]
        failed = next((f"epoch {record.epoch}" for record, each in story if each.state == "fail"), "never")
        audits = "".join(MARKS[each.state][0] for _, each in story[-_MOST_AUDITS:])
        rows.append((MARKS[finding.state][1], failed, audits, finding.sentence))
    return rows
