"""What a history tells of its records, in memory and in a folder alike."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.record.samples import same, small
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History, evenly_spaced
from xai_callbacks.record import Estimate


@pytest.fixture(params=["memory", "folder"])
def history(request, tmp_path) -> History:
    return History(tmp_path / "audits" if request.param == "folder" else None)


def steps(history) -> list[int]:
    return [record.step for record in history]


def test_an_empty_history_has_no_last_record(history):
    assert (history.last, len(history), list(history)) == (None, 0, [])
    assert history.latest_with("gradcam") is None
    assert history.estimates("accuracy") == []
    assert not history
    with pytest.raises(IndexError):
        _ = history[0]


def test_records_come_oldest_first_and_the_last_is_the_newest(history):
    for step in range(5):
        history.append(small(step))
    assert steps(history) == [0, 1, 2, 3, 4]
    assert history.last.step == history[-1].step == 4
    assert all(same(record, small(record.step)) for record in history)


def test_slices_are_histories_in_memory_that_write_nothing(history):
    for step in range(6):
        history.append(small(step))
    part = history[1:4]
    part.append(small(9))
    part.truncate(1)
    part.replace_last(run="other")

    assert isinstance(part, History)
    assert part.folder is None
    assert steps(part) == [1]
    assert steps(history) == [0, 1, 2, 3, 4, 5]
    assert {record.run for record in history} == {"run-1"}


def test_parts_stay_as_they_are_while_the_run_goes_on():
    history = History(keep=2)
    for step in range(3):
        history.append(small(step))
    part = history[:]
    for step in range(3, 9):
        history.append(small(step))

    assert steps(part) == [0, 1, 2]
    assert [record.thinned for record in part] == [False, True, False]
    assert history[2].thinned


def test_a_view_with_a_newer_record_shares_the_rest_and_writes_nothing(history):
    for step in range(3):
        history.append(small(step))
    newest = small(3)
    view = history.with_record(newest)

    assert view.last is newest
    assert steps(view) == [0, 1, 2, 3]
    assert steps(history) == [0, 1, 2]
    assert all(a is b for a, b in zip(view.without_tensors(), history.without_tensors(), strict=False))
    assert history.folder is None or len(list(history.folder.iterdir())) == 3
    history.append(newest)
    assert steps(history) == steps(view)


def test_estimates_are_of_the_records_that_have_the_metric(history):
    history.append(small(0))
    history.append(small(1, metrics={"other": Estimate(1.0)}))
    history.append(small(2))
    assert [(record.step, estimate) for record, estimate in history.estimates("accuracy")] == [
        (0, Estimate(0.0, chance=0.5, valid=2)),
        (2, Estimate(2 / 7, chance=0.5, valid=2)),
    ]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.sampled_from("abcd"))
def test_comparable_records_are_those_of_the_same_probes(prints, wanted):
    history = History()
    for step, fingerprint in enumerate(prints):
        history.append(small(step, fingerprint=fingerprint))

    found = history.comparable(small(99, fingerprint=wanted))
    assert steps(found) == [step for step, fingerprint in enumerate(prints) if fingerprint == wanted]


def test_the_latest_with_an_explainer_has_its_heatmaps(history):
    for step in range(12):
        history.append(small(step, ("gradcam", "slow") if step % 5 == 0 else ("gradcam",)))

    assert history.latest_with("gradcam").step == 11
    found = history.latest_with("slow")
    assert found.step == 10
    assert torch.equal(found.maps["slow"].heatmaps, torch.full((1, 2, 2, 2), 10.0))
    assert history[:10].latest_with("slow").step == 5
    assert history.latest_with("other") is None


def test_the_last_record_can_be_changed(history):
    for step in range(3):
        history.append(small(step))
    history.replace_last(checkpoint="a.ckpt", epoch=7)

    assert same(history.last, small(2, checkpoint="a.ckpt", epoch=7))
    assert history[1].checkpoint is None


def test_truncated_records_are_gone_and_others_take_their_place(history):
    for step in range(0, 60, 10):
        history.append(small(step))
    history.truncate(25)
    assert steps(history) == [0, 10, 20]
    assert same(history.last, small(20))
    history.replace_last(run="resumed")
    history.append(small(21))

    assert steps(history) == [0, 10, 20, 21]
    assert same(history[2], small(20, run="resumed"))


@pytest.mark.parametrize("keep", [1, 0, 2.5, True, "3", None])
def test_fewer_than_two_audits_cannot_be_kept(keep):
    with pytest.raises(ConfigurationError, match="Expected `keep` to be an integer of 2 or more"):
        History(keep=keep)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ConfigurationError, match="Expected `folder` to be a folder"):
        History(tmp_path / "a")


def test_it_says_how_many_audits_and_where(tmp_path):
    assert repr(History()) == "History(0 audits, in memory)"
    assert repr(History(tmp_path)) == f"History(0 audits, in '{tmp_path}')"


@given(st.integers(2, 20), st.integers(1, 600))
def test_what_stays_while_more_come_in_is_even_and_has_both_ends(limit, audits):
    held: list[int] = []
    for audit in range(audits):
        held.append(audit)
        held = [held[place] for place in evenly_spaced(held, limit)]
    assert len(held) == min(limit, audits)
    assert (held[0], held[-1]) == (0, audits - 1)
    assert max((b - a for a, b in pairwise(held)), default=1) <= 2 * max(1, (audits - 1) / (limit - 1))


def test_the_one_with_the_closest_neighbours_goes():
    assert evenly_spaced([0, 100, 110, 120, 500], 4) == [0, 1, 3, 4]
    assert evenly_spaced([3, 5, 9], 8) == [0, 1, 2]
    assert evenly_spaced([], 8) == []
