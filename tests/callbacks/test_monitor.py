"""The shortcut monitor as a user meets it: a model comes to lean on a cue while real trainers train it."""

from __future__ import annotations

import io
import logging
import math
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
    fit,
    leaning_module,
    leaning_probes,
    monitor,
    patch,
)
from tests.callbacks.runs import BATCHES, PACKAGES, audit_warnings, caught
from tests.tiny import image_steps, read_events, scalar_steps
from xai_callbacks import (
    AlarmRule,
    Auditor,
    Baselines,
    Energy,
    FunctionCue,
    Localization,
    MapClusters,
    ShortcutMonitor,
    TintCue,
    Why,
    WhyNotCertain,
)
from xai_callbacks.errors import XAICallbacksError

EFFECT, ALARM = "audit/cue/patch/effect", "audit/alarm/cue/patch"
EXPECTED = ["cue/patch/effect < 0.1", "accuracy > 0.8", "cue/patch/effect < 0.5 from epoch 9"]
STEPS = [0, *(BATCHES * (epoch + 1) - 1 for epoch in range(4))]


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
        callback = monitor(rules=[AlarmRule(hook=found.append), *EXPECTED], max_panels=1)
        one = fit(folder, callback, name=name, logger="tensorboard")
        next(listener, None)
    return SimpleNamespace(
        callback=callback, trainer=one, found=found, console=console, events=read_events(folder / "tb")
    )


def picture(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def texts(events, tag):
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]


def test_the_settings_of_an_auditor_stay_and_what_watches_shortcuts_is_added():
    given = Auditor(leaning_probes(), [WhyNotCertain()], explainers=[], novelty=[Energy()], chunk_size=5)
    made = ShortcutMonitor(given, [patch(), TintCue(COLOURS, NAMES)]).auditor
    assert (made.questions, made.explainers, made.chunk_size) == (given.questions, given.explainers, 5)
    assert [score.name for score in made.novelty] == ["energy"]
    assert [trial.name for trial in made.trials] == ["cue/patch", "cue/tint"]
    plain = ShortcutMonitor(leaning_probes(), patch())
    assert plain.auditor.questions == (Why(), Why("label"))
    assert plain.auditor.novelty == ()
    assert {Localization, Baselines, MapClusters} <= {type(measure) for measure in plain.auditor.measures}
    assert plain.rules == (AlarmRule(),)


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
    assert said[0].startswith("audit: Watch the cue 'patch' (the region 'spurious'")
    assert "it moves the probability of its label by 0.21 [" in said[0]
    assert said[1].startswith("audit: Alarm: the model answers by the cue 'patch' (the region 'spurious'")
    assert "it moves the probability of its label by 0.39 [" in said[1]
    since = f"beyond {AlarmRule().threshold:g} at 2 consecutive audits; from epoch 2 (0–2); last clean audit: epoch 1."
    assert since in said[1]


def test_the_hook_is_called_once_with_the_finding(run):
    (finding,) = run.found
    assert (finding.key, finding.state) == ("alarm/cue/patch", "alarm")
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


def test_findings_are_texts_in_tensorboard(run):
    found = [text.replace("\\", "") for text in texts(run.events, "audit/findings")]

    assert len(found) == 5
    assert "- **no evidence** No evidence for the cue 'patch' (the region" in found[0]
    assert "just as it was painted" in found[0]
    assert found[-1].startswith("- **alarm** Alarm: the model answers by the cue 'patch'")
    assert all(sentence in found[-1] for sentence in EXPECTED)


def test_pictures_of_the_cue_and_of_kinds_of_heatmaps_are_in_tensorboard(run):
    assert image_steps(run.events, "audit_summary/cue_patch") == STEPS
    assert {f"audit_summary/clusters_{name}" for name in NAMES} <= set(run.events.Tags()["images"])
    for tag in ("audit_summary/cue_patch", "audit_summary/clusters_red"):
        sizes = {picture(event).shape for event in run.events.Images(tag)}
        assert all(height > 100 and width > 300 for height, width, _channels in sizes)
    # As large at every audit, so that they can be flicked through.
    assert len({picture(event).shape for event in run.events.Images("audit_summary/cue_patch")}) == 1


