"""The callback in real trainers of both Lightning packages, with real loggers and files."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import warnings

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from tests.callbacks.runs import (
    BATCHES,
    PACKAGES,
    TinyModule,
    audit_warnings,
    caught,
    csv_logger,
    loader,
    package,
    rows,
    steps_of,
    tensorboard_logger,
    tiny_module,
    trainer,
)
from tests.tiny import centre_masks, image_steps, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    AuditCallback,
    AuditError,
    ConfigurationError,
    GradCAM,
    OutputError,
    PatchCue,
    ProbeSet,
    ShortcutMonitor,
    TargetLayerError,
    Why,
    WhyRatherThan,
)

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"
PANEL = "audit_panel/000_probe_000"
STRIP = "audit_filmstrip/000_probe_000"

# What Lightning says of these small runs, and rightly so.
NOISE = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


def fit(folder, callback, *others, module=None, val=True, ckpt_path=None, **options):
    """Run `fit` with the callback first; returns the trainer."""
    one = trainer(folder, [callback, *others], **options)
    train, validation = loader(), loader(2, seed=6) if val else None
    with warnings.catch_warnings():
        for noise in NOISE:
            warnings.filterwarnings("ignore", message=noise)
        one.fit(TinyModule() if module is None else module, train, validation, ckpt_path=ckpt_path)
    return one


# ---- attaching


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
    assert "audit_detail/seconds" in last


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
        {"every_n_epochs": 0},
        {"every_n_train_steps": 1.5},
        {"chunk_size": 0},
        {"questions": []},
        {"explainers": GradCAM()},
        {"explainers": "gradcam"},
        {"explainers": [GradCAM]},
        {"explainers": [GradCAM(), GradCAM("net.0")]},
        {"name": None},
        {"name": 5},
        {"name": "a b"},
        {"alarm": "x"},
        {"alarm": True},
        {"at_start": "never"},
        {"at_start": None},
        *({name: "no"} for name in ("nulls", "clusters", "locate_novelty", "watch_validation")),
        *({name: 1} for name in ("nulls", "clusters", "locate_novelty", "watch_validation")),
        {"model": 2.5},
        {"model": ["net"]},
        {"output": 2.5},
        {"output": ["logits"]},
        {"trials": "cue"},
        {"trials": 3},
        {"expectations": "accuracy > 0.5"},
        {"expectations": 5},
        {"inliers": 5},
        {"novel": [1]},
    ],
)
def test_wrong_arguments_are_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        AuditCallback(tiny_probes(), **wrong)


@pytest.mark.parametrize("probes", [None, 5, [], {}, object(), torch.zeros(2)])
def test_what_is_no_probe_set_is_refused_with_a_way_out(probes):
    for make in (lambda: AuditCallback(probes), lambda: ShortcutMonitor(probes, PatchCue([1.0, 0, 0], points_to=0))):
        with pytest.raises(ConfigurationError, match="Expected `probes` to be a ProbeSet, or the path of a saved one"):
            make()


# ---- when


@pytest.mark.parametrize(
    ("callback_options", "trainer_options", "validates", "steps"),
    [
        ({}, {}, True, [0, 3, 7]),
        ({"at_start": False}, {}, True, [3, 7]),
        ({}, {}, False, [0, 3, 7]),
        ({}, {"limit_val_batches": 0}, True, [0, 3, 7]),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, True, [0, 7, 15]),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, False, [0, 7, 15]),
        ({"every_n_epochs": None}, {}, True, [0]),
        ({"every_n_epochs": None, "every_n_train_steps": 3}, {}, True, [0, 2, 5]),
        ({"every_n_train_steps": 3}, {}, True, [0, 2, 3, 5, 7]),
        ({"every_n_train_steps": 4}, {}, True, [0, 3, 7]),
        ({"every_n_train_steps": 4}, {}, False, [0, 3, 7]),
        ({}, {"val_check_interval": 0.5, "max_epochs": 1}, True, [0, 1, 3]),
        ({}, {"val_check_interval": 3, "check_val_every_n_epoch": None}, True, [0, 2, 5]),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 4}, True, [0, 7, 15]),
        ({}, {"num_sanity_val_steps": 2}, True, [0, 3, 7]),
        ({"at_start": False}, {"num_sanity_val_steps": 2, "max_epochs": 1}, True, [3]),
        ({}, {"accumulate_grad_batches": 2}, True, [0, 1, 3]),
        ({"every_n_train_steps": 1, "every_n_epochs": None}, {"accumulate_grad_batches": 2}, True, [0, 0, 1, 2, 3]),
    ],
)
def test_audits_take_place_when_they_are_due(tmp_path, callback_options, trainer_options, validates, steps):
    fit(tmp_path, AuditCallback(tiny_probes(), **callback_options), val=validates, **trainer_options)

    assert steps_of(tmp_path, "audit/confidence") == steps
    own = set(steps_of(tmp_path, "val_loss"))
    if validates and not callback_options.get("every_n_train_steps") and callback_options.get("every_n_epochs", 1):
        assert own == set() or set(steps) - {0} <= own


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_loader_without_batches_is_no_validation(tmp_path):
    class NoBatches(TinyModule):
        def val_dataloader(self):
            return []

    one = trainer(tmp_path, [AuditCallback(tiny_probes())])
    one.fit(NoBatches(), loader())
    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7]


def test_manual_optimisation_is_audited_at_lightnings_steps(tmp_path):
    class Manual(TinyModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    fit(tmp_path, AuditCallback(tiny_probes()), module=Manual())
    assert steps_of(tmp_path, "audit/confidence") == [0, *steps_of(tmp_path, "val_loss")]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_only_fit_audits(tmp_path, verb):
    callback = AuditCallback(tiny_probes())
    one = trainer(tmp_path, [callback])
    getattr(one, verb)(TinyModule(), loader(2), verbose=False)

    assert callback.last_record is None
    assert not any(key.startswith("audit") for key in one.callback_metrics)


def test_fast_dev_run_audits_and_writes_nothing(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=1)
    one = fit(tmp_path, callback, fast_dev_run=True)
    assert callback.last_record is not None
    assert MASS in one.callback_metrics
    assert not list(tmp_path.rglob("events*"))


# ---- loggers


def test_without_a_logger_metrics_can_still_be_monitored(tmp_path):
    one = fit(tmp_path, AuditCallback(tiny_probes()), logger=False)
    assert one.callback_metrics[MASS].isfinite()


def test_every_logger_gets_scalars_and_those_that_can_get_pictures(tmp_path):
    loggers = [csv_logger(tmp_path), tensorboard_logger(tmp_path), tensorboard_logger(tmp_path / "second")]
    fit(tmp_path, AuditCallback(tiny_probes(), max_panels=1), logger=loggers)

    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7]
    for folder in (tmp_path / "tb", tmp_path / "second" / "tb"):
        events = read_events(folder)
        assert scalar_steps(events, "audit/confidence") == [0, 3, 7]
        assert image_steps(events, PANEL) == [0, 3, 7]


def test_prefix_of_the_logger_reaches_scalars_and_their_page(tmp_path):
    logger = tensorboard_logger(tmp_path, prefix="mine")
    fit(tmp_path, AuditCallback(tiny_probes(), max_panels=1), logger=logger, max_epochs=1)
    events = read_events(tmp_path / "tb")
    assert scalar_steps(events, "mine-audit/confidence") == [0, 3]
    page = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"mine-audit/confidence" in page


class FullDisk(type(csv_logger("unused"))):
    """A real logger on a disk that is full: it takes the user's numbers, not ours."""

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("audit") for key in metrics):
            raise OSError(28, "No space left on device")
        super().log_metrics(metrics, step)


