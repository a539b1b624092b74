"""The callback in real trainers of both Lightning packages, with real loggers and files."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import (
    PACKAGES,
    TinyModule,
    audit_warnings,
    caught,
    fit,
    loader,
    package,
    rows,
    tiny_module,
    trainer,
)
from tests.tiny import centre_masks, image_steps, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    ConfigurationError,
    GradCAM,
    History,
    Localization,
    OutputError,
    PatchCue,
    ProbeSet,
    Schedule,
    ShortcutMonitor,
    TargetLayerError,
    ValidationNovelty,
    Why,
    WhyRatherThan,
)

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"
PANEL = "audit_panel/000_probe_000"
STRIP = "audit_filmstrip/000_probe_000"


@pytest.mark.parametrize("name", PACKAGES)
def test_three_lines_show_panels_and_metrics_in_tensorboard(tmp_path, name):
    module, dataset = tiny_module(name), TensorDataset(pictures(24), torch.arange(24) % 3)

    probes = ProbeSet.from_dataset(dataset, per_class=1)
    one = package(name).Trainer(
        callbacks=AuditCallback(probes),  # alone, without a list: the type is checked
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    one.fit(module, loader(), loader(2, seed=6))

    events = read_events(one.logger.log_dir)
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("audit_panel/")]) == 3
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("audit_filmstrip/")]) == 3
    assert {"audit/accuracy", "audit/confidence", "audit/novelty/gradnorm"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", PACKAGES)
def test_audits_share_the_x_axis_of_the_users_own_metrics(tmp_path, name):
    callback = AuditCallback(tiny_probes(), max_panels=1)
    one = trainer(tmp_path, [callback], name, logger="tensorboard", max_epochs=3)
    one.fit(tiny_module(name), loader(), loader(2, seed=6))

    events = read_events(tmp_path / "tb")
    own = scalar_steps(events, "val_loss")
    assert own == [3, 7, 11]
    for tag in ("audit/accuracy", MASS):
        assert scalar_steps(events, tag) == [0, *own]
    assert image_steps(events, PANEL) == image_steps(events, STRIP) == [0, *own]
    assert scalar_steps(events, "audit/switched") == own


def test_shown_metrics_are_those_of_the_last_record(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=0)
    one = fit(tmp_path, callback)

    record = callback.last_record
    assert (record.step, record.epoch) == (7, 1)
    assert float(one.callback_metrics[MASS]) == pytest.approx(
        record.metrics["gradcam/why_not_certain/relevance_mass/core"].value
    )
    last = [row for row in rows(tmp_path) if "audit/confidence" in row][-1]
    assert float(last["audit/confidence"]) == pytest.approx(record.metrics["confidence"].value)
    assert sum(record.seconds.values()) > 0


def test_record_is_that_of_the_weights_at_that_moment(tmp_path):
    module, callback = TinyModule(), AuditCallback(tiny_probes())
    fit(tmp_path, callback, module=module)
    with torch.no_grad():
        expected = module.net.eval()(tiny_probes().images)
    torch.testing.assert_close(callback.last_record.outputs, expected)


def test_saved_probe_set_can_be_named_by_its_path(tmp_path):
    tiny_probes().save(tmp_path / "probes.safetensors")
    for path in (str(tmp_path / "probes.safetensors"), tmp_path / "probes.safetensors"):
        assert AuditCallback(path).auditor.probes.fingerprint == tiny_probes().fingerprint


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_error": "ignore"},
        {"max_panels": -1},
        {"schedule": 2},
        {"schedule": {"every_n_epochs": 2}},
        {"name": None},
        {"name": 5},
        {"name": "a b"},
        {"name": "a/b"},
        {"rules": "accuracy > 0.5"},
        {"rules": 5},
        {"rules": [AlarmRule]},
        {"watches": ValidationNovelty()},
        {"watches": [ValidationNovelty]},
        {"watches": ["background"]},
        {"sinks": "tensorboard"},
        {"sinks": [print]},
    ],
)
def test_wrong_arguments_are_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        AuditCallback(tiny_probes(), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_size": 0},
        {"explainers": GradCAM()},
        {"explainers": "gradcam"},
        {"explainers": [GradCAM]},
        {"explainers": [GradCAM(), GradCAM("net.0")]},
        {"model": 2.5},
        {"model": ["net"]},
        {"output": 2.5},
        {"output": ["logits"]},
        {"trials": "cue"},
        {"trials": 3},
        {"measures": "localization"},
        {"measures": [Localization]},
        {"novelty": "energy"},
        {"inliers": 5},
        {"questions": [], "novelty": []},
    ],
)
def test_wrong_arguments_of_an_auditor_are_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Auditor(tiny_probes(), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_epochs": 0},
        {"every_n_train_steps": 1.5},
        {"every_n_epochs": "2"},
        {"at_start": "never"},
        {"at_start": None},
    ],
)
def test_wrong_schedules_are_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Schedule(**wrong)


@pytest.mark.parametrize("probes", [5, [], {}, object(), torch.zeros(2)])
def test_what_is_no_probe_set_is_refused_with_a_way_out(probes):
    for make in (lambda: AuditCallback(probes), lambda: ShortcutMonitor(probes, PatchCue([1.0, 0, 0], points_to=0))):
        with pytest.raises(ConfigurationError, match=r"`probes` to be a ProbeSet, .* or the path of a saved one"):
            make()


class Steps(Callback):
    """Counts training steps."""

    def __init__(self):
        self.done = 0

    def on_train_batch_start(self, *args):
        self.done += 1


class DictNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tiny_net()

    def forward(self, images):
        logits = self.net(images)
        return {"logits": logits, "scores": logits.exp()}


@pytest.mark.parametrize(
    ("options", "net", "error", "message"),
    [
        ({"explainers": [GradCAM("net.22")]}, None, TargetLayerError, r"Did you mean .*'net.2'"),
        ({"output": "logit"}, DictNet(), ConfigurationError, "'logit'"),
        ({"model": "nett"}, None, ConfigurationError, r"Did you mean 'net'"),
        ({"questions": [Why(of=3)]}, None, ConfigurationError, "below 3"),
        ({"questions": [WhyRatherThan(foil=7)]}, None, ConfigurationError, "below 3"),
        ({}, tiny_net(classes=2), OutputError, "for 3 classes, as the probes name, but the model gives 2"),
    ],
)
def test_mistakes_are_raised_before_the_first_training_step(tmp_path, options, net, error, message):
    steps = Steps()
    with pytest.raises(error, match=message):
        fit(tmp_path, AuditCallback(Auditor(tiny_probes(), **options)), steps, module=TinyModule(net))
    assert steps.done == 0


class FSDPStrategy(SingleDeviceStrategy):
    """Stands in for the real one, which needs accelerators; strategies are told by class name."""


def test_strategy_that_shards_the_model_is_refused(tmp_path):
    class Mine(FSDPStrategy):
        pass

    with pytest.raises(ConfigurationError, match=r"Mine.*audit the saved checkpoints with Auditor"):
        fit(tmp_path, AuditCallback(tiny_probes()), strategy=Mine(torch.device("cpu")))


@pytest.mark.parametrize("audit_first", [True, False])
def test_weight_averaging_before_the_audit_is_warned_of(tmp_path, audit_first):
    pytest.importorskip("pytorch_lightning", minversion="2.6")
    from pytorch_lightning.callbacks import WeightAveraging

    audit, averaging = AuditCallback(tiny_probes()), WeightAveraging()
    with caught() as found:
        fit(tmp_path, *([audit, averaging] if audit_first else [averaging, audit]), max_epochs=1)
    assert (not audit_warnings(found)) is audit_first
    if not audit_first:
        assert "Put AuditCallback first" in audit_warnings(found)[0]


def test_two_audits_of_different_probes_keep_apart_histories_and_states(tmp_path):
    first, second = (
        AuditCallback(tiny_probes(), max_panels=0),
        AuditCallback(tiny_probes(seed=9), max_panels=0, name="other"),
    )
    assert first.state_key != second.state_key
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, first, second, checkpoint)

    callbacks = torch.load(checkpoint.last_model_path, weights_only=True)["callbacks"]
    assert first.history.folder != second.history.folder
    for callback in (first, second):
        kept, expected = History.from_state(callbacks[callback.state_key]["run"]["history"]), callback.history
        assert {each.fingerprint for each in (*kept, *expected)} == {callback.auditor.probes.fingerprint}
        assert [each.metrics for each in kept] == [each.metrics for each in expected]


def test_two_audits_need_two_names(tmp_path):
    cue = PatchCue([1.0, 0, 0], points_to=0)
    with pytest.raises(ConfigurationError, match=r"several called 'audit'.*name='background'"):
        fit(tmp_path, AuditCallback(tiny_probes()), ShortcutMonitor(tiny_probes(seed=9), cue))
    with pytest.raises(ConfigurationError, match=r"several called 'audit'.*name='background'"):
        fit(tmp_path, AuditCallback(tiny_probes()), AuditCallback(tiny_probes(seed=9)))
    one = fit(
        tmp_path,
        AuditCallback(tiny_probes(), max_panels=0),
        AuditCallback(tiny_probes(seed=9), max_panels=0, name="other"),
    )
    assert {"audit/confidence", "other/confidence"} <= one.callback_metrics.keys()


def test_a_forward_that_logs_neither_fails_nor_logs_the_probes(tmp_path):
    class Talkative(TinyModule):
        def forward(self, images):
            self.log("seen", float(len(images)))
            return super().forward(images)

    module = Talkative()
    callback = AuditCallback(tiny_probes(), on_error="raise")
    one = fit(tmp_path, callback, module=module)
    assert callback.last_record is not None
    assert "log" not in vars(module)
    assert float(one.callback_metrics["seen"]) != len(tiny_probes())


def test_regions_and_regression_probes_work_in_a_trainer(tmp_path):
    class Regression(TinyModule):
        def training_step(self, batch, batch_idx):
            return (self(batch[0])[:, 0] - batch[1]).square().mean()

        def validation_step(self, batch, batch_idx):
            pass

    probes = ProbeSet.from_tensors(pictures(), targets=torch.rand(6), masks=centre_masks())
    callback = AuditCallback(probes, max_panels=1, on_error="raise")
    data = DataLoader(TensorDataset(pictures(16), torch.rand(16)), batch_size=4)
    one = trainer(tmp_path, [callback], logger="tensorboard")
    one.fit(Regression(tiny_net(classes=1)), data, data)
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "audit/absolute_error") == image_steps(events, PANEL) == [0, 3, 7]
