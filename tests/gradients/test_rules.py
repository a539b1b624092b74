"""Rules of layers against a loop over batches of one, and against real architectures."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.gradients.oracle import check, redraw_statistics, to_uniform
from xai_callbacks.gradients import PerSampleGradients

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


def autoencoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 4, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 4, stride=2, padding=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 1, 3, stride=2, padding=1, output_padding=1),
    )


def test_an_autoencoder_equals_the_loop():
    reading = check(autoencoder(), torch.rand(5, 1, 28, 28), lambda outputs, _: outputs.sigmoid().mean(dim=(1, 2, 3)))

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


def test_parts_of_transformers_that_are_fused_without_gradients_equal_the_loop():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))

    reading = check(model.double(), torch.randn(3, 5, 8).double(), rtol=1e-9)
    assert set(reading.slow) == {"0.layers.0.self_attn", "0.layers.1.self_attn"}


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table = nn.Embedding(5, 3, **options)

    def forward(self, words):
        return self.table(words).square().flatten(1)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=["plain", "padded"])
def test_embeddings_equal_the_loop(options):
    torch.manual_seed(0)
    reading = check(Words(**options).double(), torch.tensor([[0, 1, 1, 2], [4, 4, 4, 2], [3, 2, 1, 0]]), rtol=1e-9)

    assert list(reading.slow) == ["table"]


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
    ("cross", "masked", "options"),
    [
        (False, False, {}),
        (False, True, {}),
        (True, False, {}),
        (False, False, {"bias": False}),
        (True, False, {"kdim": 6, "vdim": 6}),
        (False, False, {"add_bias_kv": True}),
    ],
    ids=["self", "masked", "cross", "no bias", "own widths", "learnt keys"],
)
def test_attention_equals_the_loop(batch_first, cross, masked, options):
    torch.manual_seed(0)
    # As many tokens as images: only a run with more images tells the two axes apart.
    model = Attention(batch_first, cross, masked, **options).double()

    assert set(check(model, torch.randn(5, 5, 4).double(), rtol=1e-9).slow) == {"attention"}
