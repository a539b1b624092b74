"""The gradient constraint against the published algorithm, written down slowly, and what it leaves as it is."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.novelty.constrained import STRENGTH, Module, Tiny, adam, batches, fit
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty import GradientConstraint


def twin(net, optimizer, images, accumulate=1):
    """The published algorithm, written down slowly: every stored gradient is kept, cosines are plain sums."""
    weights = [net.decoder[0].weight, net.decoder[2].weight]
    stored, penalties = [[], []], []
    for k, batch in enumerate(images):
        loss = ((net(batch) - batch) ** 2).mean()
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        penalty = torch.zeros((), dtype=torch.float64)
        if stored[0]:
            for gradient, past in zip(gradients, stored, strict=True):
                mean = sum(past) / len(past)
                cosine = (gradient * mean).sum() / ((gradient**2).sum().sqrt() * (mean**2).sum().sqrt())
                penalty = penalty - STRENGTH * cosine / 2
        penalties.append(penalty.item())
        ((loss + penalty) / accumulate).backward()
        if (k + 1) % accumulate == 0:
            for past, weight in zip(stored, weights, strict=True):
                past.append(weight.grad.clone())
            optimizer.step()
            optimizer.zero_grad()
    return penalties, [sum(past) / len(past) for past in stored]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_that_of_the_published_algorithm(accumulate):
    module = Module(dtype=torch.float64)
    slow = copy.deepcopy(module.net)
    found = fit(module, adam(module.net), batches(), accumulate)
    expected, means = twin(slow, adam(slow), batches(), accumulate)

    assert found[0] == 0
    assert all(abs(penalty) > 1e-3 for penalty in found[accumulate:])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(module.net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    references = module.constraint.references
    assert list(references) == ["0.weight", "2.weight"]
    for ours, theirs in zip(references.values(), means, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_mean_counts_optimizer_steps():
    module = Module().double()
    fit(module, adam(module.net), batches(), accumulate=2)
    assert module.constraint.count.dtype == torch.int64
    assert module.constraint.count.item() == 3


def test_a_far_stronger_constraint_aligns_the_gradients():
    torch.manual_seed(3)
    weak, strong = Module(1e-9), Module(1.0)
    strong.net.load_state_dict(weak.net.state_dict())
    images = batches(60).float()
    aligned = []
    for module in (weak, strong):
        optimizer, seen = adam(module.net), []
        for batch in images:
            fit(module, optimizer, [batch])
            seen.append(module.constraint.alignment.item())
        aligned.append(sum(seen[-20:]) / 20)
    assert aligned[1] > aligned[0] + 0.1


def test_double_backward_through_a_transposed_convolution_is_the_derivative():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 1, 3, stride=2, padding=1).double()
    inputs, target = torch.rand(3, 2, 3, 3).double(), torch.rand(3, 1, 5, 5).double()
    mean = torch.randn_like(layer.weight).detach()

    def cosine(weight):
        # As an autoencoder has it: an output that is not linear in the weight.
        loss = (F.conv_transpose2d(inputs, weight, layer.bias, 2, 1).tanh() - target).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return F.cosine_similarity(gradient.flatten(), mean.flatten(), dim=0)

    assert torch.autograd.gradcheck(cosine, (layer.weight,))
    constraint = GradientConstraint(layer, 1.0)
    constraint.references["weight"].copy_(mean)
    constraint.count += 1
    penalty = constraint((layer(inputs).tanh() - target).square().mean())
    (found,) = torch.autograd.grad(penalty, layer.weight)
    (expected,) = torch.autograd.grad(-cosine(layer.weight), layer.weight)
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_continues_bit_for_bit():
    images = batches(8).float()
    straight = Module()
    resumed = copy.deepcopy(straight)
    optimizer = adam(straight.net)
    fit(straight, optimizer, images)

    first = adam(resumed.net)
    fit(resumed, first, images[:4])
    file = io.BytesIO()
    torch.save({"module": resumed.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    later = Module()
    later.load_state_dict(saved["module"])
    second = adam(later.net)
    second.load_state_dict(saved["optimizer"])
    fit(later, second, images[4:])

    assert later.constraint.count.item() == 8
    for name, value in straight.state_dict().items():
        assert torch.equal(value, later.state_dict()[name]), name


def test_watched_parameters_are_listed_once_and_saved_once():
    module = Module()
    assert list(module.constraint.parameters()) == []
    assert list(module.constraint.modules()) == [module.constraint]
    assert set(module.constraint.state_dict()) == {"count", "mean_0__weight", "mean_2__weight"}
    assert [name for name, _ in module.named_parameters()] == [f"net.{name}" for name, _ in Tiny().named_parameters()]


def test_a_copy_watches_the_copied_network():
    module = Module()
    twin_module = copy.deepcopy(module)
    batch = batches(1)[0].float()
    fit(twin_module, adam(twin_module.net), [batch])
    assert module.constraint.count.item() == 0
    assert all(not mean.any() for mean in module.constraint.references.values())
    with pytest.raises(ConfigurationError, match="to have a gradient"):
        twin_module.constraint(F.mse_loss(module.net(batch), batch))


def test_moves_follow_the_device_and_keep_the_precision():
    module = Module()
    fit(module, adam(module.net), batches(2).float())
    module.to(torch.bfloat16)
    assert {mean.dtype for mean in module.constraint.references.values()} == {torch.float32}
    assert module.constraint.count.dtype == torch.int64
    assert module.net.decoder[0].weight.dtype == torch.bfloat16
    module.to("meta")
    assert {mean.device.type for mean in module.constraint.references.values()} == {"meta"}


@pytest.mark.gpu
def test_moves_to_a_cuda_device():
    module = Module().cuda()
    penalties = fit(module, adam(module.net), batches(3).float().cuda())
    assert penalties[0] == 0
    assert penalties[2] != 0
    assert module.constraint.alignment.is_cuda


def test_autocast_is_left_for_the_gradients_of_gradients():
    module = Module()
    images = batches(3).float()
    optimizer = adam(module.net)
    for batch in images:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(module.net(batch).float(), batch)
            penalty = module.constraint(loss)
        assert penalty.dtype == torch.float32
        (loss + penalty).backward()
        module.constraint.update()
        optimizer.step()
        optimizer.zero_grad()
    assert 0 < abs(penalty.item()) <= STRENGTH


def test_evaluation_touches_nothing():
    module = Module()
    fit(module, adam(module.net), batches(2).float())
    before = copy.deepcopy(module.state_dict())
    batch = batches(1, seed=9)[0].float()
    alignment = module.constraint.alignment
    with torch.no_grad():
        assert module.constraint(F.mse_loss(module.net(batch), batch)).item() == 0
    module.eval()
    assert module.constraint(F.mse_loss(module.net(batch), batch)).item() == 0
    with torch.inference_mode():
        assert module.constraint(F.mse_loss(module.net(batch), batch)).item() == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.net.parameters())
    assert module.constraint.alignment is alignment


def test_only_weights_of_convolutions_and_linear_layers_take_part():
    parts = nn.Sequential(
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Embedding(2, 2)),
        nn.ModuleDict({"up": nn.ConvTranspose3d(1, 1, 2), "down": nn.Conv1d(1, 1, 2)}),
        nn.Linear(2, 2),
    )
    constraint = GradientConstraint(parts)
    assert list(constraint.references) == ["0.0.weight", "1.up.weight", "1.down.weight", "2.weight"]
    assert list(GradientConstraint(nn.Linear(2, 2)).references) == ["weight"]


def test_a_shared_weight_counts_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert list(GradientConstraint(nn.Sequential(nn.Sequential(first, second), first)).references) == ["0.0.weight"]


def test_alignment_is_the_mean_cosine_over_layers():
    a, b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    constraint = GradientConstraint(nn.ModuleList([a, b]), strength=0.5)
    assert constraint.alignment.item() == 0
    # Gradients (1, 0) and (0, 2) first; then (1, 1) and (0, 2).
    for x in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])):
        a.weight.grad = b.weight.grad = None
        loss = (a(x) + b(torch.tensor([0.0, 2.0]))).sum()
        penalty = constraint(loss)
        (loss + penalty).backward()
        constraint.update()
    expected = (2**-0.5 + 1) / 2
    assert constraint.alignment.item() == pytest.approx(expected)
    assert penalty.item() == pytest.approx(-0.5 * expected)
    torch.testing.assert_close(constraint.references["0.weight"], torch.tensor([[1.0, 0.5]]))


def test_a_dead_layer_has_cosine_zero_and_no_pull():
    layer = nn.Linear(2, 1, bias=False)
    constraint = GradientConstraint(layer)
    constraint.references["weight"].fill_(1.0)
    constraint.count += 1
    scale = torch.ones((), requires_grad=True)
    penalty = constraint((scale * layer(torch.zeros(1, 2))).sum() ** 2)
    assert penalty.item() == 0
    penalty.backward()
    assert layer.weight.grad is None or not layer.weight.grad.any()
    assert scale.grad is None or scale.grad.item() == 0


def test_update_may_come_between_the_call_and_the_backward_pass():
    module = Module()
    fit(module, adam(module.net), batches(2).float())
    batch = batches(1)[0].float()
    loss = F.mse_loss(module.net(batch), batch)
    penalty = module.constraint(loss)
    for weight in module.net.parameters():
        weight.grad = torch.ones_like(weight)
    module.constraint.update()
    (loss + penalty).backward()
