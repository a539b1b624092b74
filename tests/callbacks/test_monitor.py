"""The shortcut monitor as a user meets it: a model comes to lean on a cue while real trainers train it."""

from __future__ import annotations

import html
import io
import logging
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from tests.callbacks.leaning import (
    COLOURS,
    NAMES,
    SPURIOUS,
    effect_after,
    leaning_module,
    leaning_probes,
    object_loader,
    patch,
)
from tests.callbacks.runs import BATCHES, PACKAGES, audit_warnings, caught, trainer
from tests.tiny import image_steps, read_events, scalar_steps
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    ConfigurationError,
    FunctionCue,
    PatchCue,
    ShortcutMonitor,
    TintCue,
)
from xai_callbacks.errors import XAICallbacksError

EFFECT, ALARM = "audit/cue/patch/effect", "audit/alarm/cue/patch"
EXPECTED = ["cue_effect[patch] < 0.1", "accuracy > 0.8", "cue_effect[patch] < 0.5 from epoch 9"]
STEPS = [0, *(BATCHES * (epoch + 1) - 1 for epoch in range(4))]

# What Lightning says of these small runs, and rightly so.
NOISE = (
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


def fit(folder, *callbacks, name="pytorch_lightning", module=None, ckpt_path=None, **options):
    options = {"max_epochs": 4, **options}
    options["enable_checkpointing"] = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    one = trainer(folder, list(callbacks), name, **options)
    with warnings.catch_warnings():
        for noise in NOISE:
            warnings.filterwarnings("ignore", message=noise)
        one.fit(module or leaning_module(name), object_loader(), object_loader(2), ckpt_path=ckpt_path)
    return one


def monitor(cue=None, probes=None, **given):
    return ShortcutMonitor(
        probes or leaning_probes(), cue or patch(), **{"on_error": "raise", "max_panels": 1, **given}
    )


class Console(logging.Handler):
    """Keeps what a logger is told, as (level, sentence)."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.said = []

    def emit(self, record):
        self.said.append((record.levelname, record.getMessage()))

    def warnings(self):
        return [sentence for level, sentence in self.said if level == "WARNING"]


@pytest.fixture
def console():
    yield from listening("pytorch_lightning")


def listening(name):
    logger, handler = logging.getLogger(name), Console()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module", params=PACKAGES)
def run(request, tmp_path_factory):
    """One run in each package, of which several tests look at different traces."""
    name, folder, found = request.param, tmp_path_factory.mktemp("run"), []
    with torch.random.fork_rng():
        listener = listening(name)
        console = next(listener)
        callback = monitor(alarm=AlarmRule(hook=found.append), expectations=EXPECTED)
        one = fit(folder, callback, name=name, logger="tensorboard")
        next(listener, None)
    return SimpleNamespace(
        callback=callback, trainer=one, found=found, console=console, events=read_events(folder / "tb")
    )


def picture(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def texts(events, tag):
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]


# ---- what a run leaves behind


def test_effects_are_those_computed_by_hand(run):
    seen = run.events.Scalars(EFFECT)

    assert [event.step for event in seen] == STEPS
    expected = [effect_after(-1), *(effect_after(epoch) for epoch in range(4))]
    assert [event.value for event in seen] == pytest.approx(expected, abs=1e-5)


def test_evidence_becomes_watch_and_then_alarm(run):
    assert [event.value for event in run.events.Scalars(ALARM)] == [0, 0, 0, 1, 2]
    assert float(run.trainer.callback_metrics[ALARM]) == 2
    assert run.callback.last_record.metrics["alarm/cue/patch"].value == 2


def test_the_alarm_is_said_once_as_a_warning(run):
    said = [sentence for sentence in run.console.warnings() if sentence.startswith("audit: ")]

    assert len(said) == 2
    assert said[0].startswith("audit: Watch the cue 'patch': it raises the probability of its class by 0.21")
    assert said[1] == (
        "audit: Alarm: the model answers by the cue 'patch': it raises the probability of its class by 0.39 "
        f"[0.39, 0.39], above {AlarmRule().threshold:g} at 2 consecutive audits; from epoch 2; last clean audit: "
        "epoch 1."
    )


def test_the_hook_is_called_once_with_the_finding(run):
    (finding,) = run.found
    assert (finding.key, finding.state) == ("cue/patch", "alarm")
    assert finding.estimate.value == pytest.approx(effect_after(3), abs=1e-5)
    assert finding.sentence in run.console.warnings()[-1]


def test_the_summary_of_expectations_is_shown_at_the_end(run):
    (table,) = [sentence for level, sentence in run.console.said if sentence.startswith("Expectations at")]

    assert table.startswith("Expectations at epoch 3, step 15: ")
    assert "1 fail" in table
    assert "1 pass" in table
    for sentence in EXPECTED:
        assert sentence in table
    assert run.console.said.index(("INFO", table)) > run.console.said.index(("WARNING", run.console.warnings()[-1]))


def test_expectations_are_counted_at_each_audit(run):
    counts = {
        outcome: [event.value for event in run.events.Scalars(f"audit/expectation/{outcome}")]
        for outcome in ("passed", "failed", "undecided")
    }
    # Of three, one holds always, one until the model leans on the cue, and one is not due in this run.
    assert counts == {"passed": [2, 2, 2, 1, 1], "failed": [0, 0, 0, 1, 1], "undecided": [0] * 5}


def test_alarms_and_expectations_are_texts_in_tensorboard(run):
    alarms, expectations = texts(run.events, "audit/alarm"), texts(run.events, "audit/expectations")

    assert len(alarms) == len(expectations) == 5
    assert "- **no evidence** (cue/patch): No evidence for the cue 'patch', of the cues tested" in alarms[0]
    assert "- **alarm** (cue/patch): Alarm: the model answers by the cue 'patch'" in alarms[-1]
    shown = html.unescape(expectations[-1]).replace("\\", "")
    assert all(sentence in shown for sentence in EXPECTED)


def test_pictures_of_the_cue_and_of_kinds_of_heatmaps_are_in_tensorboard(run):
    assert image_steps(run.events, "audit_cue/patch") == STEPS
    assert {f"audit_clusters/{name}" for name in NAMES} <= set(run.events.Tags()["images"])
    for tag in ("audit_cue/patch", "audit_clusters/red"):
        sizes = {picture(event).shape for event in run.events.Images(tag)}
        assert all(height > 100 and width > 300 for height, width, _channels in sizes)
    # As large at every audit, so that they can be flicked through.
    assert len({picture(event).shape for event in run.events.Images("audit_cue/patch")}) == 1


# ---- stopping, and monitors of others


def test_a_rule_that_stops_ends_training_at_the_first_alarm(tmp_path):
    one = fit(tmp_path, monitor(alarm=AlarmRule(stop=True)), max_epochs=9)
    assert (one.current_epoch, one.global_step) == (4, 4 * BATCHES)


def test_a_run_without_evidence_is_not_stopped_and_nothing_is_announced(tmp_path, console):
    one = fit(tmp_path, monitor(alarm=AlarmRule(stop=True)), module=leaning_module(since=99))

    assert one.current_epoch == 4
    assert float(one.callback_metrics[ALARM]) == 0
    assert [sentence for sentence in console.warnings() if sentence.startswith("audit")] == []


def test_checkpoints_can_keep_what_leans_least(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "saved", monitor=EFFECT, mode="min", filename="{epoch}")
    fit(tmp_path, monitor(), checkpoint)

    assert Path(checkpoint.best_model_path).name == "epoch=0.ckpt"
    assert float(checkpoint.best_model_score) == pytest.approx(effect_after(0), abs=1e-5)


@pytest.mark.parametrize(("key", "most", "epochs"), [(EFFECT, 0.15, 3), (ALARM, 1.5, 4)])
def test_early_stopping_can_go_by_the_effect_or_the_state(tmp_path, key, most, epochs):
    stopping = EarlyStopping(monitor=key, mode="min", patience=99, divergence_threshold=most, check_finite=False)
    assert fit(tmp_path, monitor(), stopping, max_epochs=9).current_epoch == epochs


# ---- resuming


def saved(folder, epochs):
    """The checkpoint of a run of so many epochs."""
    checkpoint = ModelCheckpoint(folder / "saved", save_last=True)
    fit(folder, monitor(expectations=EXPECTED), checkpoint, max_epochs=epochs)
    return checkpoint.last_model_path


def test_a_resumed_run_dates_the_onset_by_audits_before_it(tmp_path, console):
    path = saved(tmp_path / "first", epochs=3)
    console.said.clear()
    resumed = monitor(expectations=EXPECTED)
    fit(tmp_path / "second", resumed, ckpt_path=path)

    (said,) = [sentence for sentence in console.warnings() if sentence.startswith("audit: ")]
    assert said.startswith("audit: Alarm")
    onset = resumed.alarms.findings[0].onset
    assert (onset.epoch, onset.last_clean) == (2, 1)
    tally = resumed.expectations.tally
    assert [checked.epoch for checked in tally.history(tally.expectations[0])] == [0, 0, 1, 2, 3]


def test_a_resumed_run_does_not_announce_again(tmp_path, console):
    path = saved(tmp_path / "first", epochs=4)
    console.said.clear()
    found = []
    one = fit(
        tmp_path / "second", monitor(expectations=EXPECTED, alarm=AlarmRule(hook=found.append)),
        ckpt_path=path, max_epochs=5,
    )  # fmt: skip

    assert float(one.callback_metrics[ALARM]) == 2
    assert found == []
    assert [sentence for sentence in console.warnings() if sentence.startswith("audit: ")] == []


def test_a_second_run_with_the_same_callback_begins_anew(tmp_path, console):
    callback = monitor(expectations=EXPECTED)
    for fold in ("a", "b"):
        console.said.clear()
        one = fit(tmp_path / fold, callback)
        assert len([said for said in console.warnings() if said.startswith("audit: ")]) == 2
        assert float(one.callback_metrics["audit/expectation/failed"]) == 1
        assert callback.alarms.findings[0].onset.last_clean == 1
        assert len(callback.expectations.tally.history(callback.expectations.tally.expectations[0])) == 5


# ---- a trial that fails


class Breaks(Callback):
    """Makes a cue of the user's own fail from the third audit on, that after epoch 1."""

    def __init__(self):
        self.broken = False
        self.cue = FunctionCue(self.paint, NAMES, name="mark")

    def paint(self, images, variants):
        if self.broken:
            raise ValueError("no such file: mark.png")
        return painted(images, variants)

    def on_train_epoch_start(self, trainer, pl_module):
        self.broken = trainer.current_epoch >= 1


def painted(images, variants):
    images[:, :, SPURIOUS] = torch.tensor(COLOURS)[variants][:, :, None]
    return images


def test_a_trial_that_raises_leaves_the_rest_and_warns_once(tmp_path):
    breaks = Breaks()
    callback = monitor(breaks.cue, on_error="warn", alarm=AlarmRule(audits=1))
    with caught() as found:
        one = fit(tmp_path, callback, breaks, logger="tensorboard")

    (told,) = audit_warnings(found)
    assert "no such file: mark.png" in told
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "audit/cue/mark/effect") == STEPS[:2]
    assert scalar_steps(events, "audit/gradcam/why/relevance_mass/spurious") == STEPS
    assert scalar_steps(events, "audit/region/spurious/drop") == STEPS
    assert image_steps(events, next(tag for tag in events.Tags()["images"] if tag.startswith("audit_panel"))) == STEPS
    assert math.isnan(one.callback_metrics["audit/alarm/cue/mark"])
    assert callback.alarms.findings[0].sentence == "The cue 'mark' was not tested at this audit."


