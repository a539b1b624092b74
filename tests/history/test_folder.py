"""A history in a folder: opened again, read by others, damaged, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save

from tests.record.samples import same, small, usual
from xai_callbacks.errors import AuditError
from xai_callbacks.history import History
from xai_callbacks.record import SCHEMA


def steps(history) -> list[int]:
    return [record.step for record in history]


def filled(folder: Path, audits: int, **given) -> History:
    history = History(folder, **given)
    for step in range(audits):
        history.append(small(step))
    return history


def test_a_folder_is_made_with_the_first_record(tmp_path):
    history = History(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    history.append(small(0))
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["audit_000000.safetensors"]


def test_what_was_written_is_there_when_the_folder_is_opened_again(tmp_path):
    filled(tmp_path, 3)
    opened = History(str(tmp_path))
    assert all(same(record, small(step)) for step, record in enumerate(opened))
    opened.append(small(3))
    assert steps(History(tmp_path)) == [0, 1, 2, 3]


def test_a_reader_sees_what_the_writer_added_changed_thinned_and_dropped(tmp_path):
    writer, reader = filled(tmp_path, 3, keep=2), History(tmp_path, keep=2)
    assert [record.thinned for record in reader] == [False, True, False]
    writer.replace_last(checkpoint="a.ckpt")
    assert reader.last.checkpoint is None
    reader = History(tmp_path, keep=2)
    assert reader.last.checkpoint == "a.ckpt"

    part = reader[:]
    for step in range(3, 6):
        writer.append(small(step))
    assert part[2].step == 2
    assert not part[2].thinned  # the latest is held in memory
    reader = History(tmp_path, keep=2)
    assert steps(reader) == [0, 1, 2, 3, 4, 5]
    assert reader[2].thinned

    writer.truncate(1)
    writer.append(small(2, epoch=99))
    assert steps(reader[4:5]) == [4]  # dropped, but its numbers are in memory
    assert [(record.step, record.epoch) for record in History(tmp_path)] == [(0, 0), (1, 1), (2, 99)]


def test_foreign_files_are_no_audits(tmp_path):
    filled(tmp_path, 2)
    for name in ("audit_1.safetensors", "audit_000007.json", ".audit_000003.safetensors.ab.tmp", "x_audit_000009"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    history = History(tmp_path)
    assert (steps(history), history.unreadable) == ([0, 1], {})


def test_damaged_and_newer_files_are_named_left_out_and_left_alone(tmp_path):
    filled(tmp_path, 5)
    files = sorted(tmp_path.iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-9])
    newer = save({}, {"xai_callbacks.record": json.dumps({"schema": SCHEMA + 1, "record": {}})})
    files[4].write_bytes(newer)

    history = History(tmp_path)
    assert steps(history) == [0, 2, 3]
    assert list(history.unreadable) == [1, 4]
    assert "audit_000001.safetensors' is none. SafetensorError" in history.unreadable[1]
    assert "Update xai_callbacks" in history.unreadable[4]
    history.append(small(9))
    assert files[4].read_bytes() == newer
    assert steps(History(tmp_path)) == [0, 2, 3, 9]


def test_a_folder_that_cannot_be_written_keeps_the_record_in_memory(tmp_path):
    (tmp_path / "file").touch()
    history = History(tmp_path / "file" / "audits")
    for step in range(2):
        with pytest.raises(AuditError, match="Expected to write a record to"):
            history.append(small(step))
    with pytest.raises(AuditError, match="Expected to write a record to"):
        history.replace_last(checkpoint="a.ckpt")
    assert steps(history) == [0, 1]
    assert history.last.checkpoint == "a.ckpt"


def test_files_that_cannot_be_deleted_are_said_and_dropped_in_memory(tmp_path, monkeypatch):
    history = filled(tmp_path, 4)

    def denied(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(AuditError, match="Expected records that can be deleted, but got PermissionError"):
        history.truncate(1)
    assert steps(history) == [0, 1]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(AuditError, match="Expected a folder that can be listed, but got PermissionError"):
        History(tmp_path)


def test_records_that_are_written_late_are_there(tmp_path):
    """A record that could not be written is written with the next."""
    folder = tmp_path / "audits"
    folder.write_bytes(b"")
    history = History()
    history.folder = folder
    with pytest.raises(AuditError):
        history.append(usual(0, probes=2))
    folder.unlink()
    assert steps(history) == [0]
    history.append(small(1))
    assert steps(History(folder)) == [0, 1]
    assert same(History(folder)[0], usual(0, probes=2))
