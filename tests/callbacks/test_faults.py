"""What goes wrong inside a run costs itself alone, or is refused before training by an error that says what to do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import audit_warnings, caught, module_class, trainer
from xai_callbacks import (
    AuditCallback,
    AuditError,
    Auditor,
    ConfigurationError,
    Energy,
    GradCAM,
    Occlusion,
    PatchCue,
    ProbeSet,
    ShortcutMonitor,
)
from xai_callbacks.novelty import LastLayerScore

SIDE = 64
STEPS = [0, 1, 3]


class Module(module_class("pytorch_lightning")):
    """Counts its training steps."""

    steps = 0

    def training_step(self, batch, batch_idx):
        type(self).steps += 1
        return super().training_step(batch, batch_idx)


def images(count=16):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def probes(count=6):
    return ProbeSet.from_tensors(images(count), torch.arange(count) % 2)


def body():
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())


def after(part):
    return nn.Sequential(part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def seeded(make):
    torch.manual_seed(0)
    return make()


def fit(folder, callback, net, **options):
    Module.steps = 0
    data = DataLoader(TensorDataset(images(), torch.arange(16) % 2), batch_size=8)
    one = trainer(folder, [callback], logger=False, **options)
    one.fit(Module(net), data, data)
    return one


# ---- a novelty score


class Breaks(LastLayerScore):
    """Well at first, broken from the second audit on: once in the check before training, once at the start."""

    def __init__(self, error):
        self.name, self.error, self.calls = "mine", error, 0

    def score(self, features, logits):
        self.calls += 1
        if self.calls > 2:
            raise self.error
        return logits.double().amax(1)


ERRORS = [
    RuntimeError("spared"),
    IndexError("out of range"),
    ValueError("no variance"),
    KeyError("layer"),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_score_that_raises_costs_itself_alone(tmp_path, error):
    callback = AuditCallback(Auditor(probes(), novelty=[Energy(), Breaks(error)]), max_panels=0)
    with caught() as found:
        one = fit(tmp_path, callback, seeded(lambda: after(body())))

    record = callback.last_record
    assert (record.step, one.global_step) == (3, 4)
    assert list(record.scores) == ["energy"]
    assert record.scores["energy"].isfinite().all()
    assert record.heatmaps.isfinite().all()
    assert {"accuracy", "confidence", "novelty/energy"} <= record.metrics.keys()
    assert "novelty/mine" not in record.metrics
    assert len(record.useless) == 1
    assert "mine" in record.useless[0]
    assert type(error).__name__ in record.useless[0]
    (told,) = audit_warnings(found)
    assert told.startswith("A novelty score says nothing, and audits go on without it.")
    assert math.isnan(one.callback_metrics.get("audit/novelty/mine", math.nan))


# ---- scripted and traced parts


def scripted_stem():
    return after(
        nn.Sequential(torch.jit.script(nn.Conv2d(3, 8, 5, 4, 2)), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    )


NETS = {
    "scripted backbone": lambda: after(torch.jit.script(body())),
    "traced backbone": lambda: after(torch.jit.trace(body(), images(2))),
    "scripted stem": scripted_stem,
    "scripted head": lambda: nn.Sequential(body(), torch.jit.script(after(nn.Identity()))),
}


deprecated = pytest.mark.filterwarnings("ignore:.torch.jit")


@pytest.mark.parametrize("what", NETS)
@pytest.mark.parametrize("kind", [AuditCallback, ShortcutMonitor])
@deprecated
def test_a_net_with_a_scripted_part_is_audited_as_the_plain_net_is(tmp_path, what, kind):
    cue = [PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1])] if kind is ShortcutMonitor else []
    callback, plain = (kind(probes(30), *cue, on_error="raise", max_panels=0) for _ in range(2))
    with caught() as found:
        fit(tmp_path, callback, seeded(NETS[what]))
        fit(tmp_path, plain, seeded(lambda: after(body())))

    assert audit_warnings(found) == []
    record, expected = callback.last_record, plain.last_record
    assert (record.step, Module.steps) == (3, 4)
    torch.testing.assert_close(record.outputs, expected.outputs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(record.heatmaps, expected.heatmaps, rtol=1e-3, atol=1e-4)
    assert record.metrics["accuracy"] == expected.metrics["accuracy"]


@deprecated
def test_a_net_that_is_scripted_as_a_whole_is_audited_without_heatmaps_or_refused_before_training(tmp_path):
    callback = AuditCallback(probes(), on_error="warn")
    net = seeded(lambda: torch.jit.script(after(body())))
    with caught():
        fit(tmp_path, callback, net)
    record = callback.last_record
    assert record.step == 3
    assert record.maps == {}
    with torch.no_grad():
        torch.testing.assert_close(record.outputs, net.eval()(probes().images), rtol=1e-3, atol=1e-4)


@deprecated
def test_a_net_that_is_scripted_as_a_whole_is_explained_by_its_pixels(tmp_path):
    callback, plain = (AuditCallback(Auditor(probes(), explainers=[Occlusion(16)]), on_error="raise") for _ in range(2))
    with caught():
        fit(tmp_path, callback, seeded(lambda: torch.jit.script(after(body()))))
        fit(tmp_path, plain, seeded(lambda: after(body())))
    torch.testing.assert_close(callback.last_record.heatmaps, plain.last_record.heatmaps, rtol=1e-3, atol=1e-5)


# ---- checkpointed activations


class Recomputed(nn.Module):
    """Activations of its body are not kept, but computed again in the backward pass."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.body, self.reentrant = body(), reentrant
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    def forward(self, batch):
        if self.reentrant and not batch.requires_grad:
            batch = batch.clone().requires_grad_(True)
        return self.head(checkpoint(self.body, batch, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", [AuditCallback, ShortcutMonitor])
def test_checkpointed_activations_are_audited_as_the_plain_net_is(tmp_path, reentrant, kind):
    cue = [PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], points_to=[0, 1])] if kind is ShortcutMonitor else []
    callback, plain = (kind(probes(30), *cue, on_error="raise", max_panels=0) for _ in range(2))
    fit(tmp_path, callback, seeded(lambda: Recomputed(reentrant=reentrant)))
    fit(tmp_path, plain, seeded(lambda: after(body())))

    torch.testing.assert_close(callback.last_record.outputs, plain.last_record.outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(callback.last_record.heatmaps, plain.last_record.heatmaps, rtol=1e-3, atol=1e-5)


def test_a_layer_inside_a_checkpoint_is_explained_or_refused_with_advice(tmp_path):
    callback = AuditCallback(Auditor(probes(), explainers=[GradCAM("net.body.1")]), on_error="raise")
    try:
        fit(tmp_path, callback, seeded(lambda: Recomputed(reentrant=True)))
    except ConfigurationError as error:
        assert Module.steps == 0
        assert "target_layer" in str(error)  # noqa: PT017  # either is right
    else:
        assert callback.last_record.layer == "net.body.1"


# ---- memory


class Short(nn.Module):
    """A net that finds no room for more than a number of images in eval mode, at once or as soon as it is trained."""

    def __init__(self, most, error, *, at_once=True):
        super().__init__()
        self.net, self.most, self.error, self.short = after(body()), most, error, at_once

    def forward(self, batch):
        self.short = self.short or self.training
        if self.short and not self.training and len(batch) > self.most:
            raise self.error
        return self.net(batch)


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
@pytest.mark.parametrize(("most", "on_error"), [(0, "warn"), (0, "raise"), (3, "warn")])
def test_out_of_memory_in_the_check_before_training_names_chunk_size(tmp_path, error, most, on_error):
    """Nothing is trained; the check runs as many images at a time as an audit."""
    callback = AuditCallback(probes(), on_error=on_error)
    with pytest.raises((ConfigurationError, AuditError), match="Lower `chunk_size`"):
        fit(tmp_path, callback, seeded(lambda: Short(most, error)))
    assert Module.steps == 0


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
def test_out_of_memory_at_an_audit_is_told_with_chunk_size_and_training_goes_on(tmp_path, error):
    """As where the optimizer takes what was free at first."""
    callback = AuditCallback(Auditor(probes(12), chunk_size=10))
    with caught() as found:
        one = fit(tmp_path, callback, seeded(lambda: Short(8, error, at_once=False)))
    assert one.global_step == 4
    assert callback.last_record.step == 0
    (told,) = audit_warnings(found)
    assert told.startswith("An audit failed and training goes on. AuditError: Expected 10 images of ")
    assert "Lower `chunk_size`, now 10" in told


@pytest.mark.parametrize("error", MEMORY, ids=["CUDA", "CPU"])
def test_a_smaller_chunk_size_is_the_way_out(tmp_path, error):
    callback = AuditCallback(Auditor(probes(12), chunk_size=8), on_error="raise")
    fit(tmp_path, callback, seeded(lambda: Short(8, error)))
    assert callback.last_record.step == 3
