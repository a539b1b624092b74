"""Tiny Lightning runs whose validation batches have cues, and what is right for them by the metric."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import loader, module_class, trainer
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import AuditCallback, Auditor, Schedule
from xai_callbacks.metrics import GroupMetrics

AUDITED, NEVER = Schedule(at_start=False), Schedule(every_n_epochs=None, at_start=False)
IMAGES = 22  # the last batch of four is short
WGA = "audit/group/wga"


def grouped_module(name="pytorch_lightning"):
    class Grouped(module_class(name)):
        """Batches are (images, labels, cues); logits by `forward`."""

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            logits = self(batch[0])
            if dataloader_idx == 0:
                self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), add_dataloader_idx=False)

    return Grouped


Grouped = grouped_module()


class Elsewhere(Grouped):
    """Its steps call nothing."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", batch[0].mean(), add_dataloader_idx=False)


def lively(classes=3):
    """A net whose predictions differ from image to image, which training at a rate of zero leaves as it is."""
    net = tiny_net(classes=classes)
    net[1].momentum = net[5].p = 0.0
    with torch.no_grad():
        net[6].weight *= 30
    return net


def parts(images=IMAGES, seed=6):
    cues = torch.arange(images) // 2 % 2
    return pictures(images, seed=seed), torch.arange(images) % 3, cues


def data(*tensors, batch_size=4):
    return DataLoader(TensorDataset(*(tensors or parts())), batch_size=batch_size)


def fit(
    folder, watch, *others, module=None, val=None, schedule=NEVER, on_error="raise", max_panels=0, auditor=None,
    rules=None, ckpt_path=None, **options,
):  # fmt: skip
    """Two epochs of two batches, at a rate of zero and without audits unless told otherwise."""
    callback = AuditCallback(
        Auditor(tiny_probes(), **(auditor or {})), watches=[watch], rules=rules, schedule=schedule,
        on_error=on_error, max_panels=max_panels,
    )  # fmt: skip
    one = trainer(folder, [callback, *others], **options)
    module = Grouped(lively(), lr=0.0) if module is None else module
    with warnings.catch_warnings():
        for noise in ("Checkpoint directory .* exists and is not empty", "Be aware that when using `ckpt_path`"):
            warnings.filterwarnings("ignore", message=noise)
        one.fit(module, loader(2), data() if val is None else val, ckpt_path=ckpt_path)
    return one, callback


def expected(net, images, labels, cues, *, aligned=None, min_count=1, per_group=False):
    """By the metric, from the net in eval mode."""
    metric = GroupMetrics(3, 2, aligned, min_count=min_count, per_group=per_group)
    with torch.no_grad():
        metric.update(net.eval()(images), labels, cues)
    return metric.compute()


def shown(one):
    """The values of the groups in `callback_metrics`."""
    return {
        key.removeprefix("audit/"): float(value)
        for key, value in one.callback_metrics.items()
        if key.startswith("audit/group/")
    }


def agree(found, wanted):
    """All of `wanted` that has no interval of its own, in single precision."""
    wanted = {key: value for key, value in wanted.items() if not key.endswith(("_low", "_high"))}
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6, nan_ok=True)
