"""`assert_expectations`: expectations as a test, for pytest or any other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from xai_callbacks.errors import ConfigurationError, XAICallbacksError
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Finding, Key
from xai_callbacks.rules.conclusions import as_rules
from xai_callbacks.rules.expectation import Expectation
from xai_callbacks.rules.summary import MARKS, table

__all__ = ["ExpectationsFailed", "assert_expectations"]


class ExpectationsFailed(XAICallbacksError, AssertionError):  # noqa: N818  # named as what a test reports
    """A record does not meet expectations; the message is a table of all of them."""


def assert_expectations(
    record: AuditRecord, expectations: Sequence[str | Mapping[str, str] | Expectation], *, strict: bool = False
) -> tuple[Finding, ...]:
    """Fail unless a record meets expectations.

    Args:
        record: The audit.
        expectations: Sentences, see `xai_callbacks.rules.sentence`, named ones, or expectations.
        strict: Whether what there is not enough evidence for fails, too. If not, a warning says so.

    Returns:
        What was found of each.

    Raises:
        ExpectationsFailed: One failed.
        ConfigurationError: One cannot be understood, or the record has no such metric.

    Example::

        def test_looks_at_the_animal():
            record = Auditor(probes).audit(model)
            assert_expectations(record, ["gradcam/why/relevance_mass/core > 0.5", "accuracy > 90 %"])
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    rules = as_rules(expectations)
    measured = [(record.key(key) or Key(key, ""))._replace(key=key) for key in record.metrics]
    for rule in rules:
        if not isinstance(rule, Expectation):
            raise ConfigurationError(f"Expected `expectations` to be sentences, but got {rule!r}.")
        rule.check(measured, len(record.names), record)
    findings = [finding for rule in rules for finding in rule.conclude(History().with_record(record))]
    undecided = [each for each in findings if each.state == "not enough evidence"]
    failed = [each for each in findings if each.state == "fail"] + (undecided if strict else [])
    if failed:
        title = f"{len(failed)} of {len(rules)} expectations not met at epoch {record.epoch}, step {record.step}."
        rows = [(MARKS[each.state][1], each.sentence) for each in findings]
        raise ExpectationsFailed(table(title, [("", "expectation"), *rows]))
    if undecided:
        words = " ".join(each.sentence for each in undecided)
        warnings.warn(
            f"Not enough evidence for {len(undecided)} of {len(rules)} expectations. {words} Add probes, or pass "
            "strict=True to let the test fail.",
            stacklevel=2,
        )
    return tuple(findings)
