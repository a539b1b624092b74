"""`assert_expectations`: expectations as a test, for pytest or any other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from xai_callbacks.errors import XAICallbacksError
from xai_callbacks.expectations.check import Outcome, Verdict, check
from xai_callbacks.expectations.expectation import Expectation
from xai_callbacks.expectations.lookup import parse_expectations
from xai_callbacks.expectations.table import lines_of, text_table
from xai_callbacks.expectations.vocabulary import Vocabulary
from xai_callbacks.record import NoveltyRecord

__all__ = ["ExpectationsFailed", "assert_expectations"]


class ExpectationsFailed(XAICallbacksError, AssertionError):  # noqa: N818  # named as what a test reports
    """A record does not meet expectations; the message is a table of all of them.

    Attributes:
        verdicts: What was said of each.
    """

    def __init__(self, message: str, verdicts: tuple[Verdict, ...] = ()) -> None:
        super().__init__(message)
        self.verdicts = verdicts


def assert_expectations(
    record: NoveltyRecord,
    expectations: Sequence[str | Mapping[str, str] | Expectation],
    vocabulary: Vocabulary | None = None,
    *,
    strict: bool = False,
) -> tuple[Verdict, ...]:
    """Fail unless a record meets expectations.

    Args:
        record: The audit.
        expectations: See `parse_expectations`.
        vocabulary: What there is to be named; None for what the record has. Names of classes and groups are not in it:
            `Vocabulary.of_record(record, probes)` adds them.
        strict: Whether what there is not enough evidence for fails, too. If not, a warning says so.

    Returns:
        One verdict for each.

    Raises:
        ExpectationsFailed: One failed.
        ConfigurationError: One cannot be understood.

    Example::

        def test_looks_at_the_animal():
            record = Auditor(probes).audit(model)
            assert_expectations(record, ["relevance_mass[core] > 0.5", "accuracy > 90 %"])
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    known = Vocabulary.of_record(record) if vocabulary is None else vocabulary
    verdicts = check(parse_expectations(expectations, known), record)
    undecided = [verdict for verdict in verdicts if verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE]
    failed = [verdict for verdict in verdicts if verdict.outcome is Outcome.FAIL] + (undecided if strict else [])
    if failed:
        title = f"{len(failed)} of {len(verdicts)} expectations not met at epoch {record.epoch}, step {record.step}."
        raise ExpectationsFailed(text_table(title, lines_of(verdicts)), verdicts)
    if undecided:
        sentences = "; ".join(f"{verdict.expectation.label!r}: {verdict.reason}" for verdict in undecided)
        warnings.warn(
            f"Not enough evidence for {len(undecided)} of {len(verdicts)} expectations: {sentences}. Add probes, or "
            "pass strict=True to let the test fail.",
            stacklevel=2,
        )
    return verdicts