def test_logger_that_fails_is_told_once_and_the_others_are_served(tmp_path):
    loggers = [FullDisk(tmp_path / "full", name="", version="csv"), csv_logger(tmp_path)]
    with caught() as found:
        one = fit(tmp_path, AuditCallback(tiny_probes()), logger=loggers, max_epochs=3)

    (message,) = audit_warnings(found)
    assert "training goes on" in message
    assert "No space left on device" in message
    assert one.global_step == 3 * BATCHES
    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7, 11]


@pytest.mark.parametrize("validates", [True, False])
def test_metrics_stay_valid_when_only_writing_them_failed(tmp_path, validates):
    with caught():
        logger = FullDisk(tmp_path, name="", version="csv")
        one = fit(tmp_path, AuditCallback(tiny_probes()), logger=logger, val=validates)
    assert one.callback_metrics[MASS].isfinite()


def test_logger_that_fails_ends_the_run_where_that_was_asked_for(tmp_path):
    logger = FullDisk(tmp_path, name="", version="csv")
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, AuditCallback(tiny_probes(), on_error="raise"), logger=logger)


class NoPictures(SummaryWriter):
    def add_image(self, *args, **kwargs):
        raise OSError(28, "No space left on device")


def picture_failing_logger(folder):
    logger = tensorboard_logger(folder)
    logger._experiment = NoPictures(folder / "tb")
    return logger