def test_a_trial_that_raises_ends_a_run_that_asks_for_it(tmp_path):
    breaks = Breaks()
    with pytest.raises(XAICallbacksError, match=r"'cue/mark' failed .* ValueError: no such file: mark\.png"):
        fit(tmp_path, monitor(breaks.cue), breaks)


# ---- probes of all kinds


def test_probes_without_labels_are_tested_all_the_same(tmp_path):
    probes = leaning_probes(labels=None)
    callback = monitor(probes=probes)
    one = fit(tmp_path, callback, logger="tensorboard")

    assert float(one.callback_metrics[ALARM]) == 2
    assert float(one.callback_metrics[EFFECT]) == pytest.approx(effect_after(3), abs=1e-5)
    tags = read_events(tmp_path / "tb").Tags()["images"]
    assert "audit_cue/patch" in tags
    assert not [tag for tag in tags if tag.startswith("audit_clusters")]


def test_probes_without_masks_are_tested_without_a_picture_of_the_cue(tmp_path):
    cue = FunctionCue(painted, NAMES, name="patch")
    one = fit(tmp_path, monitor(cue, leaning_probes(masks=None)), logger="tensorboard")

    assert float(one.callback_metrics[ALARM]) == 2
    events = read_events(tmp_path / "tb")
    assert not [tag for tag in events.Tags()["images"] if tag.startswith("audit_cue")]
    assert not [tag for tag in events.Tags()["scalars"] if "attribution" in tag or "region" in tag]


