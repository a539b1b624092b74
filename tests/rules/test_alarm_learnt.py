"""Alarms about cues of labelled probes: whether a cue was learnt, several cues, neighbours, and a clean reference."""

from __future__ import annotations

import pytest

from tests.rules.records import CLEAN, last, made, states
from xai_callbacks.record import Estimate
from xai_callbacks.rules import AlarmRule


def cue(pull, *, gain=0.3, loss=0.3, excess=0.2, **more):
    """What a trial finds of labelled probes: estimates with intervals of .05 either way."""
    values = {"pull": pull, "gain": gain, "loss": loss, "excess": excess, "control": pull - excess, "effect": pull}
    return {f"cue/patch/{key}": Estimate(v, v - 0.05, v + 0.05, 0.0, 64) for key, v in {**values, **more}.items()}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (cue(0.3), "alarm"),
        (cue(0.07), "no evidence"),  # its interval begins at .02
        (cue(0.3, excess=0.04, gain=0.1), "reacts to any edit"),  # the interval of the excess holds 0
        (cue(0.3, excess=0.04, gain=0.25), "alarm"),  # its class misses it much
        (cue(0.3, gain=0.06), "reacts to any edit"),  # its class hardly misses it
        (cue(0.3, gain=0.06, room=0.1), "alarm"),  # which could hardly miss it more
        (cue(0.3, gain=0.06, room=0.1, excess=0.04), "reacts to any edit"),
        (cue(-0.3, gain=-0.3, loss=-0.3), "alarm"),  # it speaks for another class
        (cue(-0.3, gain=-0.5, loss=-0.1), "reacts to any edit"),
        (cue(-0.3, gain=-0.3, loss=0.1), "reacts to any edit"),
        (cue(0.0, **{"nearby/left": 0.4}), "alarm"),
        (cue(0.0, excess=-0.4, **{"nearby/left": 0.4}), "no evidence"),  # a control does as much
    ],
)
def test_a_cue_is_used_where_it_was_learnt(found, state):
    assert states(AlarmRule(), [CLEAN, found, found])[-1] == state


def test_the_sentence_names_the_class_that_rises_and_what_it_costs():
    found = cue(-0.3, gain=-0.3, loss=-0.3, gap=-0.2, **{"raises/benign": 0.3})
    said = last([CLEAN, found, found], tried={"patch": "cue 'patch' (a square)"}).sentence

    assert "the cue 'patch' (a square)" in said
    assert "called 'benign' more often, against the class that it was said to point to" in said
    assert said.endswith("With the cue of the class that it was said to point to 20% fewer are right.")
    found = cue(0.3, gap=0.25)
    assert last([CLEAN, found, found]).sentence.endswith("With the cue of another class 25% fewer are right.")
    assert "fewer" not in last([CLEAN, cue(0.3, gap=-0.02), cue(0.3, gap=-0.02)]).sentence


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (cue(0.3, gain=0.06), "its own class is known without it (gain 0.06, loss 0.30)"),
        (cue(0.3, gain=0.06, excess=0.0), "another edit of the same place and contrast moves it by 0.30"),
    ],
)
def test_a_reaction_to_any_edit_says_why_it_is_no_evidence(found, why):
    said = last([CLEAN, found, found]).sentence
    assert said.startswith("Reacts to such an edit: it moves the probability of its label by 0.30 [0.25, 0.35]; but")
    assert why in said


def test_several_cues_are_watched_at_one_level():
    one = cue(0.095)
    others = {f"cue/other{place}/effect": Estimate(0.0, -0.05, 0.05, 0.0, 64) for place in range(7)}
    assert states(AlarmRule(), [CLEAN, one, one])[-1] == "alarm"
    # Of eight cues, .095 +- .05 is widened by 1.4 to .095 +- .07.
    together = {**one, **others}
    assert states(AlarmRule(), [CLEAN, together, together])[-1] == "no evidence"
    assert states(AlarmRule(threshold=0.02), [CLEAN, together, together])[-1] == "alarm"


def test_a_reference_is_what_must_be_exceeded(tmp_path):
    made(cue(0.3), fingerprint="a").save(tmp_path / "clean.safetensors")
    rule = AlarmRule(reference=tmp_path / "clean.safetensors")
    audits = [CLEAN, cue(0.34), cue(0.34)]
    assert states(rule, audits, fingerprint="a")[-1] == "no evidence"
    assert states(rule, audits, fingerprint="b")[-1] == "alarm"
    assert states(rule, [CLEAN, cue(0.42), cue(0.42)], fingerprint="a")[-1] == "alarm"
    # Beyond a model that stands for all other edits it is not asked whether its class misses the cue.
    unmissed = [CLEAN, *[cue(0.42, gain=0.06, excess=0.04)] * 2]
    assert states(rule, unmissed, fingerprint="a")[-1] == "alarm"
    assert states(rule, unmissed, fingerprint="b")[-1] == "reacts to any edit"
    opposite = [CLEAN, *[cue(-0.42, gain=-0.06, loss=-0.4)] * 2]
    assert states(rule, opposite, fingerprint="a")[-1] == "alarm"