def test_pictures_that_cannot_be_written_are_told_once_and_scalars_go_on(tmp_path):
    logger = picture_failing_logger(tmp_path)
    with caught() as found:
        one = fit(tmp_path, AuditCallback(tiny_probes(), max_panels=1), logger=logger)

    (message,) = audit_warnings(found)
    assert "No space left on device" in message
    assert scalar_steps(read_events(tmp_path / "tb"), "audit/confidence") == [0, 3, 7]
    assert one.callback_metrics[MASS].isfinite()


def test_pictures_that_cannot_be_written_end_the_run_where_that_was_asked_for(tmp_path):
    logger = picture_failing_logger(tmp_path)
    with caught(), pytest.raises(OSError, match="No space left"):
        fit(tmp_path, AuditCallback(tiny_probes(), max_panels=1, on_error="raise"), logger=logger)


# ---- audits that fail


class SickNet(nn.Module):
    """NaN in eval mode from a given training step on."""

    def __init__(self, after):
        super().__init__()
        self.net, self.after, self.steps = tiny_net(), after, 0

    def forward(self, images):
        self.steps += self.training
        outputs = self.net(images)
        return outputs if self.training or self.steps < self.after else outputs * math.nan


def test_audit_that_fails_warns_once_and_its_metrics_become_nan(tmp_path):
    callback = AuditCallback(tiny_probes())
    with caught() as found:
        one = fit(tmp_path, callback, module=TinyModule(SickNet(after=5)), max_epochs=4)

    (message,) = audit_warnings(found)
    assert "AuditError" in message
    assert "'probe_000'" in message
    assert one.global_step == 4 * BATCHES
    assert one.callback_metrics[MASS].isnan()
    assert one.callback_metrics["audit/accuracy"].isnan()
    assert callback.last_record.step == 3
    assert steps_of(tmp_path, "audit/confidence") == [0, 3]


def test_audit_that_recovers_has_metrics_again(tmp_path):
    class Recovers(SickNet):
        def forward(self, images):
            return self.net(images) if self.steps >= 2 * BATCHES else super().forward(images)

    with caught() as found:
        one = fit(tmp_path, AuditCallback(tiny_probes()), module=TinyModule(Recovers(after=1)), max_epochs=2)
    assert len(audit_warnings(found)) == 1
    assert one.callback_metrics[MASS].isfinite()


def test_failed_audit_at_the_very_step_of_a_good_one_does_not_leave_its_numbers(tmp_path):
    """The first optimizer step shares its x with the audit before training."""
    callback = AuditCallback(tiny_probes(), every_n_train_steps=1, every_n_epochs=None)
    with caught():
        one = fit(tmp_path, callback, module=TinyModule(SickNet(after=1)), max_steps=1)
    assert callback.last_record.step == 0
    assert one.callback_metrics[MASS].isnan()


