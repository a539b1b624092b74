"""Other callbacks that monitor audits, or stand beside them."""

from __future__ import annotations

import pytest
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from tests.callbacks.runs import BATCHES, audit_warnings, caught, fit, rows
from tests.tiny import tiny_probes
from xai_callbacks import AuditCallback, Schedule, ValidationNovelty

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"


def test_checkpoint_can_monitor_an_audit(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=MASS, mode="max", filename="{epoch}")
    callback = AuditCallback(tiny_probes(), max_panels=0)
    fit(tmp_path, callback, checkpoint, max_epochs=3)

    masses = [float(row[MASS]) for row in rows(tmp_path) if MASS in row][1:]
    assert len(masses) == 3
    assert float(checkpoint.best_model_score) == pytest.approx(max(masses))
    assert checkpoint.best_model_path.endswith(f"epoch={masses.index(max(masses))}.ckpt")


def test_checkpoint_monitors_across_epochs_without_an_audit(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=MASS, save_top_k=-1)
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(every_n_epochs=3))
    with pytest.warns(UserWarning, match="ModelCheckpoint monitors"):
        one = fit(tmp_path, callback, checkpoint, max_epochs=3)
    assert one.global_step == 3 * BATCHES


RARE = {
    "every 2 epochs": Schedule(every_n_epochs=2),
    "within epochs": Schedule(every_n_epochs=None, every_n_train_steps=3),
    "before training": Schedule(every_n_epochs=None),
}


@pytest.mark.parametrize("words", RARE)
def test_monitors_of_rare_audits_are_warned_of(tmp_path, words):
    """They would act on the value of other weights."""
    stopping = EarlyStopping("audit/confidence", mode="max", patience=9, check_finite=False)
    callbacks = [ModelCheckpoint(tmp_path, monitor=MASS), stopping, ModelCheckpoint(tmp_path, monitor="val_loss")]
    with caught() as found:
        fit(tmp_path, AuditCallback(tiny_probes(), max_panels=0, schedule=RARE[words]), *callbacks, max_epochs=1)
    told = audit_warnings(found)
    assert sorted(message.partition(",")[0] for message in told) == [
        "EarlyStopping monitors 'audit/confidence'",
        f"ModelCheckpoint monitors {MASS!r}",
    ]
    assert all(f"audited only {words}" in message for message in told)


def test_monitors_of_audits_at_each_validation_and_of_other_names_are_not_warned_of(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=MASS)
    rare = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(every_n_epochs=2), name="other")
    fit(
        tmp_path, AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(every_n_train_steps=3)), rare, checkpoint
    )


@pytest.mark.parametrize("probes", [True, False])
def test_monitors_of_what_a_watch_sees_at_each_validation_are_not_warned_of(tmp_path, probes):
    """Also where the probes are found later."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="audit/validation/novelty/gradnorm")
    audit = AuditCallback(
        tiny_probes() if probes else None, watches=[ValidationNovelty()], max_panels=0, on_error="raise",
        schedule=Schedule(every_n_epochs=2),
    )  # fmt: skip
    with caught() as found:
        fit(tmp_path, audit, checkpoint)
    assert audit_warnings(found) == []


def test_early_stopping_can_monitor_an_audit(tmp_path):
    options = {"mode": "max", "stopping_threshold": 0.0, "check_finite": False}
    stopping = EarlyStopping(monitor="audit/confidence", **options)
    one = fit(tmp_path, AuditCallback(tiny_probes(), max_panels=0), stopping, max_epochs=5)
    assert one.current_epoch == 1


def test_early_stopping_that_would_end_the_run_over_a_failed_audit_is_pointed_out(tmp_path):
    with pytest.warns(UserWarning, match="check_finite=False"):
        fit(tmp_path, AuditCallback(tiny_probes(), max_panels=0), EarlyStopping(monitor="audit/confidence", mode="max"))
