"""The manifest `probes.csv` of a probe folder: files, labels, values, names and groups; faults name the row."""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.paths import inside, no_file

__all__ = ["MANIFEST", "class_index", "default_names", "read_manifest"]

MANIFEST = "probes.csv"
COLUMNS = ("file", "label", "labels", "target", "name", "group")
TARGET = "target:"
"""Beginning of the column of one of several values; its name follows."""
SEPARATOR = "|"
"""Between the labels of one image."""

# More labels without names than this are a mistake, and would take much memory.
_MOST_LABELS = 10_000
# Digits of an index that fits into 64 bits.
_MOST_DIGITS = 18

Names = tuple[str, ...] | None


class _Row(NamedTuple):
    where: str
    cells: dict[str, str]

    @property
    def ref(self) -> str:
        """Place of the row, with its file."""
        return f"{self.where} ({self.cells['file']!r})" if self.cells["file"] else self.where

    def required(self, column: str) -> str:
        """A cell that must not be empty."""
        if not self.cells[column]:
            advice = " For images without any label, call the column 'labels'." if column == "label" else ""
            raise ProbeSetError(f"Expected {self.ref} to have a {column}, but the cell is empty.{advice}")
        return self.cells[column]


def read_manifest(root: Path, class_names: Names) -> tuple[list[str], dict[str, Any]]:
    """Read and check `probes.csv`: files relative to the probe folder, and what else `ProbeSet` is to be given."""
    columns, rows = _read_rows(root)
    files = [row.required("file") for row in rows]
    for file, row in zip(files, rows, strict=True):
        if not PurePosixPath(file).name:
            raise ProbeSetError(f"Expected {row.where} to have the path of an image, but got {file!r}.")
    names = [row.cells.get("name") or default for row, default in zip(rows, default_names(files), strict=True)]
    first: dict[str, str] = {}
    for name, row in zip(names, rows, strict=True):
        if first.setdefault(name, row.where) != row.where:
            raise ProbeSetError(
                f"Expected names to be unique, but {first[name]} and {row.where} are both named {name!r}. "
                "Remove one, or tell them apart in the 'name' column."
            )
    given: dict[str, Any] = {"names": names}
    values = [column for column in columns if _is_value(column)]
    if values:
        given["class_names"] = class_names
        given["targets"] = [[_number(row, column) for column in values] for row in rows]
        if values != ["target"]:
            given["target_names"] = [column.removeprefix(TARGET).strip() for column in values]
    else:
        column = "label" if "label" in columns else "labels"
        given["labels"], given["class_names"] = _labels(rows, column, class_names)
    if "group" in columns:
        known = [row for row in rows if row.cells["group"] not in ("", "-1")]
        indexes, given["group_names"] = _numbered([(row.cells["group"], row.ref) for row in known], "group")
        by_row = dict(zip((row.where for row in known), indexes, strict=True))
        given["groups"] = [by_row.get(row.where, -1) for row in rows]
    return files, given


def default_names(files: list[str]) -> list[str]:
    """Name each probe by its path without suffix, or with it where two paths differ in nothing else."""
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    shared = Counter(stems)
    return [file if shared[stem] > 1 else stem for stem, file in zip(stems, files, strict=True)]


