"""What checkpoints hold of a history, and how a run goes on from one."""

from __future__ import annotations

import gzip
import io
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.record.samples import same, small, usual
from xai_callbacks.errors import AuditError
from xai_callbacks.history import History


def steps(history) -> list[int]:
    return [record.step for record in history]


def through_a_checkpoint(state):
    """As torch saves and loads it without pickle."""
    file = io.BytesIO()
    torch.save({"callbacks": {"audit": state}}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["callbacks"]["audit"], len(file.getvalue())


def filled(folder: Path | None, audits: int, start: int = 0, keep: int = 16, **given) -> History:
    history = History(folder, keep=keep)
    for step in range(start, audits):
        history.append(small(step, **given))
    return history


def test_a_state_holds_all_but_tensors(tmp_path):
    history = History(tmp_path)
    for step in range(3):
        history.append(usual(step, probes=4))
    state, _ = through_a_checkpoint(history.state())

    assert (state["run"], state["step"], state["folder"]) == (usual(0).run, 2, str(tmp_path))
    found = History.from_state(state)
    assert found.folder is None
    assert all(same(record, usual(step, probes=4).thin()) for step, record in enumerate(found))


def test_a_state_follows_what_is_appended_changed_and_dropped():
    history = filled(None, 5)
    history.state()
    history.replace_last(checkpoint="a.ckpt")
    history.append(small(5))
    assert [each.checkpoint for each in History.from_state(history.state())] == [None] * 4 + ["a.ckpt", None]
    history.truncate(1)
    history.state()
    history.append(small(7, settings={"tensor": torch.ones(2)}))
    found = History.from_state(history.state())
    assert steps(found) == [0, 1, 7]
    assert found.last.settings == {"tensor": None}


def test_a_state_of_many_audits_stays_below_two_megabytes_and_drops_earlier_ones_evenly():
    history = History(keep=2)
    for step in range(700):
        history.append(usual(step))
    state, size = through_a_checkpoint(history.state())

    assert state["records"].numel() <= 1_500_000
    assert size < 2_000_000
    found = steps(History.from_state(state))
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert (found[0], found[-32:]) == (0, list(range(668, 700)))
    assert set(gaps[:-31]) <= {1, 2}
    assert len(found) > 300


@pytest.mark.parametrize(("limit", "expected"), [(10**6, 100), (12_000, None), (2_000, 2), (10, 0)])
def test_a_state_is_as_small_as_asked(limit, expected):
    history = filled(None, 100)
    found = History.from_state(history.state(limit))
    assert history.state(limit)["records"].numel() <= max(limit, 20)
    if expected is None:
        assert 2 < len(found) < 100
    else:
        assert len(found) == pytest.approx(expected, abs=2 if expected == 2 else 0)
    if found:
        assert found[0].step == 0
    assert len(history) == 100


def test_an_empty_history_has_a_state():
    state, _ = through_a_checkpoint(History().state())
    assert len(History.from_state(state)) == 0
    assert History.resumed(state, None, 10) is not None


def bad_states():
    good = filled(None, 2).state()
    records = good["records"]
    yield "nothing", {}
    yield "version", good | {"version": 2}
    yield "records", good | {"records": "text"}
    yield "short", good | {"records": records[:-30]}
    yield "bytes", good | {"records": torch.arange(50, dtype=torch.uint8)}
    yield "text", good | {"records": torch.frombuffer(bytearray(gzip.compress(b"no json")), dtype=torch.uint8)}
    yield "list", good | {"records": torch.frombuffer(bytearray(gzip.compress(b"[]")), dtype=torch.uint8)}


@pytest.mark.parametrize(("name", "state"), list(bad_states()), ids=[name for name, _ in bad_states()])
def test_damaged_states_are_refused_and_never_stop_a_run(name, state, tmp_path):
    with pytest.raises(AuditError, match="Expected a state as `History"):
        History.from_state(state)
    history, note = History.resumed(state, tmp_path / "audits", 5)
    assert len(history) == 0
    assert note.startswith("Earlier audits are lost. Expected a state")
    history.append(small(6))
    assert steps(History(tmp_path / "audits")) == [6]


def test_a_run_goes_on_in_its_folder_without_doubles(tmp_path):
    before = filled(tmp_path, 4)
    state, _ = through_a_checkpoint(before.state())
    for step in range(4, 7):
        before.append(small(step))
    history, note = History.resumed(state, tmp_path, 3)

    assert (note, history.folder) == ("", tmp_path)
    assert steps(history) == steps(History(tmp_path)) == [0, 1, 2, 3]
    assert same(history.last, small(3))
    history.append(small(4, epoch=9))
    assert [record.epoch for record in History(tmp_path)] == [0, 1, 2, 3, 9]


def test_a_folder_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    state = filled(tmp_path / "a", 3).state()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "./b/../a", tmp_path / "link"):
        history, note = History.resumed(state, folder, 1)
        assert (steps(history), note) == ([0, 1], "")


