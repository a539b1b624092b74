"""Per-sample gradients against a loop over batches of one."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xai_callbacks.access import undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.autoencoder import ConvAutoencoder, reconstruction_error
from xai_callbacks.novelty.gradients import PerSampleGradients


def to_uniform(outputs, _images):
    """Cross-entropy toward the uniform distribution, of outputs of any shape `(N, ...)`."""
    logits = outputs.flatten(1)
    return F.cross_entropy(logits, torch.full_like(logits, 1 / logits.shape[1]), reduction="none")


def one_by_one(model, images, loss=to_uniform, axis=0):
    """The obvious way: a backward pass for each image; gradients `(N, *shape)` by parameter."""
    parameters = dict(model.named_parameters())
    rows = []
    for image in images.split(1, dim=axis):
        own = loss(model(image), image).sum()
        rows.append(torch.autograd.grad(own, list(parameters.values()), allow_unused=True))
    return {
        name: torch.stack([torch.zeros_like(parameter) if row[index] is None else row[index] for row in rows])
        for index, (name, parameter) in enumerate(parameters.items())
    }


def check(model, images, loss=to_uniform, *, rtol=1e-5):
    """Norms, inner products and the gradients themselves equal those of the loop; returns the reading of the first."""
    model.eval()
    expected = one_by_one(model, images, loss)
    generator = torch.Generator().manual_seed(3)
    reference = {
        name: torch.randn(row.shape[1:], generator=generator, dtype=row.dtype) for name, row in expected.items()
    }
    measure = PerSampleGradients(model)
    reading = measure(images, loss, reference=reference)
    whole = measure(images, loss, norms=False, reduce=lambda _name, gradients: gradients)
    for name, gradients in expected.items():
        norms = gradients.double().flatten(1).square().sum(dim=1)
        if name in reading.unused:
            assert not norms.any()
            continue
        # What rounds to zero beside the rest of the gradient is not compared digit by digit.
        negligible = float(norms.sum()) * 1e-12 + 1e-20
        torch.testing.assert_close(reading.squared_norms[name], norms, rtol=rtol, atol=negligible)
        scale = norms.sqrt() * reference[name].double().norm()
        inner = gradients.double().flatten(1) @ reference[name].double().flatten()
        assert bool(((reading.inner_products[name] - inner).abs() <= rtol * scale + negligible).all()), name
        largest = float(gradients.abs().amax())
        torch.testing.assert_close(whole.reduced[name], gradients, rtol=rtol, atol=rtol * largest)
    return reading


def redraw_statistics(model, seed=0):
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


NETS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7),
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(num_classes=7),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7),
    "swin_t": lambda: torchvision.models.swin_t(num_classes=7),
}


@pytest.mark.parametrize("name", NETS)
def test_real_architectures_equal_the_loop(name):
    torch.manual_seed(0)
    model = redraw_statistics(NETS[name]())
    for parameter in model.parameters():
        if not parameter.any():  # a head of zeros would hand no gradient on
            nn.init.normal_(parameter, std=0.02)
    images = torch.rand(2, 3, 32, 32)

    single = PerSampleGradients(model.eval())(images, to_uniform)
    reading = check(model.double(), images.double(), rtol=1e-9)

    assert reading.unused == ()
    # In single precision the sums of many terms cancel here and there; the whole gradient has its digits.
    totals = [sum(each.squared_norms.values()) for each in (single, reading)]
    torch.testing.assert_close(*totals, rtol=1e-5, atol=0)


def test_the_autoencoder_equals_the_loop():
    torch.manual_seed(0)
    reading = check(ConvAutoencoder(), torch.rand(5, 1, 28, 28), reconstruction_error)

    assert reading.slow == {}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), dimensions=st.integers(1, 3), transposed=st.booleans(), groups=st.sampled_from([1, 2, 4]))
def test_convolutions_of_any_shape_equal_the_loop(data, dimensions, transposed, groups):
    draw = data.draw
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    stride = draw(st.integers(1, 3))
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": stride,
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding": draw(st.integers(0, 1)),
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, max(stride, options["dilation"]) - 1))
    elif not transposed:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    model = kind(4, 8, **options).double()
    images = torch.randn(3, 4, *(draw(st.integers(6, 8)) for _ in range(dimensions))).double()

    reading = check(nn.Sequential(model, nn.Tanh()), images, rtol=1e-9)

    assert reading.slow == {}


def test_padding_same_equals_the_loop():
    torch.manual_seed(0)
    check(nn.Conv2d(2, 3, 4, padding="same", dilation=2).double(), torch.randn(3, 2, 7, 9).double(), rtol=1e-9)


def test_small_maps_with_many_channels_equal_the_loop():
    torch.manual_seed(0)
    check(nn.Conv2d(64, 64, 3, padding=1, stride=2).double(), torch.randn(3, 64, 4, 4).double(), rtol=1e-9)
    check(nn.Conv2d(64, 64, 1, stride=2).double(), torch.randn(3, 64, 4, 4).double(), rtol=1e-9)
    check(nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1).double(), torch.randn(3, 64, 3, 3).double(), rtol=1e-9)
    widened = nn.ConvTranspose2d(64, 64, 2, stride=1, dilation=2, output_padding=1)
    check(widened.double(), torch.randn(3, 64, 3, 3).double(), rtol=1e-9)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(leading=st.lists(st.integers(1, 4), max_size=3), width=st.integers(1, 6), outputs=st.integers(1, 6))
def test_linear_layers_take_any_leading_axes(leading, width, outputs):
    torch.manual_seed(0)
    check(nn.Linear(width, outputs).double(), torch.randn(4, *leading, width).double(), rtol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((5, 6)),
        nn.LayerNorm(6),
        nn.PReLU(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_normalisations_equal_the_loop(layer):
    torch.manual_seed(0)
    model = redraw_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), layer).double())

    check(model, torch.randn(3, 3, 5, 6).double(), rtol=1e-9)


def test_batch_norm_of_vectors_equals_the_loop():
    check(redraw_statistics(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()), torch.randn(3, 3).double())


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table = nn.Embedding(5, 3, **options)

    def forward(self, words):
        return self.table(words).square().flatten(1)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=["plain", "padded"])
def test_embeddings_equal_the_loop(options):
    torch.manual_seed(0)
    check(Words(**options).double(), torch.tensor([[0, 1, 1, 2], [4, 4, 4, 2], [3, 2, 1, 0]]), rtol=1e-9)


class Attention(nn.Module):
    """Self- or cross-attention with the images first or second, with masks."""

    def __init__(self, batch_first, cross, masked=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
        self.key = nn.Linear(4, options.get("kdim", 4))
        self.batch_first, self.cross, self.masked = batch_first, cross, masked

    def forward(self, images):
        tokens = images if self.batch_first else images.transpose(0, 1)
        other = self.key(tokens) if self.cross else tokens
        value = other if self.cross else tokens
        mask = torch.ones(images.shape[1], images.shape[1], dtype=torch.bool).triu(1) if self.masked else None
        padding = (images[:, :, 0] > 1).logical_and(torch.arange(images.shape[1]) > 0) if self.masked else None
        mixed, _ = self.attention(tokens, other, value, key_padding_mask=padding, attn_mask=mask)
        return mixed if self.batch_first else mixed.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False], ids=["images first", "sequence first"])
@pytest.mark.parametrize(
    ("cross", "masked", "options", "native"),
    [
        (False, False, {}, True),
        (False, True, {}, True),
        (True, False, {}, True),
        (False, False, {"bias": False}, True),
        (True, False, {"kdim": 6, "vdim": 6}, True),
        (False, False, {"add_bias_kv": True}, False),
    ],
    ids=["self", "masked", "cross", "no bias", "own widths", "learnt keys"],
)
def test_attention_equals_the_loop(batch_first, cross, masked, options, native):
    torch.manual_seed(0)
    # As many tokens as images: only the plan tells the two axes apart.
    model = Attention(batch_first, cross, masked, **options).double()

    reading = check(model, torch.randn(5, 5, 4).double(), rtol=1e-9)

    assert ("attention" not in reading.slow) == native


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

    with pytest.raises((ConfigurationError, RuntimeError), match=r"in place|inplace"):
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


class Hooked(nn.Sequential):
    pass


def test_a_hook_of_the_users_that_changes_an_output_is_respected():
    torch.manual_seed(0)
    model = Hooked(nn.Linear(4, 4), nn.Tanh()).double()
    model[0].register_forward_hook(lambda _module, _given, output: output * 3)

    check(model, torch.randn(3, 4).double(), rtol=1e-9)


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


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)

    reading = PerSampleGradients(model)(torch.randn(3, 4), to_uniform)

    assert set(reading.squared_norms) == {"2.weight", "2.bias"}


def test_patterns_choose_parameters_and_a_typo_is_told():
    model = ConvAutoencoder()

    assert set(PerSampleGradients(model, parameters=["decoder.*.weight"]).parameters) == {
        f"decoder.{index}.weight" for index in (0, 2, 4, 6)
    }
    with pytest.raises(ConfigurationError, match=r"'decodr.0.weight' matches none. Did you mean 'decoder.0.weight'"):
        PerSampleGradients(model, parameters=["decodr.0.weight"])


def test_a_frozen_model_is_refused_with_advice():
    with pytest.raises(ConfigurationError, match=r"none of the 2 that require grad. Unfreeze some"):
        PerSampleGradients(nn.Linear(2, 2).requires_grad_(False))


def test_batch_norm_in_training_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    with pytest.raises(ConfigurationError, match="`1` uses those of the batch"):
        PerSampleGradients(model)(torch.randn(3, 2), to_uniform)


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
    assert not reading.outputs.requires_grad


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
    for found in (reading.squared_norms, reading.inner_products, whole.reduced):
        assert found.keys() == {"shift", "linear.weight", "linear.bias"}
        assert not any(values.requires_grad for values in found.values())


def test_cosines_with_a_reference_are_those_of_the_gradients():
    torch.manual_seed(0)
    model, images = nn.Linear(4, 3), torch.randn(5, 4)
    mean = one_by_one(model, images)["weight"].mean(dim=0)

    cosines = PerSampleGradients(model)(images, to_uniform, reference={"weight": mean}).cosines()["weight"]

    expected = F.cosine_similarity(one_by_one(model, images)["weight"].flatten(1), mean.flatten()[None], dim=1)
    torch.testing.assert_close(cosines, expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_runs_where_the_model_is():
    model = torchvision.models.resnet18(num_classes=3).cuda().eval()

    reading = PerSampleGradients(model)(torch.rand(4, 3, 64, 64, device="cuda"), to_uniform)

    assert all(values.device.type == "cuda" and values.isfinite().all() for values in reading.squared_norms.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_half_precision_models_are_measured_in_single_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
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


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigurationError, match="one image or more to measure gradients of, but got none"):
        PerSampleGradients(nn.Linear(2, 2))(torch.zeros(0, 2), to_uniform)


def test_large_batches_take_several_passes_and_give_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=16), nn.Flatten(), nn.Linear(2 * 19 * 19, 3))
    images = torch.randn(9, 3, 300, 300)
    calls = []
    model[0].register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))
    measure = PerSampleGradients(model)
    reference = {"0.weight": torch.randn(2, 3, 3, 3)}
    whole = measure(
        images, to_uniform, reference=reference, reduce=lambda _name, gradients: gradients.flatten(1)[:, :2]
    )
    assert calls == [2, 3, 3, 3, 3]

    assert whole.outputs.shape == (9, 3)
    for index in (0, 4, 8):
        one = measure(
            images[index : index + 1],
            to_uniform,
            reference=reference,
            reduce=lambda _name, gradients: gradients.flatten(1)[:, :2],
        )
        for kind in ("squared_norms", "inner_products", "reduced"):
            for name, values in getattr(one, kind).items():
                torch.testing.assert_close(getattr(whole, kind)[name][index], values[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(AuditError, match=r"1 of 3 images, first for image 7"):
        measure(images, lambda outputs, given: outputs.sum(dim=1) / (given.amax(dim=(1, 2, 3)) != images[7].max()))
