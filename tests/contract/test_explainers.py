"""What every exported explainer must hold to; a new one is picked up from `xai_callbacks.explainers` by itself."""

import copy
import gc
import inspect
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import random_streams
from xai_callbacks import Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan, explainers
from xai_callbacks.access import Subject, trace_model, undisturbed
from xai_callbacks.explainers import Explainer

EXPLAINERS = [
    explainer
    for explainer in (getattr(explainers, name) for name in explainers.__all__)
    if inspect.isclass(explainer) and issubclass(explainer, Explainer) and not inspect.isabstract(explainer)
]
QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=1), WhyRatherThan(foil=2, fact=0)]
every_explainer = pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.__name__)


class SmallNet(nn.Module):
    """A CNN with batch norm, dropout and in-place activations; its last feature map is `body`."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.dropout, self.hidden, self.head = nn.Dropout(0.5), nn.Linear(8, 16), nn.Linear(16, classes)
        for norm in (self.stem[1], self.body[1]):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, images):
        pooled = self.body(self.stem(images)).mean(dim=(2, 3))
        return self.head(torch.tanh(self.hidden(self.dropout(pooled))))


class Tokens(nn.Module):
    """A vision transformer with a class token and two registers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.patch, self.extra = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 3, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.extra.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class ChannelsLast(nn.Module):
    """Patches merged and normalised with the channels last, as in Swin."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.patch, self.mlp = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.norm(torch.relu(self.mlp(self.patch(images).permute(0, 2, 3, 1)))).mean(dim=(1, 2)))


def images(count=4, height=12, width=12):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def explain(explainer, model, batch, questions=QUESTIONS, truth=None, task="classification"):
    subject = Subject(model, task=task)
    with undisturbed(model):
        layer = explainer.prepare(trace_model(subject, batch[:2]))
        return explainer.explain(subject, layer, batch, questions, truth)


def close(found, expected):
    scale = expected.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_the_contract_covers_what_is_exported():
    assert {explainer.__name__ for explainer in EXPLAINERS} >= {"GradCAM", "HiResCAM", "LayerCAM"}


@every_explainer
@pytest.mark.parametrize("model", [SmallNet, Tokens, ChannelsLast], ids=lambda model: model.__name__)
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16)])
def test_answers_are_finite_detached_and_lie_on_the_image(explainer, model, size):
    model, batch = model(), images(3, *size)
    explanation = explain(explainer(), model, batch)
    cells = (size[0] // 2, size[1] // 2) if isinstance(model, SmallNet) else (size[0] // 4, size[1] // 4)
    assert explanation.heatmaps.shape == (len(QUESTIONS), 3, *cells)
    assert explanation.heatmaps.dtype == explanation.outputs.dtype == torch.float32
    assert explanation.heatmaps.isfinite().all()
    assert (explanation.heatmaps[0].std(dim=(1, 2)) > 0).all()
    assert len(explanation.asked) == len(QUESTIONS)
    scores = [asked.score for asked in explanation.asked]
    assert not any(tensor.requires_grad for tensor in (explanation.heatmaps, explanation.outputs, *scores))


@every_explainer
def test_outputs_are_those_of_the_model_in_eval_mode(explainer):
    model, batch = SmallNet().train(), images()
    explanation = explain(explainer(), model, batch)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(explanation.outputs, model.eval()(batch), rtol=0, atol=1e-6)


@every_explainer
def test_questions_do_not_influence_each_other(explainer):
    together = explain(explainer(), SmallNet(), images())
    for index, question in enumerate(QUESTIONS):
        alone = explain(explainer(), SmallNet(), images(), [question])
        assert torch.equal(alone.heatmaps[0], together.heatmaps[index])
        assert torch.equal(alone.asked[0].score, together.asked[index].score)


@every_explainer
@pytest.mark.parametrize("model", [SmallNet, Tokens], ids=lambda model: model.__name__)
def test_chunks_give_what_the_whole_gives(explainer, model):
    whole = explain(explainer(), model(), images(5, 16, 16)).heatmaps
    parts = [explain(explainer(), model(), part).heatmaps for part in images(5, 16, 16).split([1, 3, 1])]
    close(torch.cat(parts, dim=1), whole)


@every_explainer
def test_the_labels_belong_to_their_images(explainer):
    batch, truth = images(3), torch.tensor([2, 0, 1])
    by_label = explain(explainer(), SmallNet(), batch, [Why(of="label")], truth).heatmaps[0]
    by_index = explain(explainer(), SmallNet(), batch, [Why(of=index) for index in range(3)]).heatmaps
    close(by_label, by_index[truth, torch.arange(3)])


@every_explainer
def test_the_order_of_the_classes_does_not_matter(explainer):
    order, model = torch.tensor([2, 0, 1]), SmallNet()
    before = explain(explainer(), model, images(), [Why(of=2), WhyRatherThan(foil=0, fact=1)]).heatmaps
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
    close(explain(explainer(), model, images(), [Why(of=0), WhyRatherThan(foil=1, fact=2)]).heatmaps, before)


@every_explainer
def test_a_map_is_in_units_of_the_score(explainer):
    model = SmallNet()
    before = explain(explainer(), model, images(), [Why(of=0)]).heatmaps
    with torch.no_grad():
        model.head.weight.mul_(3)
        model.head.bias.add_(5)  # the same for every image and place: nothing to show
    close(explain(explainer(), model, images(), [Why(of=0)]).heatmaps, 3 * before)


@every_explainer
def test_one_sigmoid_logit_is_explained_as_two_classes(explainer):
    model = SmallNet(classes=1)
    positive, contrast = explain(explainer(), model, images(), [Why(of=1), WhyRatherThan(foil=0, fact=1)]).heatmaps
    close(contrast, 2 * positive)


@every_explainer
def test_a_regression_net_is_explained(explainer):
    explanation = explain(
        explainer(), SmallNet(classes=1), images(), [Why(), WhyValueRatherThan(-100.0)], task="regression"
    )
    factor = 2 * (explanation.outputs[:, 0] + 100)
    assert explanation.outputs.shape == (4, 1)
    close(explanation.heatmaps[1], factor[:, None, None] * explanation.heatmaps[0])  # factor > 0: LayerCAM too


@every_explainer
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_nothing_is_left_behind(explainer, surrounding):
    model = SmallNet().train()
    model.stem.eval()
    model(images()).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    flags, streams = [module.training for module in model.modules()], random_streams()
    with surrounding():
        explain(explainer(), model, images())
        assert not torch.is_grad_enabled()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter, (same, content) in zip(model.parameters(), held, strict=True):
        assert parameter.grad is same
        assert torch.equal(same, content)
    assert [module.training for module in model.modules()] == flags
    assert random_streams() == streams
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_explainer
def test_the_state_of_the_random_streams_does_not_matter(explainer):
    first = explain(explainer(), SmallNet(), images())
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert torch.equal(explain(explainer(), SmallNet(), images()).heatmaps, first.heatmaps)


@every_explainer
def test_frozen_half_and_gradient_free_backbones_are_explained(explainer):
    class GradientFree(SmallNet):
        def forward(self, images):
            with torch.no_grad():
                pooled = self.body(self.stem(images)).mean(dim=(2, 3))
            return self.head(torch.tanh(self.hidden(pooled)))

    expected = explain(explainer(), SmallNet(), images()).heatmaps
    assert torch.equal(explain(explainer(), SmallNet().requires_grad_(False), images()).heatmaps, expected)
    close(explain(explainer(), GradientFree(), images()).heatmaps, expected)
    half = explain(explainer(), SmallNet().to(torch.bfloat16), images(), [Why(of=0)]).heatmaps
    assert half.dtype == torch.float32
    assert half.isfinite().all()


@every_explainer
def test_an_explainer_is_plain_and_keeps_no_model_alive(explainer):
    original, model = explainer(), SmallNet()
    expected = explain(original, model, images()).heatmaps
    for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        assert repr(twin) == repr(original) == f"{explainer.__name__}()"
        assert torch.equal(explain(twin, SmallNet(), images()).heatmaps, expected)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
