"""Gradients at the pixels: captum, torch.autograd, and the rules of each ReLU by hand."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.explaining import explain
from xai_callbacks import Auditor, DeepSHAP, ExpectedGradients, IntegratedGradients, ProbeSet, Why, WhyRatherThan
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import (
    Deconvnet,
    GradCAM,
    Gradient,
    GuidedBackprop,
    GuidedGradCAM,
    InputXGradient,
    SmoothGrad,
)


class GeluByHand(nn.Module):
    def forward(self, values):
        return values * (1 + torch.erf(values / 2**0.5)) / 2


class Net(nn.Module):
    """A small CNN whose ReLUs are modules, which captum needs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.relu_one, self.relu_two, self.relu_three = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool, self.hidden, self.head = nn.MaxPool2d(2), nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, images):
        maps = self.relu_two(self.two(self.pool(self.relu_one(self.one(images)))))
        return self.head(self.relu_three(self.hidden(maps.mean(dim=(2, 3)))))


class Functional(Net):
    """The same net, written with functions, one of them in place, and one a clamp."""

    def forward(self, images):
        maps = self.two(self.pool(F.relu(self.one(images)))).relu_()
        return self.head(self.hidden(maps.mean(dim=(2, 3))).clamp(min=0))


def images(count=3):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def answers():
    return Net()(images()).argmax(dim=1)


def gradient_of(model, given, score):
    given = given.clone().requires_grad_(True)
    return torch.autograd.grad(score(model(given)).sum(), given)[0]


@pytest.mark.parametrize("model", [Net, Functional])
def test_the_gradient_is_that_of_autograd(model):
    found = explain(Gradient(), model(), images(), [Why(1), WhyRatherThan(foil=2, fact=0)]).heatmaps
    assert_close(found[0], gradient_of(Net(), images(), lambda z: z[:, 1]).sum(dim=1))
    assert_close(found[1], gradient_of(Net(), images(), lambda z: z[:, 0] - z[:, 2]).sum(dim=1))


@pytest.mark.parametrize(
    ("saliency", "shown"),
    [
        ("signed", lambda gradient: gradient.sum(dim=1)),
        ("magnitude", lambda gradient: gradient.abs().amax(dim=1)),
        ("positive", lambda gradient: torch.where(gradient > 0, gradient, 0).sum(dim=1)),
        ("negative", lambda gradient: torch.where(gradient < 0, gradient, 0).sum(dim=1)),
    ],
)
def test_saliency_is_read_from_the_channels(saliency, shown):
    found = explain(Gradient(saliency=saliency), Net(), images(), [Why(1)]).heatmaps[0]
    assert_close(found, shown(gradient_of(Net(), images(), lambda z: z[:, 1])))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(GuidedBackprop, captum.attr.GuidedBackprop), (Deconvnet, captum.attr.Deconvolution)]
)
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_positive_and_negative_saliency_are_taken_of_guided_gradients(ours, theirs):
    gradient = theirs(Net()).attribute(images().requires_grad_(), target=1).detach()
    positive, negative = (
        explain(ours(saliency=saliency), Net(), images(), [Why(1)]).heatmaps[0] for saliency in ("positive", "negative")
    )
    assert_close(positive, gradient.clamp_min(0).sum(dim=1))
    assert_close(negative, -(-gradient).clamp_min(0).sum(dim=1))
    assert (positive.amax() > 0) & (negative.amin() < 0)


@pytest.mark.parametrize("explainer", [Gradient, GuidedBackprop, Deconvnet, GuidedGradCAM])
@pytest.mark.parametrize("saliency", ["unsigned", True, None])
def test_another_saliency_is_refused(explainer, saliency):
    with pytest.raises(
        ConfigurationError, match=rf"`saliency` to be one of signed, magnitude, .* but got {saliency!r}"
    ):
        explainer(saliency=saliency)


def test_input_times_gradient_is_that_of_captum_and_adds_up_to_a_linear_score():
    theirs = captum.attr.InputXGradient(Net()).attribute(images().requires_grad_(), target=1)
    assert_close(explain(InputXGradient(), Net(), images(), [Why(1)]).heatmaps[0], theirs.sum(dim=1).detach())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(432, 3, bias=False))
    explained = explain(InputXGradient(), linear, images(), [Why(2)])
    assert_close(explained.heatmaps[0].sum(dim=(1, 2)), explained.outputs[:, 2])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(GuidedBackprop, captum.attr.GuidedBackprop), (Deconvnet, captum.attr.Deconvolution)]
)
@pytest.mark.parametrize("model", [Net, Functional])
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_the_rules_are_those_of_captum_however_a_relu_is_written(ours, theirs, model):
    expected = theirs(Net()).attribute(images().requires_grad_(), target=answers())
    found = explain(ours(), model(), images(), [Why()]).heatmaps[0]
    assert_close(found, expected.sum(dim=1).detach())
    assert not torch.allclose(found, explain(Gradient(), Net(), images(), [Why()]).heatmaps[0], atol=1e-4)