def test_few_probes_are_not_enough_evidence(tmp_path, console):
    callback = monitor(probes=leaning_probes(29), alarm=AlarmRule(stop=True), expectations=["cue_effect[patch] < 0.1"])
    one = fit(tmp_path, callback)

    assert one.current_epoch == 4
    assert float(one.callback_metrics[EFFECT]) == pytest.approx(effect_after(3), abs=1e-5)
    assert math.isnan(one.callback_metrics[ALARM])
    assert callback.alarms.findings[0].sentence == "Not enough evidence on the cue 'patch': 29 valid probes of 30."
    (said,) = [sentence for sentence in console.warnings() if sentence.startswith("audit: ")]
    assert said.startswith("audit: Expected at least 30 probes to watch 'patch', but got 29: ")
    assert float(one.callback_metrics["audit/expectation/undecided"]) == 1


@pytest.mark.parametrize("count", [8, 16])
def test_too_few_probes_are_told_before_training(tmp_path, console, count):
    told = []

    class Early(Callback):
        def on_train_start(self, trainer, pl_module):
            told.extend(console.warnings())

    fit(tmp_path, monitor(probes=leaning_probes(count)), Early(), max_epochs=1)
    assert any("30 probes" in sentence for sentence in told)


def test_of_two_cues_only_the_used_one_raises_an_alarm(tmp_path, console):
    # The variants differ in the channel that the model does not read.
    other = TintCue([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], NAMES)
    one = fit(tmp_path, monitor([patch(), other]))

    assert float(one.callback_metrics[ALARM]) == 2
    assert float(one.callback_metrics["audit/alarm/cue/tint"]) == 0
    assert float(one.callback_metrics["audit/cue/tint/effect"]) == pytest.approx(0, abs=1e-6)
    said = [sentence for sentence in console.warnings() if sentence.startswith("audit: ")]
    assert all("'patch'" in sentence for sentence in said)
    assert len(said) == 2


