"""Random copies of a model: what they leave behind, how they can be used, and what cannot be copied."""

from __future__ import annotations

import random
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from tests.access.trained import Net, content, equal, pictures, trained
from xai_callbacks.access import randomised_copy, undisturbed
from xai_callbacks.errors import ConfigurationError


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# ---- what is left behind


def test_the_model_is_bit_identical_afterwards():
    model = trained()
    model.drop.eval()
    flags = [module.training for module in model.modules()]
    before, gradients = content(model), [parameter.grad.clone() for parameter in model.parameters()]
    versions = [parameter._version for parameter in model.parameters()]

    randomised_copy(model, pictures(), seed=0)

    assert equal(content(model), before)
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert model.first.momentum == 0.3


@pytest.mark.parametrize("images", [pictures(), pictures(1)])
def test_random_streams_are_untouched_also_by_an_error(images):
    model = trained()
    before = streams()
    try:
        randomised_copy(model, images, seed=0)
    except ConfigurationError:
        assert len(images) == 1

    assert streams() == before


def test_copy_shares_no_memory_with_the_model():
    model = trained()
    copied = randomised_copy(model, pictures(), seed=0)
    addresses = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    assert addresses.isdisjoint(tensor.data_ptr() for tensor in (*copied.parameters(), *copied.buffers()))


# ---- the copy in use


def test_copy_is_in_eval_mode_and_explainable_wherever_it_was_made():
    model = trained()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            copied = randomised_copy(model, pictures(), seed=0)
        assert not any(module.training for module in copied.modules())
        images = pictures().requires_grad_()
        with undisturbed(copied):
            (gradient,) = torch.autograd.grad(copied(images)[:, 0].sum(), images)
        assert gradient.abs().sum() > 0
        assert torch.equal(copied(pictures()), copied(pictures()))


def test_wrappers_are_looked_through():
    model = trained()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        copied = randomised_copy(wrapped, pictures(), seed=0)
        assert type(copied) is Net
        assert equal(content(copied), content(randomised_copy(model, pictures(), seed=0)))


class Module(LightningModule):
    """Its own forward is no classifier."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, images):
        raise NotImplementedError


@pytest.mark.parametrize("select", ["net", lambda module: module.net, lambda module: module.net.forward])
def test_lightning_module_is_copied_without_its_trainer(select):
    module = Module()
    module.trainer = trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")

    copied = randomised_copy(module, pictures(), seed=0, select=select)

    assert module.trainer is trainer
    assert copied._trainer is None
    assert copied.net.first.num_batches_tracked == 1


def test_images_are_brought_to_the_type_of_the_model():
    copied = randomised_copy(deepcopy(trained()).double(), pictures(), seed=0)

    assert copied.first.running_mean.dtype == torch.float64


# ---- what cannot be done


def test_model_that_cannot_be_copied_is_named():
    model = trained()
    model.lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="copy, but got Net, where it raised TypeError: cannot pickle"):
        randomised_copy(model, pictures(), seed=0)


def test_a_method_that_does_not_draw_is_passed_over():
    class Odd(nn.Linear):
        def reset_parameters(self, std=None):
            if std is None and hasattr(self, "made"):
                raise ValueError("which std?")

    model = Odd(4, 4)
    model.made, model.weight.data = True, torch.arange(16.0).view(4, 4)
    copied = randomised_copy(model, pictures(), seed=1)
    assert not torch.equal(copied.weight, model.weight)
    assert torch.equal(copied.weight.flatten().sort().values, model.weight.flatten().sort().values)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 0.5), ("chunk_size", 1), ("chunk_size", True)])
def test_counts_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"Expected `{name}` to be an integer"):
        randomised_copy(trained(), pictures(), **{"seed": 0, name: value})


@pytest.mark.gpu
def test_copy_of_a_model_on_the_gpu_stays_there():
    model = trained().cuda()
    state = torch.cuda.get_rng_state()

    copied = randomised_copy(model, pictures(), seed=0)

    assert copied(pictures().cuda()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert equal(content(copied), content(randomised_copy(model, pictures(), seed=0)))
