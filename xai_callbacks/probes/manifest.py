"""Which images a probe folder holds and what is known of each, as `probes.csv` says."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes.cells import Row, read_groups, read_labels, read_targets, required
from xai_callbacks.probes.listing import MANIFEST, Listing, default_names
from xai_callbacks.probes.paths import inside, no_file

__all__ = ["read_manifest"]

COLUMNS = ("file", "label", "labels", "target", "name", "group")
TARGET = "target:"
"""What the column of one of several values begins with; its name follows."""


def read_manifest(root: Path, class_names: tuple[str, ...] | None) -> Listing:
    """Read `probes.csv`.

    Raises:
        ProbeSetError: A column is unknown or missing, or a row is malformed; the message names the row.
    """
    columns, rows = _read_rows(root)
    files = [_file(row) for row in rows]
    names = [row.cells.get("name") or default for row, default in zip(rows, default_names(files), strict=True)]
    _check_unique(names, rows)
    labels = targets = groups = target_names = group_names = None
    values = [column for column in columns if _is_value(column)]
    if values:
        targets = read_targets(rows, values)
        target_names = None if values == ["target"] else tuple(column.removeprefix(TARGET).strip() for column in values)
    else:
        labels, class_names = read_labels(rows, "label" if "label" in columns else "labels", class_names)
    if "group" in columns:
        groups, group_names = read_groups(rows)
    return Listing(files, names, labels, targets, groups, class_names, target_names, group_names)


def _read_rows(root: Path) -> tuple[list[str], list[Row]]:
    """Return the columns, and the rows with cells stripped."""
    path = inside(root, MANIFEST)
    why = no_file(path)
    if why is not None:
        raise ProbeSetError(f"Expected {MANIFEST!r} to be a CSV file, but {why}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            lines = [(f"{MANIFEST} line {reader.line_num}", cells) for cells in reader if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeSetError(f"Expected {MANIFEST!r} to be a CSV file in UTF-8, but got: {error}") from error
    _check_columns(columns)
    rows = []
    for where, cells in lines:
        if len(cells) != len(columns):
            raise ProbeSetError(
                f"Expected {where} to have {len(columns)} cells, one a column, but got {len(cells)}: {cells}. "
                "Put cells that contain commas in double quotes."
            )
        rows.append(Row(where, dict(zip(columns, map(str.strip, cells), strict=True))))
    if not rows:
        raise ProbeSetError(f"Expected {MANIFEST!r} to list at least one probe, but it has no rows.")
    return columns, rows


def _check_columns(columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS and not _is_value(column):
            near = difflib.get_close_matches(column.lower(), COLUMNS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ProbeSetError(
                f"Expected the columns of {MANIFEST!r} to be among {(*COLUMNS, TARGET + '<name>')}, but got "
                f"{column!r}.{hint}"
            )
        if columns.count(column) > 1:
            raise ProbeSetError(f"Expected each column of {MANIFEST!r} once, but got {column!r} twice.")
    if "file" not in columns:
        raise ProbeSetError(f"Expected {MANIFEST!r} to have a column 'file', but got {list(columns)}.")
    kinds = {"target:" if column.startswith(TARGET) else column for column in columns} - {"file", "name", "group"}
    if len(kinds) != 1:
        raise ProbeSetError(
            f"Expected {MANIFEST!r} to have one of the columns 'label' (a class), 'labels' (any number of labels) and "
            f"'target' (a value), or columns '{TARGET}<name>' (several values), but got {list(columns)}."
        )


def _is_value(column: str) -> bool:
    return column == "target" or (column.startswith(TARGET) and bool(column.removeprefix(TARGET).strip()))


def _file(row: Row) -> str:
    file = required(row, "file")
    if not PurePosixPath(file).name:
        raise ProbeSetError(f"Expected {row.where} to have the path of an image, but got {file!r}.")
    return file


def _check_unique(names: list[str], rows: list[Row]) -> None:
    first: dict[str, str] = {}
    for name, row in zip(names, rows, strict=True):
        if name in first:
            raise ProbeSetError(
                f"Expected names to be unique, but {first[name]} and {row.where} are both named {name!r}. "
                "Remove one, or tell them apart in the 'name' column."
            )
        first[name] = row.where
