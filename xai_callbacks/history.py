"""`History`: the records of a run, in memory or in a folder; the only memory there is."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, overload

import torch

from xai_callbacks.errors import AuditError, ConfigurationError, in_words, require_instance, require_integer
from xai_callbacks.record import AuditRecord, Estimate
from xai_callbacks.record.audit_record import from_text, to_text

__all__ = ["RECORD_FILE", "History", "evenly_spaced"]

RECORD_FILE = re.compile(r"audit_([0-9]{6,})\.safetensors")
_STATE = 1
_LATEST = 32  # audits that a state holds without gaps
_LARGEST = 2**28  # bytes of an unpacked state: what is damaged or hostile could unpack to any size


@dataclass(frozen=True, eq=False)
class _Entry:
    """A record, never changed but replaced by another, so that views stay as they are."""

    number: int  # place in the run, and in the name of the file
    record: AuditRecord  # without tensors where none are kept, or where they are on disk
    whole: bool  # whether tensors are kept, in memory or on disk
    maps: frozenset[str]  # explainers whose heatmaps are kept
    path: Path | None = None  # None while there is no file, or an outdated one: memory then holds all that is kept
    line: bytes = b""  # compact form for `state`; empty until it is asked for

    @classmethod
    def of(cls, number: int, record: AuditRecord, path: Path | None = None) -> _Entry:
        return cls(number, record, not record.thinned, frozenset(record.maps), path)

    def read(self) -> AuditRecord:
        """The record with all that is kept of it."""
        if not self.whole or not self.record.thinned or self.path is None:
            return self.record
        try:
            return AuditRecord.load(self.path)
        except AuditError:  # dropped since by the process that writes
            return self.record


class History(Sequence[AuditRecord]):
    """Records of one run, oldest first.

    Heatmaps and other tensors are kept of the first audit, the latest, evenly spaced ones between, and the latest that
    each explainer answered at; of the others metrics, findings and identity, some 20 kB each. In a folder each record
    is a file of its own, written atomically: other processes can read while training runs, and a process that is
    killed at any moment leaves a history that can be read. Memory then holds tensors of the latest record only.

    Slices and other parts are histories in memory, and stay as they are, but for tensors that have left the disk since.

    Args:
        folder: Where the records are, or will be; None for memory only. Records found there are part of the history.
        keep: Most evenly spaced audits whose tensors are kept, 2 or more.

    Attributes:
        unreadable: Sentences about files that are damaged or of a newer version, by number. They are left alone.

    Raises an `AuditError` if the folder cannot be listed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, keep: int = 16) -> None:
        require_integer("keep", keep, minimum=2)
        require_instance("folder", folder, (str, os.PathLike, NoneType), "the path of a folder, or None")
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and os.path.isfile(self.folder):
            raise ConfigurationError(f"Expected `folder` to be a folder, but got the file {str(self.folder)!r}.")
        self.keep = keep
        self._entries: list[_Entry] = []
        self.unreadable: dict[int, str] = {}
        try:
            paths = sorted(self.folder.iterdir()) if self.folder is not None and self.folder.is_dir() else []
        except OSError as error:
            raise AuditError(f"Expected a folder that can be listed, but got {in_words(error)}") from error
        files = {int(found[1]): path for path in paths if (found := RECORD_FILE.fullmatch(path.name))}
        for number, path in sorted(files.items()):
            try:
                entry = _Entry.of(number, AuditRecord.load(path), path)
                self._entries.append(entry if number == max(files) else replace(entry, record=entry.record.thin()))
            except AuditError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # else it was dropped at this moment
                    self.unreadable[number] = str(error)

    @property
    def last(self) -> AuditRecord | None:
        """The latest record; None if there is none."""
        return self[-1] if self._entries else None

    @property
    def latest_unreadable(self) -> str:
        """Why the newest file cannot be read; empty if it can."""
        newest = max(self.unreadable, default=-1)
        return self.unreadable[newest] if newest > max((each.number for each in self._entries), default=-1) else ""

    def append(self, record: AuditRecord) -> None:
        """Add the newest record; writes it, and mostly one earlier record whose tensors are dropped for it.

        An `AuditError` says that the folder cannot be written: the record is in memory, and written with the next.
        """
        self._entries.append(_Entry.of(self._next, record))
        self._settle()

    def replace_last(self, **changes: Any) -> None:
        """Change fields of the latest record, such as `checkpoint` once it is known; raises as `append` does."""
        self._entries[-1] = _Entry.of(self._entries[-1].number, replace(self[-1], **changes))
        self._settle()

    def truncate(self, step: int) -> None:
        """Drop records of later steps than `step`, as a run does that is resumed from an earlier checkpoint.

        An `AuditError` says that a file cannot be deleted; in memory all are dropped.
        """
        dropped = [self._path(each.number) for each in self._entries if each.record.step > step]
        self._entries = [each for each in self._entries if each.record.step <= step]
        if self.folder is None:
            return
        try:
            for path in [*reversed(dropped), *self.folder.glob(".audit_*.tmp")]:  # also what a killed process left
                path.unlink(missing_ok=True)
        except OSError as error:
            raise AuditError(f"Expected records that can be deleted, but got {in_words(error)}") from error

    def estimates(self, key: str) -> list[tuple[AuditRecord, Estimate]]:
        """Records that have a metric, and its estimate in each; records may be thinned."""
        return [(each, each.metrics[key]) for each in self.without_tensors() if key in each.metrics]

    def without_tensors(self) -> list[AuditRecord]:
        """The records as they are in memory, oldest first: nothing is read from disk, so that most are thinned."""
        return [each.record for each in self._entries]

    def comparable(self, record: AuditRecord) -> History:
        """The records of the same probes."""
        return self._view(each for each in self._entries if each.record.fingerprint == record.fingerprint)

    def latest_with(self, explainer: str) -> AuditRecord | None:
        """The latest record that has heatmaps of an explainer; None if there is none."""
        return next((each.read() for each in reversed(self._entries) if explainer in each.maps), None)

    def with_record(self, record: AuditRecord) -> History:
        """These records and a newer one, in memory: a view for conclusions before `append`."""
        return self._view([*self._entries, _Entry.of(self._next, record)])

    def kept(self) -> History:
        """The records whose tensors are kept, evenly spaced over the run."""
        whole = [each for each in self._entries if each.whole]
        return self._view(whole[place] for place in evenly_spaced([each.number for each in whole], self.keep))

    def state(self, limit_bytes: int = 1_500_000) -> dict[str, Any]:
        """The history in plain values and one tensor of bytes, for checkpoints: all but tensors, packed.

        A record takes some 3,000 bytes. Where they are more than `limit_bytes`, earlier ones are dropped evenly.
        """
        for place, entry in enumerate(self._entries):
            if not entry.line:
                line = to_text(entry.record.thin(), {}).encode() + b"\n"
                self._entries[place] = replace(entry, line=gzip.compress(line, mtime=0))
        lines = [each.line for each in self._entries]
        while len(lines) > 2 and sum(map(len, lines)) > limit_bytes:
            del lines[1 : max(2, len(lines) - _LATEST) : 2]
        packed = b"".join(lines) if sum(map(len, lines)) <= limit_bytes else b""
        last = self._entries[-1].record if self._entries else AuditRecord()
        return {
            "version": _STATE,
            "run": last.run,
            "step": last.step,
            "folder": None if self.folder is None else str(self.folder.absolute()),
            "records": torch.frombuffer(bytearray(packed or gzip.compress(b"")), dtype=torch.uint8),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """Read what `state` gave: records without tensors, in memory; an `AuditError` if damaged, or too new."""
        try:
            if state["version"] != _STATE:
                raise ValueError(f"version {state['version']!r}, not {_STATE}")
            with gzip.open(io.BytesIO(state["records"].cpu().numpy().tobytes())) as file:
                records = [from_text(line, {}) for line in file.read(_LARGEST).splitlines()]
        except Exception as error:  # damage may raise anything
            raise AuditError(f"Expected a state as `History.state` gives it, but got {in_words(error)}") from error
        history = cls()
        history._entries = [_Entry.of(number, record) for number, record in enumerate(records)]
        return history

    @classmethod
    def resumed(cls, state: Mapping[str, Any], folder: str | os.PathLike[str] | None, step: int) -> tuple[History, str]:
        """Continue the history of a checkpoint, whose `state` was saved at `step`, in a folder, or in memory if None.

        Where the audits of the run are still in their folder, that is continued if it is the folder of the run that
        goes on; else they are copied there. Where they are gone, those in the state go on, without tensors. Audits of
        later steps are dropped. Never raises: what goes wrong costs audits, and is said. Returns the history, and
        sentences about what was lost; empty if nothing was.
        """
        found, note = cls._found(state, folder)
        places = {place if place is None else os.path.realpath(place) for place in (folder, found.folder)}
        history = found if len(places) == 1 else found[:]
        try:
            history.truncate(step)
            if history is not found:
                copy = cls(folder)
                if copy or copy.unreadable:
                    raise AuditError(f"Expected a folder without audits, but got {str(folder)!r}. Choose another one.")
                copy._entries = [_Entry.of(each.number, each.read()) for each in history._entries]
                copy._settle()
                return copy, note
        except Exception as error:
            return history[:], f"{note} Audits are kept in memory only. {in_words(error)}".lstrip()
        return history, note

    @classmethod
    def _found(cls, state: Mapping[str, Any], folder: Any) -> tuple[History, str]:
        """Audits of a run: in the folder where they were, or in the one where it goes on; else those in its state."""
        for place in (state.get("folder"), folder):
            with suppress(Exception):  # whatever is wrong there, there are other places
                history = cls(place)
                runs = {each.run for each in history.without_tensors()}
                if runs and (state["run"] in runs or (not state["run"] and place == state["folder"])):
                    return history, " ".join(history.unreadable.values())
        try:
            history = cls.from_state(state)
        except AuditError as error:
            return cls(), f"Earlier audits are lost. {error}"
        lost = f"Heatmaps of {len(history)} earlier audits are gone with {state['folder'] or 'memory'!r}."
        return history, lost if history else ""

    @overload
    def __getitem__(self, index: int) -> AuditRecord: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> AuditRecord | History:
        """A record, with all that is kept of it; or a part of the history, in memory."""
        return self._view(self._entries[index]) if isinstance(index, slice) else self._entries[index].read()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AuditRecord]:
        return (each.read() for each in list(self._entries))

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {str(self.folder)!r}"
        return f"History({len(self)} audits, {where})"

    @property
    def _next(self) -> int:
        return 1 + max([*(each.number for each in self._entries[-1:]), *self.unreadable], default=-1)

    def _view(self, entries: Iterable[_Entry]) -> History:
        view = History(keep=self.keep)
        view._entries = list(entries)
        return view

    def _settle(self) -> None:
        """Drop the tensors that are kept no longer, and bring the folder up to date, the newest record first."""
        latest = {name: each.number for each in self._entries for name in each.maps}
        wanted = {each.number for each in self.kept()._entries} | set(latest.values())
        for place, entry in enumerate(self._entries):
            if entry.whole and entry.number not in wanted:
                self._entries[place] = replace(_Entry.of(entry.number, entry.record.thin()), line=entry.line)
        for place in reversed(range(len(self._entries))) if self.folder is not None else ():
            entry, path = self._entries[place], self._path(self._entries[place].number)
            if entry.path != path:
                entry.read().save(path)
            record = entry.record if place == len(self) - 1 else entry.record.thin()
            self._entries[place] = replace(entry, record=record, path=path)

    def _path(self, number: int) -> Path:
        return Path(self.folder or "") / f"audit_{number:06d}.safetensors"


def evenly_spaced(positions: Sequence[int], limit: int) -> list[int]:
    """Choose `limit` places, 2 or more, of increasing positions, which stay as audits are thinned and more come in.

    The one whose neighbours are closest to each other goes first, of equals the earliest; the first and the last stay.
    Called after each audit with what was left, no gap is ever more than twice as wide as even ones.
    """
    kept = list(range(len(positions)))
    while len(kept) > limit:
        gaps = [positions[after] - positions[before] for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return kept
