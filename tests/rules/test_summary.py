"""The story of a run in words: never wider than a terminal, never broken by a name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rules.records import ABOVE, CLEAN, estimate, made
from xai_callbacks.history import History
from xai_callbacks.record import Finding
from xai_callbacks.rules import AlarmRule, as_rules, conclude, summary

MASS = "gradcam/why/relevance_mass/core"
RULES = (
    f"{MASS} > 0.5",
    {"name": "ignores the tint", "expect": "cue/tint/effect < 0.05"},
    "novelty/energy/auroc > 0.8",
    "group/wga > 0.7 from epoch 5",
)


def audit(past, rules, metrics, **fields):
    """One more audit, an epoch later."""
    record = made(metrics, step=10 * len(past), epoch=len(past), untrained=not past, **fields)
    past.append(conclude(as_rules(rules), past, record).record)
    return past


def run(rules=RULES, folder=None):
    past = History(folder)
    for mass, effect in ((0.25, 0.0), (0.5, 0.03125), (0.625, 0.125)):
        audit(past, rules, {
            MASS: estimate(mass, mass - 0.0625, mass + 0.0625),
            "cue/tint/effect": estimate(effect, effect - 0.015625, effect + 0.015625),
            "novelty/energy/auroc": estimate(0.9, valid=20),
        })  # fmt: skip
    return past


SUMMARY = """\
Expectations at epoch 2, step 20: 1 pass, 1 fail, 1 not enough evidence, 1 not due.

      first failed  audits  expectation
pass  epoch 0       F?.     gradcam/why/relevance_mass/core > 0.5: pass by 0.125, 0.625 [0.562,
                            0.688] on 64 probes.
FAIL  epoch 2       ..F     ignores the tint: cue/tint/effect < 0.05: fail by 0.075, 0.125 [0.109,
                            0.141] on 64 probes.
?     never         ???     novelty/energy/auroc > 0.8: not enough evidence, 0.9 on 20 probes, too
                            few for an interval (30).
-     never         ---     group/wga > 0.7 from epoch 5: not due before epoch 5.

F FAIL   . pass   ? not enough evidence   - not due"""


def test_summary_is_this(tmp_path):
    assert summary(run()) == SUMMARY
    assert summary(run(folder=tmp_path)) == summary(History(tmp_path)) == SUMMARY


def test_alarms_follow_in_their_words():
    past = History()
    for metrics in (CLEAN, ABOVE, ABOVE):
        audit(past, [AlarmRule(), "cue/patch/effect < 0.6"], metrics, keys=())
    sentence = past.last.findings[0].sentence

    assert summary(past).startswith("Expectations at epoch 2, step 20: 1 pass.")
    assert " ".join(summary(past).split("\n\n")[-1].split("\n")) == sentence


def test_only_alarms_are_only_sentences():
    past = audit(History(), [AlarmRule()], CLEAN, keys=())
    assert summary(past) == (
        "No evidence for the cue 'patch', just as it was painted: it moves the probability of its class by\n"
        "0.00 [-0.02, 0.02]. Nothing is said of others."
    )


@pytest.mark.parametrize("history", [History(), audit(History(), [], CLEAN)])
def test_a_run_without_rules_or_audits_has_no_story(history):
    assert summary(history) == ""


def test_story_shows_the_latest_audits():
    past = History()
    for epoch in range(30):
        audit(past, ["confidence > 0.5"], {"confidence": estimate(*[0.9 if epoch < 25 else 0.1] * 3)})
    assert summary(past).splitlines()[3].startswith("FAIL  epoch 25      .......FFFFF  confidence > 0.5: fail by 0.4")


def test_expectation_that_was_changed_under_its_name_begins_anew():
    past = run()
    audit(past, [{"name": "ignores the tint", "expect": "cue/tint/effect < 0.1"}, RULES[0]], {})
    rows = summary(past).splitlines()
    assert rows[3].startswith("?  never         ?       ignores the tint: cue/tint/effect < 0.1")
    assert rows[5].startswith("?  epoch 0       F?.?    gradcam/why/relevance_mass/core > 0.5")


def test_audits_of_other_probes_are_another_story():
    past = audit(run(), RULES, {}, fingerprint="other")
    assert "never" in summary(past).splitlines()[3]


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=150).filter(str.isprintable)


@given(
    st.lists(st.tuples(names, names, st.sampled_from(["pass", "fail", "not enough evidence", "not due"])), max_size=4)
)
def test_summary_fits_whatever_the_names(rows):
    findings = [Finding(f"expectation/{name}", state, None, f"{words}: {state}.") for name, words, state in rows]
    others = [Finding(f"alarm/{name}", "watch", 1.0, words) for name, words, _ in rows]
    history = History().with_record(made(epoch=123456, findings=(*findings, *others)))
    for row in summary(history).split("\n"):
        assert len(row) <= 100
        assert row == row.rstrip()
