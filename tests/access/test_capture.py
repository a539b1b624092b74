import pytest
import torch
from torch import nn

from xai_callbacks.access import Subject, capture, tap
from xai_callbacks.errors import TargetLayerError

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
    with torch.no_grad(), capture(subject, ["0"]) as captured:
        outputs = subject(IMAGES)
    leaf = captured.tensors()["0"]
    assert leaf.is_leaf
    (gradient,) = torch.autograd.grad(outputs.sum(), leaf, retain_graph=True)
    assert gradient.abs().sum() > 0
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(outputs.sum(), model[0].weight)


def test_an_in_place_operation_after_the_layer_does_not_change_what_was_captured():
    model = net()
    expected = model[0](IMAGES).detach().clone()
    with torch.no_grad(), capture(Subject(model), ["0"]) as captured:
        outputs = Subject(model)(IMAGES)
    assert (expected < 0).any()
    assert torch.equal(captured.tensors()["0"], expected)
    assert torch.equal(outputs.detach(), net()(IMAGES).detach())


def run_and_fail(model):
    with capture(Subject(model), ["0"]), tap(Subject(model), "4"):
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


@pytest.mark.parametrize(("times", "name", "fits"), [(0, "0", False), (2, "0", False), (2, "0#1", True)])
def test_a_layer_must_run_once_or_be_one_call(times, name, fits):
    model = net()
    with capture(Subject(model), [name]) as captured:
        for _ in range(times):
            model(IMAGES)
    if fits:
        assert torch.equal(captured.tensors()[name], model[0](IMAGES).detach())
        return
    with pytest.raises(TargetLayerError, match=rf"`0` to run once in a forward pass, but it ran {times} times"):
        captured.tensors()


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_first_tensor_of_a_tuple_or_list_is_replaced_and_the_rest_kept(kind):
    class Pair(nn.Module):
        def forward(self, x):
            return kind([x * 2, "rest"])

    holder = nn.ModuleDict({"pair": Pair()})
    with capture(Subject(holder), ["pair"]) as captured:
        first, rest = holder["pair"](IMAGES)
    assert rest == "rest"
    assert torch.equal(first, IMAGES * 2)
    assert first.grad_fn is not None
    assert torch.equal(captured.tensors()["pair"], IMAGES * 2)


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
        with capture(Subject(model), ["0"]), pytest.raises(RuntimeError):
            model(IMAGES)
        assert not torch.is_grad_enabled()
    assert hooks(model) == 0


def test_several_layers_are_captured_on_one_graph_that_begins_at_the_earliest():
    model = net()
    subject = Subject(model)
    with torch.no_grad(), capture(subject, ["1", "0"]) as captured:
        outputs = subject(IMAGES)
    tensors = captured.tensors()
    assert tensors["0"].is_leaf
    assert tensors["1"].grad_fn is not None
    assert torch.equal(tensors["1"], tensors["0"].relu())
    early, late = torch.autograd.grad(outputs.sum(), [tensors["0"], tensors["1"]])
    torch.testing.assert_close(early, late * (tensors["0"] > 0))


class InPlace(nn.Module):
    """Activations as functions and in place, of which some results are not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        features = self.conv(images)
        features += 1
        nn.functional.relu(features, inplace=True)
        return self.head(features.clamp(max=2).mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["conv", ":add_", ":relu", ":clamp"])
def test_what_functions_return_is_captured_also_in_place(name):
    model = InPlace()
    subject = Subject(model)
    with torch.no_grad(), capture(subject, [name]) as captured:
        outputs = subject(IMAGES)
    found = captured.tensors()[name]
    features = model.conv(IMAGES).detach()
    shifted = features + 1
    stages = {"conv": features, ":add_": shifted, ":relu": shifted.relu(), ":clamp": shifted.clamp(0, 2)}
    assert torch.equal(found, stages[name])
    torch.testing.assert_close(outputs, model(IMAGES))
    (gradient,) = torch.autograd.grad(outputs.sum(), found)
    assert gradient.abs().sum() > 0


def test_items_of_what_a_module_returns_are_captured_one_by_one():
    class Two(nn.Module):
        def forward(self, x):
            return x * 2, x * 3

    holder = nn.ModuleDict({"two": Two()})
    with torch.no_grad(), capture(Subject(holder), ["two[1]"]) as captured:
        double, triple = holder["two"](IMAGES)
    assert not double.requires_grad
    assert triple.requires_grad
    assert torch.equal(captured.tensors()["two[1]"], IMAGES * 3)
