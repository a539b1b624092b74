"""Alarms: the rule, the onset, what is only looked at, and what a user reads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules.records import ABOVE, CLEAN, LIFT, WHERE, effect, findings, history_of, last, lift, made, states
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.record import Estimate, Key
from xai_callbacks.rules import AlarmRule

EFFECT = Key("cue/patch/effect", "effect of the cue", -1.0, 1.0)


def test_an_alarm_needs_two_audits_in_a_row():
    found = findings(AlarmRule(), [CLEAN, ABOVE, CLEAN, ABOVE, ABOVE, ABOVE, CLEAN])

    expected = ["no evidence", "watch", "no evidence", "watch", "alarm", "alarm", "no evidence"]
    assert [each.state for (each,) in found] == expected
    assert [each.value for (each,) in found] == [0, 1, 0, 1, 2, 2, 0]
    assert [each.loud for (each,) in found] == [state != "no evidence" for state in expected]
    assert {(each.key, each.about, each.threshold) for (each,) in found} == {
        ("alarm/cue/patch", "cue/patch/effect", 0.03)
    }
    assert found[1][0].estimate == ABOVE["cue/patch/effect"]


@pytest.mark.parametrize(
    "metrics",
    [
        effect(0.04, 0.03, 0.05),  # the lower end is not above the threshold
        effect(0.5, 0.4, 0.6, valid=29),  # too few probes
        effect(0.5, None, None),  # no interval
        effect(math.nan, None, None, valid=0),
        effect(-0.02, -0.03, 0.0),
    ],
)
def test_what_is_not_evidence_raises_no_alarm_however_often(metrics):
    assert states(AlarmRule(), [metrics] * 4) == ["no evidence"] * 4


def test_an_audit_that_did_not_measure_the_cue_ends_a_run():
    assert states(AlarmRule(), [CLEAN, ABOVE, {}, ABOVE, ABOVE])[1:] == ["watch", "no evidence", "watch", "alarm"]


@pytest.mark.parametrize(("audits", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_the_rule_says_how_many_audits(audits, expected):
    assert states(AlarmRule(audits=audits), [CLEAN, *[ABOVE] * 5]).index("alarm") == expected


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_states_are_those_of_a_slow_count(audits, needed):
    """A twin that counts forwards: `(measured, above)` an audit."""
    given_metrics = [CLEAN, *({} if not tried else ABOVE if above else CLEAN for tried, above in audits)]
    run, expected = 0, "no evidence"
    for tried, above in audits:
        run = run if not tried else run + 1 if above else 0
        expected = "no evidence" if not tried or not run else "alarm" if run >= needed else "watch"
    assert last(given_metrics, AlarmRule(audits=needed)).state == expected


# ---- the onset


def saved(folder, audits):
    """Records of these audits, each with a checkpoint of its weights."""
    records = []
    for epoch, metrics in enumerate(audits):
        path = folder / f"{epoch}.ckpt"
        path.write_text("weights")
        records.append(made(metrics, step=epoch, epoch=epoch, untrained=epoch == 0, checkpoint=str(path)))
    return records


def test_the_onset_is_dated_with_the_last_clean_audit_and_its_checkpoint(tmp_path):
    audits = [
        effect(0.0, -0.01, 0.01),
        effect(0.01, 0.0, 0.02),
        effect(0.02, 0.0, 0.04),  # the interval reaches above .03: earliest
        effect(0.05, 0.02, 0.08),  # the estimate is above: the date
        effect(0.2, 0.1, 0.3),  # the interval is above: latest
        effect(0.3, 0.2, 0.4),
    ]
    finding = last(saved(tmp_path, audits))

    onset, path = finding.onset, str(tmp_path / "2.ckpt")
    assert (onset.epoch, onset.earliest, onset.latest, onset.last_clean) == (3, 2, 4, 2)
    assert onset.checkpoint == path
    assert str(onset) == f"from epoch 3 (2–4); last clean audit: epoch 2, checkpoint {path}"
    assert finding.sentence == (
        "Alarm: the model answers by the cue 'patch': it moves the probability of its class by 0.30 [0.20, 0.40], "
        f"beyond 0.03 at 2 consecutive audits; {onset}."
    )


def test_a_checkpoint_that_was_deleted_is_not_recommended(tmp_path):
    records = saved(tmp_path, [CLEAN, ABOVE, ABOVE])
    (tmp_path / "0.ckpt").unlink()
    onset = last(records).onset

    assert onset.checkpoint is None
    assert str(onset) == "from epoch 1; last clean audit: before training"


def test_a_checkpoint_that_was_written_over_is_not_recommended(tmp_path):
    path = tmp_path / "1.ckpt"
    records = saved(tmp_path, [CLEAN, CLEAN, ABOVE, ABOVE])
    assert last(records).onset.checkpoint == str(path)
    onset = last([*records[:2], replace(records[2], checkpoint=str(path)), records[3]]).onset

    assert (onset.last_clean, onset.checkpoint) == (1, None)


def test_a_cue_in_use_from_the_first_audit_has_no_clean_one():
    onset = last([made(ABOVE, step=step, epoch=step - 2) for step in (5, 6)]).onset

    assert onset.last_clean is None
    assert str(onset) == "from epoch 3; no audit before was clean"


def test_the_audit_before_training_is_no_evidence():
    assert states(AlarmRule(), [ABOVE, ABOVE, ABOVE]) == ["no evidence", "watch", "alarm"]
    onset = last([ABOVE] * 4).onset
    assert (onset.epoch, onset.last_clean) == (1, None)


def test_untrained_is_what_the_record_says_and_not_the_first_step():
    assert states(AlarmRule(), [ABOVE, ABOVE], untrained=False) == ["watch", "alarm"]


# ---- heat


def test_heat_alone_is_never_more_than_watch():
    audits = [lift(0.5, 0.6, reference=1.2)] + [lift(3.0, 4.0)] * 5
    found = findings(AlarmRule(stop=True), audits, **WHERE)

    assert [each.state for (each,) in found] == ["no evidence"] * 2 + ["watch"] * 4
    assert [each.value for (each,) in found] == [0, 0, 1, 1, 1, 1]
    assert {(each.key, each.about, each.threshold) for (each,) in found} == {("alarm/attribution/spurious", LIFT, 1.2)}
    assert not any(each.stop for (each,) in found)


@pytest.mark.parametrize(
    "first",
    [lift(1.0, 3.5, reference=1.0), lift(0.2, 0.4, reference=3.5)],
    ids=["the untrained model looks there", "random weights look there"],
)
def test_heat_that_the_untrained_or_a_random_model_puts_there_is_nothing(first):
    assert states(AlarmRule(), [first] + [lift(3.0, 4.0)] * 3, **WHERE) == ["no evidence"] * 4


@pytest.mark.parametrize(
    ("metrics", "fields"),
    [
        (lift(3.0, 4.0), WHERE),  # nothing is known of models with random weights
        (lift(3.0, 4.0, 1.0), {**WHERE, "cue_regions": {}}),  # no region carries a cue
        (lift(3.0, 4.0, 1.0), {**WHERE, "cue_regions": {"patch": "core"}}),
        (lift(3.0, 4.0, 1.0), {**WHERE, "questions": ("why_rather_than", "why")}),
        (lift(3.0, 4.0, 1.0), {**WHERE, "questions": ()}),
    ],
)
def test_a_region_without_a_cue_or_a_reference_is_not_watched(metrics, fields):
    assert AlarmRule().conclude(history_of([metrics] * 3, **fields)) == []


def test_the_first_explainer_with_a_reference_is_watched():
    other = {key.replace("gradcam", name): each for key, each in lift(3.0, 4.0, 1.0).items() for name in ("hirescam",)}
    image = {f"saliency/relevance_lift/spurious{end}": Estimate(9.0, 9.0, 9.0, 1.0, 64) for end in ("", "/reference")}
    occlusion = {LIFT.replace("gradcam", "occlusion"): Estimate(9.0, 9.0, 9.0, 1.0, 64)}
    audit = {**image, **occlusion, **lift(0.1, 0.2, 1.0), **other}

    assert [each.about for each in AlarmRule().conclude(history_of([audit], **WHERE))] == [LIFT]


# ---- words and values


def test_no_sentence_says_that_there_is_no_shortcut():
    found = AlarmRule().conclude(history_of([{**CLEAN, **lift(0.1, 0.2, 1.0)}], **WHERE))

    assert [each.sentence for each in found] == [
        "No evidence for the cue 'patch', just as it was painted: it moves the probability of its class by 0.00 "
        "[-0.02, 0.02]. Nothing is said of others.",
        "No more heat on the region 'spurious' than without training.",
    ]


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        (effect(0.4, valid=12), "Not enough evidence on the cue 'patch': 12 valid probes of 30."),
        (effect(0.4, 0.3, 0.5, valid=29), "Not enough evidence on the cue 'patch': 29 valid probes of 30."),
        ({}, "The cue 'patch' was not tested at this audit."),
    ],
)
def test_what_was_not_tested_has_no_value(metrics, sentence):
    finding = last([CLEAN, metrics])

    assert (finding.state, finding.sentence, finding.loud) == ("no evidence", sentence, False)
    assert math.isnan(finding.value)


def test_a_cue_that_failed_at_every_audit_is_said_not_to_be_tested():
    finding = last([{}], keys=(EFFECT,))
    assert finding.sentence == "The cue 'patch' was not tested at this audit."


def test_what_was_tested_and_found_harmless_is_0():
    assert last([CLEAN, CLEAN]).value == 0.0
    assert math.isnan(last([CLEAN, CLEAN], AlarmRule(min_count=65)).value)


@pytest.mark.parametrize("metrics", [{}, {LIFT: Estimate(2.0, None, None, 1.0, 12, 0)}])
def test_a_region_of_too_few_probes_has_no_value(metrics):
    finding = last([lift(0.5, 0.6, reference=1.2), metrics], **WHERE)

    assert math.isnan(finding.value)
    assert finding.sentence == "Not enough evidence on the region 'spurious': 30 valid probes are needed."


# ---- histories


def test_a_history_says_the_same_from_a_folder_from_memory_and_thinned(tmp_path):
    audits = [{**CLEAN, **lift(0.5, 0.6, reference=1.2)}, *[{**ABOVE, **lift(3.0, 4.0)}] * 6]
    memory, folder = history_of(audits, **WHERE), history_of(audits, folder=tmp_path, **WHERE)
    thinned = History()
    for record in memory:
        thinned.append(record.thin())

    found = AlarmRule().conclude(memory)
    assert [each.state for each in found] == ["alarm", "watch"]
    for other in (memory, folder, History(tmp_path), thinned):
        assert AlarmRule().conclude(other) == found
    assert len(memory) == 7


def test_nothing_is_concluded_from_nothing():
    assert list(AlarmRule().conclude(History())) == []
    assert list(AlarmRule().conclude(history_of([{}]))) == []


def test_a_cue_that_is_added_later_begins_anew():
    tint = {"cue/tint/effect": ABOVE["cue/patch/effect"]}
    found = [last([CLEAN, ABOVE, ABOVE, *[{**ABOVE, **tint}] * more], place=1) for more in (1, 2)]

    assert [each.key for each in found] == ["alarm/cue/tint"] * 2
    assert [each.state for each in found] == ["watch", "alarm"]
    assert str(found[1].onset) == "from epoch 3; no audit before was clean"


def test_audits_of_other_probes_are_not_compared():
    records = [made(ABOVE, step=step, epoch=step, fingerprint="a" if step < 3 else "b") for step in range(1, 6)]

    assert states(AlarmRule(), records) == ["watch", "alarm", "watch", "alarm", "alarm"]
    assert last(records).onset.epoch == 3


def test_a_run_that_goes_on_from_an_earlier_checkpoint_forgets_what_came_after():
    history = history_of([CLEAN, ABOVE, ABOVE])
    history.truncate(1)
    assert AlarmRule().conclude(history)[0].state == "watch"


# ---- before training


@pytest.mark.parametrize(("keys", "min_count", "probes", "is_warned"), [
    ([EFFECT], 30, 29, True), ([EFFECT], 30, 30, False), ([EFFECT], 64, 63, True), ([], 30, 8, False),
])  # fmt: skip
def test_too_few_probes_for_an_alarm_are_known_before_training(keys, min_count, probes, is_warned):
    words = AlarmRule(min_count=min_count).check(keys, probes)

    assert len(words) == is_warned
    if words:
        assert words[0].startswith(f"Expected at least {min_count} probes to watch 'patch', but got {probes}:")


def test_a_rule_that_was_given_needs_a_cue():
    AlarmRule().require_cue([Key("accuracy", ""), EFFECT])
    with pytest.raises(ConfigurationError, match="Expected `trials` to hold a CueTrial for an alarm to be about"):
        AlarmRule().require_cue([Key("accuracy", ""), Key("cue/patch/effect_logit", "")])


def test_the_hook_is_called_with_alarms_and_only_a_rule_that_says_so_stops():
    called = []
    rule = AlarmRule(stop=True, hook=called.append)
    watch, alarm = findings(rule, [CLEAN, ABOVE, ABOVE])[1:]
    for found in (*watch, *alarm):
        rule.announce(found)
        AlarmRule().announce(found)

    assert called == [alarm[0]]
    assert (watch[0].stop, alarm[0].stop) == (False, True)
    assert last([CLEAN, ABOVE, ABOVE]).stop is False


def test_states_are_declared():
    for key in ("alarm/cue/patch", "alarm/attribution/spurious"):
        assert any(each.matches(key) and each.of == "nothing" for each in AlarmRule().keys)


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
