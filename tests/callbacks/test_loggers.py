"""Numbers and pictures of audits in loggers that work and in loggers that fail."""

from __future__ import annotations

import signal
import threading

import pytest
from pytorch_lightning import Callback
from torch.utils.tensorboard import SummaryWriter

from tests.callbacks.runs import (
    BATCHES,
    TinyModule,
    audit_warnings,
    caught,
    csv_logger,
    fit,
    steps_of,
    tensorboard_logger,
)
from tests.tiny import image_steps, read_events, scalar_steps, tiny_probes
from xai_callbacks import AuditCallback, AuditError, Schedule, Sink
from xai_callbacks.sinks import Background

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"
PANEL = "audit_panel/000_probe_000"


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
    assert b"mine-audit/accuracy" in page


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
    with caught(), pytest.raises(AuditError, match=r"TensorBoardSink failed: OSError.*No space left"):
        fit(tmp_path, AuditCallback(tiny_probes(), max_panels=1, on_error="raise"), logger=logger)


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
    assert len(tags) == 11
    for tag in tags:
        assert image_steps(events, tag) == [0, 3]


def test_failing_pictures_do_not_hide_the_exception(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=1, on_error="raise", schedule=Schedule(every_n_epochs=None))
    module = Bomb(RuntimeError("boom"))
    with caught() as found, pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, callback, module=module, logger=picture_failing_logger(tmp_path))
    assert len(audit_warnings(found)) == 1


class Blocked(Sink):
    """Waits for `gate` at its first audit."""

    def __init__(self):
        self.gate = threading.Event()

    def write(self, record, pictures):
        self.gate.wait(60)

    def close(self):
        pass


def test_pictures_that_are_dropped_for_want_of_time_end_no_run(tmp_path, monkeypatch):
    monkeypatch.setitem(Background.__init__.__kwdefaults__, "capacity", 2)
    sink = Blocked()

    class Opens(Callback):
        def on_train_end(self, trainer, pl_module):
            sink.gate.set()

    audit = AuditCallback(
        tiny_probes(), sinks=[sink], schedule=Schedule(every_n_train_steps=1, at_start=False), on_error="raise"
    )
    with pytest.warns(UserWarning, match="DroppedError: Pictures of 1 audits were dropped, because Blocked is slow"):
        fit(tmp_path, Opens(), audit)
    assert len(audit.history) == 2 * BATCHES
