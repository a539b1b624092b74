"""`NoveltyMap`: where novelty lies, as an explainer of an audit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.novelty.test_address import novelty_map
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    Baselines,
    ConfigurationError,
    Energy,
    GradCAM,
    GradNorm,
    KNearest,
    Localization,
    MaxLogit,
    NoveltyMap,
    ReconstructionError,
    TargetLayerError,
    Why,
)
from xai_callbacks.access import FeatureLayout
from xai_callbacks.novelty import JointEnergy


def part(net, begin, end):
    return nn.Sequential(*list(net)[begin:end])


def scored(net, score, layer=3):
    """Activations of the first layers, what follows them, and the score of each image."""
    activations = part(net, 0, layer)(pictures()).detach().requires_grad_()
    features = part(net, layer, 6)(activations)
    return activations, features, score.score(features, net[6](features))


@pytest.mark.parametrize("score", [GradNorm(), Energy(), MaxLogit(), JointEnergy()], ids=lambda score: score.name)
@pytest.mark.parametrize("chunk_size", [4, 16])
def test_the_map_of_an_audit_is_that_of_the_function(score, chunk_size):
    net = tiny_net()
    explainers = [GradCAM(), NoveltyMap(score)]
    record = Auditor(tiny_probes(), [Why()], novelty=[], explainers=explainers, chunk_size=chunk_size).audit(net)
    activations, features, _ = scored(net.eval(), score)
    maps = record.maps["novelty_map"]

    assert maps.heatmaps.shape == (1, 6, 8, 8)
    expected = novelty_map(activations, FeatureLayout("NCHW", (8, 8)), features, net[6](features), score)
    torch.testing.assert_close(maps.heatmaps[0], expected)
    assert (maps.layer, maps.about, maps.units) == ("2", "image", "score")
    assert record.failed == ()


@pytest.mark.parametrize("score", [GradNorm(), Energy(), JointEnergy()], ids=lambda score: score.name)
def test_cells_add_up_to_the_first_order_of_the_score(score):
    """What the score gains as all activations grow by a small share, over that share."""
    net = tiny_net().double()
    (maps,) = Auditor(tiny_probes(), novelty=[], explainers=[NoveltyMap(score)]).audit(net).maps.values()

    net.eval()
    with torch.no_grad():
        activations, share = part(net, 0, 3)(pictures().double()), 1e-5
        more, less = (part(net, 3, 6)(activations * (1 + change)) for change in (share, -share))
        slope = (score.score(more, net[6](more)) - score.score(less, net[6](less))) / (2 * share)
    assert slope.abs().min() > 0
    torch.testing.assert_close(maps.heatmaps[0].double().sum(dim=(1, 2)), slope, rtol=1e-4, atol=1e-6)


def test_a_layer_can_be_named_and_the_map_too():
    net = tiny_net()
    explainer = NoveltyMap(MaxLogit(), target_layer="0", name="novel_at_0")
    record = Auditor(tiny_probes(), novelty=[], explainers=[explainer]).audit(net)
    activations, _, values = scored(net.eval(), MaxLogit(), layer=1)
    (gradient,) = torch.autograd.grad(values.sum(), activations)

    assert record.maps["novel_at_0"].layer == "0"
    torch.testing.assert_close(record.heatmaps[0], (activations * gradient).sum(dim=1).detach())
    assert "MaxLogit" in record.maps["novel_at_0"].explainer
    assert "'0'" in record.maps["novel_at_0"].explainer


def test_it_is_judged_under_keys_without_a_question_and_against_random_weights():
    measures = [Localization(), Baselines()]
    auditor = Auditor(tiny_probes(), [Why()], explainers=[GradCAM(), NoveltyMap()], measures=measures)
    record = auditor.audit(tiny_net())

    wanted = {"relevance_mass/core", "shift_p/spurious", "relevance_lift/core/reference"}
    assert {f"novelty_map/{key}" for key in wanted} <= record.metrics.keys()
    assert record.failed == ()


def test_nothing_need_be_asked():
    record = Auditor(tiny_probes(), [], novelty=[Energy()], explainers=[NoveltyMap()]).audit(tiny_net())
    assert list(record.maps) == ["novelty_map"]
    assert record.questions == ()
    assert "novelty_map/relevance_mass/core" in record.metrics


def test_it_costs_no_forward_pass_of_its_own():
    net, calls = tiny_net(), []
    auditor = Auditor(tiny_probes(), explainers=[GradCAM(), NoveltyMap()])
    auditor.prepare(net)
    net[0].register_forward_hook(lambda _module, given, _output: calls.append(len(given[0])))
    auditor.audit(net)
    assert calls == [6]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (KNearest(), "does not learn, but got 'k_nearest'"),
        (ReconstructionError(), "to be a score of the last layer"),
        ("energy", "to be a score of the last layer"),
        (Energy, "to be a score of the last layer"),
    ],
)
def test_other_scores_are_refused(score, said):
    with pytest.raises(ConfigurationError, match="Expected `score` to be") as caught:
        NoveltyMap(score)
    assert said in str(caught.value)


def test_models_without_a_last_layer_or_feature_map_are_refused_before_training():
    auditor = Auditor(tiny_probes(), explainers=[NoveltyMap()])
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigurationError, match="ends in one linear layer for NoveltyMap"):
        auditor.prepare(headless)
    with pytest.raises(TargetLayerError, match="feature map"):
        auditor.prepare(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    with pytest.raises(TargetLayerError, match="nowhere"):
        Auditor(tiny_probes(), explainers=[NoveltyMap(target_layer="nowhere")]).prepare(tiny_net())
