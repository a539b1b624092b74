"""Which images a probe folder holds and what is known of each: `probes.csv`, or class subfolders."""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from xai_callbacks.errors import ProbeSetError

__all__ = ["EXTENSIONS", "MANIFEST", "MASKS", "Listing", "inside", "read_class_folders", "read_manifest"]

MANIFEST = "probes.csv"
MASKS = "masks"
COLUMNS = ("file", "label", "target", "name", "group")
# The extensions of torchvision's ImageFolder, so that both see the same images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Row = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Listing:
    """Parallel lists over the probes; paths are relative to the probe folder, with forward slashes."""

    files: list[str]
    names: list[str]
    labels: list[int] | None
    targets: list[float] | None
    groups: list[int] | None
    class_names: tuple[str, ...] | None
    group_names: tuple[str, ...] | None


def inside(root: Path, file: str) -> Path:
    """Return the path of `file` under `root`.

    Raises:
        ProbeSetError: The path is absolute, has `..`, or leads out of `root` by a symbolic link.
    """
    posix, windows = PurePosixPath(file), PureWindowsPath(file)
    # Windows rules split at both kinds of slash, so they see `..` however it is written.
    climbs = ".." in windows.parts
    if not climbs and not posix.is_absolute() and not windows.is_absolute() and not windows.drive and "\0" not in file:
        path = root / posix
        try:
            if path.resolve().is_relative_to(root.resolve()):
                return path
        except (OSError, RuntimeError):
            pass  # a loop of symbolic links leads nowhere inside
    raise ProbeSetError(
        f"Expected {file!r} to stay inside the probe folder, but it reaches outside. "
        "Copy the file into the folder and give its path relative to it."
    )


def read_class_folders(root: Path, class_names: tuple[str, ...] | None) -> Listing:
    """List the images of class subfolders, as torchvision's `ImageFolder` does; `masks` is no class.

    Raises:
        ProbeSetError: There are no images, or a folder is not among `class_names`.
    """
    folders = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and entry.name != MASKS and entry.name[0] != "."
    )
    classes = tuple(folders) if class_names is None else class_names
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        inside(root, folder)
        label = _class_index(folder, classes, f"folder {folder!r}")
        found = sorted(path for path in (root / folder).rglob("*") if path.suffix.lower() in EXTENSIONS)
        files += [path.relative_to(root).as_posix() for path in found]
        labels += [label] * len(found)
    if not files:
        raise ProbeSetError(
            f"Expected {str(root)!r} to hold {MANIFEST!r} or one subfolder of images a class, but found no image. "
            f"List loose images in {MANIFEST!r} with columns file,label."
        )
    return Listing(files, _default_names(files), labels, None, None, classes, None)


def read_manifest(root: Path, class_names: tuple[str, ...] | None) -> Listing:
    """Read `probes.csv`.

    Raises:
        ProbeSetError: A column is unknown or missing, or a row is malformed; the message names the row.
    """
    columns, rows = _read_rows(root)
    files = [_required(row, "file") for row in rows]
    defaults = _default_names(files)
    names = [cells.get("name") or default for (_, cells), default in zip(rows, defaults, strict=True)]
    _check_unique(names, rows)
    labels, targets = None, None
    if "label" in columns:
        labels, class_names = _labels(rows, class_names)
    else:
        targets = [_number(row) for row in rows]
    groups, group_names = _groups(rows) if "group" in columns else (None, None)
    return Listing(files, names, labels, targets, groups, class_names, group_names)


def _read_rows(root: Path) -> tuple[list[str], list[Row]]:
    """Return the columns, and for each row where it is and its cells, stripped."""
    try:
        with inside(root, MANIFEST).open(encoding="utf-8-sig", newline="") as file:
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
        rows.append((where, dict(zip(columns, map(str.strip, cells), strict=True))))
    if not rows:
        raise ProbeSetError(f"Expected {MANIFEST!r} to list at least one probe, but it has no rows.")
    return columns, rows


