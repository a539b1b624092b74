"""Paths that users and manifests give: of the right type, and within their folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from xai_callbacks.errors import ProbeSetError

__all__ = ["entries", "inside", "no_file", "to_path"]

# Longer ones no system takes.
_LONGEST = 4096


def to_path(path: object, argument: str) -> Path:
    """Check a path that is an argument.

    Raises:
        ProbeSetError: It is no path.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise ProbeSetError(f"Expected `{argument}` to be a path, but got {path!r}. Pass a text or a pathlib.Path.")
    return Path(text)


def inside(root: Path, file: str) -> Path:
    """Return the path of `file` under `root`.

    Raises:
        ProbeSetError: The path is absolute, has `..`, or leads out of `root` by a symbolic link.
    """
    if len(file) > _LONGEST:
        raise ProbeSetError(
            f"Expected paths of at most {_LONGEST:,} characters, but got one of {len(file):,}, which begins with "
            f"{file[:40]!r}."
        )
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


def no_file(path: Path) -> str | None:
    """Say why a path cannot be read as a file; None if it can: reading a pipe would wait without end."""
    if os.path.isfile(path):
        return None
    return "it is a folder, a pipe or a device" if os.path.exists(path) else "there is no such file"


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; names that begin with a dot are left out.

    Raises:
        ProbeSetError: The folder cannot be read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ProbeSetError(f"Expected {str(folder)!r} to be a folder that can be read, but got: {error}.") from error
