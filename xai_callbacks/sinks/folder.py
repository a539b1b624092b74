"""Pictures as files, for loggers that take none and trainers without a logger."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from xai_callbacks.errors import ConfigurationError, require_instance, require_integer
from xai_callbacks.gallery import Picture
from xai_callbacks.history import evenly_spaced
from xai_callbacks.record import AuditRecord
from xai_callbacks.sinks.base import Sink, findings_text, tag_path

__all__ = ["FolderSink"]

_FILE = re.compile(r"step_(\d+)\.(?:jpg|png)")


class FolderSink(Sink):
    """Writes pictures to files `<folder>/<tag>/step_<step>.jpg`, and the latest findings to `<folder>/findings.md`.

    Files of one tag sort by step. Of each tag the first, the latest and evenly spaced ones between stay; files of
    earlier runs in the same folder count as earlier steps.

    Args:
        folder: The folder; made when the first audit is written.
        keep: Most pictures of a tag, 2 or more.

    Raises a `ConfigurationError` if `keep` is out of range, or `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 10) -> None:
        require_integer("keep", keep, minimum=2)
        require_instance("folder", folder, (str, os.PathLike), "the path of a folder")
        if Path(folder).is_file():
            raise ConfigurationError(f"Expected `folder` to be a folder, but got the file {str(folder)!r}.")
        self.folder, self.keep = Path(folder), keep

    def write(self, record: AuditRecord, pictures: Iterable[Picture]) -> None:
        """Write one audit; no reader ever sees half a file."""
        if text := findings_text(record):
            _write(self.folder / "findings.md", f"# Step {record.step}\n\n{text}\n".encode())
        for picture in pictures:
            place = self.folder / tag_path(picture.tag)
            name = f"step_{picture.step:08d}{picture.suffix}"
            _write(place / name, picture.encoded())
            self._thin(place, name)

    def _thin(self, place: Path, newest: str) -> None:
        """Delete what is one too many, and the same step in another format."""
        files = {path: int(found[1]) for path in place.iterdir() if (found := _FILE.fullmatch(path.name))}
        steps = sorted(set(files.values()))
        kept = {steps[index] for index in evenly_spaced(steps, self.keep)}
        for path, step in files.items():
            if path.name != newest and (step not in kept or path.stem == Path(newest).stem):
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