# ---- stopping, and monitors of others


def test_a_rule_that_stops_ends_training_at_the_first_alarm(tmp_path):
    one = fit(tmp_path, monitor(rules=[AlarmRule(stop=True)]), max_epochs=9)
    assert (one.current_epoch, one.global_step) == (4, 4 * BATCHES)


def test_a_run_without_evidence_is_not_stopped_and_nothing_is_announced(tmp_path, console):
    one = fit(tmp_path, monitor(rules=[AlarmRule(stop=True)]), module=leaning_module(since=99))

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
    callback = monitor(breaks.cue, on_error="warn", rules=[AlarmRule(audits=1)], max_panels=1)
    with caught() as found:
        one = fit(tmp_path, callback, breaks, logger="tensorboard")

    (told,) = audit_warnings(found)
    assert "no such file: mark.png" in told
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "audit/cue/mark/effect") == STEPS[:2]
    assert scalar_steps(events, "audit/gradcam/why/relevance_mass/spurious") == STEPS
    assert scalar_steps(events, "audit/accuracy") == STEPS
    assert image_steps(events, next(tag for tag in events.Tags()["images"] if tag.startswith("audit_panel"))) == STEPS
    assert math.isnan(one.callback_metrics["audit/alarm/cue/mark"])
    assert callback.last_record.findings[0].sentence == "The cue 'mark' was not tested at this audit."


def test_a_trial_that_raises_ends_a_run_that_asks_for_it(tmp_path):
    breaks = Breaks()
    with pytest.raises(XAICallbacksError, match=r"'cue/mark' failed .* ValueError: no such file: mark\.png"):
        fit(tmp_path, monitor(breaks.cue), breaks)


# ---- probes of all kinds


def test_probes_without_labels_are_tested_all_the_same(tmp_path):
    probes = leaning_probes(labels=None)
    callback = monitor(probes=probes, max_panels=1)
    one = fit(tmp_path, callback, logger="tensorboard")

    assert float(one.callback_metrics[ALARM]) == 2
    assert float(one.callback_metrics[EFFECT]) == pytest.approx(effect_after(3), abs=1e-5)
    tags = read_events(tmp_path / "tb").Tags()["images"]
    assert "audit_summary/cue_patch" in tags
    assert not [tag for tag in tags if tag.startswith("audit_summary/clusters")]


def test_probes_without_masks_are_tested_without_a_picture_of_the_cue(tmp_path):
    cue = FunctionCue(painted, NAMES, name="patch")
    one = fit(tmp_path, monitor(cue, leaning_probes(masks=None), max_panels=1), logger="tensorboard")

    assert float(one.callback_metrics[ALARM]) == 2
    events = read_events(tmp_path / "tb")
    assert not [tag for tag in events.Tags()["images"] if tag.startswith("audit_summary/cue")]
    assert not [tag for tag in events.Tags()["scalars"] if "attribution" in tag or "region" in tag]


def test_few_probes_are_not_enough_evidence(tmp_path, console):
    callback = monitor(probes=leaning_probes(29), rules=[AlarmRule(stop=True), "cue/patch/effect < 0.1"])
    one = fit(tmp_path, callback)

    assert one.current_epoch == 4
    assert float(one.callback_metrics[EFFECT]) == pytest.approx(effect_after(3), abs=1e-5)
    assert math.isnan(one.callback_metrics[ALARM])
    assert callback.last_record.findings[0].sentence == "Not enough evidence on the cue 'patch': 29 valid probes of 30."
    said = [sentence for sentence in console.warnings() if sentence.startswith("audit: ")]
    assert [sentence.partition(",")[0] for sentence in said] == [
        "audit: Expected at least 30 probes to watch 'patch'",
        "audit: Expected at least 30 probes to judge 'cue/patch/effect < 0.1'",
    ]
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
