"""What was measured of heatmaps that failed their tests is no evidence to any rule."""

from __future__ import annotations

import math

import pytest

from tests.rules.records import ABOVE, CLEAN, LIFT, WHERE, estimate, history_of, last, lift, made
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord
from xai_callbacks.rules import AlarmRule, Expectation

FAILS = "fails the randomisation test"
MASS = "gradcam/why/relevance_mass/core"


def test_a_record_doubts_what_was_measured_of_maps_that_failed_and_nothing_else():
    verdicts = {
        "gradcam/why": FAILS,
        "gradcam/why_label": "passed",
        "occlusion/why": "not tested: x",
        "novelty_map": FAILS,
    }
    record = AuditRecord(trust=verdicts)
    doubted = ("gradcam/why", MASS, "gradcam/why/drift", "novelty_map", "novelty_map/relevance_mass/core")
    assert {record.doubt(key) for key in doubted} == {FAILS}
    sound = ("gradcam", "gradcam/why_label/drift", "gradcam/why/trust/randomised", "occlusion/why/drift", "cue/a/pull")
    assert {record.doubt(key) for key in (*sound, "novelty_mapped/drift")} == {""}
    assert record.thin().doubt(MASS) == FAILS


@pytest.mark.parametrize(
    ("verdict", "state"), [("passed", "pass"), ("not tested: x", "pass"), (FAILS, "not enough evidence")]
)
def test_an_expectation_of_such_a_measure_cannot_be_decided(verdict, state):
    record = made({MASS: estimate(0.8, 0.7, 0.9)}, trust={"gradcam/why": verdict})
    (found,) = Expectation(f"{MASS} > 0.5").conclude(History().with_record(record))
    assert found.state == state
    if verdict == FAILS:
        assert found.sentence == f"{MASS} > 0.5: not enough evidence, as its heatmap fails the randomisation test."
        assert found.estimate is None


def test_the_tests_themselves_and_what_is_no_heatmap_are_judged_as_ever():
    metrics = {"gradcam/why/trust/randomised": estimate(0.9, 0.8, 1.0), "cue/tint/effect": estimate(0.3, 0.2, 0.4)}
    record = made(metrics, trust={"gradcam/why": FAILS})
    for sentence in ("gradcam/why/trust/randomised < 0.5", "cue/tint/effect < 0.05"):
        assert Expectation(sentence).conclude(History().with_record(record))[0].state == "fail"


def watched(*verdicts, other=""):
    """What is found of a region that is looked at ever more, after audits with these verdicts."""
    before, after = lift(0.5, 0.6, reference=1.2), lift(3.0, 4.0)
    if other:  # explainer says the same
        before |= {key.replace("gradcam", other): each for key, each in before.items()}
        after |= {key.replace("gradcam", other): each for key, each in after.items()}
    first, looked = {**CLEAN, **before}, {**CLEAN, **after}
    audits = [made(first, step=0, untrained=True, **WHERE)]
    audits += [
        made(looked, step=step, epoch=step, trust={"gradcam/why": said} if said else {}, **WHERE)
        for step, said in enumerate(verdicts, start=1)
    ]
    return last(audits, place=-1)


def test_a_region_is_not_watched_by_heatmaps_that_failed():
    for said in ("", "passed", "not tested: x"):
        assert watched(said, said).state == "watch"
    found = watched(FAILS, FAILS)
    assert (found.state, found.loud) == ("no evidence", False)
    assert math.isnan(found.value)
    assert found.sentence == f"Not enough evidence on the region 'spurious': its heatmap {FAILS}."


def test_audits_whose_heatmaps_failed_do_not_count_for_a_watch():
    assert watched(FAILS, "passed").state == "no evidence"
    assert watched(FAILS, "passed", "passed").state == "watch"
    assert watched("passed", "passed", FAILS).state == "no evidence"


def test_another_explainer_takes_over_where_one_failed():
    assert watched("passed", "passed", other="occlusion").about == LIFT
    found = watched(FAILS, FAILS, other="occlusion")
    assert (found.state, found.about) == ("watch", LIFT.replace("gradcam", "occlusion"))


def test_an_alarm_about_a_cue_needs_no_heatmap():
    audits = [made({**ABOVE}, step=step, epoch=step, trust={"gradcam/why": FAILS}) for step in (1, 2)]
    assert last(audits).state == "alarm"
    assert AlarmRule().conclude(history_of(audits))[0].state == "alarm"