def test_audit_that_fails_ends_the_run_where_that_was_asked_for(tmp_path):
    with pytest.raises(AuditError, match="probe_000"):
        fit(tmp_path, AuditCallback(tiny_probes(), on_error="raise"), module=TinyModule(SickNet(after=5)))


# ---- mistakes come to light before training


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
        fit(tmp_path, AuditCallback(tiny_probes(), **options, on_error="warn"), steps, module=TinyModule(net))
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
    audit, averaging = AuditCallback(tiny_probes()), WeightAveraging()
    with caught() as found:
        one = trainer(tmp_path, [audit, averaging] if audit_first else [averaging, audit], max_epochs=1)
        one.fit(TinyModule(), loader(), loader(2))
    assert (not audit_warnings(found)) is audit_first
    if not audit_first:
        assert "Put AuditCallback first" in audit_warnings(found)[0]


# ---- models of all kinds


def test_lazy_parameters_are_left_for_training_to_make(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)
    )
    callback = AuditCallback(tiny_probes())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*uninitialized parameter.*", category=UserWarning)
        fit(tmp_path, callback, module=LazyModule(net))
    assert steps_of(tmp_path, "audit/confidence") == [3, 7]


class LazyModule(TinyModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


# torch's tracing of Lightning's own `self.log`.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_compiled_module_is_audited(tmp_path):
    callback = AuditCallback(tiny_probes(), on_error="raise")
    fit(tmp_path, callback, module=torch.compile(TinyModule(), backend="eager"))
    plain = AuditCallback(tiny_probes(), on_error="raise")
    fit(tmp_path / "plain", plain)
    assert torch.equal(callback.last_record.heatmaps, plain.last_record.heatmaps)


def test_module_with_compiled_parts_is_audited(tmp_path):
    callback = AuditCallback(tiny_probes(), on_error="raise")
    fit(tmp_path, callback, module=TinyModule(torch.compile(tiny_net(), backend="eager")))
    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7]
    assert callback.last_record.layer == "net.2"


def test_half_precision_weights_are_audited_in_half_and_recorded_in_full(tmp_path):
    callback = AuditCallback(tiny_probes(), on_error="raise")
    fit(tmp_path, callback, precision="bf16-true")
    assert callback.last_record.heatmaps.dtype == torch.float32
    assert callback.last_record.heatmaps.isfinite().all()


def test_mixed_precision_is_audited_in_full(tmp_path):
    module, callback = TinyModule(), AuditCallback(tiny_probes(), on_error="raise")
    fit(tmp_path, callback, module=module, precision="bf16-mixed")
    with torch.no_grad():
        torch.testing.assert_close(callback.last_record.outputs, module.net.eval()(tiny_probes().images))


class ForwardIsNotTheClassifier(TinyModule):
    def forward(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch))


@pytest.mark.parametrize("where", ["net", lambda module: module.net, lambda module: module.net.forward])
def test_classifier_inside_the_module_is_found_where_model_says(tmp_path, where):
    module = ForwardIsNotTheClassifier()
    callback = AuditCallback(tiny_probes(), model=where, on_error="raise")
    fit(tmp_path, callback, module=module)
    with torch.no_grad():
        torch.testing.assert_close(callback.last_record.outputs, module.net.eval()(tiny_probes().images))


def test_output_says_which_part_holds_the_logits(tmp_path):
    class Dict(TinyModule):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    callback = AuditCallback(tiny_probes(), output="logits", on_error="raise")
    fit(tmp_path, callback, module=Dict(DictNet()))
    assert callback.last_record.layer == "net.net.2"


# ---- monitors


def test_checkpoint_can_monitor_an_audit(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=MASS, mode="max", filename="{epoch}")
    callback = AuditCallback(tiny_probes())
    fit(tmp_path, callback, checkpoint, max_epochs=3, enable_checkpointing=True)

    masses = [float(row[MASS]) for row in rows(tmp_path) if MASS in row][1:]
    assert len(masses) == 3
    assert float(checkpoint.best_model_score) == pytest.approx(max(masses))
    assert checkpoint.best_model_path.endswith(f"epoch={masses.index(max(masses))}.ckpt")


