"""From the cells of a manifest to labels, values and groups; faults name the row."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

from xai_callbacks.errors import ProbeSetError

__all__ = ["SEPARATOR", "Row", "class_index", "read_groups", "read_labels", "read_targets", "required"]

SEPARATOR = "|"
"""Between the labels of one image."""

# More labels without names than this are a mistake, and would take much memory.
_MOST_LABELS = 10_000
# Digits of an index that fits into 64 bits.
_MOST_DIGITS = 18

Names = tuple[str, ...] | None


class Row(NamedTuple):
    """One row of a manifest: where it is, and its cells by column."""

    where: str
    cells: dict[str, str]

    @property
    def ref(self) -> str:
        """Where it is, with its file."""
        return f"{self.where} ({self.cells['file']!r})" if self.cells["file"] else self.where


def required(row: Row, column: str) -> str:
    """Return a cell that must not be empty.

    Raises:
        ProbeSetError: It is.
    """
    if not row.cells[column]:
        advice = " For images without any label, call the column 'labels'." if column == "label" else ""
        raise ProbeSetError(f"Expected {row.ref} to have a {column}, but the cell is empty.{advice}")
    return row.cells[column]


def read_labels(rows: Sequence[Row], column: str, class_names: Names) -> tuple[list[int] | list[list[int]], Names]:
    """Return classes; or rows of 0 and 1, if the column is `labels` or a cell holds several.

    Raises:
        ProbeSetError: A label is empty or unknown, or names and indexes are mixed.
    """
    several = column == "labels" or any(SEPARATOR in row.cells[column] for row in rows)
    parts = [_labels_of(row, column, several) for row in rows]
    flat = [(text, row.ref) for row, part in zip(rows, parts, strict=True) for text in part]
    if class_names is None:
        indexes, class_names = _numbered(flat, "label")
    else:
        indexes = [class_index(text, class_names, where) for text, where in flat]
    if not several:
        return indexes, class_names
    return _multi_hot(parts, indexes, class_names), class_names


def read_targets(rows: Sequence[Row], columns: Sequence[str]) -> list[list[float]]:
    """Return the values of each row.

    Raises:
        ProbeSetError: A value is no finite number.
    """
    return [[_number(row, column) for column in columns] for row in rows]


def read_groups(rows: Sequence[Row]) -> tuple[list[int], Names]:
    """Return group indexes; an empty cell is an unknown group.

    Raises:
        ProbeSetError: Names and indexes are mixed.
    """
    texts = [row.cells["group"] or "-1" for row in rows]
    known, names = _numbered([(text, row.ref) for text, row in zip(texts, rows, strict=True) if text != "-1"], "group")
    groups = iter(known)
    return [-1 if text == "-1" else next(groups) for text in texts], names


def class_index(text: str, class_names: tuple[str, ...], where: str) -> int:
    """Return the index of a class given by name or, failing that, by index.

    Raises:
        ProbeSetError: There is none, or there are several of that name.
    """
    if class_names.count(text) > 1:
        raise ProbeSetError(f"Expected the class of {where} to be one of a kind, but {text!r} is the name of several.")
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < len(class_names):
        return int(text)
    near = difflib.get_close_matches(text, class_names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ProbeSetError(
        f"Expected the class of {where} to be among the {len(class_names)} class names, but got {text!r}.{hint}"
    )


def _labels_of(row: Row, column: str, several: bool) -> list[str]:
    text = row.cells[column] if column == "labels" else required(row, column)
    parts = [part.strip() for part in text.split(SEPARATOR)] if several and text else [text][: len(text)]
    if "" in parts:
        raise ProbeSetError(
            f"Expected {row.ref} to have a label on both sides of each {SEPARATOR!r}, but got {text!r}."
        )
    return parts


def _numbered(cells: Sequence[tuple[str, str]], what: str) -> tuple[list[int], Names]:
    """Read all texts, each with where it is, as indexes, or number the sorted names; a mixture is a mistake."""
    decimal = [text.isdecimal() for text, _ in cells]
    if any(decimal) and not all(decimal):
        text, where = cells[decimal.index(not decimal[0])]
        raise ProbeSetError(
            f"Expected every {what} to be a name, or every one an index, but {where} has {text!r} where "
            f"{cells[0][1]} has {cells[0][0]!r}. Use one kind"
            + (", or pass `class_names=`." if what == "label" else ".")
        )
    if all(decimal):
        return [_index(text, what, where) for text, where in cells], None
    names = tuple(sorted({text for text, _ in cells}))
    return [names.index(text) for text, _ in cells], names


def _index(text: str, what: str, where: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ProbeSetError(f"Expected the {what} of {where} to be an index, but got a number of {len(text)} digits.")
    return int(text)


def _multi_hot(parts: list[list[str]], indexes: list[int], class_names: Names) -> list[list[int]]:
    count = max(indexes, default=-1) + 1 if class_names is None else len(class_names)
    if not 0 < count <= _MOST_LABELS:
        raise ProbeSetError(
            f"Expected 1 to {_MOST_LABELS:,} labels, but the manifest tells {count:,}. Pass `class_names=`."
        )
    found = iter(indexes)
    result = []
    for part in parts:
        present = {next(found) for _ in part}
        result.append([int(label in present) for label in range(count)])
    return result


def _number(row: Row, column: str) -> float:
    text = required(row, column)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProbeSetError(f"Expected the {column} of {row.ref} to be a finite number, but got {text!r}.")
    return value
