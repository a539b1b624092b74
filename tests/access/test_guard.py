import random

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from xai_callbacks.access import undisturbed


class Net(nn.Module):
    """Writes into its buffers in every forward pass, as caches and counters do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.tensor(float("nan")))
        self.register_buffer("absent", None)

    def forward(self, images):
        self.calls += 1
        self.last = images.mean().detach()
        return self.head(self.body(images).mean(dim=(2, 3)))


def look(model):
    return model(torch.randn(2, 3, 8, 8))


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("raises", [False, True])
def test_every_flag_returns_on_its_own(raises):
    model = Net().train()
    model.body[1].eval()
    flags = [module.training for module in model.modules()]
    try:
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [module.training for module in model.modules()] == flags
    assert len(set(flags)) == 2


def test_a_model_that_overrides_train_is_put_to_eval_and_back():
    class Pinned(Net):
        def train(self, mode=True):
            raise RuntimeError("hands off")

    model = Pinned()
    with undisturbed(model):
        assert not model.body[3].training
    assert model.body[3].training


@pytest.mark.parametrize("raises", [False, True])
def test_buffers_return_bit_by_bit(raises):
    model = Net()
    held = model.calls, model.last
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with undisturbed(model):
            look(model)
            assert model.calls == 1
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert (model.calls, model.last) == held or (model.calls is held[0] and model.last is held[1])
    assert all(torch.equal(buffer.nan_to_num(7), state[name].nan_to_num(7)) for name, buffer in model.named_buffers())
    assert model.absent is None


def test_buffers_that_did_not_change_are_not_written():
    model = Net()
    version = model.body[1].running_mean._version
    with undisturbed(model):
        model.body(torch.randn(2, 3, 8, 8))
    assert model.body[1].running_mean._version == version


@pytest.mark.parametrize("raises", [False, True])
def test_random_streams_return(raises):
    model, before = Net().train(), streams()
    try:
        with undisturbed(model):
            random.random(), np.random.rand(), torch.randn(3)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert streams() == before


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_to_be_had_whatever_surrounds(outside):
    model = Net()
    with outside():
        recording = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with undisturbed(model):
            images = torch.randn(2, 3, 8, 8, requires_grad=True)
            (gradient,) = torch.autograd.grad(model(images).sum(), images)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == recording
    assert gradient.abs().sum() > 0
    assert not model.body[1].running_mean.is_inference()


def test_half_accumulated_gradients_stay_the_same_tensors():
    model = Net()
    look(model).sum().backward()
    model.head.bias.grad = None
    held = [
        (parameter.grad, None if parameter.grad is None else parameter.grad.clone()) for parameter in model.parameters()
    ]
    with undisturbed(model):
        look(model).sum().backward(inputs=[model.head.bias])
        model.body[0].weight.grad = None
    for parameter, (same, copy) in zip(model.parameters(), held, strict=True):
        assert parameter.grad is same
        assert copy is None or torch.equal(parameter.grad, copy)


def test_autocast_is_off_inside_and_on_again_outside():
    model = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with undisturbed(model):
            assert look(model).dtype == torch.float32
        assert look(model).dtype == torch.bfloat16


def test_hooks_fire_in_a_compiled_model():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    look(compiled)
    seen = []
    handle = model.body.register_forward_hook(lambda *_: seen.append(1))
    with undisturbed(compiled):
        look(compiled)
    handle.remove()
    assert seen == [1]


def test_attributes_and_metrics_that_a_forward_pass_changes_return():
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.passes, self.sizes, self.metric = 0, [1], MeanMetric()
            self.metric.update(3.0)

        def forward(self, images):
            self.passes += 1
            self.sizes.append(len(images))
            self.metric.update(images.mean())
            self.kept = super().forward(images)
            return self.kept

    model = Counting()
    sizes = model.sizes
    with undisturbed(model):
        look(model)
    assert (model.passes, model.sizes, hasattr(model, "kept")) == (0, [1], False)
    assert model.sizes is sizes
    assert float(model.metric.compute()) == 3.0


@pytest.mark.gpu
def test_the_stream_of_the_accelerator_returns():
    model = Net().cuda()
    torch.randn(1, device="cuda")
    before = torch.cuda.get_rng_state_all()
    with undisturbed(model):
        torch.randn(3, device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(before, torch.cuda.get_rng_state_all(), strict=True))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("enabled", [False, True])
def test_transformers_call_their_parts_without_gradients_too(enabled):
    encoder, seen = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2).eval(), []
    encoder.layers[0].linear1.register_forward_hook(lambda *_: seen.append(1))
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with undisturbed(encoder), torch.no_grad():
            encoder(torch.randn(2, 3, 8))
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert seen == [1]


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_forward_pass_collects_or_registers_is_forgotten(raises):
    class Caching(Net):
        def __init__(self):
            super().__init__()
            self.cache, self.seen = {"kept": 1}, {7}

        def forward(self, images):
            self.cache[len(images)] = images.mean()
            del self.cache["kept"]
            self.seen.add(len(images))
            self.register_buffer("late", torch.ones(2))
            return super().forward(images)

    model = Caching()
    cache, seen, names = model.cache, model.seen, list(model.state_dict())
    try:
        with undisturbed(model):
            look(model)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert (model.cache, model.seen) == ({"kept": 1}, {7})
    assert model.cache is cache
    assert model.seen is seen
    assert list(model.state_dict()) == names


def test_hooks_registered_inside_are_gone_and_those_before_are_in_their_order():
    model, before = Net(), (lambda *_: None, lambda *_: None)
    own = [model.register_forward_hook(each) for each in before]
    with undisturbed(model):
        handle = model.register_forward_hook(lambda *_, **__: None, with_kwargs=True)
        own[0].remove()
    assert tuple(model._forward_hooks.values()) == before
    assert len(model._forward_hooks_with_kwargs) == 0
    handle.remove()
    own[1].remove()
    assert tuple(model._forward_hooks.values()) == before[:1]


class HooksItself(Net):
    """Hooks its parts at the first pass, and notes that it has, as nets of transformers do to return hidden states."""

    def __init__(self):
        super().__init__()
        self.hooked, self.passes = False, []

    def forward(self, images):
        if not self.hooked:
            self.hooked = True
            for part in self.children():
                part.register_forward_hook(lambda *_: self.passes.append(1))
        return super().forward(images)


def test_a_model_that_hooks_itself_at_its_first_pass_does_so_once():
    fresh, looked = HooksItself(), HooksItself()
    for _ in range(3):
        with undisturbed(looked):
            look(looked)
    for model in (fresh, looked):
        look(model)
    assert len(looked.passes) == len(fresh.passes) > 0


def test_training_goes_on_as_if_nobody_had_looked():
    def train(*, looking):
        torch.manual_seed(3)
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for step in range(6):
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            if looking:
                with torch.no_grad(), undisturbed(model):
                    images = torch.rand(2, 3, 8, 8, requires_grad=True)
                    torch.autograd.grad(model(images).sum(), [images, model.head.weight])
            if step % 2:  # gradients gather over two steps, and are looked at in between
                optimizer.step()
                optimizer.zero_grad()
        return model.state_dict()

    alone, watched = train(looking=False), train(looking=True)
    assert all(torch.equal(tensor.nan_to_num(7), watched[name].nan_to_num(7)) for name, tensor in alone.items())
