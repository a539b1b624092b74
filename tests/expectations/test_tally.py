"""The story of a run: what each audit said, the table at the end, and what a resumed run knows."""

from __future__ import annotations

import io

import pytest
import torch

from tests.expectations.records import VOCABULARY, estimate, made_record, parsed
from xai_callbacks.expectations import Checked, Outcome, Tally, check, parse_expectations

PASS, FAIL, UNKNOWN, NOT_DUE = Outcome.PASS, Outcome.FAIL, Outcome.NOT_ENOUGH_EVIDENCE, Outcome.NOT_DUE

EXPECTATIONS = (
    "relevance_mass[core] of why_rather_than > 0.5",
    {"name": "ignores the tint", "expect": "cue_effect[tint] < 0.05"},
    "novelty[energy].auroc > 0.8",
    "worst_group_accuracy > 0.7 from epoch 5",
)


def record_of(mass, effect, auroc):
    metrics = {
        "gradcam/why_rather_than/relevance_mass/core": estimate(mass, mass - 0.0625, mass + 0.0625),
        "cue/tint/effect": estimate(effect, effect - 0.015625, effect + 0.015625),
        "novelty/energy/auroc": estimate(auroc, valid=20),
    }
    return made_record(metrics)


@pytest.fixture
def tally():
    tally = Tally(parse_expectations(EXPECTATIONS, VOCABULARY))
    rounds = [(0.25, 0.0, 0.9), (0.5, 0.03125, 0.9), (0.625, 0.125, 0.9)]
    for epoch, values in enumerate(rounds):
        tally.add(check(tally.expectations, record_of(*values), epoch), step=10 * epoch, epoch=epoch)
    return tally


def test_every_audit_is_remembered(tally):
    mass, effect, auroc, groups = tally.expectations
    assert tally.history(mass) == (Checked(0, 0, FAIL), Checked(10, 1, UNKNOWN), Checked(20, 2, PASS))
    assert [checked.outcome for checked in tally.history(effect)] == [PASS, PASS, FAIL]
    assert [checked.outcome for checked in tally.history(auroc)] == [UNKNOWN] * 3
    assert [checked.outcome for checked in tally.history(groups)] == [NOT_DUE] * 3


def test_first_failure_is_dated(tally):
    assert [tally.first_failure(expectation) for expectation in tally.expectations] == [
        Checked(0, 0, FAIL),
        Checked(20, 2, FAIL),
        None,
        None,
    ]


def test_latest_verdicts_are_counted(tally):
    assert [tally.count(outcome) for outcome in Outcome] == [1, 1, 1, 1]
    assert tally.latest(tally.expectations[0]).value == 0.625


def test_table_is_this(tally):
    assert tally.table() == "\n".join(
        [
            "Expectations at epoch 2, step 20: 1 pass, 1 fail, 1 not enough evidence, 1 not due.",
            "",
            "      expectation                               measured              failed first  audits",
            "pass  relevance_mass[core] of why_rather_than   0.625 [0.562, 0.688]  epoch 0       F?.",
            "      > 0.5",
            "FAIL  ignores the tint: cue_effect[tint] <      0.125 [0.109, 0.141]  epoch 2       ..F",
            "      0.05",
            "?     novelty[energy].auroc > 0.8               0.9                   never         ???",
            "      0.9 on 20 probes, too few for an interval (30); expected > 0.8",
            "-     worst_group_accuracy > 0.7 from epoch 5                         never         ---",
            "      not due before epoch 5",
            "",
            "F FAIL   . pass   ? not enough evidence   - not due",
        ]
    )


def test_markdown_is_this(tally):
    assert tally.markdown() == "\n".join(
        [
            "Expectations at epoch 2, step 20: 1 pass, 1 fail, 1 not enough evidence, 1 not due.",
            "",
            "|  | expectation | measured | failed first | audits |",
            "|---|---|---|---|---|",
            r"| pass | relevance\_mass\[core\] of why\_rather\_than &gt; 0.5 | 0.625 \[0.562, 0.688\] "
            "| epoch 0 | F?. |",
            r"| FAIL | ignores the tint: cue\_effect\[tint\] &lt; 0.05 | 0.125 \[0.109, 0.141\] | epoch 2 | ..F |",
            r"| ? | novelty\[energy\].auroc &gt; 0.8 | 0.9 on 20 probes, too few for an interval (30); "
            r"expected &gt; 0.8 | never | ??? |",
            r"| - | worst\_group\_accuracy &gt; 0.7 from epoch 5 | not due before epoch 5 | never | --- |",
            "",
            "F FAIL   . pass   ? not enough evidence   - not due",
        ]
    )


def test_run_without_an_audit_has_a_table():
    tally = Tally(parsed("accuracy > 0.5"))
    assert tally.table().splitlines()[0] == "Expectations: nothing was audited."
    assert "accuracy > 0.5" in tally.table()
    assert "accuracy &gt; 0.5" in tally.markdown()


def test_run_without_expectations_has_one_line():
    assert Tally(()).table() == Tally(()).markdown() == "Expectations: nothing was audited."


def test_verdicts_of_other_expectations_are_left_out():
    tally = Tally(parsed("confidence > 0.5"))
    tally.add(check(parsed("accuracy > 0.5"), made_record()), step=0, epoch=0)
    assert tally.history(tally.expectations[0]) == ()


def test_resumed_run_goes_on_where_it_stopped(tally):
    buffer = io.BytesIO()
    torch.save(tally.state_dict(), buffer)
    buffer.seek(0)
    resumed = Tally(tally.expectations)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.table() == tally.table()
    for each in (tally, resumed):
        each.add(check(each.expectations, record_of(0.25, 0.0, 0.9), 6), step=60, epoch=6)
    assert resumed.table() == tally.table()
    assert resumed.state_dict()["ignores the tint"] == tally.state_dict()["ignores the tint"]


def test_expectation_that_was_changed_begins_anew(tally):
    changed = Tally(parsed("novelty[energy].auroc > 0.8", "confidence > 0.5"))
    changed.add(check(changed.expectations, record_of(0.5, 0.0, 0.9)), step=0, epoch=0)
    changed.load_state_dict(tally.state_dict())
    assert [len(changed.history(expectation)) for expectation in changed.expectations] == [3, 0]
    named = Tally(parse_expectations([{"name": "ignores the tint", "expect": "cue_effect[tint] < 0.1"}], VOCABULARY))
    named.load_state_dict(tally.state_dict())
    assert named.history(named.expectations[0]) == ()
    assert named.latest(named.expectations[0]) is None


def test_forgotten_run_is_as_new(tally):
    tally.forget()
    assert tally.table() == Tally(tally.expectations).table()
