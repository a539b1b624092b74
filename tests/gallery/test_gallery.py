"""`Gallery`: which pictures there are, and that nothing breaks one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gallery.records import CLASSES, QUESTIONS, audit_of, history_of, photos, probes_of, said
from xai_callbacks.errors import AuditError, ConfigurationError, ProbeSetError
from xai_callbacks.gallery import Gallery
from xai_callbacks.history import History
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Why
from xai_callbacks.render import ColorScale, encoded


def tags(gallery, history):
    return [picture.tag for picture in gallery.draw(history)]


@pytest.mark.parametrize(
    ("count", "most", "drawn"),
    [
        (6, 16, [0, 1, 2, 3, 4, 5]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (6, 1, [0]),
        (6, 0, []),
    ],
)
def test_drawn_probes_are_evenly_spaced_from_the_first_to_the_last(count, most, drawn):
    assert Gallery(probes_of(count), max_panels=most).drawn == drawn


@pytest.mark.parametrize("count", range(1, 40, 3))
def test_as_many_probes_are_drawn_as_were_asked_for(count):
    probes = probes_of(count, size=(4, 4))
    for most in range(2, count + 1):
        assert len(set(Gallery(probes, max_panels=most).drawn)) == most


def test_tags_and_captions():
    probes = probes_of(3)
    scores = {"gradnorm": torch.rand(3)}
    pictures = list(Gallery(probes, max_panels=2, name="eyes").draw(history_of(audit_of(probes, scores=scores))))
    assert [picture.tag for picture in pictures] == [
        "eyes/0_overview",
        "eyes/1_all_probes",
        "eyes_panel/000_probe_000",
        "eyes_filmstrip/000_probe_000",
        "eyes_panel/002_probe_002",
        "eyes_filmstrip/002_probe_002",
        "eyes_summary/most_novel_gradnorm",
    ]
    for picture in pictures:
        assert picture.step == 100
        assert "\n" not in picture.caption
        assert picture.caption.endswith("; epoch 1 · step 100")
        assert picture.pixels.dtype == np.uint8
    assert "says cat (91 %), is cat" in pictures[2].caption


def test_an_empty_history_and_no_panels_have_no_pictures():
    probes = probes_of(3)
    assert tags(Gallery(probes), History()) == []
    assert tags(Gallery(probes, max_panels=0), history_of(audit_of(probes))) == []
    assert tags(Gallery(probes), history_of(audit_of(probes).thin())) == []


def test_the_gallery_remembers_nothing():
    probes = probes_of(2)
    gallery, history = Gallery(probes), history_of(*[audit_of(probes, number=number) for number in range(4)])
    first = [picture.pixels.tobytes() for picture in gallery.draw(history)]
    list(gallery.draw(history_of(audit_of(probes, number=9, peak=40.0))))
    assert [picture.pixels.tobytes() for picture in gallery.draw(history)] == first


def test_a_history_in_a_folder_gives_the_same_pictures(tmp_path):
    probes = probes_of(2)
    records = [audit_of(probes, number=number, scores={"gradnorm": torch.rand(2).double()}) for number in range(12)]
    folder = History(tmp_path)
    for record in records:
        folder.append(record)
    gallery = Gallery(probes)
    for one, other in zip(gallery.draw(history_of(*records)), gallery.draw(History(tmp_path)), strict=True):
        assert one.tag == other.tag
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_audits_of_other_probes_are_left_out_of_strips_and_refused_as_the_latest(monkeypatch):
    probes, others = probes_of(2), probes_of(2, names=["a", "b"])
    history = history_of(audit_of(others, number=0), audit_of(probes, number=1))
    _, words = said(monkeypatch, lambda: list(Gallery(probes).draw(history)))
    assert "epoch 0" not in words
    with pytest.raises(AuditError, match="Expected an audit of the probes"):
        list(Gallery(others).draw(history))


def test_a_scale_can_be_given_and_weak_heat_is_said_on_the_fixed_one(monkeypatch):
    probes = probes_of(2)
    history = history_of(audit_of(probes, peak=1.0))
    _, fixed = said(monkeypatch, lambda: list(Gallery(probes).draw(history)))
    _, own = said(monkeypatch, lambda: list(Gallery(probes, scale=ColorScale(2.0)).draw(history)))
    assert "less than a tenth of the scale" in fixed
    assert "less than a tenth" not in own
    assert "≥ 2" in own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": 3}, "Expected `probes` to be a ProbeSet"),
        ({"max_panels": -1}, "Expected `max_panels`"),
        ({"name": "a/b"}, "Expected `name`"),
        ({"scale": 50}, "Expected `scale` to be a ColorScale or None"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Gallery(**({"probes": probes_of(2)} | changes))


def test_an_autoencoder_has_pictures_of_novelty_alone():
    probes = probes_of(3)
    nothing = dict.fromkeys(("outputs", "predictions", "confidences", "correct"))
    record = replace(audit_of(probes, questions=()), **nothing, scores={"rec": torch.rand(3)})
    assert tags(Gallery(probes), history_of(record)) == ["audit_summary/most_novel_rec"]


TEXTS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
SIDES = st.one_of(st.integers(1, 9), st.sampled_from([28, 32, 100, 500]))


def _truth(draw, count):
    """Labels, several labels, values, or nothing known."""
    kind = draw(st.sampled_from(["labels", "unknown", "several", "values"]))
    if kind == "several":
        labels = torch.tensor(draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=count, max_size=count)))
        return {"labels": labels, "class_names": CLASSES}
    if kind == "values":
        return {"labels": None, "class_names": None, "targets": torch.linspace(-1, 3, count)}
    labels = torch.arange(count) % 3 if kind == "labels" else None
    return {"labels": labels, "class_names": draw(st.one_of(st.none(), st.tuples(TEXTS, TEXTS, TEXTS)))}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_no_probe_set_breaks_a_page(data):
    draw = data.draw
    count = draw(st.integers(1, 40))
    size = (draw(SIDES), draw(SIDES))
    if count > 6:
        size = (min(size[0], 32), min(size[1], 32))
    channels = draw(st.sampled_from([1, 3]))
    name = draw(TEXTS)
    names = [f"{name}{index}" for index in range(count)]
    truth = _truth(draw, count)
    try:
        probes = ProbeSet.from_tensors(
            torch.rand(count, channels, *size), pixels=photos(count, size), names=names, **truth
        )
    except ProbeSetError:  # a name that a probe set refuses
        return
    width = 1 if "targets" in truth else 3
    outputs = torch.randn(count, width) * draw(st.sampled_from([1e-3, 1.0, 1e4]))
    questions = (Why(),) if width == 1 else QUESTIONS
    changes = {"grid": draw(st.sampled_from([(1, 1), (7, 7), (3, 20)])), "scores": {"s": torch.rand(count)}}
    peak = draw(st.sampled_from([0.0, 1.0, -60.0, float("nan"), 1e30]))
    records = [audit_of(probes, outputs, questions, peak=peak, number=number, **changes) for number in range(3)]
    pictures = list(Gallery(probes, max_panels=draw(st.integers(1, 4))).draw(history_of(*records)))
    assert pictures[0].tag == "audit/0_overview"
    for picture in pictures:
        assert picture.pixels.shape[1] in (368, 296)
        assert picture.pixels.shape[0] < 2000
    assert encoded(pictures[-1].pixels)
