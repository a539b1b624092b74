"""Test-driven development for models: sentences such as `cue_effect[snow] < 0.05`, checked at each audit.

`parse_expectations` understands them before training starts, `check` holds them against a record, `Tally` remembers
what became of each, and `assert_expectations` makes a test of them.
"""

from xai_callbacks.expectations.assertions import ExpectationsFailed, assert_expectations
from xai_callbacks.expectations.check import Outcome, Verdict, check
from xai_callbacks.expectations.expectation import Expectation
from xai_callbacks.expectations.lookup import parse_expectations
from xai_callbacks.expectations.tally import Checked, Tally
from xai_callbacks.expectations.vocabulary import Vocabulary

__all__ = [
    "Checked",
    "Expectation",
    "ExpectationsFailed",
    "Outcome",
    "Tally",
    "Verdict",
    "Vocabulary",
    "assert_expectations",
    "check",
    "parse_expectations",
]
