"""Audits that fail, and runs after a crash."""

from __future__ import annotations

import math

import pytest
from torch import nn

from tests.callbacks.runs import BATCHES, TinyModule, audit_warnings, caught, fit, steps_of
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import AuditCallback, AuditError, Schedule

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"


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
    callback = AuditCallback(tiny_probes(), max_panels=0)
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
        one = fit(
            tmp_path, AuditCallback(tiny_probes(), max_panels=0), module=TinyModule(Recovers(after=1)), max_epochs=2
        )
    assert len(audit_warnings(found)) == 1
    assert one.callback_metrics[MASS].isfinite()


def test_failed_audit_at_the_very_step_of_a_good_one_does_not_leave_its_numbers(tmp_path):
    """The first optimizer step shares its x with the audit before training."""
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(every_n_train_steps=1, every_n_epochs=None))
    with caught():
        one = fit(tmp_path, callback, module=TinyModule(SickNet(after=1)), max_steps=1)
    assert callback.last_record.step == 0
    assert one.callback_metrics[MASS].isnan()


def test_audit_that_fails_ends_the_run_where_that_was_asked_for(tmp_path):
    with pytest.raises(AuditError, match="probe_000"):
        fit(tmp_path, AuditCallback(tiny_probes(), max_panels=0, on_error="raise"), module=TinyModule(SickNet(after=5)))


def test_run_after_a_crash_audits_its_start(tmp_path):
    """As in a notebook: the first cell fails, the mistake is mended, the same callback is used again."""

    class FailsAtOnce(TinyModule):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("typo")

    callback = AuditCallback(tiny_probes(), max_panels=0)
    with pytest.raises(RuntimeError, match="typo"):
        fit(tmp_path / "a", callback, module=FailsAtOnce())
    fit(tmp_path / "b", callback, max_epochs=1)
    assert steps_of(tmp_path / "b", "audit/confidence") == [0, 3]