def class_index(text: str, class_names: tuple[str, ...], where: str) -> int:
    """Index of a class given by name or, failing that, by index."""
    if class_names.count(text) > 1:
        raise ProbeSetError(f"Expected the class of {where} to be one of a kind, but {text!r} is the name of several.")
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < len(class_names):
        return int(text)
    near = difflib.get_close_matches(text, class_names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ProbeSetError(f"Expected the class of {where} to be one of {len(class_names)} names, but got {text!r}.{hint}")


def _read_rows(root: Path) -> tuple[list[str], list[_Row]]:
    """The columns, and the rows with cells stripped."""
    path = inside(root, MANIFEST)
    if why := no_file(path):
        raise ProbeSetError(f"Expected {MANIFEST!r} to be a CSV file, but {why}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            lines = [(f"{MANIFEST} line {reader.line_num}", cells) for cells in reader if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeSetError(f"Expected {MANIFEST!r} to be a CSV file in UTF-8, but got: {error}") from error
    _check_columns(columns)
    for where, cells in lines:
        if len(cells) != len(columns):
            raise ProbeSetError(
                f"Expected {where} to have {len(columns)} cells, one a column, but got {len(cells)}: {cells}. "
                "Put cells that contain commas in double quotes."
            )
    if not lines:
        raise ProbeSetError(f"Expected {MANIFEST!r} to list at least one probe, but it has no rows.")
    return columns, [_Row(where, dict(zip(columns, map(str.strip, cells), strict=True))) for where, cells in lines]


def _check_columns(columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS and not _is_value(column):
            near = difflib.get_close_matches(column.lower(), COLUMNS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            allowed = (*COLUMNS, TARGET + "<name>")
            raise ProbeSetError(f"Expected the columns of {MANIFEST!r} to be in {allowed}, but got {column!r}.{hint}")
        if columns.count(column) > 1:
            raise ProbeSetError(f"Expected each column of {MANIFEST!r} once, but got {column!r} twice.")
    if "file" not in columns:
        raise ProbeSetError(f"Expected {MANIFEST!r} to have a column 'file', but got {list(columns)}.")
    kinds = {TARGET if column.startswith(TARGET) else column for column in columns} - {"file", "name", "group"}
    if len(kinds) != 1:
        raise ProbeSetError(
            f"Expected {MANIFEST!r} to have one of the columns 'label' (a class), 'labels' (any number of labels) and "
            f"'target' (a value), or columns '{TARGET}<name>' (several values), but got {list(columns)}."
        )


def _is_value(column: str) -> bool:
    return column == "target" or (column.startswith(TARGET) and bool(column.removeprefix(TARGET).strip()))


def _labels(rows: Sequence[_Row], column: str, class_names: Names) -> tuple[list[int] | list[list[int]], Names]:
    """Classes; or rows of 0 and 1, if the column is `labels` or a cell holds several."""
    several = column == "labels" or any(SEPARATOR in row.cells[column] for row in rows)
    parts = []
    for row in rows:
        text = row.cells[column] if column == "labels" else row.required(column)
        parts.append([part.strip() for part in text.split(SEPARATOR)] if text else [])
        if "" in parts[-1]:
            raise ProbeSetError(f"Expected {row.ref} to have labels on both sides of each '|', but got {text!r}.")
    flat = [(text, row.ref) for row, part in zip(rows, parts, strict=True) for text in part]
    if class_names is None:
        indexes, class_names = _numbered(flat, "label")
    else:
        indexes = [class_index(text, class_names, where) for text, where in flat]
    if not several:
        return indexes, class_names
    count = max(indexes, default=-1) + 1 if class_names is None else len(class_names)
    if not 0 < count <= _MOST_LABELS:
        raise ProbeSetError(
            f"Expected 1 to {_MOST_LABELS:,} labels, but {MANIFEST} tells {count:,}. Pass `class_names=`."
        )
    found = iter(indexes)
    present = [{next(found) for _ in part} for part in parts]
    return [[int(label in each) for label in range(count)] for each in present], class_names


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
    if not all(decimal):
        names = tuple(sorted({text for text, _ in cells}))
        return [names.index(text) for text, _ in cells], names
    for text, where in cells:
        if len(text) > _MOST_DIGITS:
            raise ProbeSetError(f"Expected the {what} of {where} to be an index, but got one of {len(text)} digits.")
    return [int(text) for text, _ in cells], None


def _number(row: _Row, column: str) -> float:
    text = row.required(column)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProbeSetError(f"Expected the {column} of {row.ref} to be a finite number, but got {text!r}.")
    return value
