"""From audit to audit of one run: what is compared with the past, and that it survives a folder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.audit.alike import run_of, same_records
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    AuditError,
    Auditor,
    ConfigurationError,
    GradCAM,
    HiResCAM,
    History,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    Why,
    WhyNotCertain,
)


def test_second_audit_of_an_unchanged_model_finds_no_drift():
    net = tiny_net()
    first, second = run_of(Auditor(tiny_probes()), net, net)

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
    history = run_of(auditor, net)
    with torch.no_grad():
        net[6].weight.neg_()
        net[6].bias.neg_()
    second = run_of(auditor, net, past=history).last

    assert second.metrics["gradcam/why_0/drift"].value == pytest.approx(2)
    assert second.metrics["switched"].value == 1


def test_an_auditor_remembers_nothing_and_changes_no_history():
    auditor, net = Auditor(tiny_probes()), tiny_net()
    first = auditor.audit(net)
    history = run_of(auditor, net)
    auditor.audit(net, past=history)
    assert len(history) == 1
    assert auditor.audit(net).metrics == first.metrics


def test_what_is_compared_survives_a_folder(tmp_path):
    before, after = tiny_net(seed=0), tiny_net(seed=1)
    expected = run_of(Auditor(tiny_probes()), before, after).last
    run_of(Auditor(tiny_probes()), before, past=History(tmp_path))
    found = run_of(Auditor(tiny_probes()), after, past=History(tmp_path)).last

    assert "gradcam/why/drift" in found.metrics
    same_records(found, expected, tolerance=0)


@pytest.mark.parametrize(
    "other",
    [Auditor(tiny_probes(seed=8)), Auditor(tiny_probes(), [Why()]), Auditor(tiny_probes(), [Why(0), Why(1), Why(2)])],
    ids=["other probes", "fewer questions", "other questions"],
)
def test_maps_of_another_audit_are_ignored(other):
    history = run_of(other, tiny_net())
    # Against these peaks the maps of any other model would be empty.
    history.replace_last(maps={"gradcam": louder(history.last.maps["gradcam"])})
    auditor = Auditor(tiny_probes())
    found = run_of(auditor, tiny_net(), past=history).last
    assert not any("drift" in key for key in found.metrics)
    assert found.maps["gradcam"].peaks == auditor.audit(tiny_net()).maps["gradcam"].peaks


def louder(maps):
    return type(maps)(**{**vars(maps), "peaks": tuple(1e12 * peak for peak in maps.peaks)})


def test_memory_scale_of_a_run_survives_a_folder(tmp_path):
    """A map that is tiny against earlier ones counts as dead, also after a resume."""
    auditor, net = Auditor(tiny_probes(), [Why()]), tiny_net()
    run_of(auditor, net, past=History(tmp_path))
    with torch.no_grad():
        net[6].weight.mul_(1e-12)

    key = "gradcam/why/relevance_mass/core"
    assert run_of(auditor, net, past=History(tmp_path)).last.metrics[key].degenerate == 6
    assert auditor.audit(net).metrics[key].degenerate < 6


def test_memory_scale_is_of_each_question_whatever_the_order():
    net = tiny_net()
    with torch.no_grad():
        net[6].weight[0].mul_(1e9)
    history = run_of(Auditor(tiny_probes(), [Why(0), Why(1)]), net)
    with torch.no_grad():
        net[6].weight[0].mul_(1e-9)
    loud, quiet = history.last.maps["gradcam"].peaks
    found = run_of(Auditor(tiny_probes(), [Why(1), Why(0)]), net, past=history).last

    assert loud > 1e3 * quiet
    assert found.maps["gradcam"].peaks == pytest.approx((quiet, loud))
    assert found.metrics["gradcam/why_0/relevance_mass/core"].degenerate == 6
    assert found.metrics["gradcam/why_1/relevance_mass/core"].degenerate < 6


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
    history = run_of(auditor, net)
    bias = net[6].bias.detach().clone()
    with torch.no_grad():
        net[6].bias.fill_(math.nan)
    with pytest.raises(AuditError):
        auditor.audit(net, past=history)
    with torch.no_grad():
        net[6].bias.copy_(bias)
    found = auditor.audit(net, past=history)
    assert found.metrics["gradcam/why/drift"].value == pytest.approx(0, abs=1e-12)


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


def drifts(before, after, folder):
    """What an auditor of other explainers reports of an unchanged model, resumed with the folder of the first."""
    net, probes = deeper_net(), tiny_probes(40)
    for explainers in (before, after):
        auditor = Auditor(probes, [Why(0), WhyNotCertain()], novelty=[], explainers=explainers)
        metrics = run_of(auditor, net, past=History(folder)).last.metrics
    assert metrics["switched"].value == 0
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
def test_no_drift_between_maps_of_different_kinds(before, after, tmp_path):
    assert drifts([before], [after], tmp_path) == {}


@pytest.mark.parametrize("explainer", [GradCAM("1"), Occlusion(4)], ids=lambda each: each.name)
def test_maps_of_one_kind_are_compared_after_a_resume(explainer, tmp_path):
    found = drifts([explainer], [explainer], tmp_path)
    assert found == {
        f"{explainer.name}/{key}/drift": pytest.approx(0, abs=1e-6) for key in ("why_0", "why_not_certain")
    }


def test_each_of_several_explainers_is_compared_with_itself_alone(tmp_path):
    found = drifts([GradCAM("1"), LayerCAM("1")], [LayerCAM("1"), GradCAM("3"), HiResCAM("1")], tmp_path)
    assert found == {f"layercam/{key}/drift": pytest.approx(0, abs=1e-6) for key in ("why_0", "why_not_certain")}


def test_no_drift_between_grids():
    """A layer of another size under the same name, as when a model is replaced between audits."""
    auditor = Auditor(tiny_probes(), [Why(0)], novelty=[], explainers=[GradCAM("2")])
    history = run_of(auditor, tiny_net())
    smaller = tiny_net()
    smaller[0].stride = (2, 2)
    record = run_of(auditor, smaller, past=history).last

    assert record.heatmaps.shape[-2:] == (4, 4)
    assert "gradcam/why_0/drift" not in record.metrics
