"""The manifest `probes.csv` of a probe folder: files, labels, values, names and groups; faults name the row."""

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from xai_callbacks.errors import ProbeSetError

MANIFEST = "probes.csv"
COLUMNS = ("file", "label", "labels", "target", "name", "group")
TARGET = "target:"  # begins the column of one of several values; its name follows
SEPARATOR = "|"  # between the labels of one image
_MOST_LABELS = 10_000  # more without names are a mistake, and would take much memory

Names = tuple[str, ...] | None


class _Row(NamedTuple):
    line: str
    cells: dict[str, str]

    @property
    def ref(self) -> str:
        return f"{self.line} ({self.cells['file']!r})"

    def required(self, column: str) -> str:
        if not self.cells[column]:
            advice = " For images without any label, call the column 'labels'." if column == "label" else ""
            raise ProbeSetError(f"Expected {self.ref} to have a {column}, but the cell is empty.{advice}")
        return self.cells[column]


def read_manifest(root: Path, class_names: Names) -> tuple[list[str], dict[str, Any]]:
    """Read and check `probes.csv`: files relative to the folder, and what else `ProbeSet.from_tensors` is given."""
    columns, rows = _read_rows(root)
    files = [row.required("file") for row in rows]
    names = [row.cells.get("name") or default for row, default in zip(rows, default_names(files), strict=True)]
    given: dict[str, Any] = {"names": names, "class_names": class_names}
    values = [column for column in columns if _is_value(column)]
    if values:
        given["targets"] = [[_number(row, column) for column in values] for row in rows]
        if values != ["target"]:
            given["target_names"] = [column.removeprefix(TARGET).strip() for column in values]
    else:
        column = "label" if "label" in columns else "labels"
        given["labels"], given["class_names"] = _labels(rows, column, class_names)
    if "group" in columns:
        known = [(row.cells["group"], row.ref) for row in rows if row.cells["group"] not in ("", "-1")]
        numbers, given["group_names"] = _numbered(known, "group")
        found = iter(numbers)
        given["groups"] = [-1 if row.cells["group"] in ("", "-1") else next(found) for row in rows]
    return files, given


def file_inside(root: Path, file: str) -> Path:
    """Path of a file under `root`; refused if it lies elsewhere, also by a link, or is none: a pipe never ends."""
    path = root / file
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a zero byte
        within = False
    if not within:
        raise ProbeSetError(
            f"Expected {file[:200]!r} to stay inside the probe folder, but it reaches outside. "
            "Copy the file into the folder and give its path relative to it."
        )
    if not os.path.isfile(path):
        why = "it is a folder, a pipe or a device" if os.path.exists(path) else "there is no such file"
        raise ProbeSetError(f"Expected {file[:200]!r} to be a file in the probe folder, but {why}.")
    return path


def stem(file: str) -> str:
    """Path of a file without its suffix."""
    return os.path.splitext(PurePosixPath(file).as_posix())[0]


def default_names(files: list[str]) -> list[str]:
    """Name each probe by its path without suffix, or with it where two paths differ in nothing else."""
    shared = Counter(map(stem, files))
    return [file if shared[stem(file)] > 1 else stem(file) for file in files]


def class_index(text: str, class_names: tuple[str, ...], where: str) -> int:
    """Index of a class given by name or, failing that, by index."""
    if class_names.count(text) > 1:
        raise ProbeSetError(f"Expected the class of {where} to be one of a kind, but {text!r} is the name of several.")
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    raise ProbeSetError(f"Expected the class of {where} to be one of {', '.join(class_names[:8])}, but got {text!r}.")


def _read_rows(root: Path) -> tuple[list[str], list[_Row]]:
    """The columns, and the rows with cells stripped."""
    path = file_inside(root, MANIFEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            lines = [(f"{MANIFEST} line {reader.line_num}", cells) for cells in reader if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeSetError(f"Expected {MANIFEST!r} to be a CSV file in UTF-8, but got: {error}") from error
    answers = {TARGET if column.startswith(TARGET) else column for column in columns} - {"file", "name", "group"}
    known = all(column in COLUMNS or _is_value(column) for column in columns)
    if "file" not in columns or len(answers) != 1 or not known or len(set(columns)) < len(columns):
        raise ProbeSetError(
            f"Expected {MANIFEST!r} to have, once each, a column 'file', one of the columns 'label' (a class), 'labels'"
            f" (any number of labels) and 'target' (a value), or columns '{TARGET}<name>' (several values), and perhaps"
            f" 'name' and 'group', but got {list(columns)}."
        )
    for where, cells in lines:
        if len(cells) != len(columns):
            raise ProbeSetError(
                f"Expected {where} to have {len(columns)} cells, one a column, but got {len(cells)}: {cells}. "
                "Put cells that contain commas in double quotes."
            )
    if not lines:
        raise ProbeSetError(f"Expected {MANIFEST!r} to list at least one probe, but it has no rows.")
    return columns, [_Row(where, dict(zip(columns, map(str.strip, cells), strict=True))) for where, cells in lines]


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
            f"{cells[0][1]} has {cells[0][0]!r}. Use one kind, or for labels pass `class_names=`."
        )
    if all(decimal):
        return [int(text) for text, _ in cells], None
    names = tuple(sorted({text for text, _ in cells}))
    return [names.index(text) for text, _ in cells], names


def _number(row: _Row, column: str) -> float:
    text = row.required(column)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProbeSetError(f"Expected the {column} of {row.ref} to be a finite number, but got {text!r}.")
    return value
