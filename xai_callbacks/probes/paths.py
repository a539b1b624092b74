"""Paths that users and manifests give: of the right type, and within their folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from xai_callbacks.errors import ProbeSetError

__all__ = ["inside", "no_file", "to_path"]

# Longer ones no system takes.
_LONGEST = 4096


def to_path(path: object, argument: str) -> Path:
    """Check a path that is an argument."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text:
        raise ProbeSetError(f"Expected `{argument}` to be a path, but got {path!r}. Pass a text or a pathlib.Path.")
    return Path(text)


def inside(root: Path, file: str) -> Path:
    """Path of `file` under `root`; refused if absolute, with `..`, or out of `root` by a symbolic link."""
    if len(file) > _LONGEST:
        raise ProbeSetError(
            f"Expected a path of up to {_LONGEST:,} characters, but got {len(file):,}, which begins with {file[:40]!r}."
        )
    # Windows rules split at both kinds of slash, so they see `..` however it is written.
    windows = PureWindowsPath(file)
    rooted = PurePosixPath(file).is_absolute() or windows.is_absolute() or bool(windows.drive)
    if ".." not in windows.parts and not rooted and "\0" not in file:
        path = root / PurePosixPath(file)
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
