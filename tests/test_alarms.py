"""Alarms: the rule, the onset, what is only looked at, and what a user reads."""

from __future__ import annotations

import math

import pytest

from xai_callbacks.alarms import AlarmBook, AlarmRule
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.summary import Estimate

LIFT = "gradcam/why/relevance_lift/spurious"


def effect(value, low=None, high=None, valid=64):
    return {"cue/patch/effect": Estimate(value, low, high, 0.0, valid, 0)}


def lift(low, high, reference=None):
    found = {LIFT: Estimate((low + high) / 2, low, high, 1.0, 64, 0)}
    if reference is not None:
        found[f"{LIFT}/reference"] = Estimate(1.0, 0.9, reference, 1.0, 3, 0)
    return found


def states(book, audits):
    """The state of the first finding after each audit; the first of them is before training."""
    return [book.see(metrics, step=epoch, epoch=epoch)[0].state for epoch, metrics in enumerate(audits)]


CLEAN, ABOVE = effect(0.0, -0.02, 0.02), effect(0.3, 0.2, 0.4)


def test_an_alarm_needs_two_audits_in_a_row():
    book = AlarmBook(["patch"])

    assert states(book, [CLEAN, ABOVE, CLEAN, ABOVE, ABOVE, ABOVE, CLEAN]) == [
        "no evidence", "watch", "no evidence", "watch", "alarm", "alarm", "no evidence",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metrics",
    [
        effect(0.04, 0.03, 0.05),  # the lower end is not above the threshold
        effect(0.5, 0.4, 0.6, valid=29),  # too few probes
        effect(0.5, None, None),  # no interval
        effect(math.nan, None, None, valid=0),
        effect(-0.5, -0.6, -0.4),  # the cue speaks against its class
        {},  # not measured
    ],
)
def test_what_is_not_evidence_raises_no_alarm_however_often(metrics):
    assert states(AlarmBook(["patch"]), [metrics] * 4) == ["no evidence"] * 4


def test_an_audit_that_did_not_measure_the_cue_ends_no_run():
    # It is left out: a failing trial must neither raise an alarm nor hide one.
    assert states(AlarmBook(["patch"]), [CLEAN, ABOVE, {}, ABOVE])[1:] == ["watch", "no evidence", "alarm"]


@pytest.mark.parametrize(("audits", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_the_rule_says_how_many_audits(audits, expected):
    found = states(AlarmBook(["patch"], rule=AlarmRule(audits=audits)), [CLEAN, *[ABOVE] * 5])

    assert found.index("alarm") == expected


def test_the_onset_is_dated_with_the_last_clean_audit_and_its_checkpoint(tmp_path):
    saved = [tmp_path / f"{epoch}.ckpt" for epoch in range(6)]
    for path in saved:
        path.write_text("weights")
    audits = [
        effect(0.0, -0.01, 0.01),
        effect(0.01, 0.0, 0.02),
        effect(0.02, 0.0, 0.04),  # the interval reaches above .03: earliest
        effect(0.05, 0.02, 0.08),  # the estimate is above: the date
        effect(0.2, 0.1, 0.3),  # the interval is above: latest
        effect(0.3, 0.2, 0.4),
    ]
    book = AlarmBook(["patch"])
    for epoch, metrics in enumerate(audits):
        # At an audit, the newest checkpoint is that of the audit before.
        checkpoint = str(saved[epoch - 1]) if epoch else None
        finding = book.see(metrics, step=epoch, epoch=epoch, checkpoint=checkpoint)[0]

    onset = finding.onset
    assert (onset.epoch, onset.earliest, onset.latest, onset.last_clean) == (3, 2, 4, 2)
    assert onset.checkpoint == str(saved[2])
    assert str(onset) == f"from epoch 3 (2–4); last clean audit: epoch 2, checkpoint {saved[2]}"
    assert finding.sentence.startswith("Alarm: the model answers by the cue 'patch'")
    assert str(onset) in finding.sentence


def test_a_checkpoint_that_was_deleted_is_not_recommended(tmp_path):
    book = AlarmBook(["patch"])
    for epoch, metrics in enumerate([CLEAN, ABOVE, ABOVE]):
        finding = book.see(metrics, step=epoch, epoch=epoch, checkpoint=str(tmp_path / "gone.ckpt"))[0]

    assert finding.onset.checkpoint is None
    assert str(finding.onset) == "from epoch 1; last clean audit: before training"


def test_a_checkpoint_that_was_written_over_is_not_recommended(tmp_path):
    path = tmp_path / "best.ckpt"
    path.write_text("weights")
    book = AlarmBook(["patch"])
    for epoch, metrics in enumerate([CLEAN, CLEAN, ABOVE, ABOVE]):
        # Saved after the second audit, which is the last clean one, and again after the third.
        finding = book.see(metrics, step=epoch, epoch=epoch, checkpoint=str(path) if epoch in (2, 3) else None)[0]

    assert (finding.onset.last_clean, finding.onset.checkpoint) == (1, None)


def test_a_cue_in_use_from_the_first_audit_has_no_clean_one():
    book = AlarmBook(["patch"])
    book.see(ABOVE, step=5, epoch=3)
    onset = book.see(ABOVE, step=6, epoch=4)[0].onset

    assert onset.last_clean is None
    assert str(onset) == "from epoch 3; no audit before was clean"


def test_the_audit_before_training_is_no_evidence():
    book = AlarmBook(["patch"])

    assert states(book, [ABOVE, ABOVE, ABOVE]) == ["no evidence", "watch", "alarm"]
    onset = book.see(ABOVE, step=3, epoch=3)[0].onset
    assert (onset.epoch, onset.last_clean) == (1, None)


def test_heat_alone_is_never_more_than_watch():
    book = AlarmBook([], [LIFT])

    assert states(book, [lift(0.5, 0.6)] + [lift(3.0, 4.0)] * 5) == ["no evidence"] * 2 + ["watch"] * 4


@pytest.mark.parametrize(
    "first",
    [lift(1.0, 3.5), lift(0.2, 0.4, reference=3.5)],
    ids=["the untrained model looks there", "random weights look there"],
)
def test_heat_that_the_untrained_or_a_random_model_puts_there_is_nothing(first):
    assert states(AlarmBook([], [LIFT]), [first] + [lift(3.0, 4.0)] * 3) == ["no evidence"] * 4


def test_no_sentence_says_that_there_is_no_shortcut():
    book = AlarmBook(["patch"], [LIFT])
    sentences = [finding.sentence for finding in book.see({**CLEAN, **lift(0.1, 0.2)}, step=0, epoch=0)]

    assert sentences == [
        "No evidence for the cue 'patch', of the cues tested: it raises the probability of its class by 0.00 "
        "[-0.02, 0.02].",
        "No more heat on the region 'spurious' than without training.",
    ]


def test_too_few_probes_are_said_to_be_too_few():
    finding = AlarmBook(["patch"]).see(effect(0.4, valid=12), step=0, epoch=0)[0]

    assert finding.sentence == "Not enough evidence on the cue 'patch': 12 valid probes of 30."


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        (effect(0.4, valid=12), "Not enough evidence on the cue 'patch': 12 valid probes of 30."),
        (effect(0.4, 0.3, 0.5, valid=29), "Not enough evidence on the cue 'patch': 29 valid probes of 30."),
        ({}, "The cue 'patch' was not tested at this audit."),
    ],
)
def test_what_was_not_tested_has_no_value(metrics, sentence):
    finding = AlarmBook(["patch"]).see(metrics, step=1, epoch=1)[0]

    assert (finding.state, finding.tested, finding.sentence) == ("no evidence", False, sentence)
    assert math.isnan(finding.value)


