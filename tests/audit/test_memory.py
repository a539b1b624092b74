"""From audit to audit: what is compared, and that it survives a file."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.audit.alike import same_records, saved_and_loaded
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    ConfigurationError,
    GradCAM,
    HiResCAM,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    Why,
    WhyNotCertain,
)


def test_second_audit_of_an_unchanged_model_finds_no_drift():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first, second = auditor.audit(net), auditor.audit(net)

    assert not any("drift" in key or key == "switched" for key in first.metrics)
    assert second.metrics["switched"].value == 0
    for question in second.questions:
        assert second.metrics[f"gradcam/{question}/drift"].value == pytest.approx(0, abs=1e-12)
    assert second.metrics["novelty/gradnorm/rank_correlation"].value == pytest.approx(1)
    of_memory = ("drift", "switched", "rank_correlation")
    same_records_without_memory = {key for key in second.metrics if not key.endswith(of_memory)}
    assert same_records_without_memory == first.metrics.keys()


def test_drift_is_two_and_every_prediction_switches_when_the_head_is_negated():
    net = tiny_net(classes=2)
    auditor = Auditor(tiny_probes(labels=torch.arange(6) % 2, class_names=("no", "yes")), [Why(of=0)])
    auditor.audit(net)
    with torch.no_grad():
        net[6].weight.neg_()
        net[6].bias.neg_()
    second = auditor.audit(net)

    assert second.metrics["gradcam/why_0/drift"].value == pytest.approx(2)
    assert second.metrics["switched"].value == 1


def test_forget_begins_anew():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first = auditor.audit(net)
    auditor.forget()
    assert auditor.audit(net).metrics == first.metrics


def test_state_survives_a_file_that_may_hold_plain_data_only():
    before, after = tiny_net(seed=0), tiny_net(seed=1)
    there, here = Auditor(tiny_probes()), Auditor(tiny_probes())
    there.audit(before)
    here.load_state_dict(saved_and_loaded(there.state_dict()))

    found = here.audit(after)
    assert "gradcam/why/drift" in found.metrics
    same_records(found, there.audit(after), tolerance=0)


def test_state_before_the_first_audit_can_be_saved_too():
    auditor = Auditor(tiny_probes())
    auditor.load_state_dict(saved_and_loaded(Auditor(tiny_probes()).state_dict()))
    assert "gradcam/why/drift" not in auditor.audit(tiny_net()).metrics


@pytest.mark.parametrize(
    "other",
    [Auditor(tiny_probes(seed=8)), Auditor(tiny_probes(), [Why()]), Auditor(tiny_probes(), [Why(0), Why(1), Why(2)])],
    ids=["other probes", "fewer questions", "other questions"],
)
def test_state_of_another_audit_is_ignored(other):
    other.audit(tiny_net())
    auditor = Auditor(tiny_probes())
    auditor.load_state_dict(other.state_dict())
    assert not any("drift" in key for key in auditor.audit(tiny_net()).metrics)


def test_memory_scale_of_a_run_survives_the_state():
    """A map that is tiny against earlier ones counts as dead, also after a resume."""
    auditor, net = Auditor(tiny_probes(), [Why()]), tiny_net()
    auditor.audit(net)
    resumed = Auditor(tiny_probes(), [Why()])
    resumed.load_state_dict(saved_and_loaded(auditor.state_dict()))
    with torch.no_grad():
        net[6].weight.mul_(1e-12)

    key = "gradcam/why/relevance_mass/core"
    assert resumed.audit(net).metrics[key].degenerate == 6
    assert Auditor(tiny_probes(), [Why()]).audit(net).metrics[key].degenerate < 6


def test_another_architecture_is_looked_at_anew():
    auditor = Auditor(tiny_probes())
    assert auditor.audit(tiny_net()).layer == "2"
    deeper = nn.Sequential(nn.Identity(), *tiny_net())
    assert auditor.audit(deeper).layer == "3"


def test_another_width_is_looked_at_anew():
    auditor = Auditor(tiny_probes())
    auditor.audit(tiny_net())
    with pytest.raises(ConfigurationError, match="outputs for 3 classes, as the probes name, but the model gives 2"):
        auditor.audit(tiny_net(classes=2))


def test_audit_after_a_failed_one_compares_with_the_last_good_one():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    auditor.audit(net)
    bias = net[6].bias.detach().clone()
    with torch.no_grad():
        net[6].bias.fill_(math.nan)
    with pytest.raises(AuditError):
        auditor.audit(net)
    with torch.no_grad():
        net[6].bias.copy_(bias)
    assert auditor.audit(net).metrics["gradcam/why/drift"].value == pytest.approx(0, abs=1e-12)


# ---- drift is never reported between maps of different kinds


def deeper_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


def drifts(before, after):
    """What an auditor of other explainers, resumed with the state of the first, reports of an unchanged model."""
    net, probes = deeper_net(), tiny_probes(40)
    one, two = (Auditor(probes, [Why(0), WhyNotCertain()], novelty=[], explainers=each) for each in (before, after))
    one.audit(net)
    two.load_state_dict(saved_and_loaded(one.state_dict()))
    metrics = two.audit(net, step=1).metrics
    return {key: estimate.value for key, estimate in metrics.items() if key.endswith("/drift")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GradCAM("1"), GradCAM("3")),
        (GradCAM("0"), GradCAM("1")),
        (GradCAM("1"), LayerCAM("1")),
        (LayerCAM("1"), HiResCAM("1")),
        (GradCAM("1", name="mine"), LayerCAM("1", name="mine")),
        (Occlusion(2, name="mine"), Occlusion(4, name="mine")),
        (IntegratedGradients(2), IntegratedGradients(3)),
    ],
    ids=["layers 1 and 3", "layers 0 and 1", "methods", "other methods", "methods of one name", "windows", "steps"],
)
def test_no_drift_between_maps_of_different_kinds(before, after):
    found = drifts([before], [after])
    assert found == {} or max(found.values()) < 1e-6


@pytest.mark.parametrize("explainer", [GradCAM("1"), Occlusion(4)], ids=lambda each: each.name)
def test_maps_of_one_kind_are_compared_after_a_resume(explainer):
    found = drifts([explainer], [explainer])
    assert found == {
        f"{explainer.name}/{key}/drift": pytest.approx(0, abs=1e-6) for key in ("why_0", "why_not_certain")
    }


def test_each_of_several_explainers_is_compared_with_itself_alone():
    found = drifts([GradCAM("1"), LayerCAM("1")], [LayerCAM("1"), GradCAM("3"), HiResCAM("1")])
    assert found == {f"layercam/{key}/drift": pytest.approx(0, abs=1e-6) for key in ("why_0", "why_not_certain")}


def test_no_drift_between_grids():
    """A layer of another size under the same name, as when a model is replaced between audits."""
    auditor = Auditor(tiny_probes(), [Why(0)], novelty=[], explainers=[GradCAM("2")])
    auditor.audit(tiny_net())
    smaller = tiny_net()
    smaller[0].stride = (2, 2)
    record = auditor.audit(smaller)

    assert record.heatmaps.shape[-2:] == (4, 4)
    assert "gradcam/why_0/drift" not in record.metrics
