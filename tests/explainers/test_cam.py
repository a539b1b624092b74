import warnings

import pytest
import torch
import torchvision
from torch import nn

from tests.explaining import explain as answer
from tests.explaining import observed, subject_of
from xai_callbacks import (
    CAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    WhatIfNot,
    Why,
    WhyNotCertain,
    WhyRatherThan,
    WhyValueRatherThan,
)
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError, TargetLayerError
from xai_callbacks.questions import default_questions
from xai_callbacks.tasks import Regression, SingleLabel

EXPLAINERS = [GradCAM(), GradCAMPlusPlus(), HiResCAM(), LayerCAM()]


class GapNet(nn.Module):
    """Convolutions, global average pooling, one linear layer: everything has a closed form."""

    def __init__(self, classes=5, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(6, classes)
        self.to(dtype)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


def explain(model, images, questions, explainer=None, truth=None, task=None):
    return answer(explainer or GradCAM(), model, images, questions, truth, task)


def images(count=3, size=16, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def shaken(name):
    """A torchvision net whose batch norms have statistics of their own, so that eval mode is not trivial."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", pytest.param("vgg11", marks=pytest.mark.slow), "densenet121", "convnext_tiny"],
)
def test_grad_cam_equals_captum(name):
    from captum.attr import LayerGradCam

    model, batch = shaken(name), images(2, 64)
    # Captum takes modules: the last one with a map, and in-place activations behind it are not its output.
    layer = {"densenet121": "features.denseblock4"}.get(name)
    explanation = explain(model, batch, [Why(of=3), Why(of=7)], GradCAM(layer))
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum asks for gradients of its inputs, and says so
        for index, target in enumerate((3, 7)):
            method = LayerGradCam(model, model.get_submodule(explanation.layer.name))
            expected = method.attribute(batch, target=target, relu_attributions=False)[:, 0].detach()
            scale = expected.abs().max()
            torch.testing.assert_close(explanation.heatmaps[index] / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrast_maps_equal_their_closed_form(dtype):
    model, batch = GapNet(dtype=dtype), images(dtype=dtype)
    foils = [WhyRatherThan(foil=index) for index in range(5)]
    explanation = explain(model, batch, [*(Why(of=index) for index in range(5)), *foils, WhyNotCertain()])
    raw, contrast, certain = explanation.heatmaps[:5], explanation.heatmaps[5:10], explanation.heatmaps[10]
    probabilities = explanation.outputs.softmax(dim=1)
    mixed = torch.einsum("nc,cnhw->nhw", probabilities, raw)
    scale = raw.abs().max()
    torch.testing.assert_close(contrast / scale, (mixed - raw) / scale, rtol=0, atol=1e-6)
    predicted = raw[explanation.outputs.argmax(dim=1), torch.arange(3)]
    torch.testing.assert_close(certain / scale, (mixed - predicted) / scale, rtol=0, atol=1e-6)
    balance = torch.einsum("nc,cnhw->nhw", probabilities, contrast) / scale
    torch.testing.assert_close(balance, torch.zeros_like(balance), rtol=0, atol=1e-6)


def test_a_contrast_tends_to_the_logit_difference_as_the_net_becomes_certain():
    model = GapNet()
    with torch.no_grad():
        model.head.bias[2] = 60.0
    explanation = explain(model, images(), [WhyRatherThan(foil=1), WhyRatherThan(foil=1, fact=2), WhyNotCertain()])
    torch.testing.assert_close(explanation.heatmaps[0], explanation.heatmaps[1], rtol=1e-4, atol=1e-7)
    assert 0 < explanation.heatmaps[2].abs().max() < 1e-20  # faded, and still known


def test_a_contrast_with_the_fact_itself_is_finite_and_the_question_about_certainty():
    model = GapNet()
    for bias in (0.0, 60.0):
        with torch.no_grad():
            model.head.bias[2] = bias
        predicted = int(model(images()[:1]).argmax())
        asked = [WhyRatherThan(foil=predicted), WhyNotCertain()]
        contrast, certain = explain(model, images()[:1], asked).heatmaps
        assert contrast.isfinite().all()
        assert contrast.abs().max() > 0
        assert torch.equal(contrast, certain)


@pytest.mark.parametrize("explainer", [GradCAM(), HiResCAM()], ids=repr)
def test_what_speaks_for_a_class_and_against_it_lie_apart(explainer):
    asked = [*(Why(of=index) for index in range(5)), *(WhatIfNot(of=index) for index in range(5))]
    why, not_so = explain(GapNet(), images(), asked, explainer).heatmaps.clamp(min=0).split(5)
    assert why.max() > 0
    assert not_so.max() > 0
    assert not (why * not_so).any()


def test_regression_maps_equal_their_closed_form():
    explanation = explain(GapNet(classes=1), images(), [Why(), WhyValueRatherThan(0.75)], task=Regression())
    raw, contrast = explanation.heatmaps
    factor = 2 * (explanation.outputs[:, 0] - 0.75)
    torch.testing.assert_close(contrast, factor[:, None, None] * raw)


def test_grad_cam_of_a_gap_net_is_cam():
    model, batch = GapNet(), images()
    explanation = explain(model, batch, [Why(of=4)])
    activations = model.features(batch).detach()
    cam = torch.einsum("d,ndhw->nhw", model.head.weight[4].detach(), activations)
    assert explanation.layer.name == "features"
    torch.testing.assert_close(explanation.heatmaps[0], cam / (cam.shape[1] * cam.shape[2]))


def test_cam_is_the_weights_of_the_head_over_the_feature_map():
    model, batch = GapNet(), images()
    explanation = explain(model, batch, [Why(of=4), WhyRatherThan(foil=1, fact=4)], CAM())
    weights, activations = model.head.weight.detach(), model.features(batch).detach()
    for found, row in zip(explanation.heatmaps, (weights[4], weights[4] - weights[1]), strict=True):
        torch.testing.assert_close(found, torch.einsum("d,ndhw->nhw", row, activations))
    cells = activations.shape[2] * activations.shape[3]
    torch.testing.assert_close(explanation.heatmaps[0], cells * explain(model, batch, [Why(of=4)]).heatmaps[0])
    logit = explanation.outputs[:, 4] - model.head.bias[4].detach()
    torch.testing.assert_close(explanation.heatmaps[0].mean(dim=(1, 2)), logit)


def test_cam_of_a_net_that_ends_in_a_convolution_and_pooling_is_its_class_map():
    torch.manual_seed(1)
    maps = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU())
    model = nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explanation = explain(model, images(), [Why(of=2)], CAM())
    torch.testing.assert_close(explanation.heatmaps[0], maps(images()).detach()[:, 2])
    assert explain(torchvision.models.squeezenet1_0(num_classes=4), images(2, 64), [Why()], CAM()).layer.name


@pytest.mark.parametrize(
    "head",
    [
        (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 4)),
        (nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 4)),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(dim=1)),
    ],
    ids=["flatten", "max pooling", "norm", "hidden layer", "softmax"],
)
def test_cam_refuses_other_heads_and_says_what_to_take(head):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), *head)
    with pytest.raises(ConfigurationError, match=r"global average pooling of `0` .* Use GradCAM\(\)"):
        explain(model, images(), [Why()], CAM())
    assert explain(model, images(), [Why()], GradCAM()).heatmaps.isfinite().all()


def test_weights_of_grad_cam_plus_plus_equal_those_of_pytorch_grad_cam():
    peer = pytest.importorskip("pytorch_grad_cam", reason="pytorch_grad_cam is not installed")
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(3, 8, 5, 7, generator=generator)
    gradients = 10 * torch.randn(3, 8, 5, 7, generator=generator)  # large beside the 1e-6 that the peer adds
    given = (None, None, None, activations.numpy(), gradients.numpy())
    weights = torch.from_numpy(peer.GradCAMPlusPlus.get_cam_weights(None, *given))
    expected = (weights[:, :, None, None] * activations).sum(dim=1)
    found = GradCAMPlusPlus().combine(activations, gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_plus_plus_has_no_pole_where_activations_are_negative():
    activations = torch.full((1, 1, 2, 2), -0.5)
    gradients = torch.ones(1, 1, 2, 2)  # 2 + sum(A) G = 0
    assert torch.equal(GradCAMPlusPlus().combine(activations, gradients), torch.full((1, 2, 2), -1.0))


def test_a_mean_gradient_that_is_always_zero_is_noted():
    class LargestLessSmallest(GapNet):
        def forward(self, images):
            features = self.features[:3](images)
            return self.head(features.amax(dim=(2, 3)) - features.amin(dim=(2, 3)))

    explanation = explain(LargestLessSmallest(), images(), [Why()])
    assert explanation.heatmaps.abs().max() < 1e-6
    assert "Use HiResCAM()" in explanation.plan.notes[0]
    assert not explain(GapNet(), images(), [Why()]).plan.notes


@pytest.mark.parametrize("explainer", [GradCAM(), HiResCAM()], ids=repr)
def test_maps_of_a_gap_net_sum_to_the_logit_without_its_bias(explainer):
    model = GapNet()
    explanation = explain(model, images(), [Why(of=1)], explainer)
    expected = explanation.outputs[:, 1] - model.head.bias[1].detach()
    torch.testing.assert_close(explanation.heatmaps[0].sum(dim=(1, 2)), expected)


def slow_weight(activations, gradients):
    """The weight of a channel in Grad-CAM++ by the derivatives of `exp(score)`, over `exp(score)`."""
    found = 0.0
    for gradient in gradients.flatten():
        if gradient > 0:
            found += gradient**2 / (2 * gradient**2 + activations.sum() * gradient**3) * gradient
    return found


@pytest.mark.parametrize(
    ("explainer", "rule"),
    [
        (GradCAM(), lambda a, g: sum(g[d].mean() * a[d] for d in range(len(a)))),
        (GradCAMPlusPlus(), lambda a, g: sum(slow_weight(a[d], g[d]) * a[d] for d in range(len(a)))),
        (HiResCAM(), lambda a, g: sum(g[d] * a[d] for d in range(len(a)))),
        (LayerCAM(), lambda a, g: sum(g[d].clamp(min=0) * a[d] for d in range(len(a)))),
    ],
    ids=["GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"],
)
def test_each_map_equals_its_formula_written_slowly(explainer, rule):
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    model = nn.Sequential(trunk, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 4))
    batch = images()
    explanation = explain(model, batch, [Why(of=2)], explainer)
    assert explanation.layer.name == "0"
    for index in range(len(batch)):
        features = trunk(batch[index : index + 1]).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model[1:](features)[0, 2], features)
        torch.testing.assert_close(explanation.heatmaps[0, index], rule(features.detach()[0], gradient[0]))


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_images_do_not_influence_each_other(explainer):
    model, batch = shaken("resnet18"), images(3, 96)
    explainer = type(explainer)("layer4")
    together = explain(model, batch, default_questions(SingleLabel(width=1000)), explainer)
    for index in range(3):
        alone = explain(model, batch[index : index + 1], default_questions(SingleLabel(width=1000)), explainer)
        scale = together.heatmaps.abs().max()
        torch.testing.assert_close(alone.heatmaps[:, 0] / scale, together.heatmaps[:, index] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_equal_calls_give_equal_bits(explainer):
    first = explain(GapNet(), images(), [Why(), WhyRatherThan()], explainer)
    second = explain(GapNet(), images(), [Why(), WhyRatherThan()], explainer)
    assert torch.equal(first.heatmaps, second.heatmaps)


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_half_precision_nets_give_float32_maps_close_to_those_of_float32(explainer):
    expected = explain(GapNet(), images(), [Why(of=1)], explainer)
    found = explain(GapNet(dtype=torch.bfloat16), images(), [Why(of=1)], explainer)
    assert found.heatmaps.dtype == found.outputs.dtype == torch.float32
    scale = expected.heatmaps.abs().max()
    torch.testing.assert_close(found.heatmaps / scale, expected.heatmaps / scale, rtol=0, atol=0.05)


def test_a_frozen_net_is_explained_like_a_trainable_one():
    expected = explain(GapNet(), images(), [Why()])
    found = explain(GapNet().requires_grad_(False), images(), [Why()])
    assert torch.equal(found.heatmaps, expected.heatmaps)


def test_a_backbone_that_runs_without_gradients_is_explained_all_the_same():
    class Probe(GapNet):
        def forward(self, images):
            with torch.no_grad():
                features = self.features(images)
            return self.head(features.mean(dim=(2, 3)))

    expected = explain(GapNet(), images(), [Why()])
    for explainer in (GradCAM("features"), GradCAM()):
        found = explain(Probe(), images(), [Why()], explainer)
        assert found.layer.name == "features"
        torch.testing.assert_close(found.heatmaps, expected.heatmaps)


def test_a_layer_that_the_outputs_do_not_depend_on_is_refused():
    class Branches(GapNet):
        def __init__(self):
            super().__init__()
            self.unused = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            self.unused(images)
            return super().forward(images)

    with pytest.raises(TargetLayerError, match="no gradient reaches it"):
        explain(Branches(), images(), [Why()], GradCAM("unused"))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
@pytest.mark.parametrize("fault", ["none", "question", "model"])
def test_no_hook_outlives_a_call(explainer, fault):
    model = GapNet()
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = explainer.prepare(trace, None)
        if fault == "model":
            model.head = nn.Linear(99, 5)
        try:
            observation = observed(subject, plan, images(), [Why(of=0)])
            if fault == "question":
                object.__setattr__(observation.posed[0], "fact", torch.tensor([99, 99, 99]))
            explainer.explain(observation, plan)
        except (RuntimeError, IndexError):
            assert fault != "none"
        else:
            assert fault == "none"
    assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_settings_are_shown_and_checked():
    assert repr(GradCAM()) == "GradCAM()"
    assert repr(LayerCAM("layer3")) == "LayerCAM(target_layer='layer3')"
    with pytest.raises(TargetLayerError, match="Expected `target_layer` to be given with `layout`"):
        GradCAM(layout="NHWC")