@pytest.mark.parametrize(
    ("explainer", "handed_on"),
    [(Gradient, [2.0, -3.0, 0.0, 0.0]), (GuidedBackprop, [2.0, 0.0, 0.0, 0.0]), (Deconvnet, [2.0, 0.0, 5.0, 0.0])],
)
def test_one_relu_by_hand(explainer, handed_on):
    # Two pixels are active, two are not; the score weighs one of each up and one down.
    class Weighed(nn.Module):
        def forward(self, given):
            active = F.relu(given[:, 0, 0])
            return torch.stack([active @ torch.tensor([2.0, -3.0, 5.0, -7.0]), active.sum(dim=1)], dim=1)

    given = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(2, 1, 1, 4).clone()
    given[1] *= 0.9
    assert explain(explainer(), Weighed(), given, [Why(0)]).heatmaps[0, 0, 0].tolist() == handed_on


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0.0, 6.0), nn.Threshold(0.0, 0.0), nn.ReLU()])
def test_other_rectifiers_follow_the_rule_of_a_relu(activation):
    def net(activation):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(400, 3))

    found = explain(GuidedBackprop(), net(activation), images(), [Why(1)]).heatmaps[0]
    assert_close(found, explain(GuidedBackprop(), net(nn.ReLU()), images(), [Why(1)]).heatmaps[0])
    assert not torch.allclose(found, explain(Gradient(), net(activation), images(), [Why(1)]).heatmaps[0], atol=1e-4)


@pytest.mark.parametrize(
    ("explainer", "written"),
    [
        (Gradient(saliency="magnitude"), "Gradient(saliency='magnitude')"),
        (SmoothGrad(3), "SmoothGrad(samples=3, spread=0.15, statistic='mean')"),
        (GuidedBackprop(), "GuidedBackprop(saliency='signed')"),
        (GuidedGradCAM("relu_two"), "GuidedGradCAM(saliency='signed', target_layer='relu_two')"),
    ],
)
def test_an_explainer_is_written_as_it_is_made(explainer, written):
    assert repr(explainer) == written


def test_guided_backprop_is_the_gradient_where_no_path_is_negative():
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    given = images().abs()
    found = [explain(each(), model, given, [Why(1)]).heatmaps for each in (GuidedBackprop, Gradient)]
    assert_close(*found)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_guided_grad_cam_is_that_of_captum_but_for_the_scale_of_each_image():
    model = Net()
    theirs = captum.attr.GuidedGradCam(model, model.relu_two).attribute(
        images(8).requires_grad_(), target=1, interpolate_mode="bilinear"
    )
    theirs = theirs.sum(dim=1).detach()
    found = explain(GuidedGradCAM("relu_two"), Net(), images(8), [Why(1)]).heatmaps[0]
    seen = theirs.abs().amax(dim=(1, 2)) > 0
    assert seen.sum() >= 2
    assert not found[~seen].any()
    for one, other in zip(found[seen], theirs[seen], strict=True):
        assert_close(one / one.abs().max(), other / other.abs().max(), rtol=1e-3, atol=1e-4)


def test_guided_grad_cam_is_guided_backprop_under_the_mask_of_grad_cam():
    cam = explain(GradCAM("relu_two"), Net(), images(8), [Why(1)]).heatmaps[0].clamp_min(0)
    mask = F.interpolate(cam[:, None], (12, 12), mode="bilinear")[:, 0]
    mask = mask / mask.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    guided = explain(GuidedBackprop(), Net(), images(8), [Why(1)]).heatmaps[0]
    assert_close(explain(GuidedGradCAM("relu_two"), Net(), images(8), [Why(1)]).heatmaps[0], guided * mask)


