"""Promise 1 for models that own what they draw from, or that count."""

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
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.runs import differing, trainer
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import AuditCallback, ConfigurationError
from xai_callbacks.access import undisturbed


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


class Hidden(LightningModule):
    """Trains by all hidden states of a net that hooks itself at its first pass to return them."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers", reason="transformers builds the net")
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(**small, image_size=8, patch_size=4, num_labels=3, output_hidden_states=True)
        self.net = transformers.ViTForImageClassification(config)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        found = self(batch[0])
        assert len(found.hidden_states) == 3
        return nn.functional.cross_entropy(found.logits, batch[1]) + sum(each.square().mean() for each in found[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_training_is_bit_identical_for_nets_that_hook_themselves(tmp_path):
    found, data = [], TensorDataset(pictures(12, seed=5), torch.arange(12) % 3)
    for callbacks in ([], [AuditCallback(tiny_probes())]):
        torch.manual_seed(1)
        module = Hidden()
        trainer(tmp_path, callbacks, logger=False).fit(module, DataLoader(data, batch_size=4))
        found.append(
            {"state": module.state_dict(), "hooks": sum(len(each._forward_hooks) for each in module.modules())}
        )
    assert found[0]["hooks"] == found[1]["hooks"]  # none in old versions of transformers
    assert differing({"state": found[0]["state"]}, {"state": found[1]["state"]}) == []


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
