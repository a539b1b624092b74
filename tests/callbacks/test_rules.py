"""Rules in a real trainer: alarms, expectations, stops, hooks, and the checkpoint that a finding names."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from tests.callbacks.leaning import START, fit, leaning_probes, monitor
from tests.callbacks.runs import BATCHES, audit_warnings, caught, rows
from xai_callbacks import AlarmRule, Finding, History, Rule
from xai_callbacks.errors import AuditError

STEPS = [0, *(BATCHES * (epoch + 1) - 1 for epoch in range(4))]
ALARM = "alarm/cue/patch"


def leaning(folder, *others, rules=None, on_error="raise", **options):
    """Train a model that leans on the cue from epoch 2 on; returns the monitor and the trainer."""
    callback = monitor(rules=rules, on_error=on_error)
    return callback, fit(folder, callback, *others, **options)


def finding(record, key=ALARM):
    (found,) = [each for each in record.findings if each.key == key]
    return found


def said(caplog):
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [sentence for sentence in told if sentence.startswith("audit: ")]


# ---- findings


def test_findings_are_in_the_record_in_its_file_and_among_the_metrics(tmp_path):
    callback, one = leaning(tmp_path, rules=["cue/patch/effect < 0.1", {"name": "learns", "expect": "accuracy > 0.8"}])

    expectations = ["expectation/cue/patch/effect < 0.1", "expectation/learns"]
    for history in (callback.history, History(tmp_path / "csv" / "audit" / "history")):
        for record in history:
            keys = [each.key for each in record.findings]
            assert keys == [ALARM, "alarm/attribution/spurious", *expectations]
            assert record.metrics[ALARM].value == finding(record).value
        assert [finding(each).state for each in history] == [*["no evidence"] * 3, "watch", "alarm"]
        assert [finding(each, expectations[0]).state for each in history] == [*["pass"] * 3, "fail", "fail"]
        assert [each.metrics["expectation/failed"].value for each in history] == [0, 0, 0, 1, 1]
    assert float(one.callback_metrics["audit/expectation/passed"]) == 1
    assert "no evidence" not in finding(callback.last_record).sentence


class Own(Rule):
    """A rule of the user's own: which audit is the third one."""

    def __init__(self, *, fails=False):
        self.fails, self.told = fails, []

    def conclude(self, history):
        if self.fails and len(history) > 2:
            raise KeyError("third")
        return [Finding("third", "it is", float(len(history) == 3), "The third.", loud=True, stop=len(history) == 3)]

    def announce(self, finding):
        self.told.append(finding.key)


def test_a_rule_of_the_users_own_is_said_announced_and_stops(tmp_path, caplog):
    rule = Own()
    callback, one = leaning(tmp_path, rules=[rule])
    assert (rule.told, len(callback.history), one.current_epoch) == (["third"], 3, 2)
    assert said(caplog) == ["audit: The third."]
    assert float(one.callback_metrics["audit/third"]) == 1


def test_a_rule_that_fails_costs_itself_alone_and_is_told_once(tmp_path):
    with caught() as found:
        callback, one = leaning(tmp_path, rules=[Own(fails=True), "accuracy > 0.8"], on_error="warn")
    (told,) = audit_warnings(found)
    assert told.startswith("The rule Own() failed, and audits go on without it. AuditError: The rule Own() failed")
    assert "KeyError" in told
    assert (one.global_step, [each.step for each in callback.history]) == (4 * BATCHES, STEPS)
    assert finding(callback.last_record).state == "alarm"
    assert float(one.callback_metrics["audit/expectation/passed"]) == 1


def test_a_rule_that_fails_ends_a_run_that_asks_for_it(tmp_path):
    with pytest.raises(AuditError, match=r"The rule Own\(\) failed and was left out\. KeyError"):
        leaning(tmp_path, rules=[Own(fails=True)])