def test_checkpoint_monitors_across_epochs_without_an_audit(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=MASS, save_top_k=-1)
    one = fit(
        tmp_path, AuditCallback(tiny_probes(), every_n_epochs=3), checkpoint, max_epochs=3, enable_checkpointing=True
    )
    assert one.global_step == 3 * BATCHES


def test_early_stopping_can_monitor_an_audit(tmp_path):
    options = {"mode": "max", "stopping_threshold": 0.0, "check_finite": False}
    stopping = EarlyStopping(monitor="audit/confidence", **options)
    one = fit(tmp_path, AuditCallback(tiny_probes()), stopping, max_epochs=5)
    assert one.current_epoch == 1


def test_early_stopping_that_would_end_the_run_over_a_failed_audit_is_pointed_out(tmp_path):
    with pytest.warns(UserWarning, match="check_finite=False"):
        fit(tmp_path, AuditCallback(tiny_probes()), EarlyStopping(monitor="audit/confidence", mode="max"))


# ---- checkpoints and resuming


def saved(folder, callback, *, max_epochs=2, **options):
    """Train, keep the last checkpoint, and return its path."""
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True)
    fit(folder, callback, checkpoint, max_epochs=max_epochs, enable_checkpointing=True, **options)
    return checkpoint.last_model_path


def steady():
    """Without dropout, so that a resumed run is the same as one that was not interrupted."""
    net = tiny_net()
    net[5].p = 0.0
    return TinyModule(net)


def test_resumed_run_continues_drift_and_filmstrip_and_does_not_repeat_the_start(tmp_path):
    options = {"logger": "tensorboard"}
    fit(tmp_path / "whole", AuditCallback(tiny_probes(), max_panels=1), module=steady(), max_epochs=4, **options)
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=1), module=steady(), **options)
    resumed = AuditCallback(tiny_probes(), max_panels=1)
    # Lightning reads it weights-only, and validates once before it goes on.
    options |= {"module": steady(), "num_sanity_val_steps": 2}
    fit(tmp_path / "second", resumed, ckpt_path=path, max_epochs=4, **options)

    events, expected = read_events(tmp_path / "second" / "tb"), read_events(tmp_path / "whole" / "tb")
    assert scalar_steps(events, "audit/confidence") == [11, 15]
    for tag in ("audit/gradcam/why/drift", "audit/switched"):
        assert [event.value for event in events.Scalars(tag)] == [event.value for event in expected.Scalars(tag)[-2:]]
    # The last filmstrip is the same picture, byte for byte, as that of the run that was not interrupted.
    assert events.Images(STRIP)[-1].encoded_image_string == expected.Images(STRIP)[-1].encoded_image_string


def test_checkpoint_holds_plain_data_only(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=2)
    state = torch.load(saved(tmp_path, callback, logger="tensorboard"), weights_only=True)["callbacks"][
        callback.state_key
    ]

    def kinds(value):
        yield type(value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            yield from kinds(part)

    assert set(kinds(state)) <= {dict, list, tuple, str, int, float, torch.Tensor}
    assert [frame["step"] for frame in state["pictures"]["film"]["frames"]] == [0, 3, 7]
    heatmaps, keys, _kind = state["auditor"]["evidence"]["judge"]["maps"]["gradcam"]
    assert heatmaps.shape[:2] == (3, 6)
    assert keys == ("gradcam/why", "gradcam/why_rather_than", "gradcam/why_not_certain")


def test_monitors_of_a_resumed_run_know_the_metrics_before_the_next_audit(tmp_path):
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), every_n_epochs=2))
    checkpoint = ModelCheckpoint(tmp_path / "second", monitor=MASS)
    one = fit(
        tmp_path / "second", AuditCallback(tiny_probes(), every_n_epochs=2), checkpoint,
        max_epochs=3, ckpt_path=path, enable_checkpointing=True,
    )  # fmt: skip
    assert one.global_step == 3 * BATCHES
    assert one.callback_metrics[MASS].isfinite()


