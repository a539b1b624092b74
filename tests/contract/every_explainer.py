"""All explainers with fast settings, nets to explain, and what sets some explainers apart; for the contract suite."""

import inspect

import pytest
import torch
from torch import nn

from xai_callbacks import Why, WhyNotCertain, WhyRatherThan, explainers
from xai_callbacks.explainers import Every, Explainer, HiResCAM, Plan


class InputTimesGradient(Explainer):
    """An explainer of a user's own, in a file of their own."""

    name = "input_times_gradient"

    def prepare(self, trace, reference):
        return Plan(reason="the pixels", cost=2)

    def explain(self, observation, plan):
        maps = []
        for posed in observation.posed:
            images = observation.images.clone().requires_grad_(True)
            score = posed.score(observation.subject(images.clone()))
            maps.append((images * torch.autograd.grad(score.sum(), images)[0]).sum(dim=1).detach())
        return torch.stack(maps).float()


SETTINGS = {
    "ExpectedGradients": {"samples": 6},
    "IntegratedGradients": {"steps": 6},
    "Occlusion": {"window": 4},
    "Patchwise": {"explainer": HiResCAM(), "window": 6},
    "RISE": {"masks": 40},
    "SlidingWindow": {"window": 6, "probability": False},
    "SmoothGrad": {"samples": 3},
    "UndesirablePixels": {"steps": 3},
}
EXPLAINERS = [
    *(
        explainer
        for explainer in (getattr(explainers, name) for name in explainers.__all__)
        if inspect.isclass(explainer) and issubclass(explainer, Explainer) and not inspect.isabstract(explainer)
    ),
    InputTimesGradient,
]
EXPLAINERS.remove(Every)
# Those of classes and labels alone, by name: nets of one value or one label are refused before anything is explained.
OF_CLASSES = {"ImplicitSaliency", "UndesirablePixels", "VOICE"}
# By their definition no linear function of the gradient: twice the score is not twice the map.
NOT_LINEAR = {
    *("AttentionRollout", "GradCAMPlusPlus", "GradientAttention", "ImplicitSaliency", "UndesirablePixels", "VOICE"),
}
# Values of each place and no shares: what moves the score by an amount moves their map by the same.
OF_PLACES = {"SlidingWindow"}
# Those of attention are shown a vision transformer instead of a CNN.
OF_ATTENTION = {"AttentionRollout", "GradientAttention"}
QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=1), WhyRatherThan(foil=2, fact=0)]
every_explainer = pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.__name__)
about_questions = [explainer for explainer in EXPLAINERS if explainer.about == "question"]
every_about_questions = pytest.mark.parametrize("explainer", about_questions, ids=lambda explainer: explainer.__name__)
linear_ones = [explainer for explainer in EXPLAINERS if explainer.__name__ not in NOT_LINEAR]
every_linear = pytest.mark.parametrize("explainer", linear_ones, ids=lambda explainer: explainer.__name__)
linear_of_values = [explainer for explainer in linear_ones if explainer.__name__ not in OF_CLASSES]
every_linear_of_values = pytest.mark.parametrize(
    "explainer", linear_of_values, ids=lambda explainer: explainer.__name__
)


def made(explainer):
    return explainer(**SETTINGS.get(explainer.__name__, {}))


class Net(nn.Module):
    """Batch norm, in-place activations, dropout, global average pooling and one linear layer."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, outputs)
        for norm in (self.stem[1], self.body[1]):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, images):
        return self.head(self.dropout(self.body(self.stem(images)).mean(dim=(2, 3))))


class Transformer(nn.Module):
    """Patches of 2 x 2 pixels beside a class token, two blocks of attention, and one linear layer."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.extra = nn.Sequential(nn.Conv2d(3, 8, 2, 2)), nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, outputs)

    def forward(self, images):
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.extra.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def net_of(explainer, outputs=3):
    return (Transformer if explainer.__name__ in OF_ATTENTION else Net)(outputs)


def images(count=4, height=12, width=12):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def close(found, expected, *, may_be_empty=False):
    scale = expected.abs().max()
    if may_be_empty and scale == 0:
        scale = 1
    assert scale > 0
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)
