"""What belongs to a model, what is merely around it, what is refused, and where the walk of `undisturbed` ends."""

from __future__ import annotations

import functools
import itertools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from tests.access.owners import Helper, Owner, torch_generator
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError

# ---- modules and tensors


@pytest.mark.parametrize(
    "hide", [lambda it: [it], lambda it: {"a": (it,)}, lambda it: Helper(it=it), lambda it: lambda: it]
)
def test_modules_that_are_not_registered_are_evaluated_and_return(hide):
    hidden = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    hidden[1].eval()
    model = Owner(hide(hidden))
    state = {name: tensor.clone() for name, tensor in hidden.state_dict().items()}
    with undisturbed(model):
        assert not any(module.training for module in hidden.modules())
        hidden[0].train()
        hidden(torch.randn(5, 2))
    assert [module.training for module in hidden.modules()] == [True, True, False]
    assert all(torch.equal(tensor, state[name]) for name, tensor in hidden.state_dict().items())


def test_lazy_modules_stay_without_shapes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with undisturbed(model):
        expected = model(torch.ones(2, 4))
        assert model[0].weight.shape == (3, 4)
    assert isinstance(model[0], nn.LazyLinear)
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    assert torch.equal(model.eval()(torch.ones(2, 4)), expected)  # the same weights are drawn afterwards


def test_parameters_that_are_replaced_return():
    model = nn.Linear(2, 2)
    weight, values = model.weight, model.weight.detach().clone()
    with undisturbed(model):
        model.weight.data = torch.zeros(2, 2)
        model.bias.requires_grad_(False)
    assert model.weight is weight
    assert torch.equal(weight, values)
    assert model.bias.requires_grad


@pytest.mark.parametrize("write", [lambda it: it.data.clamp_(min=0), lambda it: it.zero_()])
def test_parameters_that_are_written_in_place_are_refused_by_name(write):
    model = nn.Sequential(nn.Linear(3, 3))
    message = r"Expected the parameter `model\.0\.weight` to be left alone"
    with pytest.raises(ConfigurationError, match=message), undisturbed(model), torch.no_grad():
        write(model[0].weight)


def test_parameters_that_are_not_finite_are_not_refused():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
        model.bias.fill_(float("inf"))
    with undisturbed(model):
        pass


def test_what_cannot_be_put_back_is_refused_and_the_rest_returns():
    model = Owner([np.zeros(2), [1]])
    with pytest.raises(ConfigurationError, match=r"Expected `model\.thing\.0` to be as it was .* dtype"):  # noqa: PT012, SIM117
        with undisturbed(model):
            model.thing[0].dtype = np.int64
            model.thing[1].clear()
    assert model.thing[1] == [1]


def test_an_error_inside_comes_out_with_a_note_on_what_was_not_put_back():
    model = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError) as caught, undisturbed(model), torch.no_grad():  # noqa: PT012
        model.weight.zero_()
        raise ZeroDivisionError
    assert "model.weight" in caught.value.__notes__[0]


def test_a_state_that_cannot_be_read_is_refused_and_nothing_is_changed():
    class Odd(random.Random):
        def getstate(self):
            raise OSError("on another machine")

    model = Owner([ids := itertools.count(), Odd()])
    with pytest.raises(ConfigurationError, match=r"`model\.thing\.1` .* OSError: on another machine"):
        undisturbed(model).__enter__()
    assert model.thing[0] is ids
    assert model.training


def test_tensors_made_in_inference_mode_return():
    with torch.inference_mode():
        model = Owner([torch.zeros(2)])
        with undisturbed(model), torch.inference_mode():
            model.thing[0].add_(1)
    assert model.thing[0].tolist() == [0, 0]
    assert model.thing[0].is_inference()


def test_metrics_in_containers_return():
    model = Owner({"metrics": [MeanMetric()]})
    metric = model.thing["metrics"][0]
    metric.update(3.0)
    with undisturbed(model):
        metric.update(5.0)
    assert (float(metric.compute()), metric._update_count) == (3.0, 1)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.sizes = 0, [1]
        self.register_buffer("total", torch.zeros(1))
        self.last = torch.zeros(1)

    def forward(self, x):
        self.calls += 1
        self.sizes.append(2)
        self.total.add_(1)
        self.last = x
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_attributes_of_scripted_modules_return():
    model = nn.Sequential(torch.jit.script(Scripted()))
    last = model[0].last
    with undisturbed(model):
        assert not model[0].training
        model(torch.ones(1))
        assert model[0].calls == 1
    scripted = model[0]
    assert (scripted.calls, scripted.sizes, scripted.total.item(), scripted.training) == (0, [1], 0, True)
    assert scripted.last is last


