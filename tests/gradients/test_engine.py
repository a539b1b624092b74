"""What is measured, what is refused, and that nothing is left behind."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from tests.gradients.oracle import to_uniform
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.gradients import PerSampleGradients


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)

    reading = PerSampleGradients(model)(torch.randn(3, 4), to_uniform)

    assert set(reading.squared_norms) == {"2.weight", "2.bias"}


def test_patterns_choose_parameters_and_a_typo_is_told():
    layers = {"encoder": nn.Linear(4, 2), "decoder": nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))}
    model = nn.Sequential(OrderedDict(layers))

    chosen = PerSampleGradients(model, parameters=["decoder.*.weight"])
    assert set(chosen.parameters) == {"decoder.0.weight", "decoder.2.weight"}
    with pytest.raises(ConfigurationError, match=r"'decodr.0.weight' matches none of .*decoder.0.weight"):
        PerSampleGradients(model, parameters=["decodr.0.weight"])


def test_a_frozen_model_is_refused_with_advice():
    with pytest.raises(ConfigurationError, match=r"none of the 2 that require grad. Unfreeze some"):
        PerSampleGradients(nn.Linear(2, 2).requires_grad_(False))


def test_batch_norm_in_training_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    with pytest.raises(ConfigurationError, match="Normalise by running statistics"):
        PerSampleGradients(model)(torch.randn(3, 2), to_uniform)


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        (lambda outputs, _: outputs.sum(), "one loss an image, shape \\(3,\\), but got shape \\(\\)"),
        (lambda outputs, _: outputs.sum(dim=1).tolist(), "but got list"),
        (lambda outputs, _: outputs.detach().sum(dim=1), "they have no gradient"),
    ],
)
def test_a_loss_that_is_not_one_an_image_is_refused(loss, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        PerSampleGradients(nn.Linear(4, 2))(torch.randn(3, 4), loss)


def test_a_loss_that_is_not_finite_names_the_image():
    images = torch.ones(3, 4)
    images[1] = torch.nan

    with pytest.raises(AuditError, match="NaN or inf for 1 of 3 images, first for image 1"):
        PerSampleGradients(nn.Linear(4, 2))(images, to_uniform)


def test_the_model_is_left_as_it_was():
    model = torchvision.models.resnet18(num_classes=3).train()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with undisturbed(model):
        PerSampleGradients(model)(torch.rand(2, 3, 32, 32), to_uniform)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["conv1.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_nothing_of_the_graph_is_kept():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    seen = []
    model[2].register_forward_pre_hook(lambda _module, given: seen.append(weakref.ref(given[0])))

    reading = PerSampleGradients(model)(torch.randn(3, 4), to_uniform)
    gc.collect()

    assert seen
    assert all(reference() is None for reference in seen)
    assert not any(values.requires_grad for values in reading.squared_norms.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_runs_where_the_model_is():
    model = torchvision.models.resnet18(num_classes=3).cuda().eval()

    reading = PerSampleGradients(model)(torch.rand(4, 3, 64, 64, device="cuda"), to_uniform)

    assert all(values.device.type == "cuda" and values.isfinite().all() for values in reading.squared_norms.values())


class Attention(nn.Module):
    """Among channels."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(36, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_half_precision_models_are_measured_in_single_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(2), nn.GroupNorm(2, 4), Attention()),
        *(nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3)),
    ).eval()
    images = torch.rand(3, 3, 8, 8)
    expected = PerSampleGradients(model)(images, to_uniform).squared_norms
    found = PerSampleGradients(model.to(dtype))(images.to(dtype), to_uniform).squared_norms

    for name, values in expected.items():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], values, rtol=0.1, atol=1e-4)


def test_norms_of_a_million_entries_keep_their_digits():
    torch.manual_seed(0)
    model, images = nn.Linear(1024, 1024), torch.randn(3, 600, 1024)
    measure = PerSampleGradients(model, parameters=["weight"])
    found = measure(images, lambda outputs, _images: outputs.square().mean(dim=(1, 2))).squared_norms["weight"]
    for index, image in enumerate(images):
        (gradient,) = torch.autograd.grad(model(image).square().mean(), model.weight)
        assert float(found[index]) == pytest.approx(float(gradient.double().square().sum()), rel=2e-6)


def test_large_batches_take_several_passes_and_give_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=16), nn.Flatten(), nn.Linear(2 * 19 * 19, 3))
    images = torch.randn(9, 3, 300, 300)
    calls = []
    model[0].register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))
    measure = PerSampleGradients(model)
    options = ({}, {"reduce": lambda _name, gradients: gradients.flatten(1)[:, :2]})
    wholes = [measure(images, to_uniform, **each) for each in options]
    assert calls == [2, 3, 3, 3, 3, 3, 3, 3]

    for index in (0, 4, 8):
        for whole, each in zip(wholes, options, strict=True):
            one = measure(images[index : index + 1], to_uniform, **each)
            for kind in ("squared_norms", "reduced"):
                for name, values in getattr(one, kind).items():
                    torch.testing.assert_close(getattr(whole, kind)[name][index], values[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(AuditError, match=r"1 of 3 images, first for image 7"):
        measure(images, lambda outputs, given: outputs.sum(dim=1) / (given.amax(dim=(1, 2, 3)) != images[7].max()))
