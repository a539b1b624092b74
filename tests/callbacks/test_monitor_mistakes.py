"""Mistakes in what a monitor is told come to light before training, with a way out."""

from __future__ import annotations

import pytest
from pytorch_lightning.callbacks import Callback

from tests.callbacks.leaning import COLOURS, fit, leaning_probes, monitor, patch
from xai_callbacks import AlarmRule, AuditCallback, ConfigurationError, PatchCue, ShortcutMonitor


class Steps(Callback):
    """Counts training steps."""

    done = 0

    def on_train_batch_start(self, *args):
        self.done += 1


@pytest.mark.parametrize("wrong", ["patch", 3, None, [None], lambda images: images])
def test_what_is_no_cue_is_refused_with_a_way_out(wrong):
    with pytest.raises(ConfigurationError, match=r"Expected `cue` to be .*PatchCue\(...\).* but got"):
        ShortcutMonitor(leaning_probes(), wrong)


@pytest.mark.parametrize(
    "given",
    [{"rules": "x"}, {"schedule": "never"}, {"on_error": "x"}, {"name": None}, {"watches": [2.5]}, {"sinks": [2.5]}],
)
def test_wrong_kinds_of_values_are_refused_at_construction(given):
    with pytest.raises(ConfigurationError, match=f"Expected `{next(iter(given))}"):
        ShortcutMonitor(leaning_probes(), patch(), **given)


def test_no_cue_at_all_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `cue` to be a cue .* but got none"):
        ShortcutMonitor(leaning_probes(), [])


def test_two_cues_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="cue/patch"):
        ShortcutMonitor(leaning_probes(), [patch(), patch("corner")])


def test_an_alarm_without_a_cue_is_refused_before_training(tmp_path):
    callback, counting = AuditCallback(leaning_probes(), rules=[AlarmRule()]), Steps()
    with pytest.raises(ConfigurationError, match=r"Expected `trials` to hold a CueTrial .* but got none\. Pass"):
        fit(tmp_path, callback, counting)
    assert counting.done == 0


@pytest.mark.parametrize(
    ("sentence", "suggestion"),
    [
        ("cue/patch/efect < 0.1", "cue/patch/effect"),
        ("cue/path/effect < 0.1", "cue/patch/effect"),
        ("gradcam/why/relevance_mass/spurius < 0.1", "gradcam/why/relevance_mass/spurious"),
        ("gradcam/why/relevance_mass/core > 0.5 for class rde", "red"),
    ],
)
def test_a_typo_in_an_expectation_is_an_error_before_training_with_a_suggestion(tmp_path, sentence, suggestion):
    counting = Steps()
    with pytest.raises(ConfigurationError, match=f"[Dd]id you mean .*[`'\"]{suggestion}"):
        fit(tmp_path, monitor(rules=["accuracy > 0.5", sentence]), counting)
    assert counting.done == 0


def test_a_sentence_that_is_none_is_an_error_at_once():
    with pytest.raises(ConfigurationError, match="accuracy is high"):
        monitor(rules=["accuracy is high"])


def test_an_expectation_about_what_is_not_measured_is_an_error_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="group/wga"):
        fit(tmp_path, monitor(rules=["group/wga > 0.7"]))


def test_a_class_that_does_not_exist_is_an_error_at_once():
    with pytest.raises(ConfigurationError, match="Did you mean 'red'"):
        monitor(PatchCue(COLOURS, ["rde", "green"], at="spurious"))