@pytest.mark.parametrize("statistic", ["mean", "square", "variance"])
def test_smoothgrad_is_its_definition_written_slowly(statistic):
    found = explain(SmoothGrad(4, 0.2, statistic), Net(), images(), [Why(1)]).heatmaps[0]
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, 12, 12, generator=generator) for _ in range(4)]
    for place, image in enumerate(images()):
        size = 0.2 * (image.max() - image.min())
        each = torch.stack([gradient_of(Net(), (image + size * one)[None], lambda z: z[:, 1])[0] for one in noise])
        expected = {"mean": each.mean(0), "square": (each**2).mean(0), "variance": each.var(0, unbiased=False)}
        assert_close(found[place], expected[statistic].sum(dim=0), rtol=1e-4, atol=1e-6)


def test_smoothgrad_without_noise_is_the_gradient():
    found = [
        explain(each, Net(), images(), [Why(), WhyRatherThan()]).heatmaps for each in (SmoothGrad(3, 0), Gradient())
    ]
    assert_close(*found)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"samples": 0}, "Expected `samples` to be an integer of 1 or more, but got 0"),
        ({"samples": 1, "statistic": "variance"}, "Expected `samples` to be an integer of 2 or more, but got 1"),
        ({"spread": -0.1}, "Expected `spread` to be a number of 0 or more, but got -0.1"),
        ({"statistic": "median"}, "Expected `statistic` to be one of mean, square, variance, but got 'median'"),
    ],
)
def test_wrong_settings_of_smoothgrad_are_refused(arguments, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        SmoothGrad(**arguments)


@pytest.mark.parametrize("explainer", [GuidedBackprop, Deconvnet, GuidedGradCAM])
@pytest.mark.parametrize(
    ("activation", "found"),
    [
        (nn.GELU(), "activations of Gelu"),
        (nn.SiLU(), "activations of Silu"),
        (nn.LeakyReLU(), "activations of LeakyRelu"),
        (GeluByHand(), "activations of Erf"),
        (nn.Hardtanh(), "activations of Hardtanh"),  # which lets negative values pass
        (nn.Threshold(-1.0, 0.0), "none"),
        (nn.Identity(), "none"),
    ],
)
def test_nets_without_rectifiers_are_refused_and_told_what_to_take(explainer, activation, found):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(
        ConfigurationError, match=rf"rectifiers for {explainer.__name__}\(\).*got {found}. Use SmoothGrad"
    ):
        explain(explainer(), model, images(), [Why()])


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("explainer", [GuidedBackprop, Deconvnet, GuidedGradCAM])
def test_activations_in_torchscript_cannot_be_seen_and_are_refused(explainer):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(torch.jit.script(body), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ConfigurationError, match=r"parts of it are TorchScript. Use SmoothGrad\(\) or GradCAM\(\)"):
        explain(explainer(), model, images(), [Why()])


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.round()

    @staticmethod
    def backward(ctx, gradient):
        return None


class WithRounded(Net):
    """Adds what has no gradient, and comes from a ReLU."""

    def forward(self, images):
        return super().forward(images) + Rounded.apply(F.relu(images)).mean()


@pytest.mark.parametrize("explainer", [GuidedBackprop, Deconvnet])
def test_a_rectifier_that_no_gradient_comes_back_to_hands_on_none(explainer):
    found, plain = (explain(explainer(), net.eval(), images(), [Why()]) for net in (WithRounded(), Net()))
    assert_close(found.heatmaps, plain.heatmaps)
    assert (found.heatmaps != 0).any()


@pytest.mark.parametrize("explainer", [GuidedBackprop, Deconvnet, GuidedGradCAM])
def test_a_vision_transformer_is_refused_for_its_gelu(explainer):
    model = torchvision.models.VisionTransformer(12, 4, 2, 2, 8, 16, num_classes=3)
    with pytest.raises(ConfigurationError, match=r"got activations of Gelu. Use SmoothGrad\(\) or GradCAM\(\)"):
        explain(explainer(), model, images(), [Why()])


@pytest.mark.parametrize("explainer", [Gradient, SmoothGrad, GuidedBackprop])
def test_a_black_box_is_refused(explainer):
    model = Net().eval()

    def black_box(batch):
        with torch.no_grad():
            return model(batch).numpy()

    probes = ProbeSet.from_tensors(images(), [0, 1, 2], mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ConfigurationError, match=rf"for {explainer.__name__}\(\), but .* Use Occlusion"):
        Auditor(probes, explainers=[explainer()]).audit(black_box)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("explainer", [Gradient, GuidedBackprop, IntegratedGradients, ExpectedGradients, DeepSHAP])
def test_a_quantised_model_is_refused(explainer):
    model = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ConfigurationError, match=rf"for {explainer.__name__}\(\), but .* Use Occlusion"):
        explain(explainer(), model, images(), [Why()])
