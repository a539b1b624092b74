"""Each disturbance by itself: found, named, and blamed on the hook that did it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from tests.doctor.patients import TinyData, TinyModule
from xai_callbacks.doctor import diagnose


class At(Callback):
    """Does something once, at a hook, with the trainer and the module."""

    def __init__(self, hook, act):
        self._act, self._done = act, False
        setattr(self, hook, self._once)

    def _once(self, trainer, module, *args, **kwargs):
        if not self._done and not trainer.sanity_checking:
            self._done = True
            self._act(trainer, module)


def examined(hook, act, scenario="plain"):
    return diagnose(lambda: At(hook, act), scenarios=[scenario], module=TinyModule(), datamodule=TinyData())


def parameter(module):
    return module.net[0].weight


def set_grad(trainer, module):
    module.idle.weight.grad = torch.zeros_like(module.idle.weight)


def hook_of_state_dict(trainer, module):
    module.register_state_dict_post_hook(lambda *_: None)


def replace_optimizer_state(trainer, module):
    trainer.optimizers[0].state[parameter(module)]["exp_avg"].add_(1e-6)


def register_global(trainer, module):
    HANDLES.append(nn.modules.module.register_module_forward_hook(nothing))


def nothing(*_):
    return None


def draw_normal(trainer, module):
    torch.randn(3)


HANDLES = []

BATCH, STEP, EPOCH, VALIDATED = (
    "on_train_batch_end",
    "on_before_optimizer_step",
    "on_train_epoch_end",
    "on_validation_end",
)

ALONE = {
    "one module in eval mode": (BATCH, lambda t, m: m.net[5].eval(), {"eval_layers"}, "net.5"),
    "one module in train mode": (VALIDATED, lambda t, m: m.net[1].train(), {"eval_layers"}, "net.1"),
    "all in eval mode": (
        EPOCH,
        lambda t, m: m.eval(),
        {"eval_layers"},
        "10 layers left in eval mode (., idle, net and 7 more)",
    ),
    "Python's stream": (BATCH, lambda t, m: random.random(), {"rng"}, "(python)"),
    "NumPy's stream": (BATCH, lambda t, m: np.random.rand(), {"rng"}, "(numpy)"),
    "torch's stream": (BATCH, draw_normal, {"rng"}, "(torch)"),
    "a forward hook": (
        BATCH,
        lambda t, m: m.net[0].register_forward_hook(nothing),
        {"hooks"},
        "net.0: forward_hooks nothing",
    ),
    "a forward hook before": (
        BATCH,
        lambda t, m: m.net[0].register_forward_pre_hook(nothing),
        {"hooks"},
        "forward_pre_hooks",
    ),
    "a backward hook": (BATCH, lambda t, m: m.net[4].register_full_backward_hook(nothing), {"hooks"}, "backward_hooks"),
    "a hook of a parameter": (
        BATCH,
        lambda t, m: parameter(m).register_hook(nothing),
        {"hooks"},
        "net.0.weight: backward",
    ),
    "a hook after accumulation": (
        BATCH,
        lambda t, m: parameter(m).register_post_accumulate_grad_hook(nothing),
        {"hooks"},
        "net.0.weight: backward",
    ),
    "a hook of the state_dict": (BATCH, hook_of_state_dict, {"hooks"}, "state_dict_hooks"),
    "a hook of the optimizer": (
        BATCH,
        lambda t, m: t.optimizers[0].register_step_pre_hook(nothing),
        {"hooks"},
        "optimizer 0: optimizer_step_pre_hooks",
    ),
    "a hook of all modules": (BATCH, register_global, {"hooks"}, "every module: global_forward_hooks"),
    "a gradient where there was none": (BATCH, set_grad, {"grads"}, "1 new (idle.weight)"),
    "a gradient wiped": ("on_before_optimizer_step", lambda t, m: m.net[0].zero_grad(), {"grads"}, "2 wiped"),
    "a buffer": (BATCH, lambda t, m: m.net[1].running_mean.add_(1e-7), {"buffers"}, "net.1.running_mean"),
    "a parameter": (BATCH, lambda t, m: parameter(m).data.mul_(1 + 1e-6), {"parameters"}, "net.0.weight"),
    "a parameter frozen": (BATCH, lambda t, m: parameter(m).requires_grad_(False), {"requires_grad"}, "net.0.weight"),
    "a new parameter": (
        BATCH,
        lambda t, m: m.net[0].register_parameter("x", nn.Parameter(torch.zeros(1))),
        {"state_dict", "requires_grad"},
        "net.0.x",
    ),
    "a new buffer": (BATCH, lambda t, m: m.net.register_buffer("x", torch.zeros(1)), {"state_dict"}, "net.x"),
    "a new buffer that is not saved": (
        BATCH,
        lambda t, m: m.net.register_buffer("x", torch.zeros(1), persistent=False),
        {"buffers"},
        "net.x",
    ),
    "a parameter gone": (
        BATCH,
        lambda t, m: m.idle.register_parameter("bias", None),
        {"state_dict", "requires_grad"},
        "idle.bias",
    ),
    "a new module": (EPOCH, lambda t, m: m.add_module("more", nn.ReLU().eval()), {"modules"}, "more"),
    "a module gone": (EPOCH, lambda t, m: m.__delattr__("idle"), {"modules", "state_dict", "requires_grad"}, "idle"),
    "a module of another class": (
        EPOCH,
        lambda t, m: m.net.__setitem__(2, nn.Tanh()),
        {"modules"},
        "1 changed (net.2)",
    ),
    "optimizer state": (BATCH, replace_optimizer_state, {"optimizer"}, "exp_avg"),
    "a learning rate": (
        BATCH,
        lambda t, m: t.optimizers[0].param_groups[0].update(lr=1e-3),
        {"optimizer"},
        "0.group 0.lr",
    ),
    "a metric set": (
        EPOCH,
        lambda t, m: t.callback_metrics.update(val_loss=torch.tensor(0.0)),
        {"metrics"},
        "val_loss",
    ),
    "a metric logged anew": ("on_validation_epoch_end", lambda t, m: m.log("val_loss", 0.0), {"metrics"}, "val_loss"),
    "an attribute added": (BATCH, lambda t, m: setattr(m.net[0], "input", 1), {"attributes"}, "net.0.input"),
    "an attribute changed": (BATCH, lambda t, m: setattr(m.net[5], "p", 0.0), {"attributes"}, "net.5.p"),
    "a forward replaced": (
        BATCH,
        lambda t, m: setattr(m.net[2], "forward", torch.relu),
        {"attributes"},
        "net.2.forward",
    ),
    "grad mode off": (
        EPOCH,
        lambda t, m: torch.set_grad_enabled(False),
        {"switches"},
        "grad mode: False instead of True",
    ),
    "threads": (BATCH, lambda t, m: torch.set_num_threads(2), {"switches"}, "threads: 2 instead of 1"),
    "deterministic algorithms": (
        BATCH,
        lambda t, m: torch.use_deterministic_algorithms(True),
        {"switches"},
        "deterministic algorithms: True",
    ),
    "cudnn.benchmark": (
        BATCH,
        lambda t, m: setattr(torch.backends.cudnn, "benchmark", True),
        {"switches"},
        "cudnn.benchmark",
    ),
    "anomaly detection": (
        BATCH,
        lambda t, m: torch.autograd.set_detect_anomaly(True),
        {"switches"},
        "anomaly detection",
    ),
    "the default type": (EPOCH, lambda t, m: torch.set_default_dtype(torch.float64), {"switches"}, "default dtype"),
}


@pytest.fixture(autouse=True)
def _no_hooks_of_all_modules():
    yield
    while HANDLES:
        HANDLES.pop().remove()


@pytest.mark.parametrize(("hook", "act", "kinds", "words"), ALONE.values(), ids=ALONE.keys())
def test_each_disturbance_is_found_at_its_hook(hook, act, kinds, words):
    diagnosis = examined(hook, act)

    direct = [each for each in diagnosis.disturbances if each.hook]
    assert {each.what for each in direct} == kinds
    assert {each.hook for each in direct} == {hook}
    assert any(words in str(each) for each in direct)
    assert not diagnosis.healthy


def test_a_pending_gradient_is_found_where_it_is_changed():
    diagnosis = examined("on_validation_end", lambda t, m: parameter(m).grad.add_(1), "accumulation")

    first, *rest = diagnosis.disturbances
    assert (first.what, first.hook, first.names) == ("grads", "on_validation_end", ("net.0.weight",))
    assert {"parameters", "losses"} <= {each.what for each in rest}


def test_keys_added_to_a_saved_checkpoint_are_found():
    class Saving(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["state_dict"]["more"] = torch.zeros(1)

    (found,) = diagnose(Saving, scenarios=["plain"], module=TinyModule(), datamodule=TinyData()).disturbances
    assert (found.what, found.hook, found.names) == ("state_dict", "on_save_checkpoint", ("saved more",))


def test_a_disturbance_says_before_which_step_it_came():
    class Late(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                torch.rand(1)

    first, *_ = diagnose(Late, scenarios=["plain"], module=TinyModule(), datamodule=TinyData()).disturbances
    assert (first.what, first.hook, first.step) == ("rng", "on_train_batch_end", 6)


def test_what_the_construction_draws_is_found():
    class Drawing(Callback):
        def __init__(self):
            np.random.rand()

    first, *_ = diagnose(Drawing, scenarios=["plain"], module=TinyModule(), datamodule=TinyData()).disturbances
    assert (first.what, first.hook) == ("rng", "__init__")


@pytest.mark.parametrize("hook", ["__init__", "setup", "on_validation_end", "on_train_end", "teardown"])
def test_an_error_is_a_crash_at_its_hook(hook):
    def crash(*_, **__):
        msg = "first line\nsecond line"
        raise ValueError(msg)

    made = type("Crashing", (Callback,), {hook: crash})
    found = diagnose(made, scenarios=["plain"], module=TinyModule(), datamodule=TinyData()).disturbances
    assert [(each.what, each.hook, each.words) for each in found] == [("crash", hook, "raised ValueError: first line")]


def test_a_crash_that_a_trace_causes_later_is_told_from_one_in_a_hook():
    def explode(*_):
        msg = "trace"
        raise RuntimeError(msg)

    trace, crash = examined(EPOCH, lambda t, m: m.net[0].register_forward_hook(explode)).disturbances
    assert (trace.what, trace.hook) == ("hooks", EPOCH)
    assert (crash.what, crash.hook, crash.words) == (
        "crash",
        None,
        "training crashed after 4 steps: RuntimeError: trace",
    )


def test_a_function_replaced_in_the_process_is_found_by_the_trainings_after_it(monkeypatch):
    original = torch.nn.functional.relu
    monkeypatch.setattr(torch.nn.functional, "relu", original)  # put back after the test

    def halve(trainer, module):
        torch.nn.functional.relu = lambda images, inplace=False: original(images) / 2

    found = {each.what: each for each in examined(EPOCH, halve).disturbances}
    assert "process" in found
    assert found["losses"].words == "loss differs from step 5 of 8 on"


def test_a_training_stopped_early_is_found():
    found = examined(EPOCH, lambda t, m: setattr(t, "should_stop", True)).disturbances
    assert "4 training steps instead of 8" in [each.words for each in found if each.what == "losses"]
