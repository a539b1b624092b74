"""ODIN against a batch-of-one loop in which autograd does everything, and against pytorch-ood."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny import pictures, tiny_net
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty.base import ModelScore
from xai_callbacks.novelty.odin import ODIN
from xai_callbacks.tasks import MultiLabel, Regression


def net(channels=3, classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, classes)
    ).eval()


def images(channels=3, count=6):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def slow(model, batch, temperature, epsilon):
    scores = []
    for image in batch.clone():
        leaf = image[None].requires_grad_(True)
        log_p = (model(leaf) / temperature).log_softmax(dim=1)
        (gradient,) = torch.autograd.grad(-log_p.max(), leaf)
        moved = leaf.detach() - epsilon * gradient.sign()
        scores.append(-(model(moved) / temperature).softmax(dim=1).max())
    return torch.stack(scores).detach()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("temperature", "epsilon"), [(1000.0, 0.0014), (2.0, 0.05)])
def test_odin_is_the_loop_over_single_images(channels, temperature, epsilon):
    # `Subject` rounds logits to float32, hence the tolerance.
    model, batch = net(channels).double(), images(channels).double()
    found = ODIN(temperature, epsilon).score(Subject(model), batch)

    assert found.dtype == torch.float64
    torch.testing.assert_close(found, slow(model, batch, temperature, epsilon), rtol=1e-7, atol=0)


def test_odin_is_that_of_pytorch_ood():
    detectors = pytest.importorskip("pytorch_ood.detector")
    model, batch = net(), images()
    theirs = detectors.ODIN(model, eps=0.05, temperature=3.0)(batch)

    torch.testing.assert_close(ODIN(3.0, 0.05).score(Subject(model), batch).float(), theirs)


def test_the_step_makes_the_model_surer():
    subject, batch = Subject(net()), images()

    assert (ODIN(1.0, 0.01).score(subject, batch) < ODIN(1.0, 1e-12).score(subject, batch)).all()


def test_odin_works_under_no_grad_and_on_frozen_models_and_leaves_no_trace():
    model, batch = tiny_net(), pictures()
    expected = ODIN().score(Subject(model.eval()), batch)
    model.requires_grad_(False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode(), undisturbed(model):
        found = ODIN().score(Subject(model), batch)

    assert found.tolist() == expected.tolist()
    assert not found.requires_grad
    assert not batch.requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert ODIN().score(Subject(model.eval()), batch).tolist() == expected.tolist()


def test_a_model_that_changes_its_input_in_place_gets_a_copy():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch):
            return self.net(batch.sub_(0.5))

    batch = images()
    kept = batch.clone()
    found = ODIN().score(Subject(InPlace()), batch)

    assert torch.equal(batch, kept)
    torch.testing.assert_close(found, ODIN().score(Subject(net()), batch - 0.5), rtol=1e-6, atol=0)


def test_an_image_scores_the_same_in_any_company():
    subject, batch = Subject(net()), images(count=9)
    alone = torch.cat([ODIN(1.0, 0.01).score(subject, batch[i : i + 1]) for i in range(9)])

    torch.testing.assert_close(ODIN(1.0, 0.01).score(subject, batch), alone, rtol=1e-5, atol=0)


def test_scores_differ_at_a_high_temperature():
    # In float32 the softmax at T = 1000 would have about four digits left for the differences.
    found = ODIN(1e6, 1e-12).score(Subject(net()), images(count=50))

    assert len(set(found.tolist())) == 50


def test_half_precision_keeps_its_gradient():
    # Divided by the temperature, the gradient would underflow to 0 and there would be no step.
    subject, batch = Subject(net().half()), images()
    stepped, still = (ODIN(1e8, step).score(subject, batch) for step in (0.05, 1e-12))

    assert (stepped < still).all()


def test_one_sigmoid_logit_is_two_classes():
    model = net(classes=1)
    two = nn.Sequential(model, Doubled())

    assert ODIN().score(Subject(model), images()).tolist() == ODIN().score(Subject(two), images()).tolist()


class Doubled(nn.Module):
    def forward(self, logit):
        return torch.cat([-logit, logit], dim=1) / 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_scores_nan_and_spoils_no_other(value):
    batch = images()
    sound = ODIN().score(Subject(net()), batch)
    batch[2, 0, 1, 1] = value
    found = ODIN().score(Subject(net()), batch)

    assert found.isnan().tolist() == [False, False, True, False, False, False]
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[kept], sound[kept], rtol=1e-6, atol=0)


def test_logits_that_are_not_finite_score_nan():
    class Broken(nn.Module):
        def forward(self, batch):
            logits = batch.mean(dim=(2, 3))
            return torch.where(torch.arange(len(batch))[:, None] == 1, math.inf, logits)

    assert ODIN().score(Subject(Broken()), images(count=3)).isnan().tolist() == [False, True, False]


def test_a_model_that_cuts_the_graph_is_refused():
    class Cut(nn.Module):
        def forward(self, batch):
            return batch.detach().mean(dim=(2, 3))

    with pytest.raises(RuntimeError, match="does not require grad"):
        ODIN().score(Subject(Cut()), images())


@pytest.mark.parametrize("task", [Regression(), MultiLabel(width=5)], ids=lambda task: task.kind)
def test_what_has_no_softmax_is_refused(task):
    message = f"probes with one label each for `ODIN`, but got {task.kind} probes"
    with pytest.raises(ConfigurationError, match=message):
        ODIN().score(Subject(net(), task), images())


@pytest.mark.parametrize("value", [0, -1e-3, math.inf, math.nan, True, "0", None])
def test_impossible_step_is_refused(value):
    with pytest.raises(ConfigurationError, match="Expected `epsilon` to be a finite number above 0, but got"):
        ODIN(epsilon=value)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "0", None])
def test_impossible_temperature_is_refused(value):
    with pytest.raises(ConfigurationError, match="Expected `temperature` to be a finite number above 0, but got"):
        ODIN(temperature=value)


def test_odin_needs_no_fit():
    assert isinstance(ODIN(), ModelScore)
    assert not ODIN().learns
