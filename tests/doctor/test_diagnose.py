"""What `diagnose` takes, what it refuses, and what it says."""

from __future__ import annotations

import functools
import json
import threading

import lightning.pytorch as other
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import nn

from tests.doctor.patients import TinyData, TinyModule
from xai_callbacks import ConfigurationError
from xai_callbacks.doctor import Diagnosis, diagnose
from xai_callbacks.doctor import diagnosis as diagnosing
from xai_callbacks.doctor.training import train


class Drawing(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        torch.rand(1)


def tiny(given, *scenarios, **changes):
    settings = {"scenarios": scenarios or ["plain"], "module": TinyModule(), "datamodule": TinyData(), **changes}
    return diagnose(given, **settings)


def kinds(diagnosis):
    return {each.what for each in diagnosis.disturbances}


@pytest.mark.parametrize("given", [Drawing(), Drawing, functools.partial(Drawing)], ids=["copy", "class", "partial"])
def test_a_callback_is_given_as_it_is_or_by_what_makes_it(given):
    first, *_ = tiny(given).disturbances
    assert (first.what, first.hook, first.scenario) == ("rng", "on_train_epoch_end", "plain")


def test_a_given_callback_is_left_as_it_was():
    given = pl.callbacks.LambdaCallback(on_train_end=lambda *_: None)
    before = dict(vars(given))
    assert tiny(given).healthy
    assert vars(given) == before


def test_a_call_of_an_explainer_is_made_with_gradients_at_the_hook_of_each_scenario():
    seen = []

    def call(module, images, labels):
        seen.append((type(module), images.shape, labels.shape, torch.is_grad_enabled(), module.training))

    diagnosis = tiny(call, "plain", "train-epoch-end")
    assert diagnosis.healthy
    assert diagnosis.name.endswith("call")
    assert seen == [(TinyModule, (4, 3, 8, 8), (4,), True, training) for training in (False, False, True, True)]


def test_what_a_call_raises_is_told_and_survived():
    def call(module, images, labels):
        raise ValueError("first line\nsecond line")

    (found,) = tiny(call).disturbances
    assert str(found) == "on_validation_end: raised ValueError: first line"
    assert found.what == "raised"


def test_backward_in_a_call_is_found():
    def call(module, images, labels):
        module(images).sum().backward()

    found = tiny(call, "accumulation")
    assert [(each.what, each.hook) for each in found.disturbances[:1]] == [("grads", "on_validation_end")]
    assert "losses" in kinds(found)


def test_callbacks_of_the_other_package_are_examined_with_its_trainer():
    class Looking(other.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert isinstance(trainer, other.Trainer)

    assert diagnose(Looking, scenarios=["plain"]).healthy


@pytest.mark.parametrize(
    "given",
    [
        pl.callbacks.ModelCheckpoint(),
        pl.callbacks.EarlyStopping("val_loss", patience=9),
        pl.callbacks.LearningRateMonitor(),
        pl.callbacks.ModelSummary(),
        pl.callbacks.Timer(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_harmless_callbacks_of_lightning_are_healthy(given):
    diagnosis = tiny(given)
    assert diagnosis.healthy, str(diagnosis)


def test_lightnings_own_change_of_accumulation_is_seen_in_the_end():
    found = tiny(pl.callbacks.GradientAccumulationScheduler({1: 2}))
    assert {"parameters", "losses"} <= kinds(found)


def test_a_net_without_shapes_yet_can_be_examined():
    class Lazy(TinyModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

    assert tiny(type("Empty", (Callback,), {"setup": lambda *_, **__: None}), module=Lazy()).healthy


def test_nan_equals_itself():
    class Undefined(TinyModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("best", torch.tensor(float("nan")))
            self.worst = float("nan")

    assert tiny(type("Empty", (Callback,), {"setup": lambda *_, **__: None}), module=Undefined()).healthy


@pytest.mark.parametrize(("given", "count"), [(Callback, 2), (Drawing, 4)])
def test_a_scenario_costs_two_trainings_and_two_more_where_the_end_differs(monkeypatch, given, count):
    trained = []
    monkeypatch.setattr(diagnosing, "train", lambda *args, **kwargs: trained.append(args) or train(*args, **kwargs))
    tiny(given)
    assert len(trained) == count


class Unrepeatable(TinyModule):
    """Draws from a stream of its own that no seed reaches."""

    def training_step(self, batch, batch_idx):
        generator = torch.Generator()
        generator.seed()
        return super().training_step(batch, batch_idx) * (1 + torch.rand(1, generator=generator)).sum()


def test_a_training_that_never_repeats_itself_is_not_blamed_on_the_callback():
    diagnosis = tiny(Callback, module=Unrepeatable())
    assert diagnosis.healthy
    assert {"parameters", "losses"} <= set(diagnosis.unrepeatable)
    assert str(diagnosis).endswith(f"since the training does not repeat it: {', '.join(diagnosis.unrepeatable)}.")


def test_hooks_are_watched_even_where_the_training_never_repeats_itself():
    (found,) = tiny(Drawing, module=Unrepeatable()).disturbances
    assert (found.what, found.hook) == ("rng", "on_train_epoch_end")


def test_a_diagnosis_in_words_and_as_plain_values():
    diagnosis = tiny(Drawing)
    lines = str(diagnosis).splitlines()
    assert lines[:3] == [
        "Drawing disturbs 1 of 1 training (plain).",
        "plain:",
        "  on_train_epoch_end, first at step 4: RNG moved (torch)",
    ]
    assert lines[3].startswith("  in the end: weights differ (max |d| ")

    plain = json.loads(json.dumps(diagnosis.as_dict()))
    assert plain.keys() == {"healthy", "name", "scenarios", "disturbances", "unrepeatable"}
    assert plain["healthy"] is False
    assert plain["disturbances"][0] == {
        "what": "rng",
        "words": "RNG moved (torch)",
        "names": [],
        "hook": "on_train_epoch_end",
        "step": 4,
        "scenario": "plain",
    }


def test_a_healthy_diagnosis_in_words():
    diagnosis = Diagnosis("Mine", ("plain", "frozen"), ())
    assert str(diagnosis) == "Mine disturbs nothing in 2 trainings (plain, frozen)."


class Locked(Callback):
    def __init__(self):
        self.lock = threading.Lock()


class Named(TinyData):
    """Batches are dicts."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"images": batch[0], "labels": batch[1]}


class ByName(TinyModule):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["images"], batch["labels"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["images"], batch["labels"]), batch_idx)


class Broken(TinyModule):
    def training_step(self, batch, batch_idx):
        raise ValueError("no such layer")


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (3, {}, "Expected `given` to be a Lightning callback, a function or class that makes one without arguments"),
        (lambda one: None, {}, "Expected `given` to be a Lightning callback"),
        (lambda: 3, {}, "Expected callback, module and data to be made for one of .*, but got int of builtins"),
        (
            Locked(),
            {},
            "Expected `given` to be something that can be copied for each training, but it raised TypeError",
        ),
        (Callback, {"scenarios": ["plan"]}, "Expected `scenarios` to be some of 'plain', 'accumulation'.* got .'plan'"),
        (Callback, {"scenarios": []}, r"but got \[\]"),
        (Callback, {"scenarios": ["frozen"]}, "Expected `scenarios` to be some of 'plain', 'accumulation', 'train-ep"),
        (Callback, {"seed": -1}, "Expected `seed` to be an integer of 0 or more"),
        (Callback, {"module": Broken()}, "Expected a training without .* in the scenario 'plain', .*: no such layer"),
        (Callback, {"module": nn.Linear(1, 1)}, "Linear of torch.nn.modules.linear, TinyData of"),
        (
            lambda module, images, labels: None,
            {"datamodule": TinyData(validates=False)},
            "Expected the scenario 'plain' to reach `on_validation_end`",
        ),
        (
            lambda module, images, labels: None,
            {"module": ByName(), "datamodule": Named()},
            r"after a batch of `\(images, labels\)`, so that the explainer is called, but it never did",
        ),
        (type("Theirs", (other.Callback,), {}), {}, "but got Theirs of .*, TinyModule of .*Import their bases"),
    ],
)
def test_mistakes_are_told_in_one_line(given, changes, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        tiny(given, **changes)
    assert "\n" not in str(caught.value)
