"""What is said of probes and audits."""

from __future__ import annotations

import math

import pytest
import torch

from tests.gallery.records import audit_of, logits_for, probes_of
from xai_callbacks.gallery.words import answer, asked_of, confusion, findings, step_in_few, tone, truth, when
from xai_callbacks.probes import ProbeSet
from xai_callbacks.questions import Why, WhyRatherThan, WhyValueRatherThan
from xai_callbacks.record import Finding

LABELS = torch.tensor(
    [[1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [-1, 0, -1, 0, 0], [-1] * 5, [0, 1, 0, -1, 0]]
)
LOGITS = torch.tensor(
    [
        [2.0, -1.0, -1.0, 0.5, -3.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [-1.0, -2.0, -0.5, -3.0, -3.0],
        [1.0, -1.0, -1.0, -1.0, -1.0],
        [-1.0, 3.0, -1.0, -1.0, -1.0],
        [-1.0, 3.0, -1.0, -1.0, -1.0],
    ]
)
NAMES = ("rain", "snow", "fog", "hail", "wind")


def weather(labels=LABELS):
    return ProbeSet.from_tensors(torch.rand(6, 3, 8, 8), labels, class_names=NAMES)


def test_an_answer_is_the_class_and_how_sure_the_model_is():
    probes = probes_of(3)
    record = audit_of(probes, torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert answer(probes, record, 0) == f"dog ({100 * math.e / (math.e + 2):.0f} %)"
    assert answer(probes, record, 1, sure=False) == "cat"
    assert [truth(probes, index) for index in range(3)] == ["is cat", "is dog", "is owl"]


def test_answers_of_several_labels_are_those_that_the_model_finds():
    probes = weather()
    record = audit_of(probes, LOGITS, ())
    assert [answer(probes, record, index) for index in range(6)] == [
        "rain (88 %), hail (62 %)",
        "rain (73 %), snow (73 %), fog (73 %) and 2 more",
        "none, at most fog (38 %)",
        "rain (73 %)",
        "snow (95 %)",
        "snow (95 %)",
    ]


def test_the_truth_of_several_labels_is_what_is_known():
    assert [truth(weather(), index) for index in range(6)] == [
        "is rain, hail",
        "is rain, snow, fog and 2 more",
        "is none of the labels",
        "is none of the known labels",
        "",
        "is snow",
    ]


def test_several_labels_are_right_if_all_that_are_known_are():
    probes = weather()
    record = audit_of(probes, LOGITS, ())
    assert [tone(record, index) for index in range(6)] == ["right", "right", "right", "right", "plain", "right"]
    some = weather(torch.tensor([[1, 0, 0, 0, 0]]).expand(6, 5))
    assert tone(audit_of(some, LOGITS, ()), 0) == "wrong"


def test_answers_of_several_values_name_each():
    targets = torch.tensor([[0.5, 12.345, 0.25, 7.0], [1.0, 2.0, 3.0, 4.0]])
    names = ("blur", "grain", "noise", "tilt")
    probes = ProbeSet.from_tensors(torch.rand(2, 3, 8, 8), targets=targets, target_names=names)
    record = audit_of(probes, torch.tensor([[0.125, 1.0, 2.5, 4.0], [1.0, 2.0, 3.0, 4.0]]), ())
    assert answer(probes, record, 0) == "blur 0.125, grain 1, noise 2.5 and 1 more"
    assert truth(probes, 0) == "is blur 0.5, grain 12.3, noise 0.25 and 1 more"
    assert tone(record, 0) == "plain"


def test_what_is_asked_is_said_in_few_words_with_the_names_of_this_audit():
    probes = probes_of(3)
    record = audit_of(probes, logits_for([1, 1, 1]), (Why(), WhyRatherThan("label"), Why("label")))
    assert [asked_of(record, question, 0) for question in range(3)] == ["Why dog?", "dog vs cat", "Why cat?"]
    # Where the foil is the fact, the question is another one.
    assert asked_of(record, 1, 1) == "Why not dog with 100 % confidence?"


def test_values_have_facts_and_foils_too():
    probes = probes_of(3, labels=None, class_names=None, targets=torch.tensor([0.75, 0.5, 0.25]))
    record = audit_of(probes, torch.tensor([[0.58], [0.5], [0.1]]), (Why(), WhyValueRatherThan("target")))
    assert asked_of(record, 0, 0) == "Why 0.58?"
    assert asked_of(record, 1, 0) == "0.58 vs 0.75"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (0, "0"),
        (950, "950"),
        (1234, "1234"),
        (1600, "1.6k"),
        (12_345, "12.3k"),
        (400_000, "400k"),
        (999_700, "1M"),
        (1_110_600, "1.11M"),
        (2_300_000, "2.3M"),
    ],
)
def test_steps_in_few_characters(step, words):
    assert step_in_few(step) == words


def test_when_counts_epochs_and_steps():
    probes = probes_of(3)
    assert when(audit_of(probes, number=3)) == "epoch 3 · step 300"
    assert when(audit_of(probes, untrained=True, step=0)) == "before training · step 0"


def finding(state, value, sentence):
    return Finding(f"alarm/{sentence}", state, value, sentence)


def test_alarms_come_before_watches_and_nothing_else_is_said():
    found = (
        finding("no evidence", 0.0, "calm"),
        finding("watch", 1.0, "look"),
        finding("no evidence", math.nan, "untested"),
        finding("alarm", 2.0, "fire"),
    )
    lines = findings(audit_of(probes_of(3), findings=found))
    assert [(line.text, line.tone) for line in lines] == [("fire", "alarm"), ("look", "watch")]
    calm = findings(audit_of(probes_of(3), findings=found[:1]))
    assert [(line.text, line.tone) for line in calm] == [("no alarm from 1 check", "muted")]
    assert findings(audit_of(probes_of(3))) == []


def test_more_than_four_findings_are_counted():
    found = tuple(finding("watch", 1.0, str(place)) for place in range(6))
    assert [line.text for line in findings(audit_of(probes_of(3), findings=found))] == [
        "0",
        "1",
        "2",
        "3",
        "and 2 more",
    ]


def test_the_most_common_error_is_said_if_it_is_more_than_one():
    probes = probes_of(9)
    said = torch.tensor([1, 1, 2, 1, 1, 2, 0, 0, 2])
    assert confusion(probes, audit_of(probes, logits_for(said))) == "most often: cat taken for dog (2 of 3 errors)"
    assert confusion(probes, audit_of(probes, logits_for([1, 1, 2] + [0, 1, 2] * 2))) == ""
    assert confusion(probes, audit_of(probes)) == ""