@pytest.mark.gpu
def test_generators_of_the_accelerator_return():
    rng = torch.Generator("cuda").manual_seed(0)
    model = Owner([rng, torch.zeros(2, device="cuda")])
    before = rng.get_state()
    with undisturbed(model):
        model.thing[1] += torch.rand(2, generator=rng, device="cuda")
    assert torch.equal(rng.get_state(), before)
    assert model.thing[1].tolist() == [0, 0]


# ---- functions, classes, and what is around them

RNG = random.Random(0)
SEEN = []


def test_class_attributes_return():
    class Base:
        rng, history = torch_generator(), []

    class Counting(Base, nn.Module):
        calls = 0

        def forward(self, seen=[]):  # noqa: B006
            seen.append(1)
            type(self).calls += 1
            type(self).late = 1
            self.history.append(torch.rand(1, generator=self.rng))
            Base.other = 1

    model, before = Counting(), Base.rng.get_state()
    with undisturbed(model):
        model()
    assert (Counting.calls, Base.history, Counting.forward.__defaults__) == (0, [], ([],))
    assert not hasattr(Counting, "late")
    assert not hasattr(Counting, "other")
    assert torch.equal(Base.rng.get_state(), before)


def test_random_generators_around_a_class_return_and_records_stay():
    rng, calls, helper = np.random.default_rng(0), [], nn.BatchNorm1d(1)

    class Drawing(nn.Module):
        def forward(self):
            calls.append(1)
            SEEN.append(1)
            helper(torch.randn(3, 1))
            return rng.random() + RNG.random()

    model, before = Drawing(), (str(rng.bit_generator.state), RNG.getstate(), helper.running_mean.clone())
    with undisturbed(model):
        assert not helper.training
        model()
    assert (str(rng.bit_generator.state), RNG.getstate(), helper.running_mean) == before
    assert helper.training
    assert calls == SEEN == [1]


def test_random_generators_of_hooks_return_and_their_records_stay():
    rng, seen = torch_generator(), []
    model, before = nn.Identity(), rng.get_state()
    handle = model.register_forward_hook(lambda *_: seen.append(torch.rand(1, generator=rng)))
    with undisturbed(model):
        model(torch.zeros(1))
        handle.remove()
    assert torch.equal(rng.get_state(), before)
    assert len(seen) == 1
    assert len(model._forward_hooks) == 1


def test_variables_of_closures_return():
    def made():
        calls, total = 0, []

        def count():
            nonlocal calls, late
            calls += 1
            late = 3
            total.append(calls)
            return calls

        late = None
        del late
        return count

    count = made()
    count()
    with undisturbed(Owner(count)):
        assert count() == 2
    assert count() == 2
    cells = dict(zip(count.__code__.co_freevars, count.__closure__, strict=True))
    assert cells["total"].cell_contents == [1, 2]


# ---- black boxes


class Called:
    def __init__(self):
        self.rng, self.calls = np.random.default_rng(0), 0

    def __call__(self, images):
        self.calls += 1
        return images * self.rng.random()

    def predict(self, images):
        return self(images)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda box: box,
        lambda box: box.predict,
        lambda box: functools.partial(box, images=torch.ones(1)),
        lambda box: lambda images: box.predict(1 * images),
    ],
    ids=["object", "method", "partial", "function"],
)
def test_what_hangs_on_a_black_box_returns(wrap):
    box = Called()
    call = wrap(box)
    with torch.no_grad():
        with undisturbed(call):
            assert torch.is_grad_enabled()
            first = call(images=torch.ones(1))
        assert not torch.is_grad_enabled()
    assert box.calls == 0
    assert torch.equal(call(images=torch.ones(1)), first)


# ---- where the walk ends


class Data(Dataset):
    def __init__(self):
        self.reads, self.images = [], torch.zeros(2)


class Untouchable:
    """Raises as soon as anything of it is asked for in the usual way, as proxies do that load something."""

    def __getattribute__(self, name):
        raise AssertionError(name)


def test_data_and_what_has_a_life_of_its_own_is_left_alone():
    data, lock, event = Data(), threading.Lock(), threading.Event()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    model = Owner([data, DataLoader(data), lock, event, optimizer, random, Untouchable.__new__(Untouchable)])
    with undisturbed(model):
        data.reads.append(1)
        event.set()
        optimizer.note = 1
    assert data.reads == [1]
    assert event.is_set()
    assert optimizer.note == 1


def test_files_are_not_copied(tmp_path):
    disk = np.memmap(tmp_path / "array", np.uint8, "w+", shape=(4,))
    with (tmp_path / "array").open("rb") as file, undisturbed(Owner([disk, np.asarray(disk)[:2], file])):
        disk[0] = 3
        file.read(2)
        assert file.tell() == 2
    assert disk[0] == 3
