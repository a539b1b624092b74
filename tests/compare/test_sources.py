from pathlib import Path

import pytest
import torch

from tests.record.samples import small
from xai_callbacks.compare import find_probes, read_models
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.history import History


def run(folder: Path, audits=2) -> Path:
    history = History(folder / "audit" / "history")
    for step in range(audits):
        history.append(small(step))
    (folder / "audit" / "probes.safetensors").write_bytes(b"probes")
    return folder


def test_a_run_is_found_by_any_folder_above_it(tmp_path):
    folder = run(tmp_path / "logs" / "version_0")
    for place in (tmp_path, folder, folder / "audit", folder / "audit" / "history"):
        (history,) = read_models([place]).values()
        assert len(history) == 2
        assert find_probes([place]) == folder / "audit" / "probes.safetensors"
    assert list(read_models([folder])) == ["logs"]  # the version alone says nothing


def test_models_are_named_by_what_differs_in_their_paths(tmp_path):
    weak, strong = (run(tmp_path / f"strength-{share}" / "version_0") for share in (0.1, 0.95))
    assert list(read_models([weak, strong])) == ["strength-0.1", "strength-0.95"]
    again = run(tmp_path / "strength-0.1" / "version_1")
    assert list(read_models([weak, again])) == ["version_0", "version_1"]
    assert list(read_models([again, strong])) == ["strength-0.1/version_1", "strength-0.95/version_0"]
    assert list(read_models([tmp_path])) == [
        "strength-0.1/version_0", "strength-0.1/version_1", "strength-0.95/version_0",
    ]  # fmt: skip


def test_names_where_one_path_is_the_beginning_of_another(tmp_path):
    assert list(read_models([run(tmp_path / "a"), run(tmp_path / "a" / "b")])) == ["a", "a/b"]
    History(tmp_path / "c").append(small(0))
    History(tmp_path / "c" / "c").append(small(0))
    names = list(read_models([tmp_path / "c"]))
    assert len(set(names)) == 2
    assert all(names)


def test_audited_checkpoints_share_their_probes(tmp_path):
    for name in ("first", "second"):
        History(tmp_path / name / "history").append(small(0))
    (tmp_path / "probes.safetensors").write_bytes(b"probes")
    assert list(read_models([tmp_path])) == ["first", "second"]
    assert find_probes([tmp_path / "first"]) == tmp_path / "probes.safetensors"


def test_checkpoints_may_be_called_as_folders_of_runs_are(tmp_path):
    (tmp_path / "probes.safetensors").write_bytes(b"probes")
    for name in ("audit", "b", "history"):
        History(tmp_path / name / "history").append(small(0))
        assert list(read_models([tmp_path / name])) == [name]
    assert list(read_models([tmp_path])) == ["audit", "b", "history"]
    assert list(read_models([run(tmp_path / "c" / "audit"), run(tmp_path / "c" / "history")])) == ["audit", "history"]


def test_one_record_is_a_model(tmp_path):
    folder = run(tmp_path / "version_0")
    file = folder / "audit" / "history" / "audit_000000.safetensors"
    (history,) = read_models([file]).values()
    assert [record.step for record in history] == [0]
    assert find_probes([file]) == folder / "audit" / "probes.safetensors"
    both = read_models([file, file.with_name("audit_000001.safetensors")])
    assert list(both) == ["audit_000000", "audit_000001"]


def test_a_path_twice_is_one_model(tmp_path, monkeypatch):
    folder = run(tmp_path / "version_0")
    monkeypatch.chdir(tmp_path)
    assert len(read_models([folder, folder, "version_0", tmp_path / "version_0" / "audit"])) == 1


def test_dots_in_names_of_folders_tell_models_apart(tmp_path):
    for name in ("run-0.1", "run-0.2", "other"):
        History(tmp_path / name).append(small(0))
    assert list(read_models([tmp_path / name for name in ("other", "run-0.2", "run-0.1")])) == [
        "other", "run-0.2", "run-0.1",
    ]  # fmt: skip


def test_no_model_takes_the_place_of_another(tmp_path):
    History(tmp_path / "a").append(small(0))
    History(tmp_path / "a" / "history").append(small(0))
    assert len(read_models([tmp_path])) == 2


def test_what_leads_to_no_audit_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="`paths` to lead to audits, but there are none in"):
        read_models([tmp_path])
    with pytest.raises(ConfigurationError, match="there are none in"):
        find_probes([tmp_path / "missing"])
    (tmp_path / "notes.txt").write_text("no record")
    with pytest.raises(AuditError, match=r"Expected a file of `AuditRecord\.save`"):
        read_models([tmp_path / "notes.txt"])
    (tmp_path / "audit_000000.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match=r"none can be read. Expected a file of `AuditRecord.save`"):
        read_models([tmp_path])


def test_a_record_with_other_names_than_answers_is_told_as_damaged(tmp_path):
    for place, changes in enumerate(({"names": ("a",)}, {"outputs": torch.zeros(3, 3)}, {"titles": (("Why?",),)})):
        History(tmp_path / str(place)).append(small(0, **changes))
        told = (
            rf"but '.*{place}/audit_000000.safetensors' is damaged: it has names of . probes, but not as many answers"
        )
        with pytest.raises(AuditError, match=told):
            read_models([tmp_path / str(place)])


def test_a_record_of_a_newer_version_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("xai_callbacks.record.audit_record.SCHEMA", 99)
    History(tmp_path).append(small(0))
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=r"none can be read.*version 99, newer than 1. Update xai_callbacks"):
        read_models([tmp_path])


def test_without_probes_there_are_none(tmp_path):
    History(tmp_path / "deep" / "run" / "history").append(small(0))
    assert find_probes([tmp_path]) is None
