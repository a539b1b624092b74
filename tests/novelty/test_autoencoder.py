import pytest
import torch
from torch import nn

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.autoencoder import (
    ConvAutoencoder,
    dead,
    reconstruction_error,
)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 230_721), (3, 232_771)])
def test_it_has_as_many_parameters_as_the_paper_counts(channels, parameters):
    net = ConvAutoencoder(channels)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    weights = [layer.weight.numel() for layer in net.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert weights == [65_536, 32_768, 16_384, 512 * channels]


def test_sizes_on_the_way_are_those_of_the_paper():
    net, seen = ConvAutoencoder(), []
    for layer in (*net.encoder, *net.decoder):
        if not isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    net(torch.rand(2, 1, 28, 28))
    down = [(32, 15, 15), (32, 8, 8), (64, 5, 5), (64, 3, 3)]
    assert seen == [*down, (64, 4, 4), (32, 8, 8), (32, 14, 14), (1, 28, 28)]
    assert not isinstance(net.decoder[-1], nn.ReLU)


@pytest.mark.parametrize("channels", [1, 3])
def test_forward_gives_logits_and_reconstruct_pixels(channels):
    net, images = ConvAutoencoder(channels), torch.rand(2, channels, 28, 28)
    logits = net(images)
    assert logits.shape == images.shape
    assert logits.min() < 0
    torch.testing.assert_close(net.reconstruct(images), 1 / (1 + (-logits).exp()))


def test_errors_are_the_formulas_pixel_by_pixel():
    logits, images = torch.randn(3, 1, 2, 2).double(), torch.rand(3, 1, 2, 2).double()
    squared, entropy = [], []
    for z, x in zip(logits.flatten(1).tolist(), images.flatten(1).tolist(), strict=True):
        p = [1 / (1 + torch.tensor(-value).double().exp()) for value in z]
        squared.append(sum((a - b) ** 2 for a, b in zip(p, x, strict=True)) / 4)
        entropy.append(-sum(b * a.log() + (1 - b) * (1 - a).log() for a, b in zip(p, x, strict=True)) / 4)
    torch.testing.assert_close(reconstruction_error(logits, images), torch.stack(squared))
    torch.testing.assert_close(reconstruction_error(logits, images, "bce"), torch.stack(entropy))


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_errors_of_half_precision_and_huge_logits_are_finite_and_differentiable(kind):
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.float16, requires_grad=True)
    error = reconstruction_error(logits, torch.tensor([[0.0, 1.0]]), kind)
    assert error.dtype == torch.float32
    assert error.isfinite().all()
    error.sum().backward()
    assert logits.grad.isfinite().all()


def test_a_saturated_output_has_no_squared_gradient_to_recover_with_but_one_of_cross_entropy():
    logits = torch.full((1, 4), -200.0, requires_grad=True)
    (squared,) = torch.autograd.grad(reconstruction_error(logits, torch.ones(1, 4)).sum(), logits)
    (entropy,) = torch.autograd.grad(reconstruction_error(logits, torch.ones(1, 4), "bce").sum(), logits)
    assert not squared.any()
    torch.testing.assert_close(entropy, torch.full((1, 4), -0.25))


def test_bad_errors_are_refused():
    with pytest.raises(ConfigurationError, match="one shape"):
        reconstruction_error(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ConfigurationError, match="Expected `kind`"):
        reconstruction_error(torch.zeros(2, 4), torch.zeros(2, 4), "l1")


def dead_net():
    """What the collapse leaves: all logits far below zero, whatever the image."""
    net = ConvAutoencoder()
    with torch.no_grad():
        net.decoder[-1].bias.fill_(-200.0)
    return net


def test_dead_is_one_picture_without_grey():
    images = torch.rand(8, 1, 28, 28)
    checkers = (torch.rand(1, 28, 28) > 0.5).float().expand_as(images)
    black = dead_net().reconstruct(images)
    assert black.max() < 1e-6
    assert dead(black, images)
    assert dead(checkers, images)
    assert not dead(ConvAutoencoder().reconstruct(images), images)
    assert not dead(images.mean(dim=0).expand_as(images), images)
    assert not dead((images > 0.5).float(), images)


@pytest.mark.parametrize(("trace", "expected"), [(1e-5, True), (0.01, False)])
def test_a_trace_of_the_image_is_life(trace, expected):
    images = torch.rand(8, 1, 28, 28)
    checkers = (torch.rand(1, 28, 28) > 0.5).float()
    assert dead((checkers + trace * (images - images.mean(dim=0))).clamp(0, 1), images) == expected


def test_the_spread_is_measured_in_units_of_the_images():
    images, black = torch.rand(8, 1, 28, 28), torch.zeros(8, 1, 28, 28)
    black[0, 0, :2, :2] = 0.01
    assert dead(black, images)
    assert not dead(black, 0.5 + 0.002 * images)
    assert not dead(black, images[:1].expand(8, -1, -1, -1))
