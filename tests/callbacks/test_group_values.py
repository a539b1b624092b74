"""`GroupAccuracy` in real trainers: what is counted, and where it is told."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from tests.callbacks.grouped import (
    AUDITED,
    IMAGES,
    NEVER,
    WGA,
    Grouped,
    agree,
    data,
    expected,
    fit,
    grouped_module,
    lively,
    parts,
    shown,
)
from tests.callbacks.runs import PACKAGES, loader, rows, steps_of, trainer
from tests.tiny import CLASSES, read_events, scalar_steps, tiny_probes
from xai_callbacks import AuditCallback, GroupAccuracy, Schedule


@pytest.mark.parametrize("name", PACKAGES)
def test_whole_validation_set_is_judged_at_no_extra_forward(tmp_path, name):
    module = grouped_module(name)(lively())
    seen = []
    module.net[0].register_forward_hook(lambda _module, given, _output: seen.append(len(given[0])))
    watch = GroupAccuracy(2, aligned=[0, 1, 1], min_count=1, each=False)
    callback = AuditCallback(tiny_probes(), watches=[watch], schedule=NEVER, on_error="raise")
    callback.auditor.prepare(module)
    look = sum(seen)
    # What `choose_layer` says it costs, the trace, and one try of everything; nothing of it goes with the images.
    assert look <= 2 * 17 + 6 + 4 * 2
    seen.clear()
    one = trainer(tmp_path, [callback], name)
    one.fit(module, loader(2), data())

    # The first look at two probes, and what the user's own steps run: nothing else.
    assert sum(seen) == look + 2 * (8 + IMAGES)
    agree(shown(one), expected(module.net, *parts(), aligned=[0, 1, 1]))
    assert steps_of(tmp_path, WGA) == steps_of(tmp_path, "val_loss") == [1, 3]


def test_each_group_has_its_keys_by_name_where_there_are_few(tmp_path):
    one, callback = fit(tmp_path, GroupAccuracy(2, cue_names=["land", "open water"], min_count=1), schedule=AUDITED)

    wanted = expected(lively(), *parts(), per_group=True)
    for label, name in enumerate(CLASSES):
        for cue, place in enumerate(("land", "open_water")):
            for what in ("accuracy", "count", "ece"):
                found = float(one.callback_metrics[f"audit/group/{what}/{name}_{place}"])
                assert found == pytest.approx(wanted[f"group/{what}/{label}_{cue}"], nan_ok=True)
    estimate = callback.last_record.metrics["group/accuracy/owl_land"]
    assert (estimate.valid, estimate.low <= estimate.value <= estimate.high) == (4, True)


def test_many_groups_are_listed_only_where_that_is_asked_for(tmp_path):
    images, labels, _ = parts()
    val = data(images, labels, torch.arange(IMAGES) % 6)  # 18 groups
    for each, listed in ((None, 0), (True, 18), (False, 0)):
        one, _ = fit(tmp_path / str(each), GroupAccuracy(2, each=each), val=val, max_epochs=1)
        assert len([key for key in shown(one) if key.startswith("group/accuracy/")]) == listed


def test_interval_and_values_are_in_the_record_and_logged_once(tmp_path):
    one, callback = fit(
        tmp_path, GroupAccuracy(2, min_count=1), rules=["group/wga > 0.1"], logger="tensorboard", max_panels=1,
        schedule=AUDITED,
    )  # fmt: skip

    record, events = callback.last_record, read_events(tmp_path / "tb")
    estimate = record.metrics["group/wga"]
    assert (estimate.value, record.step) == (pytest.approx(float(one.callback_metrics[WGA])), 3)
    assert "accuracy" in record.metrics
    for end in ("low", "high"):
        scalars = events.Scalars(f"audit_range/group/wga/{end}")
        assert [event.value for event in scalars] == pytest.approx([getattr(estimate, end)] * 2)
    assert scalar_steps(events, WGA) == [1, 3]
    page = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert b"audit/group/wga" in page
    with torch.no_grad():
        confident = lively().eval()(tiny_probes().images).softmax(dim=1).amax(dim=1).mean()
    assert record.metrics["confidence"].value == pytest.approx(float(confident), rel=1e-5)


def test_record_of_an_audit_elsewhere_holds_no_groups(tmp_path):
    _, callback = fit(tmp_path, GroupAccuracy(2), schedule=Schedule(None, 3, at_start=False))
    assert not any(key.startswith("group/") for key in callback.last_record.metrics)


def test_validation_without_an_audit_is_judged_all_the_same(tmp_path):
    one, callback = fit(tmp_path, GroupAccuracy(2), schedule=Schedule(2, at_start=False), max_epochs=3)
    assert steps_of(tmp_path, WGA.replace("wga", "n_min")) == [1, 3, 5]
    assert callback.last_record.step == 3
    assert "group/n_min" in callback.last_record.metrics
    assert float(one.callback_metrics["audit/group/n_min"]) == 3


def test_checkpoint_can_monitor_the_worst_group(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=WGA, mode="max", filename="{epoch}")
    fit(
        tmp_path, GroupAccuracy(2, min_count=1), checkpoint, module=Grouped(lively(), lr=0.3), max_epochs=3,
        enable_checkpointing=True,
    )  # fmt: skip
    accuracies = [float(row[WGA]) for row in rows(tmp_path) if WGA in row]
    assert len(accuracies) == 3
    assert float(checkpoint.best_model_score) == pytest.approx(max(accuracies))


def test_part_of_the_validation_set_is_judged_where_lightning_takes_a_part(tmp_path):
    one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), limit_val_batches=2)
    agree(shown(one), expected(lively(), *(part[:8] for part in parts())))


def test_mixed_precision_is_judged_by_the_logits_of_the_step(tmp_path):
    one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        wanted = expected(lively(), *parts())
    agree(shown(one), wanted)


def test_several_dataloaders_are_judged_together_or_one_alone(tmp_path):
    first, second = parts(10, seed=6), parts(7, seed=8)
    together, _ = fit(tmp_path / "all", GroupAccuracy(2, min_count=1, each=False), val=[data(*first), data(*second)])
    agree(shown(together), expected(lively(), *(torch.cat(both) for both in zip(first, second, strict=True))))

    alone, _ = fit(
        tmp_path / "one", GroupAccuracy(2, min_count=1, each=False, dataloader=1), val=[data(*first[:2]), data(*second)]
    )
    agree(shown(alone), expected(lively(), *second))


def test_number_of_cues_is_learnt_and_never_falls(tmp_path):
    class Later(Callback):
        """Validation images change from epoch to epoch."""

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                cues[:] = torch.tensor([0, 2, 1][trainer.current_epoch])

    images, labels, cues = parts(12)
    fit(tmp_path, GroupAccuracy(2, each=True, min_count=1), Later(), val=data(images, labels, cues), max_epochs=3)
    empty = [float(row["audit/group/excluded"]) for row in rows(tmp_path) if "audit/group/excluded" in row]
    # Three labels: two cues, then a third alone, then the second alone of three.
    assert empty == [0, 6, 6]


def test_logits_that_are_not_finite_and_unknown_cues_are_counted(tmp_path):
    images, labels, cues = parts()
    images[::5], cues[1] = math.nan, -1
    one, _ = fit(tmp_path, GroupAccuracy(2, min_count=1, each=False), val=data(images, labels, cues))
    found = shown(one)
    assert (found.pop("group/not_finite"), found.pop("group/unknown_cue")) == (5, 1)
    left = images.flatten(1).isfinite().all(dim=1) & (cues >= 0)
    wanted = expected(lively(), images[left], labels[left], cues[left])
    assert found == pytest.approx({key: wanted[key] for key in found}, rel=1e-6, abs=1e-6, nan_ok=True)
