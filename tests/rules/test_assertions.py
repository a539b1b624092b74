"""Expectations as tests of a record."""

from __future__ import annotations

import pytest
import torch

from tests.rules.records import estimate, made
from xai_callbacks.errors import ConfigurationError, XAICallbacksError
from xai_callbacks.rules import AlarmRule, Expectation, ExpectationsFailed, assert_expectations

GOOD = {"confidence": estimate(0.61, 0.55, 0.66), "switched": estimate(0.5, 0.25, 0.75)}


def test_record_that_meets_expectations_passes():
    (finding,) = assert_expectations(made(GOOD), ["confidence > 0.5"])
    assert finding.state == "pass"
    assert assert_expectations(made(GOOD), [Expectation("confidence > 0.5")]) == (finding,)


def test_record_that_does_not_fails_with_the_table():
    named = {"name": "is in doubt", "expect": "confidence < 0.5"}
    with pytest.raises(ExpectationsFailed) as error:
        assert_expectations(made(GOOD, epoch=3, step=40), ["confidence > 0.5", named])
    assert str(error.value) == "\n".join(
        [
            "1 of 2 expectations not met at epoch 3, step 40.",
            "",
            "      expectation",
            "pass  confidence > 0.5: pass by 0.11, 0.61 [0.55, 0.66] on 64 probes.",
            "FAIL  is in doubt: confidence < 0.5: fail by 0.11, 0.61 [0.55, 0.66] on 64 probes.",
        ]
    )


def test_failure_is_an_assertion_and_one_of_our_errors():
    assert issubclass(ExpectationsFailed, AssertionError)
    assert issubclass(ExpectationsFailed, XAICallbacksError)


def test_missing_evidence_is_a_warning_and_fails_a_strict_test():
    sentences = ["confidence > 0.5", "switched < 0.4"]
    with pytest.warns(UserWarning, match="Not enough evidence") as warned:
        assert_expectations(made(GOOD), sentences)
    assert str(warned[0].message) == (
        "Not enough evidence for 1 of 2 expectations. switched < 0.4: not enough evidence, 0.5 [0.25, 0.75] on 64 "
        "probes. Add probes, or pass strict=True to let the test fail."
    )
    assert warned[0].filename == __file__
    with pytest.raises(ExpectationsFailed, match=r"1 of 2 expectations not met"):
        assert_expectations(made(GOOD), sentences, strict=True)


def test_expectation_that_is_not_due_fails_no_test():
    (finding,) = assert_expectations(made(GOOD, epoch=2), ["confidence < 0.5 from epoch 3"], strict=True)
    assert finding.state == "not due"


def test_classes_and_groups_of_the_record_can_be_named():
    values = torch.arange(120, dtype=torch.float64) / 120
    record = made(
        per_probe={"confidence": values}, truth=torch.arange(120) % 2, class_names=("cat", "owl"),
        groups=("land",) * 60 + ("sea",) * 60,
    )  # fmt: skip
    sentences = ["confidence > 0.3 for class owl", "confidence > 0.6 for group sea"]
    found = assert_expectations(record, sentences)
    assert [each.estimate.value for each in found] == pytest.approx(
        [float(values[1::2].mean()), float(values[60:].mean())]
    )
    with pytest.raises(ConfigurationError, match=r"Did you mean 'owl'\?"):
        assert_expectations(record, ["confidence > 0.3 for class oul"])


def test_metric_without_a_declaration_can_be_named_if_it_was_measured():
    record = made({"mine": estimate(3.0, 2.0, 4.0)}, keys=())
    assert assert_expectations(record, ["mine > 1"])[0].state == "pass"


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("switchd < 0.5", r"but got 'switchd' in 'switchd < 0.5'. Did you mean 'switched'\?"),
        ("accuracy > 0.5", "Expected the key of a metric of this run, but got 'accuracy'"),  # declared, not measured
        ("confidence > 50", r"Did you mean 50 %\?"),
        (AlarmRule(), r"Expected `expectations` to be sentences, but got AlarmRule\("),
    ],
)
def test_what_the_record_cannot_tell_is_refused(sentence, message):
    with pytest.raises(ConfigurationError, match=message):
        assert_expectations(made(GOOD), [sentence])
