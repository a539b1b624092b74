"""Promise 1: training with the callback is bit-identical to training without it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.runs import differing, rows, trainer
from tests.tiny import pictures, random_streams, tiny_net, tiny_probes
from xai_callbacks import (
    ODIN,
    AlarmRule,
    AuditCallback,
    Auditor,
    Baselines,
    Conditions,
    CueTrial,
    Energy,
    Every,
    FisherNovelty,
    GradCAM,
    GradientNorm,
    GroupAccuracy,
    Localization,
    Mahalanobis,
    MapClusters,
    NoveltyMap,
    Occlusion,
    PatchCue,
    PurviewDistance,
    RegionTrial,
    Schedule,
    Separation,
    ValidationNovelty,
)


class Augmented(Dataset):
    """Draws from all three random streams at each read, as augmentations do."""

    def __init__(self, count):
        self.images, self.labels = pictures(count, seed=5), torch.arange(count) % 3

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(()) + 0.1 * np.random.rand()
        return (image.flip(-1) if random.random() < 0.5 else image).float(), self.labels[index]


class Counter(nn.Module):
    """Writes into a buffer and draws from all random streams in every forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.calls += 1
        return images + 0.01 * (torch.rand(()) + np.random.rand() + random.random()).float()


class Module(LightningModule):
    def __init__(self, scheduled=False):
        super().__init__()
        self.net = nn.Sequential(Counter(), *tiny_net(), nn.Identity())
        self.net[2].eval()  # a user who froze BatchNorm by hand
        self.scheduled = scheduled
        self.train_accuracy, self.val_accuracy = (MulticlassAccuracy(3, average="micro") for _ in range(2))
        self.modes = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.modes.append([module.training for module in self.modules()])
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.train_accuracy(logits, batch[1])
        self.log("train_loss", loss)
        self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.val_accuracy(logits, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", self.val_accuracy)

    def configure_optimizers(self):
        adam = torch.optim.AdamW(self.parameters(), lr=0.02)
        if not self.scheduled:
            return adam
        steps = torch.optim.lr_scheduler.StepLR(adam, 3, gamma=0.5)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": steps, "interval": "step"}}


def run(folder, callbacks, *, validates=True, compiled=False, scheduled=False, **options):
    """Train once; everything that is compared, as plain values and tensors."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    module = Module(scheduled)
    one = trainer(folder, callbacks, **options)
    loaders = DataLoader(Augmented(24), batch_size=4, shuffle=True), DataLoader(Augmented(8), batch_size=4)
    one.fit(torch.compile(module, backend="eager") if compiled else module, *loaders[: 2 if validates else 1])
    optimizer = one.optimizers[0].state_dict()
    metrics = [row for row in rows(folder) if not any(key.startswith("audit") for key in row)]
    return {
        "state": module.state_dict(),
        "grads": {name: parameter.grad for name, parameter in module.named_parameters()},
        "optimizer": {f"{i}.{key}": value for i, entry in optimizer["state"].items() for key, value in entry.items()},
        "rates": [group["lr"] for group in optimizer["param_groups"]],
        "metrics": metrics,
        "shown": {key: value for key, value in one.callback_metrics.items() if not key.startswith("audit")},
        "streams": random_streams(),
        "modes": module.modes,
        "flags": {name: (part.training, hooks(part)) for name, part in module.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
    }


def hooks(module):
    return sum(len(table) for name, table in vars(module).items() if name.endswith("_hooks"))


def novelty():
    scores = [Energy(), Mahalanobis(), ODIN(), GradientNorm(), PurviewDistance(), FisherNovelty("uniform")]
    auditor = Auditor(
        tiny_probes(), explainers=[GradCAM(), NoveltyMap()], novelty=scores, inliers=tiny_probes(24, seed=3),
        measures=[Separation(tiny_probes(seed=4)), Conditions(["blur"])],
    )  # fmt: skip
    return {"probes": auditor, "watches": [ValidationNovelty()]}


def groups():
    return {"watches": [GroupAccuracy(lambda batch: batch[1] % 2, aligned=[0, 1, 0]), ValidationNovelty()]}


def everything():
    """Trials, measures, a costly explainer and rules, as a monitor of shortcuts has them."""
    cue = CueTrial(PatchCue([[1.0, 0, 0], [0, 1.0, 0]], points_to=[0, 1]))
    auditor = Auditor(
        tiny_probes(32), explainers=[GradCAM(), Every(2, Occlusion(4))], trials=[cue, RegionTrial("spurious")],
        measures=[Localization(), Baselines(), MapClusters()],
    )  # fmt: skip
    return {"probes": auditor, "rules": [AlarmRule(hook=print), "accuracy > 0.5"], "sinks": []}


AUDITS = {
    "defaults": dict,
    "each step": lambda: {"schedule": Schedule(every_n_train_steps=1)},
    "novelty": novelty,
    "groups": groups,
    "everything": everything,
    "probes of its own": lambda: {"probes": None},
}

SCENARIOS = {
    "validation each epoch": {},
    "accumulation, validation in its middle": {"accumulate_grad_batches": 4, "val_check_interval": 3},
    "no validation": {"validates": False},
    "sanity check": {"num_sanity_val_steps": 2},
    "clipping and a scheduler": {"gradient_clip_val": 0.1, "scheduled": True},
    "mixed precision": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
}


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning",  # torch, tracing `self.log`
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:Found 1 module.* in eval mode at the start of training",
    "ignore:A novelty score says nothing",
    "ignore:The validation set could not be watched",  # compiled as a whole
)
@pytest.mark.parametrize("audit", AUDITS)
@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in SCENARIOS]
)
def test_training_is_bit_identical_with_and_without_the_callback(tmp_path, scenario, audit):
    options = {"max_epochs": 2, **SCENARIOS[scenario]}
    # The net dies in some scenarios: its novelty scores then say nothing, which would be an error with "raise".
    callback = AuditCallback(**{"probes": tiny_probes(), "max_panels": 1, "on_error": "warn", **AUDITS[audit]()})
    attached = run(tmp_path / "with", [callback], **options)
    plain = run(tmp_path / "without", [], **options)

    assert callback.last_record is not None
    assert callback.last_record.step == 11 if "accumulate_grad_batches" not in options else 3
    assert differing(plain, attached) == []


@pytest.mark.filterwarnings(
    "ignore:Found 1 module.* in eval mode at the start of training", "ignore:A novelty score says nothing"
)
def test_training_is_bit_identical_with_and_without_a_callback_that_asks_nothing(tmp_path):
    scores = [Energy(), PurviewDistance(), FisherNovelty("uniform")]
    measures = [Separation(tiny_probes(seed=4))]
    auditor = Auditor(tiny_probes(), [], novelty=scores, measures=measures, inliers=tiny_probes(24, seed=3))
    callback = AuditCallback(auditor, name="audit_novelty")
    attached = run(tmp_path / "with", [callback], max_epochs=2)
    plain = run(tmp_path / "without", [], max_epochs=2)

    record = callback.last_record
    # The net of this run may die, which makes scores useless and is noted.
    assert (record.step, len(record.scores) + len(record.useless)) == (11, 3)
    assert differing(plain, attached) == []


class Careless(Callback):
    """What looking at a model without care does."""

    def __init__(self, act):
        self.act = act

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.act(pl_module)


def with_gradients(module):
    module(pictures(2)).sum().backward()


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode at the start of training")
@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda module: torch.rand(1), "streams"),
        (lambda module: np.random.rand(), "streams"),
        (lambda module: random.random(), "streams"),
        (with_gradients, "state.net.1.weight"),
        (lambda module: module(pictures(2)), "state.net.0.calls"),
        (lambda module: module.net.register_forward_hook(lambda *_: None), "flags.net"),
        (lambda module: module.net[2].train(), "modes"),
        (lambda module: module.train_accuracy.update(torch.eye(3), torch.arange(3)), "metrics"),
    ],
    ids=["torch", "numpy", "python", "backward", "buffer", "hook", "mode", "metric"],
)
def test_comparison_notices_a_careless_callback(tmp_path, act, found):
    plain = run(tmp_path / "without", [], accumulate_grad_batches=4, val_check_interval=3)
    careless = run(tmp_path / "with", [Careless(act)], accumulate_grad_batches=4, val_check_interval=3)
    assert found in differing(plain, careless)
