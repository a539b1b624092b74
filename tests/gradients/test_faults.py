"""What autograd cannot look into, and memory that runs out, end in an error that says what to do; or it works."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.gradients.oracle import check, one_by_one, to_uniform
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients import PerSampleGradients

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


class Reentrant(nn.Module):
    """A checkpoint of the kind that runs its part anew under a backward pass of its own."""

    def __init__(self, stem=True):
        super().__init__()
        self.stem = nn.Linear(4, 5) if stem else nn.Identity()
        self.body, self.head = nn.Sequential(nn.Linear(5 if stem else 4, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, self.stem(x).requires_grad_(), use_reentrant=True))


@pytest.mark.parametrize("stem", [True, False])
def test_reentrant_checkpoints_are_refused_with_the_way_out(stem):
    """Without a stem, nothing at all fails in PyTorch: the gradients of the body would be taken for zero."""
    with pytest.raises(ConfigurationError, match=r"use of `body.0.weight`.*use_reentrant=False"):
        PerSampleGradients(Reentrant(stem))(torch.randn(3, 4), to_uniform)


def test_parameters_before_a_reentrant_checkpoint_are_refused_too():
    with pytest.raises(ConfigurationError, match=r"look into.*use_reentrant=False.*`parameters=`"):
        PerSampleGradients(Reentrant(), parameters=["stem.*"])(torch.randn(3, 4), to_uniform)


def test_parameters_behind_a_reentrant_checkpoint_are_measured():
    model, images = Reentrant(), torch.randn(3, 4)
    found = PerSampleGradients(model, parameters=["head.*"])(images, to_uniform).squared_norms

    with torch.no_grad():
        features = model.body(model.stem(images))
    expected = one_by_one(model.head, features)
    for name, gradients in expected.items():
        torch.testing.assert_close(found[f"head.{name}"], gradients.double().flatten(1).square().sum(dim=1))


class Recomputing(torch.autograd.Function):
    """As of reversible nets: what runs inside is no part of the graph."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(Recomputing.apply(self.stem(x), self.hidden))


def test_layers_inside_a_function_of_the_users_are_refused():
    with pytest.raises(ConfigurationError, match=r"use of `hidden.weight`, but it runs inside a function"):
        PerSampleGradients(Hiding())(torch.randn(3, 4), to_uniform)


class Frozen(nn.Module):
    """A backbone under `no_grad`, and a function with a backward pass of its own behind it."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    def __init__(self):
        super().__init__()
        self.idle, self.head = nn.Linear(3, 3), nn.Linear(4, 2)

    def forward(self, x):
        return Frozen.Double.apply(self.head(x))


def test_an_idle_layer_beside_a_function_of_the_users_is_measured():
    reading = check(Frozen().double(), torch.randn(3, 4).double(), rtol=1e-9)

    assert reading.unused == ("idle.weight", "idle.bias")


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())


def after(part):
    return nn.Sequential(part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda part: torch.jit.trace(part, IMAGES[:2])])
def test_scripted_and_traced_parts_equal_the_loop_and_stay_as_they_are(compiled):
    model = after(compiled(body()))
    before = {name: (id(each), each.detach().clone(), each.requires_grad) for name, each in model.named_parameters()}
    reading = check(model, IMAGES)

    assert list(reading.slow) == [""]
    for name, each in model.named_parameters():
        same, content, trainable = before[name]
        assert id(each) == same
        assert torch.equal(each, content)
        assert (each.requires_grad, each.grad) == (trainable, None)


def test_a_scripted_layer_deep_inside_costs_its_own_parent_alone():
    model = after(nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3)), nn.Tanh()))

    assert list(check(model, IMAGES).slow) == ["0"]


def test_a_model_that_is_scripted_as_a_whole_is_refused_and_works_inside_another():
    scripted = torch.jit.script(after(body()))

    with pytest.raises(ConfigurationError, match=r"within the forward pass of one module"):
        PerSampleGradients(scripted)(IMAGES, to_uniform)
    check(nn.Sequential(scripted), IMAGES)


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no backward pass is known\nat length")


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return Cut.apply(self.layer(x))


def test_what_autograd_says_is_passed_on():
    complaint = r"autograd raised RuntimeError: no backward pass is known\. .*`parameters=`"
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        PerSampleGradients(Broken())(torch.randn(3, 4), to_uniform)
    assert isinstance(raised.value.__cause__, RuntimeError)


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4503599627370496"),
]


@pytest.mark.parametrize("error", OUT, ids=["device", "host"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_is_named_with_the_way_out(error, where):
    model, images = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 4)

    def fail(*_):
        raise error

    def fail_later(_module, _given, output):
        if output.requires_grad:
            output.register_hook(fail)

    model[1].register_forward_hook(fail if where == "forward" else fail_later)
    with pytest.raises(
        ConfigurationError, match=r"3 images of shape \(4,\) to fit into memory.*`chunk_size`"
    ) as raised:
        PerSampleGradients(model)(images, to_uniform)
    assert raised.value.__cause__ is error
    assert all(module is model[1] or not module._forward_hooks for module in model.modules())


def test_memory_that_really_runs_out_is_named():
    def loss(outputs, _images):
        return outputs.sum(dim=1) + torch.empty(2**50).sum()

    with pytest.raises(ConfigurationError, match=r"to fit into memory"):
        PerSampleGradients(nn.Linear(4, 2))(torch.randn(3, 4), loss)


class Unbatched(nn.Module):
    """Holds a parameter, and turns to NumPy on the way, which no transform of PyTorch can follow."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.shift + torch.from_numpy(x.detach().sin().numpy())


def test_what_no_transform_can_follow_equals_the_loop():
    check(nn.Sequential(nn.Linear(4, 4), Unbatched()).double(), torch.randn(3, 4).double(), rtol=1e-9)


class OfTwo(Unbatched):
    """Cannot run on one image."""

    def forward(self, x):
        if len(x) < 2:
            raise RuntimeError("two or more, please")
        return x * self.shift


def test_what_cannot_run_again_is_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"`1`, which has no rule .*two or more, please.*`parameters=`"):
        PerSampleGradients(nn.Sequential(nn.Linear(4, 4), OfTwo()))(torch.randn(3, 4), to_uniform)


class Passing(nn.Module):
    """Returns what came in beside what it makes of it, which it does in place."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * 2, x.clone().mul_(self.shift).relu_()


class Passed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.both, self.last = nn.Linear(4, 4), Passing(), nn.Linear(4, 3)

    def forward(self, x):
        one, other = self.both(self.first(x))
        return self.last(one + other)


def test_an_output_that_no_parameter_is_in_does_not_matter():
    check(Passed().double(), torch.randn(3, 4).double(), rtol=1e-9)


def test_an_error_of_the_loss_is_the_users():
    def loss(_outputs, _images):
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        PerSampleGradients(nn.Linear(4, 2))(torch.randn(3, 4), loss)
