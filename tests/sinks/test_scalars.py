"""Names and values of the scalars, and the page that groups them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.sinks.given import ALARM, CALM, FULL, PLAIN, a_record
from xai_callbacks.record import Estimate, Key
from xai_callbacks.sinks import detail_scalars, finite, layout, main_scalars


def charts(page):
    return {(category, name): chart for category, names in page.items() for name, chart in names.items()}


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
    assert next(iter(layout(record))) == "audit: key metrics"
    assert detail_scalars(a_record(findings=(), metrics={"cue/patch/effect": FULL})) == {}


def test_findings_about_what_this_audit_has_not_are_passed_over():
    lost = dataclasses.replace(ALARM, about="cue/tint/effect")
    assert detail_scalars(a_record(findings=(lost, ALARM))) == detail_scalars(a_record())


def test_what_is_not_finite_is_left_out():
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf, "d": -math.inf, "e": 0.0}) == {"a": 1.0, "e": 0.0}


def test_key_metrics_stand_first_with_threshold_and_chance_in_the_title():
    page = layout(a_record(findings=(ALARM, CALM)))
    assert list(page) == ["audit: key metrics", "audit: gradcam why"]
    assert page["audit: key metrics"] == {
        "effect of the cue: patch (threshold 0.03, chance 0.1)": [
            "Margin",
            ["audit/cue/patch/effect", "audit_range/cue/patch/effect/low", "audit_range/cue/patch/effect/high"],
        ],
        "share of probes that are right (threshold 0.2)": ["Multiline", ["audit/accuracy"]],
    }
    assert list(page["audit: key metrics"]) == [
        "effect of the cue: patch (threshold 0.03, chance 0.1)",
        "share of probes that are right (threshold 0.2)",
    ]
    assert page["audit: gradcam why"] == {
        "share of the heat on the object (chance 0.1)": ["Multiline", ["audit/gradcam/why/relevance_mass/core"]]
    }


def test_all_thresholds_of_a_metric_are_named_once():
    findings = [dataclasses.replace(ALARM, threshold=value) for value in (0.03, 0.1, 0.03, None)]
    titles = layout(a_record(findings=tuple(findings)))["audit: key metrics"]
    assert list(titles) == ["effect of the cue: patch (threshold 0.03, threshold 0.1, chance 0.1)"]


def test_layout_shows_every_metric_once_and_only_tags_that_are_written():
    record = a_record()
    written = finite(main_scalars(record) | detail_scalars(record)).keys()
    tags = [tag for _kind, tags in charts(layout(record)).values() for tag in tags]
    assert set(tags) == written
    assert len(tags) == len(set(tags))


def test_metrics_without_a_value_have_no_chart():
    nothing = Estimate(math.nan, chance=math.nan)
    record = a_record(metrics={"accuracy": nothing, "cue/patch/effect": nothing, "drift": PLAIN})
    assert [tags for _kind, tags in charts(layout(record)).values()] == [["audit/drift"]]


def test_metrics_are_grouped_by_explainer_and_question_or_by_kind():
    keys = ("gradcam/why/drift", "occlusion/why/drift", "bright/drift", "accuracy", "novelty/gradcam/auroc")
    record = a_record(
        metrics=dict.fromkeys(keys, PLAIN),
        keys=(),
        findings=(),
        explainers=dict.fromkeys(("occlusion", "gradcam", "bright"), ""),
    )
    page = layout(record, name="night")
    assert {category: list(names) for category, names in page.items()} == {
        "night: key metrics": ["accuracy"],
        "night: gradcam why": ["why, drift"],
        "night: occlusion why": ["why, drift"],
        "night: bright": ["drift"],
        "night: novelty": ["gradcam, auroc"],
    }


@pytest.mark.parametrize(
    ("declared", "titles"),
    [
        ("cue/*/effect", ["effect: patch", "effect: red tint"]),
        ("cue/*", ["effect: patch, effect", "effect: red tint, effect"]),
        ("other", ["patch, effect", "red tint, effect"]),
    ],
)
def test_titles_of_one_declaration_say_which_metric_they_are(declared, titles):
    estimate = Estimate(0.5)
    metrics = {"cue/patch/effect": estimate, "cue/red_tint/effect": estimate}
    assert list(layout(a_record(metrics=metrics, findings=(), keys=(Key(declared, "effect"),)))["audit: cue"]) == titles


def test_equal_words_for_two_metrics_do_not_hide_one():
    keys = (Key("cue/a", "effect"), Key("cue/b", "effect"))
    record = a_record(metrics=dict.fromkeys(("cue/a", "cue/b"), Estimate(0.5)), keys=keys, findings=())
    assert list(layout(record)["audit: cue"]) == ["effect", "effect [cue/b]"]


def test_layout_carries_the_prefix_of_the_logger():
    tags = {tag for _kind, tags in charts(layout(a_record(), "run7-")).values() for tag in tags}
    assert all(tag.startswith("run7-audit") for tag in tags)
    assert "run7-audit_range/cue/patch/effect/low" in tags
