"""What explainers at a layer must hold to, beside the contract of all explainers."""

import inspect

import pytest
import torch
from torch import nn

from tests.contract.every_explainer import NOT_LINEAR, Net, close, images
from tests.explaining import explain, observed, subject_of
from xai_callbacks import Why, WhyNotCertain, WhyRatherThan, explainers
from xai_callbacks.access import undisturbed
from xai_callbacks.explainers import CAM, LayerExplainer

EXPLAINERS = [
    explainer
    for explainer in (getattr(explainers, name) for name in explainers.__all__)
    if inspect.isclass(explainer) and issubclass(explainer, LayerExplainer) and not inspect.isabstract(explainer)
]
EXPLAINERS.remove(CAM)  # refuses these nets
QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=1), WhyRatherThan(foil=2, fact=0)]
every_explainer = pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.__name__)


class SmallNet(Net):
    """A CNN with batch norm, dropout, in-place activations and a hidden layer; its last feature map is `body`."""

    def __init__(self, classes=3):
        super().__init__(classes)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, classes)

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


@every_explainer
@pytest.mark.parametrize("model", [SmallNet, Tokens, ChannelsLast], ids=lambda model: model.__name__)
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16)])
def test_maps_have_the_grid_of_a_layer_that_lies_on_the_image(explainer, model, size):
    explained = explain(explainer(), model(), images(3, *size), QUESTIONS)
    cells = (size[0] // 2, size[1] // 2) if model is SmallNet else (size[0] // 4, size[1] // 4)
    assert explained.heatmaps.shape == (len(QUESTIONS), 3, *cells)
    assert explained.plan.verified
    assert (explained.heatmaps[0].std(dim=(1, 2)) > 0).all()


@every_explainer
@pytest.mark.parametrize("model", [SmallNet, Tokens, ChannelsLast], ids=lambda model: model.__name__)
def test_outputs_are_those_of_the_model_in_eval_mode(explainer, model):
    net, batch = model().train(), images(4, 16, 16)
    explained = explain(explainer(), net, batch, QUESTIONS)
    assert net.training
    with torch.no_grad():
        torch.testing.assert_close(explained.outputs, net.eval()(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("explainer", [each for each in EXPLAINERS if each.__name__ not in NOT_LINEAR])
def test_one_sigmoid_logit_is_explained_as_two_classes(explainer):
    questions = [Why(of=1), WhyRatherThan(foil=0, fact=1)]
    positive, contrast = explain(explainer(), SmallNet(classes=1), images(), questions).heatmaps
    close(contrast, 2 * positive)


@every_explainer
def test_gradient_free_backbones_are_explained(explainer):
    class GradientFree(SmallNet):
        def forward(self, images):
            with torch.no_grad():
                pooled = self.body(self.stem(images)).mean(dim=(2, 3))
            return self.head(torch.tanh(self.hidden(pooled)))

    expected = explain(explainer(), SmallNet(), images(), QUESTIONS).heatmaps
    close(explain(explainer(), GradientFree(), images(), QUESTIONS).heatmaps, expected)


@every_explainer
@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_questions_costs_no_forward_pass_beyond_the_shared_one(explainer, count):
    model, passes = SmallNet(), []
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = explainer().prepare(trace, None)
        handle = model.stem[0].register_forward_hook(lambda *_: passes.append(1))
        observation = observed(subject, plan, images(), [Why(of=index % 3) for index in range(count)])
        explainer().explain(observation, plan)
        handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("count", [1, 4])
def test_explainers_at_one_layer_and_at_several_share_the_backward_passes(count):
    model, passes = SmallNet(), []
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        made = [EXPLAINERS[0](), EXPLAINERS[1](), EXPLAINERS[0]("stem", name="early"), EXPLAINERS[0]("body", name="b")]
        plans = [each.prepare(trace, None) for each in made]
        layers = tuple({layer.name: layer for plan in plans for layer in plan.layers}.values())
        questions = [Why(of=index % 3) for index in range(count)]
        observation = observed(subject, plans[0].__class__(layers), images(), questions)
        observation.outputs.register_hook(lambda _gradient: passes.append(1))
        for each, plan in zip(made, plans, strict=True):
            alone = explain(each, model, images(), questions).heatmaps
            close(each.explain(observation, plan), alone)
    assert len(passes) == 1  # one for all questions, too, where they fit into a block
