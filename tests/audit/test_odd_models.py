"""Models that change what they are given, answer in other ways than before, or fold rows: never silently wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.access.odd_nets import scenes
from xai_callbacks import (
    Auditor,
    Baselines,
    GradCAM,
    GradientNorm,
    HiResCAM,
    IntegratedGradients,
    Occlusion,
    ProbeSet,
    Separation,
    Why,
    WhyRatherThan,
)
from xai_callbacks.errors import ConfigurationError, OutputError
from xai_callbacks.tasks import MultiLabel


def probes(count=6, **truth):
    truth = truth or {"labels": torch.arange(count) % 2}
    images = scenes()[:count]
    return ProbeSet.from_tensors(images, pixels=images.clamp(0, 1).mul(255).byte().movedim(1, 3), **truth)


class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 5, 4, 2), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, classes)

    def features(self, x):
        return nn.functional.relu(self.b(nn.functional.relu(self.a(x))))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class NormalisesInPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


def test_probes_stay_as_they_are_under_a_net_that_normalises_in_place():
    given, novel = probes(), probes(4)
    kept = given.images.clone()
    model = NormalisesInPlace().eval()
    auditor = Auditor(given, novelty=[GradientNorm()], measures=[Separation(novel)])
    for _ in range(2):
        record = auditor.audit(model)
    assert "novelty/gradient_norm_uniform/auroc" in record.metrics
    with torch.no_grad():
        expected = model(kept.clone())
    assert torch.equal(given.images, kept)
    assert torch.equal(novel.images, kept[:4])
    torch.testing.assert_close(record.outputs, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 16])
def test_the_layer_does_not_depend_on_the_chunk_size(chunk_size):
    assert Auditor(probes(), novelty=[], chunk_size=chunk_size).audit(Net().eval()).layer == ":relu#1"


class Pooled(Net):
    """Sigmoids of a map, and what becomes of them."""

    def __init__(self, pool):
        super().__init__(3)
        self.out, self.pool = nn.Conv2d(8, 3, 1), pool

    def forward(self, x):
        return self.pool(self.out(self.features(x)).sigmoid())


@pytest.mark.parametrize(
    "pool",
    [lambda p: p.amax((2, 3)), lambda p: 1 - (1 - p).flatten(2).prod(2), lambda p: p.flatten(2).topk(3).values.mean(2)],
    ids=["largest", "noisy or", "top 3"],
)
def test_pooled_sigmoids_are_probabilities(pool):
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]] * 3)
    model = Pooled(pool).eval()
    record = Auditor(probes(labels=labels), explainers=[], novelty=[]).audit(model)
    with torch.no_grad():
        torch.testing.assert_close(record.outputs.sigmoid(), model(scenes()[:6]), atol=1e-4, rtol=1e-4)


def test_probabilities_of_a_function_are_recognised_by_their_range():
    model = Net(3).eval()

    def function(images):
        with torch.no_grad():
            return model(images).sigmoid().numpy()

    record = Auditor(probes(labels=torch.tensor([[0, 1, 1], [1, 0, 0]] * 3)), novelty=[]).audit(function)
    np.testing.assert_allclose(record.outputs.sigmoid(), function(scenes()[:6]), atol=1e-5)


@pytest.mark.parametrize("first", ["probabilities", "logits"])
def test_another_model_that_answers_otherwise_is_refused(first):
    model = Net(3).eval()
    ways = {"logits": lambda x: 5 * model(x).detach(), "probabilities": lambda x: (5 * model(x)).softmax(1).detach()}
    auditor = Auditor(probes(), novelty=[], explainers=[])
    auditor.audit(ways.pop(first))
    with pytest.raises(OutputError, match=r"Prepare the auditor for this model with `prepare`"):
        auditor.audit(next(iter(ways.values())))


def test_another_number_of_outputs_is_refused():
    model = Net(3).eval()
    auditor = Auditor(probes(), novelty=[], explainers=[])
    auditor.audit(lambda x: model(x).detach())
    with pytest.raises(OutputError, match="as when the model was prepared, but got 6 instead of 3"):
        auditor.audit(lambda x: torch.cat([model(x), model(x)], 1).detach())


class InPlaceOnView(Net):
    def forward(self, x):
        tokens = self.b(self.a(x)).flatten(2).transpose(1, 2)
        features = tokens.transpose(1, 2).view(len(x), 8, 8, 8)
        nn.functional.relu_(features)
        return self.head(features.mean((2, 3)))


def test_views_that_are_changed_in_place_are_explained_as_the_plain_net_is():
    class Plain(Net):
        def features(self, x):
            return nn.functional.relu(self.b(self.a(x)))

    found, expected = (Auditor(probes(), novelty=[]).audit(kind().eval()) for kind in (InPlaceOnView, Plain))
    assert found.layer == ":relu_"
    torch.testing.assert_close(found.heatmaps, expected.heatmaps)


class Rows(nn.Module):
    """A linear layer at the end that sees three rows of an image as three images."""

    def __init__(self):
        super().__init__()
        self.a, self.last = nn.Conv2d(3, 24, 8, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.a(x).relu().mean((2, 3)).view(-1, 8)).view(-1, 3)


def test_a_last_layer_that_sees_no_images_is_no_last_layer():
    record = Auditor(probes()).audit(Rows().eval())
    assert record.maps
    assert "Novelty was left out" in " ".join(record.notes)


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x)[:, :1].squeeze()


def test_a_single_image_whose_axes_were_squeezed_away_is_read():
    record = Auditor(probes(5), novelty=[], chunk_size=4).audit(Squeezed().eval())
    assert record.outputs.shape == (5, 2)


class Keyed(Net):
    def forward(self, x):
        return {0: super().forward(x), 1: -super().forward(x)}


def test_the_advice_for_keys_that_are_numbers_works():
    with pytest.raises(OutputError, match="`output=0` or `output=1`"):
        Auditor(probes(), novelty=[]).audit(Keyed().eval())
    assert Auditor(probes(), novelty=[], output=1).audit(Keyed().eval()).maps


def test_a_contrast_with_a_label_that_an_image_has_not_scores_nothing():
    outputs, none = torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.long)
    for question in (WhyRatherThan("label"), WhyRatherThan("label", fact="predicted"), WhyRatherThan(fact="label")):
        posed = question.pose(outputs, none, MultiLabel(width=3))
        assert posed.score(outputs).tolist() == [0, 0]


class Averaged(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_grad_cam_explains_at_every_name_of_its_layer_and_against_random_weights():
    images = scenes()
    masks = {"core": torch.ones(6, 64, 64, dtype=torch.bool)}
    given = ProbeSet.from_tensors(
        images[:6].clamp(0, 1),
        torch.arange(6) % 2,
        masks=masks,
        pixels=images[:6].clamp(0, 1).mul(255).byte().movedim(1, 3),
    )
    found = [
        Auditor(given, [Why()], explainers=[GradCAM(name)], novelty=[], measures=[Baselines()]).audit(Averaged().eval())
        for name in ("body", "body.1")
    ]
    assert torch.equal(found[0].heatmaps, found[1].heatmaps)
    assert found[0].failed == ()


class Frozen(Net):
    def features(self, x):
        with torch.no_grad():
            return super().features(x)


def test_what_an_explainer_cannot_do_shows_before_training():
    with pytest.raises(ConfigurationError, match=r"Use Occlusion\(\)"):
        Auditor(probes(), novelty=[], explainers=[IntegratedGradients(4)]).prepare(Frozen().eval())
    with pytest.raises(ConfigurationError, match="Expected `stride` to be at most `window`, 9"):
        Auditor(probes(), novelty=[], explainers=[Occlusion(stride=20)]).prepare(Net().eval())


def test_what_is_no_plan_or_no_posed_question_is_refused():
    class Planless(GradCAM):
        def prepare(self, trace, reference):
            return None

    class Unposed(Why):
        def pose(self, outputs, truth, task):
            return outputs[:, 0]

    with pytest.raises(
        ConfigurationError, match=r"`gradcam\.prepare` to be a method that returns a Plan, but got NoneType"
    ):
        Auditor(probes(), novelty=[], explainers=[Planless()]).prepare(Net().eval())
    with pytest.raises(ConfigurationError, match=r"to be a method that returns a Posed, but got Tensor"):
        Auditor(probes(), [Unposed()], novelty=[]).prepare(Net().eval())


class Mixing(Net):
    """Tokens go batch first into a layer that takes them second."""

    def __init__(self):
        super().__init__()
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=False)

    def forward(self, x):
        return self.head(self.mix(self.features(x).flatten(2).transpose(1, 2)).mean(1))


def test_a_net_that_mixes_images_is_told():
    notes = Auditor(probes(), novelty=[]).audit(Mixing().eval()).notes
    assert any("depends on the images beside it" in note for note in notes)
    assert not any("beside it" in note for note in Auditor(probes(), novelty=[]).audit(Net().eval()).notes)


def test_a_map_that_is_cut_at_the_rim_says_so():
    class Valid(Net):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 9)

    assert "without padding or a crop" in Auditor(probes(), novelty=[]).audit(Valid().eval()).layer_reason
    assert "without padding" not in Auditor(probes(), novelty=[]).audit(Net().eval()).layer_reason


@pytest.mark.parametrize(("explainers", "kept"), [([GradCAM()], 0), ([GradCAM(), HiResCAM()], 2)])
def test_gradients_are_kept_only_where_explainers_share_them(explainers, kept):
    seen = []

    class Looks(Occlusion):
        """Comes last, and looks at what the others left behind."""

        def explain(self, observation, plan):
            seen.append(len(observation._gradients))
            return super().explain(observation, plan)

    Auditor(probes(), [Why(0), Why(1)], explainers=[*explainers, Looks()], novelty=[]).audit(Net().eval())
    assert set(seen) == {kept}