# ---- mistakes


@pytest.mark.parametrize("wrong", ["patch", 3, None, [None], lambda images: images])
def test_what_is_no_cue_is_refused_with_a_way_out(wrong):
    with pytest.raises(ConfigurationError, match=r"Expected `cue` to be .*PatchCue\(...\).* but got"):
        ShortcutMonitor(leaning_probes(), wrong)


@pytest.mark.parametrize(
    "given",
    [{"alarm": "x"}, {"at_start": "never"}, {"model": 2.5}, {"name": None}, {"explainers": "gradcam"}, {"group": 2.5}],
)
def test_wrong_kinds_of_values_are_refused_at_construction(given):
    with pytest.raises(ConfigurationError, match=f"Expected .*`?{'cue' if 'group' in given else next(iter(given))}"):
        ShortcutMonitor(leaning_probes(), patch(), **given)


def test_no_cue_at_all_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `cue` to be a cue .* but got none"):
        ShortcutMonitor(leaning_probes(), [])


def test_two_cues_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="cue/patch"):
        ShortcutMonitor(leaning_probes(), [patch(), patch("corner")])


def test_an_alarm_without_a_cue_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `trials` to hold a CueTrial .* but got none\. Pass"):
        AuditCallback(leaning_probes(), alarm=AlarmRule())


@pytest.mark.parametrize(
    ("sentence", "suggestion"),
    [
        ("cue_efect[patch] < 0.1", "cue_effect"),
        ("cue_effect[path] < 0.1", "patch"),
        ("relevance_mass[spurius] < 0.1", "spurious"),
        ("relevance_mass[core] > 0.5 for class rde", "red"),
    ],
)
def test_a_typo_in_an_expectation_is_an_error_at_once_with_a_suggestion(sentence, suggestion):
    with pytest.raises(ConfigurationError, match=f"[Dd]id you mean [`'\"]?{suggestion}"):
        monitor(expectations=["accuracy > 0.5", sentence])


def test_an_expectation_about_what_is_not_measured_is_an_error_at_once():
    with pytest.raises(ConfigurationError, match="worst_group_accuracy"):
        monitor(expectations=["worst_group_accuracy > 0.7"])


def test_a_class_that_does_not_exist_is_an_error_at_once():
    with pytest.raises(ConfigurationError, match="Did you mean 'red'"):
        monitor(PatchCue(COLOURS, ["rde", "green"], at="spurious"))
