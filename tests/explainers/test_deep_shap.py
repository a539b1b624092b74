"""DeepSHAP and expected gradients: what maps add up to, in common nets, and against other libraries."""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from tests.explaining import explain, observed, subject_of
from xai_callbacks import Auditor, DeepSHAP, ExpectedGradients, GradCAM, ProbeSet, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers.deep_shap import _places, mean_gradient
from xai_callbacks.interventions.fills import apply_fill
from xai_callbacks.interventions.regions import half_masks
from xai_callbacks.questions import WhyValueRatherThan
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), WhyRatherThan(foil=2, fact=0)]
NETS = {
    "resnet18": 64,
    "densenet121": 64,
    "vgg11": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "squeezenet1_0": 64,
    "shufflenet_v2_x0_5": 64,
}


def noise(count, size=16, seed=5):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small(pooling=None, outputs=4, end=None):
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), pooling or nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, outputs), *([end] if end else [])).eval()


def build(name):
    torch.manual_seed(0)
    slow = {"init_weights": False} if name == "vgg11" else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **slow)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(noise(8, NETS[name], seed=1))
    return model.eval()


def explained(explainer, model, images, questions, reference=None, truth=None, task=None):
    """Maps, and what they should add up to for backgrounds from familiar images, or those that the explainer makes."""
    with undisturbed(model):
        subject, trace = subject_of(model, images, task)
        plan = explainer.prepare(trace, reference)
        observation = observed(subject, plan, images, questions, truth, trace)
        observation.reference = reference
        maps = explainer.explain(observation, plan).detach().double()
        backgrounds = explainer.among(images, reference, explainer.samples, 0)
        with torch.no_grad():
            here, there = subject(images), [subject(each) for each in backgrounds]
            change = [
                posed.score(here).double() - torch.stack([posed.score(each).double() for each in there]).mean(dim=0)
                for posed in observation.posed
            ]
    return maps, torch.stack(change)


@pytest.mark.parametrize("name", NETS)
def test_maps_of_common_nets_add_up_for_every_question(name):
    maps, change = explained(DeepSHAP("sample"), build(name), noise(2, NETS[name]), QUESTIONS, noise(2, NETS[name], 9))
    error = float((maps.sum(dim=(2, 3)) - change).abs().max())
    assert error < min(1e-4, 1e-3 * float(change.abs().max()))


def test_maps_of_transformers_and_of_nets_with_layer_norms_add_up():
    torch.manual_seed(0)
    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    convnext = torchvision.models.ConvNeXt(blocks, layer_scale=0.5, num_classes=10)
    transformer = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(transformer.heads[0].weight)
    for model in (convnext, transformer):
        maps, change = explained(DeepSHAP(), model.eval(), noise(2, 32), QUESTIONS)
        error = float((maps.sum(dim=(2, 3)) - change).abs().max())
        assert error < min(1e-4, 1e-3 * float(change.abs().max()))


@pytest.mark.parametrize("background", ["blur", "mean", 0.0, -1.5])
def test_maps_add_up_against_every_background(background):
    maps, change = explained(DeepSHAP(background), small(nn.MaxPool2d(2)), noise(3), QUESTIONS)
    assert float((maps.sum(dim=(2, 3)) - change).abs().max()) < 1e-5
    assert change.abs().min() > 1e-4


@pytest.mark.parametrize(
    ("task", "end", "questions", "truth"),
    [
        (SingleLabel(), nn.Softmax(1), QUESTIONS, None),
        (SingleLabel(), nn.LogSoftmax(1), QUESTIONS, None),
        (MultiLabel(width=4), nn.Sigmoid(), [Why(), WhyRatherThan(), WhyNotCertain()], None),
        (Regression(width=4), None, [Why(1), WhyValueRatherThan(0.75, of=2)], torch.rand(3, 4)),
    ],
    ids=["softmax", "log-softmax", "sigmoid", "regression"],
)
def test_maps_add_up_for_every_task_and_ending(task, end, questions, truth):
    maps, change = explained(DeepSHAP(0.5), small(end=end), noise(3), questions, truth=truth, task=task)
    assert float((maps.sum(dim=(2, 3)) - change).abs().max()) < 1e-4


def test_a_net_that_ends_in_a_softmax_is_explained_by_its_logarithm():
    softmax = explained(DeepSHAP(0.5), small(end=nn.Softmax(1)), noise(3), QUESTIONS)[0]
    logarithm = explained(DeepSHAP(0.5), small(end=nn.LogSoftmax(1)), noise(3), QUESTIONS)[0]
    torch.testing.assert_close(softmax, logarithm, rtol=1e-3, atol=1e-6)


