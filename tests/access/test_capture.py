import pytest
import torch
from torch import nn

from xai_callbacks.access import Subject, capture, tap
from xai_callbacks.errors import ConfigurationError, TargetLayerError

IMAGES = torch.randn(2, 3, 8, 8)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_graph_begins_at_the_layer():
    model = net()
    subject = Subject(model)
    with torch.no_grad(), capture(subject, "0") as captured:
        outputs = subject(IMAGES)
    leaf = captured.only("0")
    assert leaf.is_leaf
    (gradient,) = torch.autograd.grad(outputs.sum(), leaf, retain_graph=True)
    assert gradient.abs().sum() > 0
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(outputs.sum(), model[0].weight)


def test_an_in_place_operation_after_the_layer_does_not_change_what_was_captured():
    model = net()
    expected = model[0](IMAGES).detach().clone()
    with torch.no_grad(), capture(Subject(model), "0") as captured:
        outputs = Subject(model)(IMAGES)
    assert (expected < 0).any()
    assert torch.equal(captured.only("0"), expected)
    assert torch.equal(outputs.detach(), net()(IMAGES).detach())


def run_and_fail(model):
    with capture(Subject(model), "0"), tap(Subject(model), "4"):
        model(IMAGES)
        raise ZeroDivisionError


@pytest.mark.parametrize("recording", [False, True])
def test_hooks_and_grad_mode_return_also_on_errors(recording):
    model = net()
    with torch.set_grad_enabled(recording):
        with pytest.raises(ZeroDivisionError):
            run_and_fail(model)
        assert torch.is_grad_enabled() == recording
    assert hooks(model) == 0


def test_a_layer_must_run_once_and_return_a_tensor():
    class Odd(nn.Module):
        def forward(self, x):
            return {"x": x}

    model = nn.Sequential(net(), nn.Identity())
    with capture(Subject(model), "1") as captured:
        pass
    with pytest.raises(TargetLayerError, match="it ran 0 times"):
        captured.only("1")
    holder = nn.ModuleDict({"odd": Odd()})
    with capture(Subject(holder), "odd"), pytest.raises(TargetLayerError, match="return a tensor, or a tuple or list"):
        holder["odd"](IMAGES)


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_first_tensor_of_a_tuple_or_list_is_replaced_and_the_rest_kept(kind):
    class Pair(nn.Module):
        def forward(self, x):
            return kind([x * 2, "rest"])

    holder = nn.ModuleDict({"pair": Pair()})
    with capture(Subject(holder), "pair") as captured:
        first, rest = holder["pair"](IMAGES)
    assert rest == "rest"
    assert torch.equal(first, IMAGES * 2)
    assert first.grad_fn is not None
    assert torch.equal(captured.only("pair"), IMAGES * 2)


def test_tapping_notes_inputs_and_outputs_and_changes_nothing():
    model = net()
    with tap(Subject(model), "4") as calls:
        outputs = model(IMAGES)
    assert len(calls) == 1
    assert torch.equal(calls[0].output, outputs)
    assert torch.equal(model[4](calls[0].given), outputs)
    assert not calls[0].given.requires_grad
    assert hooks(model) == 0


def test_a_layer_that_raises_leaves_no_hook_and_the_old_grad_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 3))
    with torch.no_grad():
        with capture(Subject(model), "0"), pytest.raises(RuntimeError):
            model(IMAGES)
        assert not torch.is_grad_enabled()
    assert hooks(model) == 0


def test_an_unknown_layer_is_refused_with_advice_before_anything_is_hooked():
    model = nn.ModuleDict({"trunk": net()})
    with pytest.raises(ConfigurationError, match="Did you mean 'trunk'"), capture(Subject(model), "trunc"):
        pass
    assert hooks(model) == 0
