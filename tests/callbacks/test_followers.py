"""What is concluded from the audits of a run, made by hand and seen by a real trainer."""

from __future__ import annotations

import json

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.leaning import START, leaning_module, leaning_probes, object_loader, patch
from tests.callbacks.runs import BATCHES, trainer
from tests.expectations.records import VOCABULARY, estimate, made_record
from xai_callbacks import AlarmRule, ShortcutMonitor
from xai_callbacks.alarms import AlarmBook
from xai_callbacks.callbacks.followers import AlarmFollower, ExpectationFollower
from xai_callbacks.expectations import parse_expectations

EFFECT = "cue/tint/effect"
CLEAN, ABOVE = estimate(0.0, -0.01, 0.01), estimate(0.4, 0.3, 0.5)


@pytest.fixture
def running(tmp_path):
    return trainer(tmp_path, [])


def alarms(**rule):
    return AlarmFollower(AlarmBook(["tint"], rule=AlarmRule(**rule)))


def expecting(*sentences):
    return ExpectationFollower(parse_expectations(list(sentences), VOCABULARY))


def followed(follower, running, effects):
    """What is concluded from audits with these effects, an epoch each."""
    records = [made_record({EFFECT: one}, epoch=epoch, step=epoch + 1) for epoch, one in enumerate(effects)]
    return [follower.follow(running, record) for record in records]


def test_states_are_numbers_and_news_is_what_is_worse_than_before(running):
    seen = followed(alarms(), running, [CLEAN, ABOVE, ABOVE, ABOVE, CLEAN, ABOVE, ABOVE])

    assert [one.metrics["alarm/cue/tint"].value for one in seen] == [0, 1, 2, 2, 0, 1, 2]
    assert [len(one.news) for one in seen] == [0, 1, 1, 0, 0, 0, 0]
    assert seen[1].news[0].startswith("Watch the cue 'tint'")
    assert seen[2].news[0].startswith("Alarm: the model answers by the cue 'tint'")


def test_the_threshold_is_kept_beside_the_states(running):
    (seen,) = followed(alarms(threshold=0.2), running, [CLEAN])
    assert seen.metrics["alarm/threshold"].value == 0.2


def test_the_text_is_a_list_with_a_line_for_each_cue(running):
    follower = AlarmFollower(AlarmBook(["tint", "patch"]))
    (seen,) = followed(follower, running, [ABOVE])

    tint, other = seen.texts["alarm"].splitlines()
    assert tint.startswith("- **watch** (cue/tint): Watch the cue 'tint'")
    assert other == "- **no evidence** (cue/patch): The cue 'patch' was not tested at this audit."


@pytest.mark.parametrize("stop", [False, True])
def test_the_hook_is_called_once_and_only_a_rule_that_says_so_stops(running, stop):
    found = []
    follower = alarms(stop=stop, hook=found.append)

    followed(follower, running, [ABOVE])
    assert (found, running.should_stop) == ([], False)
    followed(follower, running, [ABOVE, ABOVE])
    assert [(finding.key, finding.state) for finding in found] == [("cue/tint", "alarm")]
    assert running.should_stop is stop


def test_a_trainer_that_is_stopping_already_is_not_told_to_go_on(running):
    running.should_stop = True
    followed(alarms(audits=1), running, [ABOVE])
    assert running.should_stop


def test_the_story_ends_with_the_latest_findings(running):
    follower = alarms()
    assert follower.finish() == ""
    followed(follower, running, [ABOVE, CLEAN])
    assert follower.finish() == (
        "No evidence for the cue 'tint', of the cues tested: it raises the probability of its class by 0.00 "
        "[-0.01, 0.01]."
    )


def test_a_resumed_run_knows_earlier_audits_and_what_was_announced(running):
    found = []
    first, second = alarms(), alarms(hook=found.append)
    followed(first, running, [CLEAN, ABOVE])
    state = json.loads(json.dumps(first.state_dict()))  # plain values

    second.load_state_dict(state)
    seen = second.follow(running, made_record({EFFECT: ABOVE}, epoch=2, step=3))
    assert seen.news[0].endswith("from epoch 1; last clean audit: epoch 0.")
    assert len(found) == 1
    third = alarms(hook=found.append)
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    assert third.follow(running, made_record({EFFECT: ABOVE}, epoch=3, step=4)).news == ()
    assert len(found) == 1


def test_a_new_run_announces_again(running):
    follower = alarms(audits=1)
    assert [len(one.news) for one in followed(follower, running, [ABOVE, ABOVE])] == [1, 0]
    follower.forget()
    assert follower.finish() == ""
    assert [len(one.news) for one in followed(follower, running, [ABOVE, ABOVE])] == [1, 0]


def test_expectations_are_counted_by_what_became_of_them(running):
    follower = expecting("cue_effect[tint] < 0.1", "cue_effect[tint] < 0.6", "cue_effect[tint] < 0.45")
    (seen,) = followed(follower, running, [ABOVE])

    counts = {key: one.value for key, one in seen.metrics.items()}
    assert counts == {"expectation/passed": 1, "expectation/failed": 1, "expectation/undecided": 1}
    assert seen.news == ()
    assert "cue\\_effect" in seen.texts["expectations"]
    assert "1 fail" in follower.finish()


def test_expectations_may_be_about_alarms_of_the_same_audit(running):
    watch, expected = alarms(audits=1), expecting("alarm[tint] < 2")
    record = made_record({EFFECT: ABOVE}, step=1)
    told = watch.follow(running, record)
    seen = expected.follow(running, made_record({**record.metrics, **told.metrics}, step=1))
    assert [key for key, one in seen.metrics.items() if one.value] == ["expectation/failed"]


def test_expectations_go_on_after_a_resume(running):
    first, second = (expecting("cue_effect[tint] < 0.1") for _ in range(2))
    followed(first, running, [CLEAN, ABOVE])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert second.finish() == first.finish()
    assert ".F" in second.finish()
    second.forget()
    assert second.finish().startswith("Expectations: nothing was audited.")


# ---- checkpoints: what the onset names holds the weights of the last clean audit


def leaning(folder, checkpoint, *, ckpt_path=None, max_epochs=4, **options):
    """Train a model that leans on the cue from epoch 2 on; returns the onset and the module."""
    monitor = ShortcutMonitor(leaning_probes(), patch(), on_error="raise", max_panels=0)
    one = trainer(folder, [monitor, checkpoint], max_epochs=max_epochs, enable_checkpointing=True, **options)
    one.fit(leaning_module(), object_loader(), object_loader(2), ckpt_path=ckpt_path)
    (finding, *_regions) = monitor.alarms.findings
    return finding.onset


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
    onset = leaning(tmp_path, ModelCheckpoint(tmp_path / "saved", **given))

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
    onset = leaning(tmp_path, ModelCheckpoint(tmp_path / "saved", **given))
    assert (onset.last_clean, onset.checkpoint) == (1, None)
