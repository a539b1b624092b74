"""Explainers over many foils, held against one question for each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.contract.test_layer_explainers import SmallNet
from tests.explainers.test_cam import GapNet, images
from tests.explaining import explain, observed, subject_of
from xai_callbacks import (
    CAM,
    VOICE,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    ImplicitSaliency,
    LayerCAM,
    Why,
    WhyRatherThan,
)
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import foils, jacobian
from xai_callbacks.explainers.foils import contrast_vectors, likely_foils, scaled_to_peak
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

CLASSES = 6
LAYERS = [GradCAM(), GradCAMPlusPlus(), HiResCAM(), LayerCAM()]


class FlattenNet(nn.Module):
    """A head that weighs cells differently, so that all CAMs differ."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, classes))

    def forward(self, batch):
        return self.head(self.trunk(batch))


def contrasts(explainer, model, batch, task=None):
    """Contrast maps `(K, N, h, w)` of all classes by one question each, and which is the fact."""
    found = explain(explainer, model, batch, [WhyRatherThan(foil=index) for index in range(CLASSES)], task=task)
    return found.heatmaps, found.outputs


def of_foils(maps, outputs, count):
    """The maps of the most probable foils of each image, as lists."""
    order = outputs.argsort(dim=1, descending=True)[:, 1 : 1 + count]
    return [[maps[foil, image] for foil in order[image]] for image in range(len(outputs))]


def slow_voice(maps, statistic):
    scaled = [each.clamp(min=0) for each in maps]
    scaled = [(each - each.min()) / (each.max() - each.min()) for each in scaled if each.max() > each.min()]
    if statistic == "mean":
        return torch.stack(scaled).mean(dim=0)
    return torch.stack(scaled).var(dim=0, unbiased=True) if len(scaled) > 1 else torch.zeros_like(maps[0])


@pytest.mark.parametrize("task", [SingleLabel(), MultiLabel(width=CLASSES)], ids=lambda task: task.kind)
@pytest.mark.parametrize("explainer", LAYERS, ids=repr)
@pytest.mark.parametrize(("statistic", "count"), [("variance", 3), ("variance", 5), ("mean", 2)])
def test_voice_is_the_spread_of_single_contrasts(task, explainer, statistic, count):
    model, batch = FlattenNet(), images()
    maps = of_foils(*contrasts(explainer, model, batch, task), count)
    expected = torch.stack([slow_voice(each, statistic) for each in maps])
    found = explain(VOICE(explainer, statistic, count), model, batch, [Why()], task=task).heatmaps
    assert expected.std() > 0
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [SingleLabel(), MultiLabel(width=CLASSES)], ids=lambda task: task.kind)
@pytest.mark.parametrize(("variant", "explainer"), [("weighted", GradCAM()), ("product", HiResCAM())])
@pytest.mark.parametrize("count", [2, None])
def test_implicit_saliency_is_the_sum_of_the_sizes_of_contrasts(task, variant, explainer, count):
    model, batch = FlattenNet(), images()
    maps = of_foils(*contrasts(explainer, model, batch, task), count or CLASSES - 1)
    expected = torch.stack([sum(one.abs() for one in each) for each in maps])
    found = explain(ImplicitSaliency(variant, count), model, batch, [Why()], task=task).heatmaps[0]
    torch.testing.assert_close(found / expected.max(), expected / expected.max(), rtol=0, atol=1e-5)


def test_the_weighted_variant_has_the_closed_form_of_contrasts():
    model, batch = GapNet(CLASSES), images()
    raw = explain(GradCAM(), model, batch, [Why(of=index) for index in range(CLASSES)])
    probabilities = raw.outputs.softmax(dim=1)
    every = torch.einsum("nc,cnhw->nhw", probabilities, raw.heatmaps) - raw.heatmaps
    predicted = every[raw.outputs.argmax(dim=1), torch.arange(len(batch))]
    expected = every.abs().sum(dim=0) - predicted.abs()
    found = explain(ImplicitSaliency("weighted", None), model, batch, [Why()]).heatmaps[0]
    torch.testing.assert_close(found / expected.max(), expected / expected.max(), rtol=0, atol=1e-5)


def test_the_magnitude_is_that_of_gradients_and_flat_after_global_average_pooling():
    flat = explain(ImplicitSaliency("magnitude"), GapNet(CLASSES), images(), [Why()]).heatmaps
    assert flat.amin() > 0
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))
    model, batch = FlattenNet(), images(1)
    features = model.trunk(batch).detach().requires_grad_(True)
    outputs = model.head(features)
    expected = torch.zeros(14, 14)
    for foil in outputs[0].argsort(descending=True)[1:]:
        loss = nn.functional.cross_entropy(outputs, foil[None])
        expected += torch.autograd.grad(loss, features, retain_graph=True)[0][0].abs().mean(dim=0)
    found = explain(ImplicitSaliency("magnitude"), model, batch, [Why()]).heatmaps[0, 0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["single-label", "multi-label"])
