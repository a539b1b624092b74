"""The memory of past audits behind a filmstrip."""

from __future__ import annotations

import dataclasses
import io
from itertools import pairwise

import pytest
import torch

from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import Auditor, Every, GradCAM, LayerCAM, Occlusion, Why
from xai_callbacks.sinks import Film


@pytest.fixture(scope="module")
def record():
    return Auditor(tiny_probes(4)).audit(tiny_net())


def filled(record, audits, capacity=8, drawn=(0, 2)):
    film = Film(capacity)
    for audit in range(audits):
        film.add(dataclasses.replace(record, step=audit * 10), list(drawn), (f"a{audit}", f"b{audit}"))
    return film


def steps(film):
    return [frame.step for frame in film.frames]


def test_few_audits_are_all_kept(record):
    assert steps(filled(record, 8)) == [0, 10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("audits", [9, 12, 50, 100])
def test_first_and_last_are_always_kept_and_never_more_than_the_capacity(record, audits):
    film = filled(record, audits)
    assert len(film.frames) == 8
    assert (steps(film)[0], steps(film)[-1]) == (0, (audits - 1) * 10)
    assert steps(film) == sorted(set(steps(film)))


def test_audits_between_are_spread_out(record):
    kept = steps(filled(record, 100))
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert max(gaps[:-1]) <= 4 * min(gaps[:-1])  # the last gap grows until a frame is dropped


def test_frames_hold_the_drawn_probes_only(record):
    frame = filled(record, 1).frames[0]
    assert torch.equal(frame.heatmaps, record.heatmaps[:, [0, 2]])
    assert frame.captions == ("a0", "b0")


def test_frames_do_not_share_memory_with_the_record(record):
    frame = filled(record, 1, drawn=(0, 1)).frames[0]
    assert frame.heatmaps.untyped_storage().data_ptr() != record.heatmaps.untyped_storage().data_ptr()


def test_film_goes_on_after_a_file_that_may_hold_plain_data_only(record):
    film = filled(record, 10)
    file = io.BytesIO()
    torch.save(film.state_dict(), file)
    file.seek(0)
    resumed = Film()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for one in (film, resumed):
        one.add(dataclasses.replace(record, step=1000), [0, 2], ("a", "b"))

    assert steps(resumed) == steps(film)
    for frame, expected in zip(resumed.frames, film.frames, strict=True):
        assert torch.equal(frame.heatmaps, expected.heatmaps)
        assert frame.captions == expected.captions
        assert frame.audit == expected.audit


def test_film_of_other_probes_begins_anew(record):
    """A resumed run may draw more or fewer panels; maps of one probe must not be shown on another."""
    film = filled(record, 3)
    film.add(dataclasses.replace(record, step=100), [0, 1, 3], ("a", "b", "c"))
    assert steps(film) == [100]
    film.add(dataclasses.replace(record, step=110), [0, 1, 3], ("a", "b", "c"))
    assert steps(film) == [100, 110]


# ---- explainers


def of_explainers(explainers, audits, film):
    auditor = Auditor(tiny_probes(4), [Why()], explainers=explainers)
    records = [auditor.audit(tiny_net(), step=step) for step in range(audits)]
    for record in records:
        film.add(record, [0, 2], ("a", "b"))
    return records


def test_film_shows_the_first_of_several_explainers():
    film = Film()
    records = of_explainers([Occlusion(4), GradCAM()], 2, film)
    for frame, record in zip(film.frames, records, strict=True):
        assert torch.equal(frame.heatmaps, record.maps["occlusion"].heatmaps[:, [0, 2]])
        assert frame.kind == record.maps["occlusion"].kind


def test_film_goes_on_with_an_explainer_that_answers_at_every_audit():
    """Where the first one answers now and then, the film settles on the other and is not begun anew each time."""
    film = Film()
    records = of_explainers([Every(2, Occlusion(4)), GradCAM()], 5, film)
    assert steps(film) == [1, 2, 3, 4]
    for frame, record in zip(film.frames, records[1:], strict=True):
        assert torch.equal(frame.heatmaps, record.maps["gradcam"].heatmaps[:, [0, 2]])


def test_film_of_an_explainer_that_answers_now_and_then_has_the_audits_at_which_it_did():
    film = Film()
    of_explainers([Every(2, Occlusion(4))], 5, film)
    assert steps(film) == [0, 2, 4]


@pytest.mark.parametrize("after", [LayerCAM("2"), GradCAM("0"), LayerCAM("2", name="gradcam")])
def test_film_of_another_explainer_or_layer_begins_anew(after):
    film = Film()
    of_explainers([GradCAM("2")], 3, film)
    resumed = Film()
    resumed.load_state_dict(film.state_dict())
    of_explainers([after], 2, resumed)
    assert steps(resumed) == [0, 1]
    assert len(film.frames) == 3


def test_an_audit_without_heatmaps_is_no_frame():
    film = Film()
    of_explainers([GradCAM()], 2, film)
    of_explainers([], 3, film)
    assert steps(film) == [0, 1]
    empty = Film()
    of_explainers([], 3, empty)
    assert empty.frames == ()
    resumed = Film()
    resumed.load_state_dict(empty.state_dict())
    assert resumed.frames == ()