def test_resuming_in_the_middle_of_an_accumulation_does_not_repeat_the_last_audit(tmp_path):
    options = {"every_n_train_steps": 2, "every_n_epochs": None}
    accumulation = {"accumulate_grad_batches": 2}
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), **options), max_epochs=1, **accumulation)
    callback = AuditCallback(tiny_probes(), **options)
    fit(tmp_path / "second", callback, max_epochs=2, ckpt_path=path, **accumulation)
    assert steps_of(tmp_path / "first", "audit/confidence") == [0, 1]
    assert steps_of(tmp_path / "second", "audit/confidence") == [3]


def test_resuming_with_another_number_of_panels_begins_the_filmstrip_anew(tmp_path):
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=2), logger="tensorboard")
    callback = AuditCallback(tiny_probes(), max_panels=3, on_error="raise")
    fit(tmp_path / "second", callback, max_epochs=3, ckpt_path=path, logger="tensorboard")
    assert [frame["step"] for frame in callback.state_dict()["pictures"]["film"]["frames"]] == [11]


def test_state_of_an_unknown_version_is_left_alone():
    callback = AuditCallback(tiny_probes())
    with pytest.warns(UserWarning, match="version 99"):
        callback.load_state_dict({"version": 99, "anything": object()})
    assert callback.state_dict()["auditor"].keys() == AuditCallback(tiny_probes()).state_dict()["auditor"].keys()


def test_second_fit_with_the_same_trainer_goes_on(tmp_path):
    callback, module = AuditCallback(tiny_probes(), max_panels=1), TinyModule()
    one = trainer(tmp_path, [callback], logger="tensorboard", max_epochs=1)
    one.fit(module, loader(), loader(2))
    one.fit_loop.max_epochs = 2
    one.fit(module, loader(), loader(2))

    events = read_events(tmp_path / "tb")
    assert image_steps(events, PANEL) == [0, 3, 7]
    assert [frame["step"] for frame in callback.state_dict()["pictures"]["film"]["frames"]] == [0, 3, 7]
    assert scalar_steps(events, "audit/gradcam/why/drift") == [3, 7]


def test_new_trainer_begins_anew_as_in_cross_validation(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=1)
    for fold in ("a", "b"):
        fit(tmp_path / fold, callback, max_epochs=1, logger="tensorboard")

    a, b = (read_events(tmp_path / fold / "tb") for fold in ("a", "b"))
    for tag in (PANEL, STRIP):
        assert [e.encoded_image_string for e in a.Images(tag)] == [e.encoded_image_string for e in b.Images(tag)]
    assert scalar_steps(b, "audit/confidence") == [0, 3]
    assert scalar_steps(b, "audit/switched") == [3]


def test_new_run_without_a_start_audits_at_the_same_place_again(tmp_path):
    callback = AuditCallback(tiny_probes(), at_start=False)
    for fold in ("a", "b"):
        fit(tmp_path / fold, callback, max_epochs=1)
        assert steps_of(tmp_path / fold, "audit/confidence") == [3]


def test_two_audits_of_different_probes_keep_apart_states(tmp_path):
    first, second = AuditCallback(tiny_probes()), AuditCallback(tiny_probes(seed=9), name="other")
    assert first.state_key != second.state_key
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, first, second, checkpoint, enable_checkpointing=True, logger=False)

    callbacks = torch.load(checkpoint.last_model_path, weights_only=True)["callbacks"]
    for callback in (first, second):
        state = callbacks[callback.state_key]["auditor"]
        assert state["evidence"]["judge"]["fingerprint"] == callback.auditor.probes.fingerprint
        assert torch.equal(state["evidence"]["judge"]["maps"]["gradcam"][0], callback.last_record.heatmaps)