def _check_columns(columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column.lower(), COLUMNS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ProbeSetError(
                f"Expected the columns of {MANIFEST!r} to be among {COLUMNS}, but got {column!r}.{hint}"
            )
        if columns.count(column) > 1:
            raise ProbeSetError(f"Expected each column of {MANIFEST!r} once, but got {column!r} twice.")
    if "file" not in columns:
        raise ProbeSetError(f"Expected {MANIFEST!r} to have a column 'file', but got {list(columns)}.")
    if ("label" in columns) == ("target" in columns):
        raise ProbeSetError(
            f"Expected {MANIFEST!r} to have one of the columns 'label' (a class) and 'target' (a value), "
            f"but got {list(columns)}."
        )


def _required(row: Row, column: str) -> str:
    where, cells = row
    if not cells[column]:
        file = cells["file"]
        raise ProbeSetError(
            f"Expected {where}{f' ({file!r})' if file else ''} to have a {column}, but the cell is empty."
        )
    return cells[column]


def _check_unique(names: list[str], rows: list[Row]) -> None:
    first: dict[str, str] = {}
    for name, (where, _) in zip(names, rows, strict=True):
        if name in first:
            raise ProbeSetError(
                f"Expected names to be unique, but {first[name]} and {where} are both named {name!r}. "
                "Remove one, or tell them apart in the 'name' column."
            )
        first[name] = where


def _labels(rows: list[Row], class_names: tuple[str, ...] | None) -> tuple[list[int], tuple[str, ...] | None]:
    texts = [_required(row, "label") for row in rows]
    wheres = [f"{where} ({cells['file']!r})" for where, cells in rows]
    if class_names is not None:
        return [_class_index(text, class_names, where) for text, where in zip(texts, wheres, strict=True)], class_names
    return _numbered(texts, wheres, "label", lambda text: text.isdecimal())


def _groups(rows: list[Row]) -> tuple[list[int], tuple[str, ...] | None]:
    """Return group indexes; an empty cell is an unknown group."""
    texts = [cells["group"] or "-1" for _, cells in rows]
    wheres = [f"{where} ({cells['file']!r})" for where, cells in rows]
    groups, names = _numbered(
        [text for text in texts if text != "-1"],
        [where for text, where in zip(texts, wheres, strict=True) if text != "-1"],
        "group",
        lambda text: text.isdecimal(),
    )
    known = iter(groups)
    return [-1 if text == "-1" else next(known) for text in texts], names


def _numbered(
    texts: list[str], wheres: list[str], what: str, is_index: Callable[[str], bool]
) -> tuple[list[int], tuple[str, ...] | None]:
    """Read all texts as indexes, or number the sorted names; a mixture is a mistake."""
    indexes = [is_index(text) for text in texts]
    if all(indexes):
        return [int(text) for text in texts], None
    if any(indexes):
        odd = indexes.index(not indexes[0])
        raise ProbeSetError(
            f"Expected every {what} to be a name, or every one an index, but {wheres[odd]} has {texts[odd]!r} where "
            f"{wheres[0]} has {texts[0]!r}. Use one kind" + (", or pass `class_names=`." if what == "label" else ".")
        )
    names = tuple(sorted(set(texts)))
    return [names.index(text) for text in texts], names


def _class_index(text: str, class_names: tuple[str, ...], where: str) -> int:
    """Return the index of a class given by name or, failing that, by index."""
    if class_names.count(text) > 1:
        raise ProbeSetError(f"Expected the class of {where} to be one of a kind, but {text!r} is the name of several.")
    if text in class_names:
        return class_names.index(text)
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    near = difflib.get_close_matches(text, class_names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ProbeSetError(
        f"Expected the class of {where} to be among the {len(class_names)} class names, but got {text!r}.{hint}"
    )


def _number(row: Row) -> float:
    text = _required(row, "target")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        where, cells = row
        raise ProbeSetError(
            f"Expected the target of {where} ({cells['file']!r}) to be a finite number, but got {text!r}."
        )
    return value


def _default_names(files: list[str]) -> list[str]:
    """Name each probe by its path without suffix, or with it where two paths differ in nothing else."""
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    shared = Counter(stems)
    return [file if shared[stem] > 1 else stem for stem, file in zip(stems, files, strict=True)]
