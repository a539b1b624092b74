"""Pages about scores, cues and kinds of heatmaps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.gallery.records import audit_of, logits_for, places, probes_of, said
from xai_callbacks.gallery.evidence import clusters, most_novel, quadrants, share_below
from xai_callbacks.questions import Why
from xai_callbacks.record import Finding, MapSet
from xai_callbacks.render import ColorScale, field_chart

SCALE = ColorScale()
EFFECT, MASS = "cue/patch/effect", "gradcam/why/relevance_mass/spurious"


# ---- most novel


def test_a_rank_is_the_share_of_other_probes_that_score_lower():
    assert share_below(torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0])).tolist() == pytest.approx([0.75, 0, 0.375, 0.375, 1])
    assert share_below(torch.tensor([7.0])).tolist() == [0]


def test_the_most_novel_probes_come_first_with_their_scores(monkeypatch):
    probes = probes_of(8)
    scores = torch.arange(8.0).double()
    audits = [audit_of(probes, number=place, scores={"energy": scores}) for place in range(3)]
    _, words = said(monkeypatch, lambda: most_novel(probes, audits, "energy", SCALE))
    assert "Most novel by energy larger = more novel; 5 of 8 probes" in words
    assert "step 0 to 200" in words
    assert words.index("1. probe_007 score 7") < words.index("2. probe_006 score 6") < words.index("5. probe_003")
    assert "probe_002" not in words


def test_a_score_that_was_left_out_at_an_earlier_audit_is_ranked_at_the_others():
    probes = probes_of(3)
    first, last = (
        audit_of(probes, number=place, scores={name: torch.arange(3.0)}) for place, name in ((0, "a"), (1, "b"))
    )
    assert most_novel(probes, [first, last], "b", SCALE).shape == most_novel(probes, [last], "b", SCALE).shape


def test_an_audit_of_nothing_but_novelty_says_no_answers(monkeypatch):
    probes = probes_of(3, labels=None, class_names=None)
    record = replace(audit_of(probes, questions=()), outputs=None, predictions=None, scores={"rec": torch.rand(3)})
    _, words = said(monkeypatch, lambda: most_novel(probes, [record], "rec", SCALE))
    assert "says" not in words


# ---- looked at, used


def with_cue(probes, used, looked, **changes):
    return audit_of(
        probes,
        per_probe={EFFECT: torch.tensor(used).double(), MASS: torch.tensor(looked).double()},
        chances={MASS: torch.full((len(probes),), 0.1).double()},
        cue_regions={"patch": "spurious"},
        **changes,
    )


def test_each_probe_stands_at_its_heat_and_its_effect_and_is_counted(monkeypatch):
    probes = probes_of(5)
    record = with_cue(probes, [0.5, 0.5, 0.0, 0.01, 0.4], [0.3, 0.05, 0.3, 0.0, 1 + 2**-52])
    (found, words) = said(monkeypatch, lambda: dict(quadrants(probes, record, SCALE)))
    points = [(0.3, 0.5), (0.05, 0.5), (0.3, 0.0), (0.0, 0.01), (1.0, 0.4)]
    chart = field_chart(points, chance=0.1, threshold=0.03, size=(300, 352), type_size=15)
    assert len(places(found["patch"], chart)) == 1
    for sentence in ("used and looked at: 2 (40%)", "used, not looked at: 1 (20%)", "looked at, not used: 1 (20%)"):
        assert sentence in words


def test_the_threshold_is_that_of_the_finding_about_the_effect(monkeypatch):
    probes = probes_of(3)
    finding = Finding("alarm/cue/patch", "watch", 1.0, "Watch.", about=EFFECT, threshold=0.45)
    record = with_cue(probes, [0.5, 0.4, 0.0], [0.3, 0.3, 0.3], findings=(finding,))
    _, words = said(monkeypatch, lambda: dict(quadrants(probes, record, SCALE)))
    assert "used and looked at: 1 (33%)" in words
    assert "used: above 0.45" in words


def test_probes_without_a_value_are_left_out_and_counted(monkeypatch):
    probes = probes_of(3)
    record = with_cue(probes, [0.5, math.nan, 0.2], [0.3, 0.3, math.nan])
    _, words = said(monkeypatch, lambda: dict(quadrants(probes, record, SCALE)))
    assert "1 of 3 probes" in words
    assert dict(quadrants(probes, with_cue(probes, [math.nan] * 3, [0.3] * 3), SCALE)) == {}


def test_a_cue_without_region_trial_or_heat_has_no_page():
    probes = probes_of(3)
    record = with_cue(probes, [0.5] * 3, [0.3] * 3)
    for other in (
        replace(record, cue_regions={}),
        replace(record, per_probe={MASS: record.per_probe[MASS]}),
        replace(record, maps={}),
    ):
        assert dict(quadrants(probes, other, SCALE)) == {}


# ---- kinds of heatmaps


def with_kinds(probes, numbers, **changes):
    return audit_of(
        probes, per_probe={"cluster/number": torch.tensor(numbers).double(), **changes.pop("more", {})}, **changes
    )


def test_each_class_with_kinds_has_a_page_those_with_more_kinds_first(monkeypatch):
    probes = probes_of(9)
    record = with_kinds(probes, [0, 0, math.nan, 0, 1, math.nan, 0, 1, math.nan])
    found, words = said(monkeypatch, lambda: dict(clusters(probes, record, SCALE)))
    assert list(found) == ["dog", "cat"]
    assert "kind 0: 3 probes, 100 % right" in words
    assert "kind 1: 2 probes" in words
    assert "mean" in words


def test_a_kind_says_where_its_heat_lies_and_how_often_it_is_right(monkeypatch):
    probes = probes_of(6)
    mass = {"gradcam/why/relevance_mass/core": torch.tensor([0.2, 0, 0, 0.4, 0, 0]).double()}
    record = with_kinds(probes, [0.0] * 6, more=mass, outputs=logits_for([0, 1, 2, 1, 1, 2]))
    _, words = said(monkeypatch, lambda: dict(clusters(probes, record, SCALE)))
    assert "kind 0: 2 probes, 50 % right, 30 % of the heat in core" in words


def test_kinds_are_of_the_question_about_the_label_and_of_predictions_without_labels():
    probes = probes_of(6)
    maps = torch.zeros(2, 6, 7, 7)
    maps[1] = 1.0
    given = {"gradcam": MapSet(heatmaps=maps, explainer="GradCAM()", layer="l")}
    label = with_kinds(probes, [0.0] * 6, questions=(Why(), Why("label")), maps=given)
    other = with_kinds(probes, [0.0] * 6, questions=(Why(), Why(0)), maps=given)
    one, two = (dict(clusters(probes, each, SCALE))["cat"] for each in (label, other))
    assert one.tobytes() != two.tobytes()
    free = probes_of(6, labels=None)
    assert list(dict(clusters(free, with_kinds(free, [0.0] * 6), SCALE))) == ["cat", "dog", "owl"]


def test_at_most_six_classes_have_a_page():
    probes = probes_of(8, labels=torch.arange(8), class_names=tuple("abcdefgh"))
    record = with_kinds(probes, [0.0] * 8, outputs=logits_for(range(8), 8))
    assert list(dict(clusters(probes, record, SCALE))) == list("abcdef")


def test_there_are_no_kinds_without_clustering_or_heat():
    probes = probes_of(3)
    assert dict(clusters(probes, audit_of(probes), SCALE)) == {}
    assert dict(clusters(probes, replace(with_kinds(probes, [0.0] * 3), maps={}), SCALE)) == {}
