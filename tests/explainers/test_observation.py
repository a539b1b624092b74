"""Observations of altered images: what the auditor would have seen of them, with what is asked left as it was."""

import pytest
import torch
from torch import nn

from tests.explaining import observed, subject_of
from xai_callbacks import GradCAM, Why, WhyRatherThan
from xai_callbacks.access import forward, undisturbed

QUESTIONS = [Why(), WhyRatherThan()]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


def images(count, size=10, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [10, 6])
def test_activations_and_gradients_are_those_of_the_altered_images(size):
    model, altered, rows = net(), images(5, size, seed=1), torch.tensor([2, 0, 1, 2, 2])
    with undisturbed(model):
        subject, trace = subject_of(model, images(3))
        plan = GradCAM().prepare(trace, None)
        whole = observed(subject, plan, images(3), QUESTIONS, trace=trace)
        found = whole.of(altered, rows, plan.layers, head="4")
        heatmaps = GradCAM().explain(found, plan).detach()
    (layer,) = plan.layers
    features = model[:2](altered).detach().requires_grad_(True)
    outputs = model[2:](features)
    torch.testing.assert_close(found.activations[layer.name], features)
    torch.testing.assert_close(found.head.given, features.mean(dim=(2, 3)))
    # Facts and foils are those of the images that these are versions of.
    for index, posed in enumerate(whole.posed):
        asked = posed.rows(rows)
        assert torch.equal(found.posed[index].fact, asked.fact)
        (gradient,) = torch.autograd.grad(asked.score(outputs).sum(), features, retain_graph=True)
        expected = torch.einsum("nd,ndhw->nhw", gradient.mean(dim=(2, 3)), features.detach())
        torch.testing.assert_close(heatmaps[index], expected)
    assert (found.chunk_size, found.seed, found.shared) == (whole.chunk_size, whole.seed, False)
    assert len(whole.outputs) == 3


def test_without_layers_there_is_no_graph_and_one_pass_is_made():
    model, seen = net(), []
    handle = model[0].register_forward_hook(lambda _module, given, _output: seen.append(len(given[0])))
    with undisturbed(model):
        subject, trace = subject_of(model, images(2))
        plan = GradCAM().prepare(trace, None)
        whole = observed(subject, plan, images(2), QUESTIONS)
        seen.clear()
        found = whole.of(images(3), torch.tensor([0, 1, 1]))
        assert seen == [3]
        assert not found.outputs.requires_grad
        assert (found.activations, found.head) == ({}, None)
        assert torch.equal(forward(subject, images(3)).outputs, found.outputs)
    handle.remove()
