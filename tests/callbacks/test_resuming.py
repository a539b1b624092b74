"""Checkpoints, resumed runs, further runs with the same callback, and copies of it."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from tests.callbacks.runs import BATCHES, TinyModule, fit, loader, steps_of, trainer
from tests.tiny import image_steps, pictures, read_events, scalar_steps, tiny_net, tiny_probes
from xai_callbacks import (
    AlarmRule,
    AuditCallback,
    Auditor,
    Baselines,
    CueTrial,
    Every,
    GradCAM,
    History,
    Localization,
    PatchCue,
    ProbeSet,
    Schedule,
    Why,
)
from xai_callbacks.explainers import Explainer, Plan

MASS = "audit/gradcam/why_not_certain/relevance_mass/core"
PANEL = "audit_panel/000_probe_000"
STRIP = "audit_filmstrip/000_probe_000"


def saved(folder, callback, *, max_epochs=2, **options):
    """Train, keep the last checkpoint, and return its path."""
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True)
    fit(folder, callback, checkpoint, max_epochs=max_epochs, **options)
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
    callback = AuditCallback(tiny_probes(), max_panels=0)
    state = torch.load(saved(tmp_path, callback), weights_only=True)["callbacks"][callback.state_key]

    def kinds(value):
        yield type(value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            yield from kinds(part)

    assert set(kinds(state)) <= {dict, list, tuple, str, int, float, torch.Tensor}
    kept = History.from_state(state["run"]["history"])
    assert [each.step for each in kept] == [0, 3, 7]
    assert [each.metrics for each in kept] == [each.metrics for each in callback.history]


class Wide(Explainer):
    """A map of each pixel, without a forward pass."""

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=0.0)

    def explain(self, observation, plan):
        return observation.images.mean(dim=1).expand(len(observation.posed), -1, -1, -1)


def test_a_checkpoint_grows_by_less_than_2_mb(tmp_path):
    probes = ProbeSet.from_tensors(pictures(64, 64), torch.arange(64) % 3)
    audit = AuditCallback(Auditor(probes, explainers=[GradCAM(), Wide("wide")]), max_panels=0, on_error="raise")
    sizes = []
    for folder, callbacks in (("with", [audit]), ("without", [])):
        checkpoint = ModelCheckpoint(tmp_path / folder, save_last=True)
        fit(tmp_path / folder, *callbacks, checkpoint, max_epochs=4)
        sizes.append(Path(checkpoint.last_model_path).stat().st_size)

    assert sum(each.heatmaps.nbytes for each in audit.last_record.maps.values()) > 2 * 10**6
    assert 0 < sizes[0] - sizes[1] < 10**5  # of five audits


def test_monitors_of_a_resumed_run_know_the_metrics_before_the_next_audit(tmp_path):
    rare = Schedule(every_n_epochs=2)
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=0, schedule=rare))
    checkpoint = ModelCheckpoint(tmp_path / "second", monitor=MASS)
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=rare)
    with pytest.warns(UserWarning, match="audited only every 2 epochs"):
        one = fit(tmp_path / "second", callback, checkpoint, max_epochs=3, ckpt_path=path)
    assert one.global_step == 3 * BATCHES
    assert one.callback_metrics[MASS].isfinite()


def test_resuming_in_the_middle_of_an_accumulation_does_not_repeat_the_last_audit(tmp_path):
    options = {"schedule": Schedule(every_n_train_steps=2, every_n_epochs=None)}
    accumulation = {"accumulate_grad_batches": 2}
    path = saved(
        tmp_path / "first", AuditCallback(tiny_probes(), max_panels=0, **options), max_epochs=1, **accumulation
    )
    callback = AuditCallback(tiny_probes(), max_panels=0, **options)
    fit(tmp_path / "second", callback, max_epochs=2, ckpt_path=path, **accumulation)
    assert steps_of(tmp_path / "first", "audit/confidence") == [0, 1]
    assert steps_of(tmp_path / "second", "audit/confidence") == [3]


def test_resuming_with_another_number_of_panels_draws_them_with_all_audits(tmp_path):
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=2), logger="tensorboard")
    callback = AuditCallback(tiny_probes(), max_panels=3, on_error="raise")
    fit(tmp_path / "second", callback, max_epochs=3, ckpt_path=path, logger="tensorboard")
    events = read_events(tmp_path / "second" / "tb")
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("audit_filmstrip/")]
    assert [image_steps(events, tag) for tag in tags] == [[11]] * 3
    four, two = (events.Images(tags[0])[-1], read_events(tmp_path / "first" / "tb").Images(STRIP)[0])
    assert four.height * four.width > two.height * two.width  # of all four audits, not of one


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("folder", ["first", "second"])
def test_a_resumed_history_has_no_doubles(tmp_path, folder, epoch):
    """Also where the run had gone on after the checkpoint, and where the audits lie in the folder that goes on."""
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
    first = AuditCallback(tiny_probes(), max_panels=0)
    fit(tmp_path / "first", first, checkpoint, max_epochs=3)
    identity = first.last_record.run
    resumed = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    path = tmp_path / "saved" / f"epoch={epoch}.ckpt"
    fit(tmp_path / folder, resumed, ckpt_path=path, max_epochs=4)

    for history in (resumed.history, History(tmp_path / folder / "csv" / "audit" / "history")):
        assert [each.step for each in history] == [0, 3, 7, 11, 15]
        assert [each.thinned for each in history] == [False] * 5
        assert {each.run for each in history} == {identity}
        assert ["switched" in each.metrics for each in history] == [False] + [True] * 4


def test_an_audit_after_the_checkpoint_at_its_step_is_not_doubled(tmp_path):
    """The checkpoint is saved when the batch ends, before the validation at whose end the step is audited."""
    checkpoint = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_train_steps=BATCHES, filename="{step}")
    fit(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=0), checkpoint)
    resumed = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    path = tmp_path / "saved" / f"step={BATCHES}.ckpt"
    fit(tmp_path / "first", resumed, ckpt_path=path, max_epochs=3)
    steps = [each.step for each in resumed.history]
    assert steps == sorted(set(steps))
    assert steps[-2:] == [7, 11]


def test_a_damaged_record_is_told_once_at_resume(tmp_path, caplog):
    path = saved(tmp_path, AuditCallback(tiny_probes(), max_panels=0))
    (tmp_path / "csv" / "audit" / "history" / "audit_000001.safetensors").write_bytes(b"damaged")
    resumed = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path, resumed, ckpt_path=path, max_epochs=4)
    told = [each.getMessage() for each in caplog.records if "audit_000001.safetensors" in each.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("audit: ")
    assert [each.step for each in resumed.history] == [0, 7, 11, 15]


CUE = PatchCue([1.0, 0.0, 0.0], points_to=0)
GIVEN = {
    "trial": (lambda: {"trials": [CueTrial(CUE)]}, list),
    "rule": (dict, lambda: ["accuracy > 0.1", "confidence > 0.2"]),
    "explainer": (lambda: {"explainers": [GradCAM(), Every(2, Wide("wide"))]}, list),
    "measure": (lambda: {"measures": [Localization(), Baselines()]}, list),
    "question": (lambda: {"questions": [Why()]}, list),
}


@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("added", [True, False])
def test_a_run_that_is_resumed_with_something_more_or_less_goes_on(tmp_path, what, added):
    auditing, rules = GIVEN[what]
    one = {"max_panels": 0, "on_error": "raise"}
    plain = AuditCallback(tiny_probes(40), **one, rules=["accuracy > 0.2"])
    other = AuditCallback(
        Auditor(tiny_probes(40), **auditing()), **one, rules=[AlarmRule(), *rules()][what != "trial" :]
    )
    before, after = (plain, other) if added else (other, plain)

    path = saved(tmp_path / "first", before, max_epochs=1)
    run = fit(tmp_path / "second", after, ckpt_path=path)
    assert (run.global_step, [each.step for each in after.history]) == (2 * BATCHES, [0, 3, 7])
    assert after.last_record.failed == ()
    for record, callback in zip(after.history, (before, before, after), strict=True):
        assert set(record.maps) <= {each.name for each in callback.auditor.explainers}
        assert record.questions == tuple(each.key for each in callback.auditor.questions)
        assert ("cue/patch/effect" in record.metrics) is bool(callback.auditor.trials)
        assert {each.label for each in callback.rules if hasattr(each, "label")} == {
            each.key.removeprefix("expectation/") for each in record.findings if each.key.startswith("expectation/")
        }


@pytest.mark.parametrize("state", [{"version": 99, "anything": 1}, {}])
def test_state_of_an_unknown_version_is_told_and_the_history_begins_anew(tmp_path, caplog, state):
    path = saved(tmp_path / "first", AuditCallback(tiny_probes(), max_panels=0), max_epochs=1)
    content = torch.load(path, weights_only=True)
    content["callbacks"]["AuditCallback[audit]"] = state
    torch.save(content, path)
    callback = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path / "second", callback, ckpt_path=path)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len([message for message in told if f"version {state.get('version')}" in message]) == bool(state)
    assert [each.step for each in callback.history] == [7]


def test_second_fit_with_the_same_trainer_goes_on(tmp_path):
    callback, module = AuditCallback(tiny_probes(), max_panels=1), TinyModule()
    one = trainer(tmp_path, [callback], logger="tensorboard", max_epochs=1)
    one.fit(module, loader(), loader(2))
    one.fit_loop.max_epochs = 2
    one.fit(module, loader(), loader(2))

    events = read_events(tmp_path / "tb")
    assert image_steps(events, PANEL) == [0, 3, 7]
    assert [each.step for each in callback.history] == [0, 3, 7]
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


def test_a_callback_that_is_used_for_another_run_does_not_carry_the_first_along(tmp_path):
    """Neither its audits, also where both log to one folder, nor its module and trainer."""
    callback = AuditCallback(tiny_probes(), max_panels=1)
    first = fit(tmp_path, callback, max_epochs=1)
    history, gone = callback.history, [weakref.ref(first), weakref.ref(first.lightning_module)]
    del first
    fit(tmp_path, callback, max_epochs=1, val=False)

    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert (len(history), len(callback.history)) == (2, 2)
    assert history.folder != callback.history.folder
    assert len({each.run for each in history}) == len({each.run for each in callback.history}) == 1
    assert history.last.run != callback.last_record.run
    for one in (history, callback.history):
        assert [each.weights for each in History(one.folder)] == [each.weights for each in one]


def test_new_run_without_a_start_audits_at_the_same_place_again(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=0, schedule=Schedule(at_start=False))
    for fold in ("a", "b"):
        fit(tmp_path / fold, callback, max_epochs=1)
        assert steps_of(tmp_path / fold, "audit/confidence") == [3]


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
    assert [each.step for each in twin.history] == [0, 3, 7]
    fit(tmp_path / "b", twin, max_epochs=1)
    assert steps_of(tmp_path / "b", "audit/confidence") == [0, 3]


def test_copy_during_a_run_leaves_writers_and_threads_behind(tmp_path):
    class Copies(Callback):
        def on_validation_end(self, trainer, pl_module):
            self.twin = copy.deepcopy(trainer.callbacks[0])

    copies, threads = Copies(), threading.active_count()
    callback = AuditCallback(tiny_probes(), max_panels=1)
    fit(tmp_path, callback, copies, logger="tensorboard")
    assert [each.step for each in copies.twin.history] == [0, 3, 7]
    assert threading.active_count() == threads