def test_two_audits_need_two_names(tmp_path):
    with pytest.raises(ConfigurationError, match="several called 'audit'"):
        fit(tmp_path, AuditCallback(tiny_probes()), AuditCallback(tiny_probes(seed=9)))
    trainer = fit(tmp_path, AuditCallback(tiny_probes()), AuditCallback(tiny_probes(seed=9), name="other"))
    assert {"audit/confidence", "other/confidence"} <= trainer.callback_metrics.keys()
    with pytest.raises(ConfigurationError, match="Expected `name` to be letters"):
        AuditCallback(tiny_probes(), name="a/b")


def test_a_forward_that_logs_neither_fails_nor_logs_the_probes(tmp_path):
    class Talkative(TinyModule):
        def forward(self, images):
            self.log("seen", float(len(images)))
            return super().forward(images)

    module = Talkative()
    callback = AuditCallback(tiny_probes(), on_error="raise")
    trainer = fit(tmp_path, callback, module=module)
    assert callback.last_record is not None
    assert "log" not in vars(module)
    assert float(trainer.callback_metrics["seen"]) != len(tiny_probes())


# ---- runs that end badly


class Bomb(TinyModule):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def training_step(self, batch, batch_idx):
        if self.global_step == BATCHES + 1:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("error", "seen"), [(RuntimeError("boom"), RuntimeError), (KeyboardInterrupt(), SystemExit)])
def test_pictures_are_written_when_training_ends_by_an_exception(tmp_path, error, seen):
    interrupt = signal.getsignal(signal.SIGINT)  # Lightning leaves it switched off
    callback = AuditCallback(tiny_probes(), max_panels=4)
    try:
        with pytest.raises(seen):
            fit(tmp_path, callback, module=Bomb(error), logger="tensorboard")
    finally:
        signal.signal(signal.SIGINT, interrupt)

    events = read_events(tmp_path / "tb")
    tags = events.Tags()["images"]
    assert len(tags) == 9
    for tag in tags:
        assert image_steps(events, tag) == [0, 3]


def test_failing_pictures_do_not_hide_the_exception(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=1, on_error="raise", every_n_epochs=None)
    module = Bomb(RuntimeError("boom"))
    with caught() as found, pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, callback, module=module, logger=picture_failing_logger(tmp_path))
    assert len(audit_warnings(found)) == 1


def test_run_after_a_crash_audits_its_start(tmp_path):
    """As in a notebook: the first cell fails, the mistake is mended, the same callback is used again."""

    class FailsAtOnce(TinyModule):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("typo")

    callback = AuditCallback(tiny_probes())
    with pytest.raises(RuntimeError, match="typo"):
        fit(tmp_path / "a", callback, module=FailsAtOnce())
    fit(tmp_path / "b", callback, max_epochs=1)
    assert steps_of(tmp_path / "b", "audit/confidence") == [0, 3]


# ---- copies


class Heavy(TinyModule):
    """A module whose copying would be noticed."""

    def __deepcopy__(self, memo):
        raise AssertionError("the callback dragged the model along")

    def __reduce_ex__(self, protocol):
        raise AssertionError("the callback dragged the model along")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copy_of_a_used_callback_works_and_does_not_drag_the_model(tmp_path, duplicate):
    used = AuditCallback(tiny_probes(), max_panels=1)
    fit(tmp_path / "a", used, module=Heavy(), logger="tensorboard")
    twin = duplicate(used)

    assert twin.state_key == used.state_key
    assert [f["step"] for f in twin.state_dict()["pictures"]["film"]["frames"]] == [0, 3, 7]
    fit(tmp_path / "b", twin, max_epochs=1)
    assert steps_of(tmp_path / "b", "audit/confidence") == [0, 3]


def test_copy_during_a_run_leaves_writers_and_threads_behind(tmp_path):
    class Copies(Callback):
        def on_validation_end(self, trainer, pl_module):
            self.twin = copy.deepcopy(trainer.callbacks[0])

    copies = Copies()
    callback = AuditCallback(tiny_probes(), max_panels=1)
    fit(tmp_path, callback, copies, logger="tensorboard")
    assert copies.twin.state_dict()["pictures"]["film"]["audits"] == 3


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
