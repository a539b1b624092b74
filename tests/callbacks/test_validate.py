"""Audits in `trainer.validate`, where a schedule asks for them."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.runs import PACKAGES, TinyModule, fit, loader, quiet, rows, steps_of, tiny_module, trainer
from tests.tiny import random_streams, tiny_probes
from xai_callbacks import (
    AuditCallback,
    Auditor,
    ConfigurationError,
    GradCAM,
    History,
    ProbeSet,
    Schedule,
    ValidationNovelty,
)

WATCHED = "validation/novelty/gradnorm"


def audit(**given):
    return AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(in_validate=True), on_error="raise", **given)


def validate(folder, callback, module=None, *, name="pytorch_lightning", ckpt_path=None, **options):
    one = trainer(folder, [callback], name, **options)
    with quiet():
        one.validate(module or tiny_module(name), loader(2, seed=6), ckpt_path=ckpt_path, verbose=False)
    return one


@pytest.mark.parametrize("name", PACKAGES)
def test_a_validation_is_a_run_of_one_audit(tmp_path, name):
    callback = audit(watches=[ValidationNovelty()], rules=["accuracy > 0.9"])
    module = tiny_module(name)
    one = validate(tmp_path, callback, module, name=name)

    (record,) = History(tmp_path / "csv" / "audit" / "history")
    assert (record.step, record.epoch, record.checkpoint, record.untrained) == (0, 0, None, False)
    assert record.logged == pytest.approx({"val_loss": float(one.callback_metrics["val_loss"])})
    assert torch.equal(record.heatmaps, Auditor(tiny_probes()).audit(module).heatmaps)
    assert [each.key for each in record.findings] == ["expectation/accuracy > 0.9"]
    assert record.metrics[WATCHED].valid > 0
    assert float(one.callback_metrics[f"audit/{WATCHED}"]) == pytest.approx(record.metrics[WATCHED].value)
    assert float(one.callback_metrics["audit/confidence"]) == pytest.approx(record.metrics["confidence"].value)
    saved = ProbeSet.load(tmp_path / "csv" / "audit" / "probes.safetensors")
    assert saved.fingerprint == record.fingerprint
    assert callback.last_record.weights == record.weights


def test_a_checkpoint_that_is_validated_is_noted_with_its_time(tmp_path):
    saves = ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    fit(tmp_path, saves, max_epochs=2)
    path = str(tmp_path / "saved" / "epoch=0-step=4.ckpt")
    callback = audit(watches=[ValidationNovelty()])
    validate(tmp_path / "later", callback, ckpt_path=path)
    assert [(each.epoch, each.step, each.checkpoint) for each in callback.history] == [(0, 4, path)]
    for key in ("audit/confidence", f"audit/{WATCHED}"):
        assert steps_of(tmp_path / "later", key) == [4]


def test_training_and_validation_are_different_runs(tmp_path):
    callback, saves = audit(), ModelCheckpoint(tmp_path / "saved")
    one = fit(tmp_path, callback, saves, max_epochs=1)
    assert [each.step for each in callback.history] == [0, 3]
    for ckpt_path in (None, "best"):
        one.validate(one.lightning_module, loader(2, seed=6), ckpt_path=ckpt_path, verbose=False)
        (record,) = callback.history
        assert record.checkpoint == saves.best_model_path
        assert record.logged == pytest.approx({"val_loss": float(rows(tmp_path)[-1]["val_loss"])}, rel=1e-4)
    one.fit_loop.max_epochs = 2
    with quiet():
        one.fit(one.lightning_module, loader(), loader(2, seed=6))
    runs = [History(tmp_path / "csv" / name / "history") for name in ("audit", "audit_1", "audit_2", "audit_3")]
    assert [[each.step for each in run] for run in runs] == [[0, 3], [4], [4], [7]]
    assert len({record.run for run in runs for record in run}) == 4


def test_probes_of_a_run_are_found_when_its_checkpoint_is_validated(tmp_path):
    first = AuditCallback(max_panels=0)
    saves = ModelCheckpoint(tmp_path / "saved")
    fit(tmp_path, first, saves, max_epochs=1)
    second = AuditCallback(max_panels=0, schedule=Schedule(in_validate=True), on_error="raise")
    validate(tmp_path / "later", second, ckpt_path=saves.best_model_path)
    assert second.last_record.fingerprint == first.last_record.fingerprint
    assert second.last_record.weights == first.last_record.weights


def test_nothing_is_left_of_a_validation_that_is_only_a_trial(tmp_path):
    callback = audit()
    validate(tmp_path, callback, fast_dev_run=True)
    assert callback.last_record is not None
    assert list(tmp_path.rglob("*")) == []


def test_the_validation_itself_is_undisturbed(tmp_path):
    found = []
    for name, given in (("with", [audit()]), ("without", [])):
        torch.manual_seed(0)
        one = trainer(tmp_path / name, given)
        module = tiny_module()
        one.validate(module, loader(2, seed=6), verbose=False)
        found.append((float(one.callback_metrics["val_loss"]), module.state_dict(), random_streams()))
    assert found[0][0] == found[1][0]
    assert found[0][2] == found[1][2]
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


def test_mistakes_come_to_light_before_the_first_batch(tmp_path):
    wrong = Auditor(tiny_probes(), explainers=[GradCAM("net.nowhere")])
    callback = AuditCallback(wrong, schedule=Schedule(in_validate=True))
    with pytest.raises(ConfigurationError, match="nowhere"):
        validate(tmp_path, callback)
    assert not (tmp_path / "csv" / "audit").exists()


def test_an_audit_that_fails_costs_no_validation(tmp_path):
    class Diverged(TinyModule):
        def forward(self, images):
            return super().forward(images) * (torch.nan if len(images) == 6 else 1)  # all probes

    callback = AuditCallback(tiny_probes(6), max_panels=0, schedule=Schedule(in_validate=True))
    with pytest.warns(UserWarning, match="An audit failed"):
        one = validate(tmp_path, callback, Diverged())
    assert "val_loss" in one.callback_metrics
    assert callback.last_record is None


def test_the_switch_is_a_bool():
    with pytest.raises(ConfigurationError, match="Expected `in_validate` to be True or False, but got 'yes'"):
        Schedule(in_validate="yes")