def test_maps_at_a_layer_add_up_on_its_grid():
    model = build("resnet18")
    explainer = DeepSHAP("sample", target_layer="layer2")
    maps, change = explained(explainer, model, noise(2, 64), QUESTIONS, noise(3, 64, 9))
    assert maps.shape == (4, 2, 8, 8)
    assert float((maps.sum(dim=(2, 3)) - change).abs().max()) < 1e-4


@pytest.mark.parametrize("method", [DeepSHAP("sample", 5), ExpectedGradients("sample", 5)], ids=lambda each: each.name)
def test_maps_of_a_linear_model_are_weight_times_difference_to_the_mean_background(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))
    images, familiar = noise(3, 6), noise(5, 6, seed=8)
    expected = (model[1].weight[1].reshape(3, 6, 6) * (images - familiar.mean(dim=0))).sum(dim=1).double().detach()
    found = explained(method, model, images, [Why(of=1)], familiar)[0][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_maps_are_those_of_shap(pooling):
    shap = pytest.importorskip("shap", reason="shap is not installed")
    images, familiar = noise(2), noise(3, seed=8)
    found = explained(DeepSHAP("sample"), small(pooling), images, [Why(of=k) for k in range(4)], familiar)[0]
    values = torch.tensor(shap.DeepExplainer(small(pooling), familiar).shap_values(images)).double()
    torch.testing.assert_close(found, values.sum(dim=1).permute(3, 0, 1, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_maps_are_those_of_captum():
    from captum.attr import DeepLift

    images = noise(2)
    found = explained(DeepSHAP(0.5), small(), images, [Why(of=1)])[0][0]
    expected = DeepLift(small()).attribute(images, torch.full_like(images, 0.5), target=1).sum(dim=1).detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fill", ["white", "black"])
@pytest.mark.parametrize("explainer", [DeepSHAP("sample"), ExpectedGradients("sample", 4)], ids=lambda each: each.name)
def test_a_half_that_is_filled_alike_in_images_and_background_has_no_share(fill, explainer):
    scale = {"mean": [0.5] * 3, "std": [0.25] * 3}
    mask = half_masks(None, (16, 16), "top")[0]

    def filled(seed):
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return (apply_fill(images, mask.expand(4, -1, -1), fill) - 0.5) / 0.25

    familiar = ProbeSet.from_tensors(filled(1), [0, 1, 2, 3], **scale)
    probes = ProbeSet.from_tensors(filled(2), [0, 1, 2, 3], **scale)
    record = Auditor(probes, [Why()], explainers=[explainer], inliers=familiar).audit(small(nn.MaxPool2d(2)))
    assert record.failed == ()
    assert (record.heatmaps[0][:, mask] == 0).all()
    assert (record.heatmaps[0][:, ~mask] != 0).all()


@pytest.mark.parametrize("questions", [1, 4])
def test_eight_backgrounds_cost_nine_forward_passes_and_eight_backward_passes_a_question(questions):
    model, counts = build("resnet18"), {"forward": 0, "backward": 0}

    def count(direction):
        counts[direction] += 1

    def note(_module, _given, output):
        count("forward")
        if output.requires_grad:
            output.register_hook(lambda _gradient: count("backward"))

    with undisturbed(model):
        subject, trace = subject_of(model, noise(2, 64))
        explainer, familiar = DeepSHAP("sample"), noise(11, 64, 9)
        plan = explainer.prepare(trace, familiar)
        observation = observed(subject, plan, noise(2, 64), QUESTIONS[:questions], trace=trace)
        observation.reference = familiar
        handle = model.conv1.register_forward_hook(note)
        explainer.explain(observation, plan)
        handle.remove()
    assert counts == {"forward": 9, "backward": 8 * questions}
    assert plan.cost == 17 <= 8 * 2.5
    assert plan.reason == "the pixels, against 8 backgrounds"


class Hidden(torch.autograd.Function):
    """A rectifier that nothing sees into."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.relu()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


class HiddenReLU(nn.Module):
    def forward(self, a):
        return Hidden.apply(a)


class Chance(nn.Module):
    def forward(self, a):
        return nn.functional.dropout(a, 0.5, training=True)


class Choice(nn.Module):
    def forward(self, a):
        return torch.where(a > 0, a, -0.1 * a + 0.3)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(nn.Sigmoid(), torch.rand(1, 3))


@pytest.mark.parametrize("make", [HiddenReLU, Chance, Choice, scripted])
def test_a_part_that_cannot_be_followed_is_refused(make):
    part = make()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), part, nn.Flatten(), nn.Linear(6 * 14 * 14, 4))
    with pytest.raises(ConfigurationError, match=r"but they are off by \d+%.*ExpectedGradients\(\) or GradCAM\(\)"):
        explain(DeepSHAP(), model, noise(2), [Why()])
    if not isinstance(part, Chance):
        explain(ExpectedGradients(samples=2), model, noise(2), [Why()])


@pytest.mark.parametrize("explainer", [DeepSHAP, ExpectedGradients])
def test_a_sample_needs_familiar_images(explainer):
    with pytest.raises(
        ConfigurationError, match=r"Expected familiar images for .*\('sample'\), but got none.*inliers="
    ):
        explain(explainer("sample"), small(), noise(2), [Why()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepSHAP("black"), "Expected `background` to be 'blur', 'mean', 'sample' or a finite number"),
        (lambda: ExpectedGradients(float("nan")), "Expected `background`"),
        (lambda: DeepSHAP(samples=0), "Expected `samples` to be an integer of 1 or more"),
        (lambda: ExpectedGradients(samples=1.5), "Expected `samples`"),
        (lambda: DeepSHAP(target_layer=3), "Expected `target_layer`"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_a_net_that_goes_black_and_a_layer_of_no_grid_are_refused():
    with pytest.raises(ConfigurationError, match="Expected a model that can be differentiated"):
        explain(DeepSHAP(), Frozen(), noise(2), [Why()])
    with pytest.raises(ConfigurationError, match="Expected `target_layer`"):
        explain(DeepSHAP(target_layer="6"), small(), noise(2), [Why()])


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, images):
        return self.net(images.detach())


def test_more_samples_of_expected_gradients_add_up_better():
    """And those of equal parts of the line do so better than any."""
    images, familiar = noise(6), noise(24, seed=8)
    model = small(nn.MaxPool2d(2))
    _, change = explained(DeepSHAP("sample", 24), model, images, [Why()], familiar)
    errors = []
    for samples in (6, 24, 240):
        maps, _ = explained(ExpectedGradients("sample", samples), model, images, [Why()], familiar)
        errors.append(float((maps.sum(dim=(2, 3)) - change).abs().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    alone, change = explained(ExpectedGradients(0.5, 64), model, images, [Why()])
    assert float((alone.sum(dim=(2, 3)) - change).abs().max()) < 0.02 * float(change.abs().max())


@pytest.mark.parametrize(("samples", "backgrounds"), [(12, 1), (12, 4), (5, 5), (3, 8), (13, 4)])
def test_each_background_is_sampled_in_different_parts_of_its_line(samples, backgrounds):
    places = _places(samples, backgrounds, 0)
    assert torch.equal(places, _places(samples, backgrounds, 0))
    assert not torch.equal(places, _places(samples, backgrounds, 1))
    turns = -(-samples // backgrounds)
    lines = [places] if turns == 1 else [places[first::backgrounds] for first in range(backgrounds)]
    for line in lines:
        parts = (line * (samples if turns == 1 else turns)).floor()
        assert len(parts.unique()) == len(line)
        assert parts.max() < (samples if turns == 1 else turns)


def test_expected_gradients_of_one_background_are_integrated_gradients():
    from xai_callbacks import IntegratedGradients

    found = explain(ExpectedGradients(0.5, 100), small(), noise(2), QUESTIONS).heatmaps
    expected = explain(IntegratedGradients(100, baseline=0.5), small(), noise(2), QUESTIONS).heatmaps
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_the_gradient_between_outputs_adds_up_where_a_score_changes_abruptly():
    outputs, others = torch.tensor([[90.0, -80.0, 3.0]]), torch.tensor([[-90.0, 70.0, 5.0]])
    posed = WhyRatherThan(foil=1).pose(outputs, None, SingleLabel(width=3))
    found = (mean_gradient(posed, outputs, others) * (outputs - others)).sum(dim=1)
    torch.testing.assert_close(found, posed.score(outputs) - posed.score(others))


def test_it_stands_beside_explainers_at_layers():
    probes = ProbeSet.from_tensors(noise(3, 64).sigmoid(), [0, 1, 2])
    explainers = [GradCAM(), DeepSHAP(), DeepSHAP(target_layer="layer3", name="deep_shap_layer3")]
    record = Auditor(probes, [Why()], explainers=explainers).audit(build("resnet18"))
    assert record.failed == ()
    assert list(record.maps) == ["gradcam", "deep_shap", "deep_shap_layer3"]
