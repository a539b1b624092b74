"""Mistakes in the arguments of `GroupAccuracy` and in validation data: told before training, or once in it."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from tests.callbacks.grouped import AUDITED, WGA, Elsewhere, Grouped, agree, expected, fit, lively, parts, shown
from tests.callbacks.runs import audit_warnings, caught, steps_of
from tests.tiny import pictures
from xai_callbacks import AuditCallback, ConfigurationError, GroupAccuracy, ProbeSet


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            GroupAccuracy("place"),
            r"got 'place' for a list of \[a tensor \(4, 3, 8, 8\), a tensor \(4,\), a tensor \(4,\)\]",
        ),
        (GroupAccuracy(2, label=0), r"`label=0` to lead to one integer an image"),
        (GroupAccuracy(2, label=lambda batch: batch[1][1:]), "as many cues as labels, but got 4 and 3"),
        (GroupAccuracy(2, num_cues=1), r"`cues` to be in \[-1, 1\), but got 0 to 1"),
        (GroupAccuracy(2, label=lambda batch: batch[1] + 1), r"`labels` to be in \[0, 3\), but got 1 to 3"),
        (GroupAccuracy(lambda batch: batch[2] * 300), r"\[-1, 256\), but got 0 to 300. .* give `num_cues`"),
        (GroupAccuracy(2, aligned=[0, 1]), r"for each of 3 labels, but got \[0, 1\]"),
        (GroupAccuracy(2, train_counts=[[1, 2], [3, 4]]), r"`train_counts` to be integers \(K, C\) \(3, 2\)"),
    ],
)
def test_mistakes_come_to_light_in_the_sanity_check_whatever_on_error_says(tmp_path, group, message):
    steps = []

    class Steps(Callback):
        def on_train_batch_start(self, *_):
            steps.append(1)

    module = Grouped(lively())
    with pytest.raises(ConfigurationError, match=message):
        fit(tmp_path, group, Steps(), module=module, on_error="warn", num_sanity_val_steps=1)
    assert steps == []
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    "group", [GroupAccuracy(2, num_cues=1), GroupAccuracy("place"), GroupAccuracy(2, aligned=[0, 1])]
)
def test_mistakes_without_a_sanity_check_are_warned_of_once_and_nothing_is_counted(tmp_path, group):
    with caught() as found:
        one, _ = fit(tmp_path, group, on_error="warn", max_epochs=3)
    assert len(audit_warnings(found)) == 1
    assert one.global_step == 6
    assert math.isnan(shown(one)["group/accuracy_all"])
    with pytest.raises(ConfigurationError):
        fit(tmp_path / "raise", group)


def test_one_bad_batch_spoils_its_pass_and_no_other(tmp_path):
    def place(batch):
        passes.append(len(batch[1]))
        if len(passes) == 8:
            raise OSError("the table of places is locked")
        return batch[2]

    passes = []
    with caught() as found:
        fit(tmp_path, GroupAccuracy(place, min_count=1), on_error="warn", max_epochs=3)
    (message,) = audit_warnings(found)
    assert "raised OSError: the table of places is locked" in message
    assert steps_of(tmp_path, WGA) == [1, 5]


def test_monitors_see_nan_and_not_the_last_pass_where_a_pass_is_spoilt(tmp_path):
    class Look(Callback):
        def __init__(self):
            self.seen = []

        def on_validation_end(self, trainer, pl_module):
            self.seen.append(float(trainer.callback_metrics["audit/group/accuracy/cat_0"]))

    class Fails(Elsewhere):
        def validation_step(self, batch, batch_idx):
            step = Elsewhere if self.current_epoch == 1 else Grouped
            return step.validation_step(self, batch, batch_idx)

    look = Look()
    with caught():
        fit(tmp_path, GroupAccuracy(2), look, module=Fails(lively(), lr=0.0), on_error="warn", max_epochs=3)
    assert [math.isnan(value) for value in look.seen] == [False, True, False]


def test_failing_audit_leaves_the_groups_alone(tmp_path):
    class Sick(Grouped):
        def forward(self, images):
            logits = super().forward(images)
            return logits * math.nan if len(images) == 6 else logits  # as many as there are probes

    with caught() as found:
        one, _ = fit(
            tmp_path,
            GroupAccuracy(2, min_count=1, each=False),
            module=Sick(lively(), lr=0.0),
            on_error="warn",
            schedule=AUDITED,
        )
    assert "AuditError" in audit_warnings(found)[0]
    agree(shown(one), expected(lively(), *parts()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cue": None}, "`cue` to be a key, an index or a function"),
        ({"label": 1.5}, "`label` to be a key, an index or a function"),
        ({"num_cues": 0}, "`num_cues` to be an integer of 1 or more"),
        ({"min_count": 0}, "`min_count` to be an integer of 1 or more"),
        ({"dataloader": -1}, "`dataloader` to be an integer of 0 or more"),
        ({"aligned": [0, 2], "num_cues": 2}, r"`aligned` to be one cue in \[0, 2\)"),
        ({"aligned": [0, -1]}, "`aligned` to be one cue in"),
        ({"aligned": [0]}, "`aligned` to be one cue .* each of 2 labels"),
        ({"aligned": [0, 1, 1], "train_counts": [[1, 2], [3, 4]]}, "`aligned` to be one cue .* each of 2 labels"),
        ({"num_cues": 3, "cue_names": ["land", "water"]}, "`num_cues` 3, `cue_names` 2"),
        ({"train_counts": [[1, 2], [3]]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": [[0.1, 0.2], [0.3, 0.4]]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": [1, 2]}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": "ab"}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": {}}, r"`train_counts` to be integers \(K, C\)"),
        ({"train_counts": 5}, r"`train_counts` to be integers \(K, C\)"),
        ({"cue": True}, "`cue` to be a key"),
        ({"cue_names": 5}, "`cue_names` to be a text or a list of texts"),
        ({"cue_names": [1, 2]}, "`cue_names` to be a text or a list of texts"),
        ({"cue_names": []}, "`num_cues` to be an integer of 1 or more"),
        ({"aligned": 5}, "`aligned` to be one cue"),
        ({"aligned": "01"}, "`aligned` to be one cue"),
        ({"aligned": [None, 1]}, "`aligned` to be one cue"),
        ({"each": "no"}, "`each` to be True or False"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GroupAccuracy(**{"cue": "place"} | arguments)


def test_number_of_cues_follows_from_whatever_tells_it():
    assert GroupAccuracy(2).num_cues is None
    assert GroupAccuracy(2, cue_names=["land", "water"]).num_cues == 2
    assert GroupAccuracy(2, train_counts=[[1, 2, 3], [4, 5, 6]]).num_cues == 3
    assert GroupAccuracy(2, num_cues=2, cue_names=["land", "water"]).num_cues == 2


def test_names_that_are_no_longer_different_as_keys_give_way_to_numbers(tmp_path):
    one, _ = fit(tmp_path, GroupAccuracy(2, cue_names=["a b", "a_b"]), max_epochs=1)
    assert {"group/count/0_0", "group/count/2_1"} <= shown(one).keys()


def test_regression_has_no_groups():
    probes = ProbeSet.from_tensors(pictures(), targets=torch.rand(6))
    with pytest.raises(
        ConfigurationError, match="Expected probes with one label each for `GroupAccuracy`, but got regression"
    ):
        AuditCallback(probes, watches=[GroupAccuracy(2)])
