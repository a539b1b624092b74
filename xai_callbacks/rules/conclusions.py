"""Rules as they are given and as they conclude, one after another; expectations as a test, for pytest or any other."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from xai_callbacks.errors import ConfigurationError, XAICallbacksError, in_words
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Estimate, Finding, Key
from xai_callbacks.rules.base import Rule
from xai_callbacks.rules.expectation import Expectation
from xai_callbacks.rules.summary import MARKS, table

_COUNTS = {"passed": "pass", "failed": "fail", "undecided": "not enough evidence"}
_COUNT_KEYS = tuple(Key(f"expectation/{name}", f"expectations {name}", 0.0, of="nothing") for name in _COUNTS)


class Conclusions(NamedTuple):
    """What rules make of one audit."""

    record: AuditRecord  # with findings, and their values among the metrics
    news: tuple[tuple[Rule, Finding], ...]  # findings whose value is above 0 and higher than ever before in the run


def as_rules(given: Sequence[Rule | str | Mapping[str, str]]) -> tuple[Rule, ...]:
    """Understand rules, the sentences of expectations and `{"name": ..., "expect": sentence}`, in any mixture.

    Expectations come last, as they may be about the values of other rules. Raises a `ConfigurationError` if one is
    something else, a sentence is not of the language, or stands there twice.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ConfigurationError(
            f"Expected `rules` to be a list, but got {type(given).__name__}. Write [...] around it."
        )
    rules = [_understood(each, place) for place, each in enumerate(given)]
    labels = [rule.label for rule in rules if isinstance(rule, Expectation)]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(f"Expected expectations to differ, but got {label!r} twice. Remove or rename one.")
    return tuple(sorted(rules, key=lambda rule: isinstance(rule, Expectation)))


def conclude(rules: Sequence[Rule], past: History, record: AuditRecord) -> Conclusions:
    """Let rules conclude on an audit, one after another, each knowing what those before it found.

    A rule that raises costs its own findings, and a sentence in `record.failed`. Where there are expectations they are
    counted under `expectation/passed`, `failed` and `undecided`. A record that was concluded on before, and has gained
    metrics since, gets its findings anew; only what is worse than they were is news.

    Args:
        rules: From `as_rules`.
        past: Earlier audits of the run.
        record: The audit; left as it is.
    """
    before = [(each.key, each.value) for known in (*past.without_tensors(), record) for each in known.findings]
    record, found = replace(record, findings=()), list[tuple[Rule, Finding]]()
    for rule in rules:
        try:
            findings = tuple(rule.conclude(past.with_record(record)))
            values = {each.key: Estimate(float(each.value)) for each in findings if each.value is not None}
        except Exception as error:  # a rule of a user may raise anything
            words = f"The rule {rule!r} failed and was left out. {in_words(error)}"
            record = replace(record, failed=(*(each for each in record.failed if each != words), words))
        else:
            found += [(rule, each) for each in findings]
            record = _grown(record, findings, values, rule.keys)
    states = [each.state for rule, each in found if isinstance(rule, Expectation)]
    if any(isinstance(rule, Expectation) for rule in rules):
        counts = {f"expectation/{name}": Estimate(float(states.count(state))) for name, state in _COUNTS.items()}
        record = _grown(record, (), counts, _COUNT_KEYS)
    return Conclusions(record, tuple((rule, each) for rule, each in found if _is_new(each, before)))


class ExpectationsFailed(XAICallbacksError, AssertionError):  # noqa: N818  # named as what a test reports
    """A record does not meet expectations; the message is a table of all of them."""


def assert_expectations(
    record: AuditRecord, expectations: Sequence[str | Mapping[str, str] | Expectation], *, strict: bool = False
) -> tuple[Finding, ...]:
    """Fail unless a record meets expectations; return what was found of each.

    Args:
        record: The audit.
        expectations: Sentences, see `xai_callbacks.rules.sentence`, named ones, or expectations.
        strict: Whether what there is not enough evidence for fails, too. If not, a warning says so.

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
    for rule in rules:
        if not isinstance(rule, Expectation):
            raise ConfigurationError(f"Expected `expectations` to be sentences, but got {rule!r}.")
    findings = judged(rules, History().with_record(record))
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


def judged(rules: Sequence[Rule], history: History) -> list[Finding]:
    """What rules find of the latest audit, which must have the metrics that they are about."""
    record = history[-1]
    measured = [(record.key(key) or Key(key, ""))._replace(key=key) for key in record.metrics]
    for rule in rules:
        rule.check(measured, len(record.names), record)
    return [finding for rule in rules for finding in rule.conclude(history)]


def _grown(
    record: AuditRecord, findings: Sequence[Finding], values: Mapping[str, Estimate], keys: Sequence[Key]
) -> AuditRecord:
    return replace(
        record,
        findings=(*record.findings, *findings),
        metrics={**record.metrics, **values},
        keys=(*record.keys, *(each for each in keys if each not in record.keys)),
    )


def _is_new(finding: Finding, before: Sequence[tuple[str, float | None]]) -> bool:
    value = finding.value
    return value is not None and value > max([0.0, *(old for key, old in before if key == finding.key and old)])


def _understood(given: object, place: int) -> Rule:
    if isinstance(given, Rule):
        return given
    if isinstance(given, str):
        return Expectation(given)
    if not isinstance(given, Mapping) or set(given) != {"name", "expect"}:
        raise ConfigurationError(
            f"Expected `rules[{place}]` to be a rule, a sentence such as 'accuracy > 0.9', or {{'name': ..., 'expect': "
            f"sentence}}, but got {given!r}."
        )
    return Expectation(given["expect"], given["name"])
