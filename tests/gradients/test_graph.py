"""Parameters are found in the autograd graph wherever they are used, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.gradients.oracle import check, one_by_one, redraw_statistics, to_uniform
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.gradients import PerSampleGradients


class Odd(nn.Module):
    """Layers used twice, shared weights, weights used without their module, a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.borrowed = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.randn(4))
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(x)))
        x = self.tied(torch.tanh(self.first(x)))
        return F.linear(self.borrowed(x), self.borrowed.weight) * self.scale


def test_shared_weights_and_borrowed_ones_equal_the_loop():
    torch.manual_seed(0)
    reading = check(Odd().double(), torch.randn(3, 4).double(), rtol=1e-9)

    assert set(reading.unused) == {"idle.weight", "idle.bias"}


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_activations_do_not_matter(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.BatchNorm2d(4), nn.Hardswish(inplace), nn.Flatten())

    check(redraw_statistics(model).double(), torch.randn(3, 3, 6, 6).double(), rtol=1e-9)


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight.requires_grad_(False)

    def forward(self, x):
        x = x.clone()
        given = self.first(x)
        x.add_(1)
        return self.second(given)


def test_an_input_overwritten_later_is_refused():
    measure = PerSampleGradients(Overwriting())

    with pytest.raises(ConfigurationError, match=r"in place|inplace"):
        measure(torch.randn(3, 4), to_uniform)


class Windows(nn.Module):
    """Folds positions into the axis of the images, as windowed attention does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1)


def test_positions_folded_into_the_images_are_told_apart():
    torch.manual_seed(0)
    reading = check(Windows().double(), torch.randn(3, 3, 4).double(), rtol=1e-9)

    assert list(reading.slow) == [""]


def test_a_hook_of_the_users_that_changes_an_output_is_respected():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    model[0].register_forward_hook(lambda _module, _given, output: output * 3)

    check(model, torch.randn(3, 4).double(), rtol=1e-9)


class Shift(nn.Module):
    """No rule knows it."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.tanh(x + self.shift)


def test_a_hook_on_what_is_run_again_is_not_applied_twice():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Shift(), nn.Linear(4, 3)).double()
    model[1].register_forward_hook(lambda _module, _given, output: output.square())

    assert list(check(model, torch.randn(3, 4).double(), rtol=1e-9).slow) == ["1"]


def test_a_hook_that_replaces_what_goes_in_is_respected_or_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Shift(), nn.Linear(4, 3)).double()
    model[2].register_forward_pre_hook(lambda _module, given: (given[0] * 3,))
    check(model, torch.randn(3, 4).double(), rtol=1e-9)

    model[1].register_forward_pre_hook(lambda _module, given: (given[0] * 3,))
    with pytest.raises(ConfigurationError, match="goes into Shift to be left alone by its hooks"):
        PerSampleGradients(model)(torch.randn(3, 4).double(), to_uniform)


def test_a_hook_that_computes_weights_equals_the_loop():
    """As the older `weight_norm` does, before every forward pass."""

    class Doubled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.base = nn.Parameter(torch.randn(3, 4))
            del self._parameters["weight"]
            self.weight = self.base.detach()
            self.register_forward_pre_hook(lambda module, _given: setattr(module, "weight", 2 * module.base))

    torch.manual_seed(0)
    check(nn.Sequential(Doubled(), nn.Tanh()).double(), torch.randn(3, 4).double(), rtol=1e-9)


def test_tied_layers_keep_their_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight

    assert check(model.double(), torch.randn(3, 4).double(), rtol=1e-9).slow == {}


def test_compiled_parts_are_named_plainly():
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(4, 4), Shift())), nn.Linear(4, 2)).eval()
    images = torch.randn(3, 4)
    with undisturbed(model):
        found = PerSampleGradients(model)(images, to_uniform).squared_norms

        expected = one_by_one(model, images)
    assert list(found) == ["0.0.weight", "0.0.bias", "0.1.shift", "1.weight", "1.bias"]
    for norms, gradients in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(norms, gradients.double().flatten(1).square().sum(dim=1))


def test_weights_computed_from_parameters_equal_the_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(64, 2))

    reading = check(model.double(), torch.randn(3, 3, 6, 6).double(), rtol=1e-9)

    assert "0" in reading.slow


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


def test_what_has_no_rule_and_cannot_be_batched_equals_the_loop():
    torch.manual_seed(0)
    reading = check(Recurrent().double(), torch.randn(3, 5, 4).double(), rtol=1e-9)

    assert list(reading.slow) == ["cells"]


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x.requires_grad_(True), use_reentrant=False)


def test_activation_checkpointing_equals_the_loop():
    torch.manual_seed(0)
    check(Checkpointed(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(3, 4).double(), rtol=1e-9)


class Centred(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(dim=0)


def test_images_that_see_each_other_are_refused():
    with pytest.raises(ConfigurationError, match="changes with the images beside it"):
        PerSampleGradients(Centred(3, 2))(torch.randn(4, 3), to_uniform)


def test_a_parameter_in_the_loss_is_refused():
    model = nn.Linear(3, 2)

    with pytest.raises(ConfigurationError, match=r"the parameter `weight`.*for example in the loss"):
        PerSampleGradients(model)(torch.randn(4, 3), lambda outputs, _: outputs.sum(dim=1) + model.weight.sum())


class Shifted(nn.Module):
    """Holds a parameter itself, as a vision transformer holds its class token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.linear = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 3)

    def forward(self, rows):
        return self.linear((rows + self.shift).tanh())


def test_what_is_run_again_leaves_no_graph_behind():
    reading = check(Shifted(), torch.rand(5, 4))
    assert set(reading.slow) == {""}
    whole = PerSampleGradients(Shifted())(torch.rand(5, 4), to_uniform, reduce=lambda _name, gradients: gradients)
    for found in (reading.squared_norms, whole.reduced):
        assert found.keys() == {"shift", "linear.weight", "linear.bias"}
        assert not any(values.requires_grad for values in found.values())
