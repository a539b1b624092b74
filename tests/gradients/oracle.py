"""The obvious way to per-sample gradients, and the check of the engine against it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from xai_callbacks.gradients import PerSampleGradients


def to_uniform(outputs, _images):
    """Cross-entropy toward the uniform distribution, of outputs of any shape `(N, ...)`."""
    logits = outputs.flatten(1)
    return F.cross_entropy(logits, torch.full_like(logits, 1 / logits.shape[1]), reduction="none")


def one_by_one(model, images, loss=to_uniform):
    """A backward pass for each image; gradients `(N, *shape)` by parameter."""
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    rows = []
    for image in images.split(1):
        own = loss(model(image), image).sum()
        rows.append(torch.autograd.grad(own, list(parameters.values()), allow_unused=True))
    return {
        name: torch.stack([torch.zeros_like(parameter) if row[index] is None else row[index] for row in rows])
        for index, (name, parameter) in enumerate(parameters.items())
    }


def rows_of(gradients):
    """`(N, *shape)` as `(N, entries)` in double precision; one entry where there are no dimensions."""
    return gradients.double().reshape(len(gradients), max(1, gradients[0].numel()) if gradients[0].numel() else 0)


def check(model, images, loss=to_uniform, *, rtol=1e-5):
    """Norms, and the gradients themselves, equal those of the loop; returns the reading of the first."""
    model.eval()
    expected = one_by_one(model, images, loss)
    measure = PerSampleGradients(model)
    reading = measure(images, loss)
    whole = measure(images, loss, reduce=lambda _name, gradients: gradients)
    assert list(reading.squared_norms) == list(whole.reduced) == list(expected)
    assert whole.squared_norms == reading.reduced == {}
    for name, gradients in expected.items():
        norms = rows_of(gradients).square().sum(dim=1)
        # What rounds to zero beside the rest of the gradient is not compared digit by digit.
        negligible = float(norms.sum()) * 1e-12 + 1e-20
        torch.testing.assert_close(reading.squared_norms[name], norms, rtol=rtol, atol=negligible)
        largest = float(gradients.abs().amax()) if gradients.numel() else 0.0
        torch.testing.assert_close(whole.reduced[name], gradients, rtol=rtol, atol=rtol * largest)
        assert name not in reading.unused or not norms.any()
    return reading


def redraw_statistics(model, seed=0):
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model
