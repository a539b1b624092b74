"""Gradients of many scores at once equal those of each, whatever the model is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xai_callbacks.explainers import jacobian
from xai_callbacks.explainers.jacobian import block_size, jacobian_products


class Alone(torch.autograd.Function):
    """A function of a user's own, which autograd cannot batch."""

    @staticmethod
    def forward(ctx, given):
        ctx.save_for_backward(given)
        return given.sin()

    @staticmethod
    def backward(ctx, gradient):
        (given,) = ctx.saved_tensors
        if float(gradient.abs().sum()) < 0:  # looks at values
            raise AssertionError
        return gradient * given.cos()


class Sine(nn.Module):
    def forward(self, given):
        return Alone.apply(given)


def heads():
    torch.manual_seed(0)
    end = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
    attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return {
        "pooling": nn.Sequential(*end),
        "convolutions": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), *end),
        "attention": nn.Sequential(nn.Flatten(2), nn.Linear(64, 4), attention, nn.Flatten(), nn.Linear(16, 5)),
        "a function of its own": nn.Sequential(Sine(), *end),
    }  # fmt: skip


@pytest.mark.parametrize("name", heads())
def test_many_at_once_equal_each_alone(name):
    head = heads()[name].eval()
    given = torch.randn(3, 4, 8, 8, requires_grad=True)
    outputs, vectors = head(given.clone()), torch.randn(7, 3, 5)
    found = jacobian_products(outputs, [*vectors], [given])
    assert len(found) == 7
    for (gradient,), vector in zip(found, vectors, strict=True):
        (expected,) = torch.autograd.grad((outputs * vector).sum(), given, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


def test_what_the_outputs_do_not_depend_on_has_no_gradient():
    given, other = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    for count in (1, 4):
        found = jacobian_products(given * 2, [torch.ones(2, 3)] * count, [other, given])
        assert len(found) == count
        assert all(first is None and torch.equal(second, torch.full((2, 3), 2.0)) for first, second in found)
    assert jacobian_products(torch.ones(2, 3), [torch.ones(2, 3)] * 2, [given]) == [(None,), (None,)]


def test_blocks_are_bounded(monkeypatch):
    monkeypatch.setattr(jacobian, "_BLOCK", 100)
    assert block_size([torch.empty(5), torch.empty(30)]) == 3
    assert block_size([torch.empty(5000)]) == 1
