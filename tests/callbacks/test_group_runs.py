"""`GroupAccuracy` from run to run: resumed, repeated, copied, broken off, and named in YAML."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn

from tests.callbacks.grouped import WGA, Grouped, data, fit, lively, parts, shown
from tests.callbacks.runs import loader, steps_of, trainer
from tests.tiny import tiny_probes
from xai_callbacks import AuditCallback, GroupAccuracy


def test_neither_a_sanity_check_nor_validate_is_judged(tmp_path):
    module = Grouped(lively(), lr=0.0)
    _, callback = fit(tmp_path, GroupAccuracy(2), module=module, num_sanity_val_steps=2, max_epochs=1)
    assert steps_of(tmp_path, "audit/group/n_min") == [1]
    alone = trainer(tmp_path / "alone", [callback])
    alone.validate(module, data(*parts()[:2]), verbose=False)
    assert not any("group" in key for key in alone.callback_metrics)
    assert not any(part._forward_hooks for part in module.modules())


def test_resumed_run_knows_the_groups_before_its_next_validation(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    group, every = GroupAccuracy(2, min_count=1), {"check_val_every_n_epoch": 2}
    one, _ = fit(tmp_path / "first", group, checkpoint, enable_checkpointing=True, **every)
    monitor = ModelCheckpoint(tmp_path / "second", monitor=WGA, save_top_k=-1, save_on_train_epoch_end=True)
    again, _ = fit(
        tmp_path / "second", group, monitor, max_epochs=3, ckpt_path=checkpoint.last_model_path,
        enable_checkpointing=True, **every,
    )  # fmt: skip
    assert shown(again) == pytest.approx(shown(one), rel=0, nan_ok=True)
    assert float(monitor.best_model_score) == shown(one)["group/wga"]
    torch.load(checkpoint.last_model_path, weights_only=True)


def test_second_run_begins_anew(tmp_path):
    callback = AuditCallback(tiny_probes(), watches=[GroupAccuracy(2)], max_panels=0, on_error="raise")
    images, labels, cues = parts()
    for fold, many in (("a", cues + 1), ("b", cues)):
        one = trainer(tmp_path / fold, [callback], max_epochs=1)
        one.fit(Grouped(lively(), lr=0.0), loader(2), data(images, labels, many))
    # Two values of the cue, not the three of the run before.
    assert len([key for key in shown(one) if "count" in key]) == 6


def test_copy_during_validation_holds_neither_model_nor_hooks(tmp_path):
    class Copies(Callback):
        def on_validation_batch_end(self, trainer, *_):
            self.twins = [copy.deepcopy(trainer.callbacks[0]), pickle.loads(pickle.dumps(trainer.callbacks[0]))]

    class Heavy(Grouped):
        def __deepcopy__(self, memo):
            raise AssertionError("the callback dragged the model along")

        __reduce_ex__ = __deepcopy__

    copies, module = Copies(), Heavy(lively(), lr=0.0)
    fit(tmp_path, GroupAccuracy(2), copies, module=module)
    for index, twin in enumerate(copies.twins):
        other = trainer(tmp_path / str(index), [twin], max_epochs=1)
        other.fit(Grouped(lively(), lr=0.0), loader(2), data())
        assert shown(other)["group/n_min"] == 3


def test_exception_in_validation_leaves_no_hook(tmp_path):
    class Bomb(Grouped):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            raise RuntimeError("boom")

    module = Bomb(lively())
    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, GroupAccuracy(2), module=module)
    assert not any(part._forward_hooks for part in module.modules())


def test_lazy_parameters_are_left_for_training_to_make_before_groups_are_judged(tmp_path):
    class Lazy(Grouped):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*uninitialized parameter.*", category=UserWarning)
        fit(tmp_path, GroupAccuracy(2), module=Lazy(net))
    assert steps_of(tmp_path, "audit/group/n_min") == [1, 3]


@pytest.mark.parametrize(
    "given",
    [
        {"cue": "background"},
        {"cue": 2},
        {"cue": "1.place", "num_cues": 2, "aligned": [0, 1], "train_counts": [[9, 1], [1, 9]],
         "cue_names": ["land", "water"], "min_count": 5},
        {"cue": 2, "label": 1},
    ],
)  # fmt: skip
def test_groups_can_be_written_in_yaml(tmp_path, given):
    tiny_probes().save(tmp_path / "probes.safetensors")
    watch = {"class_path": "xai_callbacks.GroupAccuracy", "init_args": given}
    audit = {"probes": str(tmp_path / "probes.safetensors"), "watches": [watch]}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump({"audit": audit}))
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(AuditCallback, "audit")
    parsed = parser.parse_args([f"--config={tmp_path / 'audit.yaml'}"])
    (watch,) = parser.instantiate(parsed).audit.watches
    assert vars(watch) | {"_class_names": None} == vars(GroupAccuracy(**given))
