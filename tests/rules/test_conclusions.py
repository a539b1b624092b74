"""Rules as they are given, and as they conclude one after another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rules.records import ABOVE, CLEAN, KEYS, effect, made
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.record import Finding, Key
from xai_callbacks.rules import AlarmRule, Expectation, Rule, as_rules, conclude


class Counter(Rule):
    """A rule of a third party: how many audits there were, whether it may be said, and what it may raise."""

    keys = (Key("audits", "number of audits", 0.0, of="nothing"),)

    def __init__(self, value=None, error=None):
        self.value, self.error = value, error

    def conclude(self, history):
        if self.error is not None:
            raise self.error
        value = len(history) if self.value is None else self.value
        return [Finding("audits", "counted", value, f"There were {len(history)} audits.", loud=True)]


def run(rules, audits, past=None):
    """The conclusions of each audit of a run."""
    past, found = History() if past is None else past, []
    for metrics in audits:
        place = len(past)
        record = made(metrics, step=place, epoch=place, untrained=place == 0, keys=())
        found.append(conclude(as_rules(rules), past, record))
        past.append(found[-1].record)
    return found


# ---- as they are given


def test_rules_sentences_and_named_ones_mix_and_expectations_come_last():
    counter = Counter()
    rules = as_rules(["accuracy > 90 %", {"name": "ignores it", "expect": "cue/patch/effect < 0.05"}, counter])

    assert rules == (counter, Expectation("accuracy > 0.9"), Expectation("cue/patch/effect < 0.05", "ignores it"))
    assert as_rules(rules) == rules
    assert as_rules([]) == ()


@pytest.mark.parametrize(
    ("given_rules", "message"),
    [
        ("accuracy > 0.5", r"Expected `rules` to be a list, but got str. Write \[...\] around it."),
        ({"name": "a", "expect": "accuracy > 0.5"}, "Expected `rules` to be a list, but got dict"),
        (None, "Expected `rules` to be a list, but got NoneType"),
        (AlarmRule(), "Expected `rules` to be a list, but got AlarmRule"),
        (
            [0.5],
            r"Expected `rules\[0\]` to be a rule, a sentence such as 'accuracy > 0.9', or {'name': ..., 'expect': ",
        ),
        ([AlarmRule], r"Expected `rules\[0\]` to be a rule"),
        (["accuracy > 0.5", ["a"]], r"Expected `rules\[1\]` to be a rule"),
        ([{"name": "a", "expects": "accuracy > 0.5"}], r"but got {'name': 'a', 'expects': 'accuracy > 0.5'}"),
        ([{"expect": "accuracy > 0.5"}], r"Expected `rules\[0\]` to be a rule"),
        ([{"name": "a", "expect": 3}], "Expected `sentence` to be text, but got 3."),
        ([{"name": 3, "expect": "accuracy > 0.5"}], "Expected `name` to be readable text on one line, but got 3."),
        (
            ["accuracy > 0.5", "accuracy  > 50 %"],
            "Expected expectations to differ, but got 'accuracy > 0.5' twice. Remove or rename one.",
        ),
    ],
)
def test_anything_else_is_refused(given_rules, message):
    with pytest.raises(ConfigurationError, match=message):
        as_rules(given_rules)


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(anything)
def test_anything_is_understood_or_refused_as_a_configuration_error(given_anything):
    for each in (given_anything, [given_anything]):
        try:
            assert as_rules(each) == ()
        except ConfigurationError:
            continue


# ---- as they conclude


def test_record_grows_by_findings_values_and_declarations_and_is_left_as_it_was():
    record = made(ABOVE, keys=KEYS[:1], notes=("a",))
    grown, news = conclude(as_rules([Counter(), AlarmRule(audits=1)]), History(), record)

    assert [each.key for each in grown.findings] == ["audits", "alarm/cue/patch"]
    assert {key: each.value for key, each in grown.metrics.items()} == {
        "cue/patch/effect": 0.3, "audits": 1, "alarm/cue/patch": 2,
    }  # fmt: skip
    assert grown.keys == (KEYS[0], *Counter.keys, *AlarmRule.keys)
    assert (grown.notes, grown.failed) == (("a",), ())
    assert [each.key for _, each in news] == ["audits", "alarm/cue/patch"]
    assert (record.findings, list(record.metrics), record.keys) == ((), ["cue/patch/effect"], KEYS[:1])


def test_history_is_left_as_it_was():
    past = History()
    run([AlarmRule()], [CLEAN, ABOVE], past)
    before = list(past)
    conclude((AlarmRule(),), past, made(ABOVE))
    assert list(past) == before


def test_a_history_with_one_more_record_is_a_view(tmp_path):
    past, newest = History(tmp_path), made(step=9, scores={"energy": torch.zeros(3)})
    for step in range(3):
        past.append(made(step=step, scores={"energy": torch.zeros(3)}))
    view = past.with_record(newest)

    assert [each.step for each in view] == [0, 1, 2, 9]
    assert view.last is newest
    assert (len(past), len(list(tmp_path.iterdir())), view.folder) == (3, 3, None)
    assert [each.thinned for each in view.without_tensors()] == [True, True, False, False]
    assert [each.thinned for each in view] == [False] * 4


def test_an_untested_state_is_logged_as_nan():
    (found,) = run([AlarmRule()], [effect(0.4, valid=12)])
    assert math.isnan(found.record.metrics["alarm/cue/patch"].value)
    assert found.news == ()


def test_news_is_what_is_worse_than_ever_before():
    found = run([AlarmRule()], [CLEAN, ABOVE, ABOVE, ABOVE, CLEAN, ABOVE, ABOVE])

    assert [each.record.metrics["alarm/cue/patch"].value for each in found] == [0, 1, 2, 2, 0, 1, 2]
    assert [[finding.state for _, finding in each.news] for each in found] == [[], ["watch"], ["alarm"], *[[]] * 4]


def test_a_resumed_run_knows_earlier_audits_and_what_was_said(tmp_path):
    run([AlarmRule()], [CLEAN, ABOVE], History(tmp_path))
    (second,) = run([AlarmRule()], [ABOVE], History(tmp_path))
    (third,) = run([AlarmRule()], [ABOVE], History(tmp_path))

    assert [finding.state for _, finding in second.news] == ["alarm"]
    assert second.news[0][1].sentence.endswith("; from epoch 1; last clean audit: before training.")
    assert third.news == ()
    assert third.record.findings[0].state == "alarm"


def test_a_record_that_gained_metrics_is_concluded_on_anew():
    rules = as_rules([AlarmRule(audits=1), Counter(error=KeyError("x")), "cue/patch/effect < 0.1"])
    first = conclude(rules, History(), made(ABOVE))
    tint = {"cue/tint/effect": ABOVE["cue/patch/effect"]}
    again = conclude(rules, History(), replace(first.record, metrics={**first.record.metrics, **tint}))

    keys = ["alarm/cue/patch", "alarm/cue/tint", "expectation/cue/patch/effect < 0.1"]
    assert [each.key for each in again.record.findings] == keys
    assert [finding.key for _, finding in again.news] == ["alarm/cue/tint"]
    assert len(again.record.failed) == 1
    assert len(again.record.keys) == len(first.record.keys)


def test_nan_before_hides_no_news():
    found = run([AlarmRule(audits=1)], [effect(0.4, valid=12), {}, ABOVE])
    assert [len(each.news) for each in found] == [0, 0, 1]


def test_expectations_are_counted_and_no_news():
    rules = [
        "cue/patch/effect < 0.1",
        "cue/patch/effect < 0.6",
        "cue/patch/effect < 0.35",
        "accuracy > 0.5 from epoch 3",
    ]
    (found,) = run(rules, [ABOVE])

    counts = {key: each.value for key, each in found.record.metrics.items() if key.startswith("expectation/")}
    assert counts == {"expectation/passed": 1, "expectation/failed": 1, "expectation/undecided": 1}
    assert all(found.record.key(key).of == "nothing" for key in counts)
    assert [each.state for each in found.record.findings] == ["fail", "pass", "not enough evidence", "not due"]
    assert found.news == ()
    assert "expectation/passed" not in run([AlarmRule()], [ABOVE])[0].record.metrics


def test_expectations_may_be_about_alarms_of_the_same_audit_wherever_they_stand():
    found = run(["alarm/cue/patch < 2", AlarmRule(audits=1)], [CLEAN, ABOVE])

    assert [each.record.metrics["expectation/failed"].value for each in found] == [0, 1]
    assert found[1].record.findings[-1].sentence == "alarm/cue/patch < 2: fail by 0, 2 (no interval)."


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Counter(error=AuditError("Expected more.")), "The rule Counter() failed and was left out. Expected more."),
        (Counter(error=KeyError("x")), "The rule Counter() failed and was left out. KeyError: 'x'."),
        (Counter(value="many"), "The rule Counter() failed and was left out. ValueError: could not convert string"),
    ],
)
def test_a_rule_that_fails_costs_itself_alone(rule, words):
    (found,) = run([rule, AlarmRule(audits=1), "accuracy > 0.5"], [ABOVE])

    (said,) = found.record.failed
    assert said.startswith(words)
    assert [each.key for each in found.record.findings] == ["alarm/cue/patch", "expectation/accuracy > 0.5"]
    assert "audits" not in found.record.metrics


def test_a_class_that_there_is_not_is_said_at_the_audit_if_it_was_not_before():
    record = made(per_probe={"accuracy": torch.ones(40)}, truth=torch.arange(40) % 2, class_names=("cat", "owl"))
    grown, _ = conclude(as_rules(["accuracy > 0.5 for class oul"]), History(), record)
    assert grown.failed[0].startswith("The rule Expectation(sentence='accuracy > 0.5 for class oul', name=None) failed")
    assert grown.failed[0].endswith("Did you mean 'owl'?")


def test_equal_histories_give_equal_conclusions(tmp_path):
    rules = [AlarmRule(), "cue/patch/effect < 0.1"]
    audits = [CLEAN, ABOVE, ABOVE, CLEAN]
    memory, folder = run(rules, audits), run(rules, audits, History(tmp_path))

    assert [each.record.findings for each in memory] == [each.record.findings for each in folder]
    assert [each.news[0][1] for each in memory if each.news] == [each.news[0][1] for each in folder if each.news]
    assert [each.findings for each in History(tmp_path)] == [each.record.findings for each in memory]
