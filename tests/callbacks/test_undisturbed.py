"""Promise 1: training with the callback is bit-identical to training without it."""

from __future__ import annotations

import functools
import itertools
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.runs import rows, trainer
from tests.tiny import pictures, random_streams, tiny_net, tiny_probes
from xai_callbacks import (
    ODIN,
    AuditCallback,
    Energy,
    FisherNovelty,
    GradientNorm,
    Mahalanobis,
    NoveltyCallback,
    PurviewDistance,
)
from xai_callbacks.access import undisturbed
from xai_callbacks.callbacks import Group
from xai_callbacks.errors import ConfigurationError


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


def differing(one, other):
    """Names of what is not equal bit by bit."""
    different = [name for name, value in one.items() if not isinstance(value, dict) and value != other[name]]
    for name, value in one.items():
        if isinstance(value, dict):
            assert value.keys() == other[name].keys()
            different += [f"{name}.{key}" for key in value if not equal(value[key], other[name][key])]
    return different


def equal(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


NOVELTY = {
    "novelty": [Energy(), Mahalanobis(), ODIN(), GradientNorm(), PurviewDistance(), FisherNovelty("uniform")],
    "inliers": tiny_probes(24, seed=3),
    "novel": tiny_probes(seed=4),
    "locate_novelty": True,
    "watch_validation": True,
}

GROUPS = {"group": Group(lambda batch: batch[1] % 2, aligned=[0, 1, 0]), "watch_validation": True}

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
@pytest.mark.parametrize(
    "audit",
    [{}, {"every_n_train_steps": 1}, NOVELTY, GROUPS],
    ids=["defaults", "each step", "novelty", "groups"],
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_is_bit_identical_with_and_without_the_callback(tmp_path, scenario, audit):
    options = {"max_epochs": 2, **SCENARIOS[scenario]}
    # The net dies in some scenarios: its novelty scores then say nothing, which would be an error with "raise".
    callback = AuditCallback(tiny_probes(), on_error="warn", **audit)
    attached = run(tmp_path / "with", [callback], **options)
    plain = run(tmp_path / "without", [], **options)

    assert callback.last_record is not None
    assert callback.last_record.step == 11 if "accumulate_grad_batches" not in options else 3
    assert differing(plain, attached) == []


@pytest.mark.filterwarnings(
    "ignore:Found 1 module.* in eval mode at the start of training", "ignore:A novelty score says nothing"
)
def test_training_is_bit_identical_with_and_without_a_novelty_callback(tmp_path):
    scores = [Energy(), PurviewDistance(), FisherNovelty("uniform")]
    callback = NoveltyCallback(
        tiny_probes(),
        scores,
        inliers=NOVELTY["inliers"],
        novel=NOVELTY["novel"],
        on_error="warn",
        name="audit_novelty",
    )
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


# ---- models that own what they draw from, or count


class Noisy(LightningModule):
    """Multiplies its features by a number that it draws from something of its own, in eval mode too."""

    def __init__(self, owned, draw):
        super().__init__()
        self.owned, self.draw = owned, draw
        self.net, self.steps = tiny_net(), 0

    def forward(self, images):
        return self.net(images) * (1 + 0.1 * float(self.draw(self.owned)))

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass(frozen=True)
class Jitter:
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def draw(self):
        return self.rng.random()


class Schedule:
    __slots__ = ("calls", "past")

    def __init__(self):
        self.calls, self.past = 0, deque([0.5], maxlen=3)

    def next(self):
        self.calls += 1
        self.past.append(1 / (self.calls + sum(self.past)))
        return self.past[0]


def torch_generator():
    return torch.Generator().manual_seed(0)


def around_a_generator():
    rng = torch_generator()
    return lambda _: torch.rand((), generator=rng)


def ticking():
    ids = itertools.count(1).__next__
    return lambda _: 1 / ids()


OWNED = {
    "torch.Generator": lambda: Noisy(torch_generator(), lambda it: torch.rand((), generator=it)),
    "np.random.Generator": lambda: Noisy(np.random.default_rng(0), lambda it: it.random()),
    "np.random.RandomState": lambda: Noisy(np.random.RandomState(0), lambda it: it.rand()),
    "random.Random": lambda: Noisy(random.Random(0), lambda it: it.random()),
    "in a list in a dict": lambda: Noisy({"a": [random.Random(0)]}, lambda it: it["a"][0].random()),
    "in a frozen dataclass": lambda: Noisy(Jitter(), Jitter.draw),
    "in a closure": lambda: Noisy(None, around_a_generator()),
    "in a partial": lambda: Noisy(None, functools.partial(lambda rng, _: rng.random(), random.Random(0))),
    "in a method": lambda: Noisy(Jitter().draw, lambda it: it()),
    "in a module in a list": lambda: Noisy([Noisy(random.Random(0), None)], lambda it: it[0].owned.random()),
    "seeds": lambda: Noisy(np.random.SeedSequence(0), lambda it: np.random.default_rng(it.spawn(1)[0]).random()),
    "counters with slots": lambda: Noisy(Schedule(), Schedule.next),
    "iterator": lambda: Noisy(itertools.cycle([0.1, 0.5, 0.3]), next),
    "iterator's method": lambda: Noisy(None, ticking()),
    "array": lambda: Noisy(np.zeros(()), lambda it: it.__iadd__(0.1)),
    "tensor in a tuple": lambda: Noisy((torch.zeros(()),), lambda it: it[0].add_(0.1)),
}


def fitted(folder, owned, callbacks):
    torch.manual_seed(1)
    module = OWNED[owned]()
    data = TensorDataset(pictures(12, seed=5), torch.arange(12) % 3)
    trainer(folder, callbacks, logger=False).fit(module, DataLoader(data, batch_size=4))
    return module.net.state_dict()


class Looking(Callback):
    """Runs the model, and restores the streams of all but the model's own."""

    def on_train_epoch_end(self, trainer, pl_module):
        with torch.random.fork_rng(), torch.no_grad():
            pl_module.eval()
            pl_module(pictures(2))
            pl_module.train()


@pytest.mark.parametrize("owned", OWNED)
def test_training_is_bit_identical_for_models_that_own_what_they_draw_from(tmp_path, owned):
    plain = fitted(tmp_path, owned, [])
    assert differing({"state": plain}, {"state": fitted(tmp_path, owned, [Looking()])}) != []
    callback = AuditCallback(tiny_probes())
    assert differing({"state": plain}, {"state": fitted(tmp_path, owned, [callback])}) == []
    assert callback.last_record is not None


class Entering(Callback):
    """Changes inside `undisturbed` what hangs on the module and is no part of the model."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.before = pl_module.trainer
        with undisturbed(pl_module):
            trainer.note, trainer.logger.note, trainer.datamodule.note, self.note = 1, 1, 1, 1
            pl_module.owned.append(1)


def test_the_trainer_is_not_part_of_a_model(tmp_path):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(pictures(4), torch.arange(4) % 3), batch_size=4)

    callback, data = Entering(), Data()
    module = Noisy([callback, data], lambda _: 0.5)
    one = trainer(tmp_path, [callback], max_epochs=1)
    one.fit(module, data)
    assert (one.note, one.logger.note, data.note, callback.note) == (1, 1, 1, 1)
    assert module.owned == [callback, data]
    assert callback.before is one


def test_models_that_advance_a_generator_which_cannot_be_copied_are_refused_before_training(tmp_path):
    module = Noisy((number / 9 for number in range(9)), next)
    one = trainer(tmp_path, [AuditCallback(tiny_probes())], logger=False)
    with pytest.raises(ConfigurationError, match=r"Expected `model\.owned` to be left alone"):
        one.fit(module, DataLoader(TensorDataset(pictures(12), torch.arange(12) % 3), batch_size=4))
    assert module.steps == 0
    assert next(module.owned) == 0