def test_a_run_goes_on_in_another_folder_and_leaves_the_old_one_as_it_is(tmp_path):
    before = filled(tmp_path / "old", 6)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    history, note = History.resumed(before.state(), tmp_path / "new", 3)
    history.append(small(4, run="run-2"))

    assert (note, history.folder) == ("", tmp_path / "new")
    assert all(same(record, small(step)) for step, record in enumerate(History(tmp_path / "new")[:4]))
    assert steps(History(tmp_path / "new")) == [0, 1, 2, 3, 4]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == contents
    again, note = History.resumed(history.state(), tmp_path / "newer", 4)
    assert (steps(again), note) == ([0, 1, 2, 3, 4], "")


def test_a_copy_never_reaches_back_into_the_old_folder(tmp_path):
    before = filled(tmp_path / "old", 9, keep=4)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    history, note = History.resumed(before.state(), tmp_path / "new", 8)
    history.replace_last(checkpoint="a.ckpt")
    for step in range(9, 30):
        history.append(small(step))
    assert note == ""
    whole = [record.step for record in History(tmp_path / "new") if not record.thinned]
    assert (whole[0], whole[-1], len(whole)) == (0, 29, 16)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == contents


def test_a_run_without_folder_before_goes_on_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history, note = History.resumed(filled(None, 3).state(), ".", 1)
    assert (steps(history), steps(History(tmp_path))) == ([0, 1], [0, 1])
    assert note.startswith("Heatmaps of")


def test_a_checkpoint_from_before_the_first_audit_begins_anew(tmp_path):
    state = History(tmp_path / "a").state()
    filled(tmp_path / "a", 5, start=3)
    history, note = History.resumed(state, tmp_path / "a", 3)
    assert (steps(history), note) == ([3], "")

    filled(tmp_path / "b", 5, run="another")
    history, note = History.resumed(state | {"folder": str(tmp_path / "gone")}, tmp_path / "b", 3)
    assert (steps(history), history.folder) == ([], None)
    assert "memory only" in note
    assert len(History(tmp_path / "b")) == 5


def test_a_run_in_memory_goes_on_from_its_folder_or_its_state(tmp_path):
    history, note = History.resumed(filled(tmp_path, 3).state(), None, 1)
    assert (steps(history), note, history.folder) == ([0, 1], "", None)
    assert not history.last.thinned
    history.append(small(2))
    assert len(list(tmp_path.iterdir())) == 3

    history, note = History.resumed(filled(None, 3).state(), None, 1)
    assert steps(history) == [0, 1]
    assert note == "Heatmaps of 3 earlier audits are gone with 'memory'."


def test_a_folder_that_is_gone_leaves_what_the_checkpoint_holds(tmp_path):
    state = filled(tmp_path / "old", 5).state()
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    history, note = History.resumed(state, tmp_path / "new", 3)

    assert note == f"Heatmaps of 5 earlier audits are gone with '{tmp_path / 'old'}'."
    assert all(same(record, small(step).thin()) for step, record in enumerate(history))
    history.append(small(4))
    opened = History(tmp_path / "new")
    assert steps(opened) == [0, 1, 2, 3, 4]
    assert [record.thinned for record in opened] == [True] * 4 + [False]


def test_a_folder_that_was_moved_is_found_where_the_run_goes_on(tmp_path):
    state = filled(tmp_path / "old", 5).state()
    (tmp_path / "old").rename(tmp_path / "moved")
    history, note = History.resumed(state, tmp_path / "moved", 3)
    assert (steps(history), note) == ([0, 1, 2, 3], "")
    assert not history[0].thinned


def test_audits_of_another_run_are_left_alone(tmp_path):
    state = filled(tmp_path, 3).state()
    for path in tmp_path.iterdir():
        path.unlink()
    filled(tmp_path, 9, run="another")
    history, note = History.resumed(state, tmp_path, 2)

    assert steps(history) == [0, 1, 2]
    assert history.folder is None
    assert note.endswith("Audits are kept in memory only. Expected a folder without audits, but got "
                         f"'{tmp_path}'. Choose another one.")  # fmt: skip
    assert len(History(tmp_path)) == 9


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch):
    state = filled(tmp_path / "old", 3).state()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "audits"):
        history, note = History.resumed(state, folder, 1)
        assert steps(history) == [0, 1]
        assert note.startswith("Audits are kept in memory only. Expected ")
        history.append(small(2))

    def denied(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    history, note = History.resumed(state, tmp_path / "old", 1)
    assert (steps(history), history.folder) == ([0, 1], None)
    assert "PermissionError" in note


def test_damaged_records_of_the_old_folder_are_named(tmp_path):
    state = filled(tmp_path, 4).state()
    (tmp_path / "audit_000001.safetensors").write_bytes(b"damaged")
    history, note = History.resumed(state, tmp_path, 3)
    assert steps(history) == [0, 2, 3]
    assert "audit_000001.safetensors' is none." in note
