"""Whose tensors are kept, and what that costs."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from tests.record.samples import same, small, usual
from xai_callbacks.errors import AuditError
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord


def whole(history: History) -> list[int]:
    return [record.step for record in history if not record.thinned]


def explainers(step: int, every: dict[str, int]) -> tuple[str, ...]:
    return tuple(name for name, number in every.items() if step % number == 0)


@pytest.mark.parametrize(
    "every", [{"gradcam": 1}, {"gradcam": 1, "slow": 5}, {"a": 2, "b": 5, "c": 7, "d": 50}, {"late": 500}, {}]
)
@pytest.mark.parametrize("keep", [2, 8, 16])
def test_tensors_are_kept_of_the_first_the_latest_even_ones_and_the_latest_of_each_explainer(every, keep):
    history = History(keep=keep)
    for step in range(700):
        history.append(small(step, explainers(step, every)))
        if step % 23 and step < 699:
            continue
        kept = [record.step for record in history.kept()]
        gaps = [later - earlier for earlier, later in pairwise(kept)]
        latest = {step - step % number for number in every.values()}
        assert (kept[0], kept[-1], len(kept)) == (0, step, min(keep, step + 1))
        assert max(gaps, default=1) <= 2 * max(1, step / (keep - 1))
        assert set(whole(history)) == {*kept, *latest}
        for name, number in every.items():
            assert history.latest_with(name).step == step - step % number


def test_thousands_of_audits_stay_few_tensors_evenly():
    history = History(keep=16)
    for step in range(2000):
        history.append(small(step, explainers(step, {"gradcam": 1, "slow": 5})))
    gaps = [later - earlier for earlier, later in pairwise(record.step for record in history.kept())]
    assert len(history) == 2000
    assert len(whole(history)) <= 17
    assert max(gaps) < 2 * 1999 / 15


def test_thinned_records_keep_all_but_tensors_in_memory_and_on_disk(tmp_path):
    for folder in (None, tmp_path):
        history = History(folder, keep=2)
        for step in range(4):
            history.append(usual(step, probes=3))
        assert [record.thinned for record in history] == [False, True, True, False]
        for opened in (history, *([History(folder)] if folder else ())):
            assert all(same(opened[step], usual(step, probes=3).thin()) for step in (1, 2))
            assert all(same(opened[step], usual(step, probes=3)) for step in (0, 3))


def test_memory_of_a_folder_holds_tensors_of_the_latest_record_only(tmp_path):
    history = History(tmp_path)
    for step in range(6):
        history.append(small(step))
    history.truncate(4)
    history.append(small(5))
    opened = History(tmp_path)
    another, _ = History.resumed(opened.state(), tmp_path / "copy", 5)

    for each in (history, opened, another):
        assert [record.thinned for record in each.without_tensors()] == [True] * 5 + [False]
        assert whole(each) == [0, 1, 2, 3, 4, 5]
    for step in range(6, 9):
        history.append(small(step))
    opened = History(tmp_path)
    assert [record.thinned for record in opened.without_tensors()] == [True] * 8 + [False]


def test_each_record_is_written_once_and_thinned_once(tmp_path, monkeypatch):
    written: list[str] = []
    save = AuditRecord.save
    monkeypatch.setattr(AuditRecord, "save", lambda record, path: (written.append(path.name), save(record, path)))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    history, most = History(tmp_path, keep=4), 0
    for step in range(150):
        before = len(written)
        history.append(small(step, explainers(step, {"gradcam": 1, "slow": 5})))
        most = max(most, len(written) - before)
        assert written[before] == f"audit_{step:06d}.safetensors"  # before any other gives way for it

    assert most <= 3
    assert len(written) == 150 + (150 - len(whole(history)))
    assert max(written.count(name) for name in written) == 2
    assert len(list(tmp_path.iterdir())) == 150


def test_a_disk_that_is_full_for_long_costs_no_memory_and_nothing_when_it_has_room_again(tmp_path, monkeypatch):
    history = History(tmp_path / "audits", keep=4)
    for step in range(6):
        history.append(small(step))

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for step in range(6, 40):
            with pytest.raises(AuditError, match="No space left"):
                history.append(small(step))
            assert len(history) == step + 1
            assert sum(not record.thinned for record in history.without_tensors()) <= 4
        assert len(History(tmp_path / "audits")) == 6
    history.append(small(40))

    opened = History(tmp_path / "audits")
    assert [record.step for record in opened] == list(range(41))
    assert whole(opened) == whole(history)
    assert len(whole(opened)) == 4
    assert all(same(record, small(record.step)) for record in opened.kept())
