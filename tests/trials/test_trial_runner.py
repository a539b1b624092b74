"""Trials in an audit: what a record holds of them, that chunks do not matter, and that they disturb nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.tiny import random_streams, tiny_net
from tests.trials.exact import CLASSES, COLOURS, CUE, OBJECT, Reads, answers, every_trial, scenes, tried
from tests.trials.own import Own
from xai_callbacks import Auditor, GradCAM
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.cues import PatchCue
from xai_callbacks.record import Estimate
from xai_callbacks.trials import CueTrial, RegionTrial

# ---- what a record holds


def test_a_record_holds_what_each_probe_adds_and_its_chance_level():
    record = Auditor(scenes(), trials=[CueTrial(PatchCue(COLOURS, CLASSES, at="spurious"))]).audit(tiny_net())
    effect = record.metrics["cue/patch/effect"]
    assert record.per_probe["cue/patch/effect"].shape == (12,)
    assert record.per_probe["cue/patch/effect"].mean().item() == pytest.approx(effect.value)
    assert record.chances["cue/patch/effect"].eq(0).all()
    assert record.failed == ()
    assert "cue/patch/tv" not in record.chances


def test_an_own_trial_is_run_and_judged():
    record = Auditor(scenes(), trials=[Own()]).audit(tiny_net())
    assert record.metrics["own/kept"].valid == 12


def test_every_ready_made_trial_passes_in_one_audit_and_says_the_same_at_the_next():
    auditor, net = Auditor(scenes(), trials=every_trial()), tiny_net()
    first, second = auditor.audit(net), auditor.audit(net)
    assert first.failed == second.failed == ()
    keys = {key for key in first.per_probe if key.split("/")[0] in ("cue", "region", "bg", "fg", "fill")}
    assert len(keys) > 70
    for key in keys:
        assert torch.equal(first.per_probe[key].nan_to_num(), second.per_probe[key].nan_to_num()), key
        assert torch.equal(first.per_probe[key].isnan(), second.per_probe[key].isnan()), key


# ---- in chunks


class Watched(nn.Module):
    """Looks at two pixels, exactly, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return 5 * torch.stack([images[:, 0, 0, 0], images[:, 1, 6, 5], images[:, 2, 1, 8]], dim=1)


@pytest.mark.parametrize(
    "index",
    range(len(every_trial())),
    ids=[type(getattr(trial, "cue", trial)).__name__ + str(index) for index, trial in enumerate(every_trial())],
)
def test_chunks_change_neither_what_a_model_is_shown_nor_what_is_found(index):
    shown, found = [], []
    for size in (1, 3, 12):
        model, trial = Watched(), every_trial()[index]
        given = answers(model, scenes())
        model.seen.clear()
        with undisturbed(model):
            found.append(TrialRunner(scenes(), [trial]).run(Subject(model), given, chunk_size=size))
        shown.append(sorted(image.numpy().tobytes() for batch in model.seen for image in batch))
    assert all(one.failed == () for one in found)
    for other in (1, 2):
        assert shown[0] == shown[other]
        for key, judged in found[0].judged.items():
            pair = [one.judged[key] for one in (found[0], found[other])]
            if isinstance(judged, Estimate):
                assert str(pair[0]) == str(pair[1])
            else:
                torch.testing.assert_close(pair[0].values, pair[1].values, rtol=0, atol=0, equal_nan=True)


def test_no_graph_is_kept():
    graphs = []

    class Asks(Watched):
        def forward(self, images):
            graphs.append(torch.is_grad_enabled())
            return super().forward(images)

    tried(Asks(), scenes(), RegionTrial("core"))
    assert graphs[1:] == [False] * 18  # after that of the probes as they are: six views in three chunks


# ---- undisturbed


def test_a_model_and_the_random_streams_are_as_they_were_after_every_trial():
    net = tiny_net().train()
    net[1].eval()
    auditor = Auditor(scenes(), trials=every_trial())
    weights, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    streams = random_streams()
    record = auditor.audit(net)
    assert record.failed == ()
    assert random_streams() == streams
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_random_streams_are_not_read():
    auditor, net = Auditor(scenes(), trials=every_trial()), tiny_net()
    first = auditor.audit(net)
    torch.manual_seed(99)
    second = auditor.audit(net)
    for key, values in first.per_probe.items():
        torch.testing.assert_close(values, second.per_probe[key], rtol=0, atol=0, equal_nan=True)


def test_training_between_audits_is_bit_identical():
    def trained(audited):
        net, probes = tiny_net(), scenes()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        auditor = Auditor(probes, trials=every_trial()) if audited else None
        torch.manual_seed(5)
        for _ in range(3):
            net.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(probes.images), probes.labels).backward()
            if auditor is not None:
                auditor.audit(net)
            optimizer.step()
        return net.state_dict(), random_streams()

    (with_audits, streams), (without, plain) = trained(True), trained(False)
    assert all(torch.equal(value, without[name]) for name, value in with_audits.items())
    assert streams == plain


def test_probes_are_as_they_were():
    probes = scenes()
    before = probes.images.clone(), {name: mask.clone() for name, mask in probes.masks.items()}
    Auditor(probes, trials=every_trial()).audit(tiny_net())
    assert torch.equal(probes.images, before[0])
    assert all(torch.equal(mask, before[1][name]) for name, mask in probes.masks.items())


# ---- the whole chain


def test_an_audit_tells_a_model_of_the_cue_from_one_of_the_object():
    trials = [CueTrial(PatchCue(COLOURS, CLASSES, at="spurious"))]
    effects = {
        name: Auditor(scenes(40), trials=trials, explainers=[GradCAM("features")], novelty=[])
        .audit(Reads(region))
        .metrics
        for name, region in (("cue", CUE), ("object", OBJECT))
    }
    assert effects["cue"]["cue/patch/effect"].low > 0.8
    assert effects["object"]["cue/patch/effect"].value == 0
    assert effects["object"]["cue/patch/effect"].high < 0.1
