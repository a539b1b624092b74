"""The model, and whoever trains it, are left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from tests.audit.alike import same_records
from tests.tiny import image_steps, pictures, random_streams, read_events, tiny_net, tiny_probes
from xai_callbacks import Auditor, Gallery, GradCAM, History, IntegratedGradients, Occlusion, TensorBoardSink

EXPLAINERS = [GradCAM(), IntegratedGradients(4), Occlusion(4)]


def test_global_random_streams_are_neither_read_nor_advanced():
    auditor, net = Auditor(tiny_probes()), tiny_net().train()
    before = random_streams()
    auditor.audit(net)
    assert random_streams() == before

    first = auditor.audit(net)
    torch.manual_seed(99)
    second = auditor.audit(net)
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert first.metrics["confidence"] == second.metrics["confidence"]


@pytest.mark.parametrize("explainers", [None, EXPLAINERS, []], ids=["default", "several", "none"])
def test_model_keeps_modes_gradients_buffers_and_hooks(explainers):
    net, probes = tiny_net().train(), tiny_probes()
    net[1].eval()
    nn.functional.cross_entropy(net(probes.images), probes.labels).backward()
    weights = copy.deepcopy(net.state_dict())
    gradients = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in net.named_parameters()}
    Auditor(probes, explainers=explainers).audit(net)

    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    for name, parameter in net.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(parameter.grad, gradients[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_surrounding_grad_mode_does_not_matter(mode):
    net = tiny_net()
    expected = Auditor(tiny_probes()).audit(net)
    with mode():
        record = Auditor(tiny_probes()).audit(net)
    same_records(record, expected, tolerance=0)
    assert not record.heatmaps.requires_grad
    assert not record.outputs.requires_grad


def train_plainly(folder, audited):
    """A plain PyTorch loop, with an audit and its pictures at each step."""
    torch.manual_seed(3)
    net, probes = tiny_net(), tiny_probes()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    images, labels = pictures(24, seed=5), torch.arange(24) % 3
    writer = SummaryWriter(folder) if audited else None
    sink = TensorBoardSink(writer) if audited else None
    auditor, gallery, history = Auditor(probes), Gallery(probes, max_panels=1), History()
    torch.manual_seed(4)  # dropout and shuffling follow
    for step in range(4):
        batch = torch.randperm(24)[:8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        if audited:
            history.append(auditor.audit(net, step=step, past=history))
            sink.write(history.last, gallery.draw(history))
        optimizer.step()
    if audited:
        sink.close()
        writer.close()
    return net, optimizer, random_streams()


def test_plain_training_loop_is_audited_and_bit_identical(tmp_path):
    net, optimizer, streams = train_plainly(tmp_path, audited=True)
    plain_net, plain_optimizer, plain_streams = train_plainly(tmp_path, audited=False)

    assert all(torch.equal(value, plain_net.state_dict()[name]) for name, value in net.state_dict().items())
    assert streams == plain_streams
    for state, plain in zip(optimizer.state.values(), plain_optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], plain[key]) for key in plain)
    events = read_events(tmp_path)
    assert image_steps(events, "audit_panel/000_probe_000") == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("audit/gradcam/why/relevance_mass/core")] == [0, 1, 2, 3]
