"""Conclusions from the history of a run: alarms, and expectations such as `cue/patch/effect < 0.05`."""

from xai_callbacks.rules.alarm_rule import AlarmRule
from xai_callbacks.rules.base import Rule
from xai_callbacks.rules.conclusions import Conclusions, ExpectationsFailed, as_rules, assert_expectations, conclude
from xai_callbacks.rules.expectation import Expectation
from xai_callbacks.rules.summary import summary

__all__ = [
    "AlarmRule", "Conclusions", "Expectation", "ExpectationsFailed", "Rule", "as_rules", "assert_expectations",
    "conclude", "summary",
]  # fmt: skip
