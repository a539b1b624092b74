"""Names and values of the scalars, and charts of them."""

from __future__ import annotations

import dataclasses
import math

from tests.sinks.given import ALARM, CALM, FULL, PLAIN, a_record
from xai_callbacks.record import Estimate
from xai_callbacks.sinks import detail_scalars, finite, main_scalars
from xai_callbacks.sinks.base import key_charts


def test_every_metric_becomes_one_scalar():
    assert main_scalars(a_record(), "night") == {
        "night/gradcam/why/relevance_mass/core": 0.5,
        "night/accuracy": 0.5,
        "night/cue/patch/effect": 0.5,
    }


def test_details_are_the_intervals_of_what_findings_are_about():
    assert detail_scalars(a_record()) == {
        "audit_range/cue/patch/effect/low": 0.25,
        "audit_range/cue/patch/effect/high": 0.75,
    }


def test_without_findings_the_accuracy_is_the_key_metric():
    record = a_record(findings=(), metrics={"cue/patch/effect": FULL, "accuracy": FULL})
    assert detail_scalars(record) == {"audit_range/accuracy/low": 0.25, "audit_range/accuracy/high": 0.75}
    assert list(key_charts(record)) == ["accuracy"]
    assert detail_scalars(a_record(findings=(), metrics={"cue/patch/effect": FULL})) == {}


def test_findings_about_what_this_audit_has_not_are_passed_over():
    lost = dataclasses.replace(ALARM, about="cue/tint/effect")
    assert detail_scalars(a_record(findings=(lost, ALARM))) == detail_scalars(a_record())


def test_what_is_not_finite_is_left_out():
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf, "d": -math.inf, "e": 0.0}) == {"a": 1.0, "e": 0.0}


def test_key_metrics_have_charts_with_threshold_and_chance_in_the_title():
    assert key_charts(a_record(findings=(ALARM, CALM))) == {
        "cue/patch/effect": (
            "cue/patch/effect (threshold 0.03, chance 0.1)",
            [
                "Margin",
                ["audit/cue/patch/effect", "audit_range/cue/patch/effect/low", "audit_range/cue/patch/effect/high"],
            ],
        ),
        "accuracy": ("accuracy (threshold 0.2)", ["Multiline", ["audit/accuracy"]]),
    }


def test_all_thresholds_of_a_metric_are_named_once():
    findings = [dataclasses.replace(ALARM, threshold=value) for value in (0.03, 0.1, 0.03, None)]
    ((title, _),) = key_charts(a_record(findings=tuple(findings))).values()
    assert title == "cue/patch/effect (threshold 0.03, threshold 0.1, chance 0.1)"


def test_charts_show_only_tags_that_are_written():
    record = a_record()
    written = finite(main_scalars(record) | detail_scalars(record)).keys()
    tags = [tag for _, (_kind, tags) in key_charts(record).values() for tag in tags]
    assert set(tags) <= written
    assert len(tags) == len(set(tags)) == 4


def test_metrics_without_a_value_have_no_chart():
    nothing = Estimate(math.nan, chance=math.nan)
    assert key_charts(a_record(metrics={"accuracy": nothing, "cue/patch/effect": nothing, "drift": PLAIN})) == {}


def test_charts_carry_the_prefix_of_the_logger():
    tags = {tag for _, (_kind, tags) in key_charts(a_record(), "run7-").values() for tag in tags}
    assert all(tag.startswith("run7-audit") for tag in tags)
    assert "run7-audit_range/cue/patch/effect/low" in tags
