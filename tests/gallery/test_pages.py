"""The pages about probes: what stands on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.gallery.records import QUESTIONS, audit_of, logits_for, places, probes_of, said
from xai_callbacks.gallery.heat import density
from xai_callbacks.gallery.pages import all_probes, comparable_audits, filmstrip, overview, panel
from xai_callbacks.metrics import Threshold, relevance
from xai_callbacks.questions import Why, WhyRatherThan
from xai_callbacks.record import Estimate, Finding, MapSet
from xai_callbacks.render import ColorScale, overlay
from xai_callbacks.render.overlay import draw_regions

SCALE = ColorScale()
SIZE = (112, 112)


def maps_of(record, **changes):
    return replace(record.maps["gradcam"], **changes)


# ---- overview


def finding(key, state, value, **changes):
    return Finding(key, state, value, "A long sentence.", **changes)


def test_the_overview_fits_a_card_and_shows_the_worst_probes_with_what_is_said(monkeypatch):
    probes = probes_of(9, size=(64, 64))
    outputs = logits_for([0] * 9) * torch.linspace(2, 1, 9)[:, None]
    page, words = said(monkeypatch, lambda: overview(probes, audit_of(probes, outputs), list(range(9)), SCALE))
    assert page.shape == (176, 368, 3)  # a line less than it may have
    tiles = [overlay(probes.pixels[i].numpy(), np.pad([[12.0]], ((2, 4), (2, 4))), SCALE) for i in range(9)]
    # Probe 0, 3 and 6 are cats; of the others the earlier is wrong more surely.
    assert [i for i in range(9) if places(page, tiles[i])] == [1, 2, 4, 5, 7]
    assert sorted([1, 2, 4, 5, 7], key=lambda i: places(page, tiles[i])[0][1]) == [1, 2, 4, 5, 7]
    assert "epoch 1 · step 100 · accuracy 33 %" in words
    assert "most often: dog taken for cat (3 of 6 errors)" in words
    assert words.count("✘ says cat is dog") == 3
    assert "heat: Why this answer? Orange: for it, blue: against." in words


def test_the_overview_says_findings_in_few_words_the_most_alarming_first(monkeypatch):
    probes = probes_of(3)
    found = (
        finding("alarm/attribution/spurious", "watch", 1.0, estimate=Estimate(6.26, low=5.8, high=6.6)),
        finding("expectation/accuracy > 0.5", "fail", None),
        finding("expectation/ece < 0.1", "pass", None),
        finding("alarm/cue/patch", "alarm", 2.0, estimate=Estimate(0.584, low=0.541, high=0.626)),
        finding("alarm/cue/tag", "no evidence", float("nan")),
    )
    page, words = said(monkeypatch, lambda: overview(probes, audit_of(probes, findings=found), [0, 1, 2], SCALE))
    assert "▲ ALARM cue patch: +0.58 [0.54, 0.63] for its class ▲ 1 of 2 expectations fail; watch region" in words
    assert "spurious: 6.3× heat" in words
    assert "sentence" not in words
    assert page.shape[0] <= 192
    _, words = said(monkeypatch, lambda: overview(probes, audit_of(probes, findings=found[2:3]), [0, 1, 2], SCALE))
    assert "no alarm from 1 check" in words


@pytest.mark.parametrize("name", ["Großer Schweizer Sennenhund", "猫", "x" * 90])
def test_no_name_makes_the_overview_higher(name):
    probes = probes_of(6, size=(224, 224), class_names=(name, "b" * 80, name * 2))
    found = (finding(f"alarm/cue/{name * 3}", "alarm", 2.0),)
    record = audit_of(probes, logits_for([1, 2, 0] * 2), findings=found, step=10**12)
    assert overview(probes, record, list(range(6)), SCALE).shape == (192, 368, 3)


# ---- all probes


def test_the_page_of_all_shows_each_photo_in_its_colours_with_the_heat_of_the_first_question():
    probes = probes_of(3, size=SIZE)
    record = audit_of(probes)
    maps = record.maps["gradcam"].heatmaps.clone()
    maps[1:] = 1.0
    record = replace(record, maps={"gradcam": maps_of(record, heatmaps=maps)})
    page = all_probes(probes, record, [0, 1, 2], SCALE)
    for index in range(3):
        photo = probes.pixels[index].numpy()
        tile = overlay(photo, maps[0, index].numpy() * 49, SCALE)
        assert len(places(page, tile)) == 1
        assert (tile != photo).any()
        assert (tile == photo).all(axis=-1).mean() > 0.7


def test_wrong_answers_come_first_the_surest_before_the_others(monkeypatch):
    probes = probes_of(4, size=SIZE)
    outputs = logits_for([0, 0, 0, 0]) * torch.tensor([[1.0], [0.5], [2.0], [0.1]])
    page, words = said(monkeypatch, lambda: all_probes(probes, audit_of(probes, outputs), [0, 1, 2, 3], SCALE))
    tiles = [overlay(probes.pixels[i].numpy(), np.pad([[12.0]], ((2, 4), (2, 4))), SCALE) for i in range(4)]
    (places_of,) = zip(*(places(page, tile) for tile in tiles), strict=True)
    # Of cat, dog, owl and cat the second and third are wrong, the third more surely; of the right ones the first is
    # the surest.
    assert sorted(range(4), key=lambda index: places_of[index]) == [2, 1, 3, 0]
    assert words.count("✘") == 2
    assert words.count("✔") == 2
    assert "is owl" in words
    assert "is cat" not in words


def test_the_head_says_when_how_good_and_what_was_found(monkeypatch):
    probes = probes_of(6)
    found = Finding("alarm/cue/patch", "alarm", 2.0, "Alarm: it answers by the patch.")
    failed = Finding("expectation/accuracy > 0.9", "fail", None, "accuracy > 0.9: fail.")
    record = audit_of(
        probes, logits_for([1, 1, 2, 1, 1, 2]), findings=(failed, found), failed=("IntegratedGradients failed.",)
    )
    _, words = said(monkeypatch, lambda: all_probes(probes, record, [0, 1, 2], SCALE))
    for sentence in (
        "epoch 1 · step 100",
        "accuracy 67 % of 6 probes; 1 of the 3 shown are wrong",
        "most often: cat taken for dog (2 of 2 errors)",
        "▲ Alarm: it answers by the patch. ▲ accuracy > 0.9: fail.",
        "△ IntegratedGradients failed.",
        "Why this answer?",
    ):
        assert sentence in words, sentence


def test_of_values_the_largest_errors_come_first(monkeypatch):
    probes = probes_of(3, labels=None, class_names=None, targets=torch.tensor([1.0, 2.0, 3.0]))
    record = audit_of(probes, torch.tensor([[1.125], [7.0], [2.0]]), (Why(),))
    _, words = said(monkeypatch, lambda: all_probes(probes, record, [0, 1, 2], SCALE))
    assert words.index("is 2") < words.index("is 3") < words.index("is 1")


def test_an_audit_without_heat_has_a_page_of_photos(monkeypatch):
    probes = probes_of(3, size=SIZE)
    page, words = said(monkeypatch, lambda: all_probes(probes, audit_of(probes, questions=()), [0, 1, 2], SCALE))
    assert len(places(page, probes.pixels[1].numpy())) == 1
    assert "against" not in words


# ---- panel


def test_a_panel_has_a_tile_for_each_question_in_words(monkeypatch):
    probes = probes_of(3, size=SIZE)
    record = audit_of(probes, logits_for([0, 0, 2]))
    page, words = said(monkeypatch, lambda: panel(probes, record, 1, SCALE))
    tile = overlay(probes.pixels[1].numpy(), record.maps["gradcam"].heatmaps[0, 1].numpy() * 49, SCALE)
    assert len(places(page, tile)) == 3
    for sentence in ("Why cat?", "Why cat, rather than owl?", "Why not cat with 100 % confidence?"):
        assert sentence in words
    assert "probe_001 epoch 1 · step 100 ✘ says cat (91 %) is dog" in words
    assert "gradcam" not in words


def test_questions_that_come_to_the_same_are_drawn_once(monkeypatch):
    probes = probes_of(2)
    record = audit_of(probes, logits_for([0, 0]), (Why(), Why("label")))
    _, right = said(monkeypatch, lambda: panel(probes, record, 0, SCALE))
    _, wrong = said(monkeypatch, lambda: panel(probes, record, 1, SCALE))
    assert right.count("Why cat?") == 1
    assert (wrong.count("Why cat?"), wrong.count("Why dog?")) == (1, 1)


def test_several_explainers_have_a_row_each_under_their_names(monkeypatch):
    probes = probes_of(2)
    record = audit_of(probes)
    four = {name: maps_of(record) for name in ("gradcam", "hirescam", "deepshap", "occlusion")}
    one = panel(probes, record, 0, SCALE)
    page, words = said(monkeypatch, lambda: panel(probes, replace(record, maps=four), 0, SCALE))
    assert all(name in words for name in four)
    assert words.count("Why cat?") == 4
    assert page.shape[1] == one.shape[1]
    assert page.shape[0] < 1000


def test_an_explainer_about_the_image_and_a_relative_one_are_named(monkeypatch):
    probes = probes_of(2)
    record = audit_of(probes)
    image = MapSet(heatmaps=torch.ones(1, 2, 7, 7), explainer="Brightness()", about="image", units="relative")
    _, words = said(monkeypatch, lambda: panel(probes, replace(record, maps={"brightness": image}), 0, SCALE))
    assert "brightness (share of its strongest)" in words
    assert "Why" not in words


def test_regions_are_outlined_and_named_on_panels(monkeypatch):
    core = torch.zeros(2, 32, 32, dtype=torch.bool)
    core[0, 8:20, 8:20] = True
    probes = probes_of(2, masks={"core": core})
    for index, named in ((0, True), (1, False)):
        _, words = said(monkeypatch, lambda index=index: panel(probes, audit_of(probes), index, SCALE))
        assert ("core" in words) is named


def test_a_panel_without_heat_is_the_photo_with_what_is_said_of_it():
    probes = probes_of(2, size=(80, 80))
    page = panel(probes, audit_of(probes, questions=()), 0, SCALE)
    assert len(places(page, probes.pixels[0].numpy())) == 1
    assert page.shape[0] < 130


# ---- filmstrip


def audits_of(probes, answers, questions=QUESTIONS, **changes):
    return [
        audit_of(probes, logits_for([each] * len(probes)), questions, number=place, **changes)
        for place, each in enumerate(answers)
    ]


def test_every_tile_of_a_strip_says_what_it_answers(monkeypatch):
    probes = probes_of(2)
    _, words = said(monkeypatch, lambda: filmstrip(probes, audits_of(probes, [2, 1, 0]), 0, SCALE))
    for sentence in ("Why owl?", "Why dog?", "Why cat?", "owl vs dog", "dog vs owl", "cat vs owl"):
        assert sentence in words
    assert " P" not in words
    for place, mark in enumerate("✘✘✔"):
        assert f"{mark} epoch {place} step {100 * place}" in words


def test_the_question_about_the_label_comes_first_and_the_answers_are_then_said(monkeypatch):
    probes = probes_of(2)
    audits = audits_of(probes, [2, 1], (WhyRatherThan(), Why(), Why("label")))
    _, words = said(monkeypatch, lambda: filmstrip(probes, audits, 0, SCALE))
    assert words.count("Why cat?") == 2
    assert words.index("Why cat?") < words.index("owl vs dog")
    assert "says owl" in words
    assert "Why owl?" not in words


def test_a_strip_draws_no_question_twice(monkeypatch):
    probes = probes_of(2)
    _, words = said(monkeypatch, lambda: filmstrip(probes, audits_of(probes, [0, 0], (Why("label"), Why())), 0, SCALE))
    assert words.count("Why cat?") == 2


@pytest.mark.parametrize("count", range(1, 9))
def test_strips_have_one_width_and_a_tile_for_each_audit(count):
    probes = probes_of(2, size=(192, 192))
    page = filmstrip(probes, audits_of(probes, [0] * count, (Why(),)), 0, SCALE)
    assert page.shape[1] == 296


def test_only_audits_of_one_kind_of_maps_stand_side_by_side():
    probes = probes_of(2)
    audits = audits_of(probes, [0] * 5)
    audits[1] = replace(audits[1], maps={"gradcam": maps_of(audits[1], layer="other")})
    audits[2] = replace(audits[2], maps={})
    audits[3] = replace(audits[3], questions=("what",) * 3)
    assert [each.epoch for each in comparable_audits(audits, audits[-1])] == [0, 4]
    assert comparable_audits(audits, audits[2]) == []


def test_at_most_eight_audits_are_shown_the_first_and_the_last_among_them():
    probes = probes_of(2)
    audits = audits_of(probes, [0] * 16, (Why(),))
    epochs = [each.epoch for each in comparable_audits(audits, audits[-1])]
    assert len(epochs) == 8
    assert (epochs[0], epochs[-1]) == (0, 15)
    same = [replace(each, step=0) for each in audits]
    assert len(comparable_audits(same, same[-1])) == 8


def test_a_panel_outlines_what_a_map_finds_if_it_is_asked_for():
    probes = probes_of(3, size=SIZE)
    record = audit_of(probes, questions=QUESTIONS[:1])
    heatmaps = record.maps["gradcam"].heatmaps.clone()
    heatmaps[0, 1] = 0.0
    record = replace(record, maps={"gradcam": maps_of(record, heatmaps=heatmaps)})
    image = probes.pixels[0].numpy()
    tile = overlay(image, density(heatmaps[0, :1])[0], SCALE)
    enlarged = relevance(heatmaps[0, 0], SIZE)
    mask = enlarged > enlarged.max() / 2
    circled = tile.copy()
    draw_regions(circled, {"found": mask.numpy()})
    plain, asked = (panel(probes, record, 0, SCALE, found) for found in (None, Threshold()))
    assert len(places(plain, tile)) == 1
    assert places(plain, circled) == places(asked, tile) == []
    assert len(places(asked, circled)) == 1
    assert asked.shape[0] > plain.shape[0]  # by the line of the legend
    assert np.array_equal(panel(probes, record, 1, SCALE, Threshold()), panel(probes, record, 1, SCALE))
