"""Modules of all kinds in a trainer: lazy, compiled, in half precision, with the classifier somewhere inside."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.callbacks.runs import TinyModule, fit, steps_of
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import AuditCallback, Auditor


class DictNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tiny_net()

    def forward(self, images):
        logits = self.net(images)
        return {"logits": logits, "scores": logits.exp()}


def test_lazy_parameters_are_left_for_training_to_make(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)
    )
    callback = AuditCallback(tiny_probes(), max_panels=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*uninitialized parameter.*", category=UserWarning)
        fit(tmp_path, callback, module=LazyModule(net))
    assert steps_of(tmp_path, "audit/confidence") == [3, 7]


class LazyModule(TinyModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


# torch's tracing of Lightning's own `self.log`.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_compiled_module_is_audited(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path, callback, module=torch.compile(TinyModule(), backend="eager"))
    plain = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path / "plain", plain)
    assert torch.equal(callback.last_record.heatmaps, plain.last_record.heatmaps)


def test_module_with_compiled_parts_is_audited(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path, callback, module=TinyModule(torch.compile(tiny_net(), backend="eager")))
    assert steps_of(tmp_path, "audit/confidence") == [0, 3, 7]
    assert callback.last_record.layer == "net.2"


def test_half_precision_weights_are_audited_in_half_and_recorded_in_full(tmp_path):
    callback = AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path, callback, precision="bf16-true")
    assert callback.last_record.heatmaps.dtype == torch.float32
    assert callback.last_record.heatmaps.isfinite().all()


def test_mixed_precision_is_audited_in_full(tmp_path):
    module, callback = TinyModule(), AuditCallback(tiny_probes(), max_panels=0, on_error="raise")
    fit(tmp_path, callback, module=module, precision="bf16-mixed")
    with torch.no_grad():
        torch.testing.assert_close(callback.last_record.outputs, module.net.eval()(tiny_probes().images))


class ForwardIsNotTheClassifier(TinyModule):
    def forward(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch))


@pytest.mark.parametrize("where", ["net", lambda module: module.net, lambda module: module.net.forward])
def test_classifier_inside_the_module_is_found_where_model_says(tmp_path, where):
    module = ForwardIsNotTheClassifier()
    callback = AuditCallback(Auditor(tiny_probes(), model=where), max_panels=0, on_error="raise")
    fit(tmp_path, callback, module=module)
    with torch.no_grad():
        torch.testing.assert_close(callback.last_record.outputs, module.net.eval()(tiny_probes().images))


def test_output_says_which_part_holds_the_logits(tmp_path):
    class Dict(TinyModule):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    callback = AuditCallback(Auditor(tiny_probes(), output="logits"), max_panels=0, on_error="raise")
    fit(tmp_path, callback, module=Dict(DictNet()))
    assert callback.last_record.layer == "net.net.2"