def test_what_was_tested_and_found_harmless_is_0():
    finding = AlarmBook(["patch"]).see(CLEAN, step=1, epoch=1)[0]

    assert (finding.tested, finding.value) == (True, 0.0)
    assert math.isnan(AlarmBook(["patch"], rule=AlarmRule(min_count=65)).see(CLEAN, step=1, epoch=1)[0].value)


@pytest.mark.parametrize("metrics", [{}, {LIFT: Estimate(2.0, None, None, 1.0, 12, 0)}])
def test_a_region_of_too_few_probes_has_no_value(metrics):
    finding = AlarmBook([], [LIFT]).see(metrics, step=1, epoch=1)[0]

    assert math.isnan(finding.value)
    assert finding.sentence == "Not enough evidence on the region 'spurious': 30 valid probes are needed."


@pytest.mark.parametrize(("cues", "min_count", "probes", "warned"), [
    (["patch"], 30, 29, True), (["patch"], 30, 30, False), (["patch"], 64, 63, True), ([], 30, 8, False),
])  # fmt: skip
def test_too_few_probes_for_an_alarm_are_known_before_training(cues, min_count, probes, warned):
    words = AlarmBook(cues, rule=AlarmRule(min_count=min_count)).forewarning(probes)

    assert words.startswith(f"Expected at least {min_count} probes to watch 'patch', but got {probes}:") is warned
    assert bool(words) is warned


def test_a_book_goes_on_from_its_state():
    book = AlarmBook(["patch"], [LIFT])
    book.see({**ABOVE, **lift(0.5, 2.0)}, step=0, epoch=0)
    book.see({**ABOVE, **lift(0.5, 2.0)}, step=1, epoch=1)
    resumed = AlarmBook(["patch"], [LIFT])
    resumed.load_state_dict(book.state_dict())

    audit = {**ABOVE, **lift(1.5, 3.0)}
    assert resumed.see(audit, step=2, epoch=2)[0].state == "alarm"
    # 1.5 is above chance, and below what the untrained model did.
    assert resumed.see(audit, step=3, epoch=3)[1].state == "no evidence"


def test_a_book_that_forgets_begins_anew():
    book = AlarmBook(["patch"])
    book.see(ABOVE, step=1, epoch=1)
    book.forget()

    assert book.see(ABOVE, step=2, epoch=2)[0].state == "watch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, r"Expected `threshold` to be a number in \[0, 1\), but got 1.0"),
        ({"threshold": "0.1"}, r"Expected `threshold` to be a number in \[0, 1\), but got '0.1'"),
        ({"threshold": math.nan}, r"Expected `threshold` to be a number in \[0, 1\), but got nan"),
        ({"threshold": None}, "Expected `threshold`"),
        ({"threshold": False}, "Expected `threshold`"),
        ({"stop": "false"}, "Expected `stop` to be True or False, but got 'false'"),
        ({"stop": 0}, "Expected `stop` to be True or False, but got 0"),
        ({"hook": "slack"}, "Expected `hook` to be a function of a finding, but got 'slack'"),
        ({"hook": 5}, "Expected `hook`"),
        ({"audits": 0}, "Expected `audits` to be an integer of 1 or more, but got 0"),
        ({"min_count": 10}, "Expected `min_count` to be an integer of 30 or more, but got 10. With fewer probes"),
    ],
)
def test_a_rule_out_of_range_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AlarmRule(**arguments)