def test_vectors_are_the_gradients_of_the_question(kind):
    outputs = 3 * torch.randn(4, CLASSES, dtype=torch.float64)
    chosen, task = likely_foils(outputs, 3), MultiLabel(width=CLASSES) if kind == "multi-label" else SingleLabel()
    vectors = torch.stack([*contrast_vectors(outputs, chosen, kind)])
    for row in range(4):
        for rank in range(3):
            leaf = outputs[row : row + 1].clone().requires_grad_(True)
            posed = WhyRatherThan(foil=int(chosen[rank, row])).pose(leaf.detach(), None, task)
            (expected,) = torch.autograd.grad(posed.score(leaf).sum(), leaf)
            torch.testing.assert_close(vectors[rank, row], expected[0])


def test_foils_are_the_most_probable_others():
    outputs = torch.tensor([[1.0, 4.0, 3.0, 2.0], [9.0, 0.0, 1.0, 5.0]])
    assert likely_foils(outputs, 2).tolist() == [[2, 3], [3, 2]]
    assert likely_foils(outputs, None).tolist() == likely_foils(outputs, 100).tolist() == [[2, 3], [3, 2], [0, 1]]


def test_empty_contrasts_are_left_out_for_each_image():
    up, bump, none = torch.linspace(0, 1, 9).reshape(3, 3), torch.eye(3), -torch.ones(3, 3)
    noise = -torch.ones(3, 3)
    noise[0, 0] = 1e-9
    maps = [torch.stack([up, up]), torch.stack([none, bump]), torch.stack([3 * bump, noise])]
    variance = VOICE().gathered(iter(maps))
    expected = torch.stack([up, bump]).var(dim=0)
    torch.testing.assert_close(variance, torch.stack([expected, expected]))
    mean = VOICE(statistic="mean").gathered(iter(maps))
    torch.testing.assert_close(mean, torch.stack([(up + bump) / 2] * 2))
    for statistic in ("variance", "mean"):
        assert torch.equal(VOICE(statistic=statistic).gathered(iter([none[None]] * 4)), torch.zeros(1, 3, 3))
    assert torch.equal(VOICE().gathered(iter([up[None]])), torch.zeros(1, 3, 3))  # one has no variance


def test_foils_that_all_look_alike_have_no_variance():
    maps = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(VOICE().gathered(scale * maps for scale in (1.0, 3.0, 0.7, 11.3)), torch.zeros(1, 5, 5))


def test_maps_are_scaled_one_by_one():
    scaled, sound = scaled_to_peak(torch.tensor([[[2.0, 4.0], [-8.0, 1.0]], [[-1.0, -2.0], [-3.0, 0.0]]]))
    assert torch.equal(scaled, torch.tensor([[[0.5, 1.0], [0.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert sound.tolist() == [True, False]


@pytest.mark.parametrize("explainer", [VOICE(), ImplicitSaliency()], ids=repr)
def test_all_foils_go_back_together_in_blocks_and_cost_no_forward_pass(explainer, monkeypatch):
    model, backward, forward = SmallNet(CLASSES), [], []
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = explainer.prepare(trace, None)
        handle = model.stem[0].register_forward_hook(lambda *_: forward.append(1))
        observation = observed(subject, plan, images(), [Why()])
        observation.outputs.register_hook(lambda _gradient: backward.append(1))
        whole = explainer.explain(observation, plan)
        assert (len(backward), len(forward)) == (1, 1)
        monkeypatch.setattr(jacobian, "_BLOCK", 2 * 8 * 8 * 8 * 3)  # two foils of three images
        torch.testing.assert_close(explainer.explain(observation, plan), whole)
        handle.remove()
    assert len(backward) == 1 + 3


@pytest.mark.parametrize(
    ("explainer", "outputs", "task", "message"),
    [
        (VOICE(), 2, SingleLabel(), "3 or more classes or labels for VOICE.*got 2 of single-label"),
        (VOICE(), 1, Regression(), "got 1 of regression"),
        (ImplicitSaliency(), 1, MultiLabel(width=1), "2 or more classes .* got 1 of multi-label"),
        (VOICE(CAM()), 3, SingleLabel(), "Use GradCAM"),
    ],
)
def test_models_that_do_not_suit_are_refused(explainer, outputs, task, message):
    with pytest.raises(ConfigurationError, match=message):
        explain(explainer, FlattenNet(outputs), images(), [Why()], task=task)


def test_one_foil_is_enough_for_a_mean():
    for model in (FlattenNet(2), FlattenNet(1)):
        maps = explain(VOICE(statistic="mean"), model, images(), [Why()]).heatmaps
        assert maps.shape == (1, 3, 14, 14)
        assert maps.isfinite().all()


def test_settings_are_shown_and_checked():
    assert repr(VOICE(HiResCAM("layer3"))) == (
        "VOICE(explainer=HiResCAM(target_layer='layer3'), statistic='variance', foils=100)"
    )
    assert ImplicitSaliency().contrast.name in {"gradcam", "hirescam"}
    for wrong, message in (
        (lambda: VOICE(ImplicitSaliency()), "`explainer` to be an explainer at a layer"),
        (lambda: VOICE(statistic="median"), "`statistic` to be one of variance, mean"),
        (lambda: VOICE(foils=1), "`foils` to be an integer of 2 or more"),
        (lambda: ImplicitSaliency("V3"), "`variant` to be one of weighted, product, magnitude"),
        (lambda: ImplicitSaliency(foils=0), "`foils` to be an integer of 1 or more"),
        (lambda: ImplicitSaliency(layout="NHWC"), "`target_layer` to be given with `layout`"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            wrong()
    assert foils.VOICE.about == "image"