def test_a_trainer_that_is_stopping_already_is_not_told_to_go_on(tmp_path):
    class Stops(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.should_stop = True

    _, one = leaning(tmp_path, Stops(), rules=[AlarmRule(stop=True)])
    assert one.current_epoch == 1


# ---- hooks


def down(finding):
    raise ConnectionError("the chat is down")


def test_a_hook_that_raises_costs_itself_alone(tmp_path, caplog):
    """The alarm is said, logged and kept, the other rules conclude, and training goes on."""
    rules = [AlarmRule(hook=down), "cue/patch/effect < 0.1"]
    with caught() as found:
        callback, one = leaning(tmp_path, rules=rules, on_error="warn")

    (told,) = audit_warnings(found)
    assert "the chat is down" in told
    assert "AlarmRule" in told
    assert [sentence.split(":")[1].split()[0] for sentence in said(caplog)] == ["Watch", "Alarm"]
    assert one.global_step == 4 * BATCHES
    for history in (callback.history, History(tmp_path / "csv" / "audit" / "history")):
        assert [each.step for each in history] == STEPS
        assert finding(history.last).state == "alarm"
    assert [float(row["audit/alarm/cue/patch"]) for row in rows(tmp_path) if "audit/alarm/cue/patch" in row] == [
        0, 0, 0, 1, 2,
    ]  # fmt: skip
    assert float(one.callback_metrics["audit/expectation/failed"]) == 1
    assert callback.last_record.failed == ()


def test_a_hook_that_raises_still_stops_a_run_that_is_to_stop(tmp_path):
    with caught():
        _, one = leaning(tmp_path, rules=[AlarmRule(hook=down, stop=True)], on_error="warn", max_epochs=9)
    assert one.current_epoch == 4


def test_a_hook_that_raises_ends_a_run_that_asks_for_it_after_the_audit_is_written(tmp_path):
    with pytest.raises(ConnectionError, match="the chat is down"):
        leaning(tmp_path, rules=[AlarmRule(hook=down)])
    assert finding(History(tmp_path / "csv" / "audit" / "history").last).state == "alarm"


# ---- resumed and further runs


def test_a_resumed_run_goes_on_with_findings_and_their_story(tmp_path, caplog):
    found = []
    rules = [AlarmRule(hook=found.append), "cue/patch/effect < 0.1"]
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
    leaning(tmp_path / "first", checkpoint, rules=rules, max_epochs=3)
    assert (found, len(said(caplog))) == ([], 1)

    callback, _ = leaning(tmp_path / "second", rules=rules, max_epochs=5, ckpt_path=tmp_path / "saved" / "epoch=2.ckpt")
    # One watch by the first run, one alarm by the second: neither says again what the other said.
    assert [sentence.split(":")[1].split()[0] for sentence in said(caplog)] == ["Watch", "Alarm"]
    assert [(each.key, each.onset.epoch, each.onset.last_clean) for each in found] == [(ALARM, 2, 1)]
    assert [finding(each).value for each in callback.history] == [0, 0, 0, 1, 2, 2]
    (table,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("Expectations at epoch 4")]
    assert "...FFF" in table


def test_a_resumed_run_does_not_say_and_announce_again(tmp_path, caplog):
    found = []
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_last=True)
    leaning(tmp_path / "first", checkpoint)
    caplog.clear()
    rules = [AlarmRule(hook=found.append)]
    callback, one = leaning(tmp_path / "second", rules=rules, max_epochs=5, ckpt_path=checkpoint.last_model_path)
    assert float(one.callback_metrics["audit/alarm/cue/patch"]) == finding(callback.last_record).value == 2
    assert (found, said(caplog)) == ([], [])


def test_a_second_run_with_the_same_callback_says_and_announces_again(tmp_path, caplog):
    found = []
    callback = monitor(rules=[AlarmRule(hook=found.append)])
    for fold in ("a", "b"):
        fit(tmp_path / fold, callback)
    assert [each.onset.last_clean for each in found] == [1, 1]
    assert [sentence.split(":")[1].split()[0] for sentence in said(caplog)] == ["Watch", "Alarm"] * 2


def test_too_few_probes_are_told_in_each_run(tmp_path, caplog):
    callback = monitor(probes=leaning_probes(29))
    for fold in ("a", "b"):
        one = fit(tmp_path / fold, callback, max_epochs=1)
        assert math.isnan(one.callback_metrics["audit/alarm/cue/patch"])
    assert ["at least 30 probes" in sentence for sentence in said(caplog)] == [True, True]


# ---- checkpoints: what the onset names holds the weights of the last clean audit


CHECKPOINTS = {
    "each epoch": {"save_top_k": -1, "every_n_epochs": 1},
    "each epoch and the last": {"save_top_k": -1, "save_last": True},
    "more often than audits": {"save_top_k": -1, "every_n_train_steps": 2},
    "the best by an audit": {"save_top_k": 3, "monitor": "audit/cue/patch/effect"},
    "the best and the last": {"save_top_k": 4, "monitor": "audit/cue/patch/effect", "save_last": True},
    "after training epochs": {"save_top_k": -1, "save_on_train_epoch_end": True},
}


@pytest.mark.parametrize("given", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_the_checkpoint_of_the_onset_holds_the_weights_of_the_last_clean_audit(tmp_path, given):
    callback, _ = leaning(tmp_path, ModelCheckpoint(tmp_path / "saved", **given))
    onset = finding(callback.last_record).onset

    assert (onset.epoch, onset.last_clean) == (2, 1)
    weights = torch.load(onset.checkpoint, weights_only=True)["state_dict"]
    assert float(weights["net.clock"]) == 2 * BATCHES
    assert float(weights["net.gain"]) == pytest.approx(START)


NONE_OF_THEM = {
    "only the last": {"save_top_k": 0, "save_last": True},
    "only the newest": {},
    "between audits": {"save_top_k": -1, "every_n_train_steps": 3},
}


@pytest.mark.parametrize("given", NONE_OF_THEM.values(), ids=NONE_OF_THEM)
def test_no_checkpoint_is_named_where_none_holds_those_weights(tmp_path, given):
    callback, _ = leaning(tmp_path, ModelCheckpoint(tmp_path / "saved", **given))
    onset = finding(callback.last_record).onset
    assert (onset.last_clean, onset.checkpoint) == (1, None)
