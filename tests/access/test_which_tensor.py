"""The tensor that is explained lies on the image and holds all the evidence, or is refused."""

import pytest
import torch
from torch import nn

from tests.access import odd_nets as nets
from xai_callbacks import Auditor, GradCAM, HiResCAM, ProbeSet
from xai_callbacks.errors import ConfigurationError, TargetLayerError


def audit(model, images, **settings):
    pixels = images.clamp(0, 1).mul(255).byte().movedim(1, 3)
    probes = ProbeSet.from_tensors(images, torch.arange(len(images)) % 2, pixels=pixels)
    return Auditor(probes, novelty=[], **settings).audit(model.eval())


def seeded(make, seed=1):
    torch.manual_seed(seed)
    return make()


def found_or_refused(kind, places=nets.PLACES):
    """Distance of the heatmap from what it shows; None where the search refuses."""
    model = seeded(kind)
    with torch.no_grad():
        model.head.bias[0] += 20.0  # the same class is asked about for all
    try:
        record = audit(model, nets.scenes(places))
    except TargetLayerError:
        return None
    return nets.misplaced(record.heatmaps[0].float(), places) if record.maps else None


@pytest.mark.parametrize(
    "kind", [nets.Tokens, nets.RegistersBehind, nets.RegistersBeforeAndBehind, nets.TokensFirst, nets.Turned]
)
def test_tokens_that_are_a_grid_are_explained_where_they_lie(kind):
    assert found_or_refused(kind) < 0.1


@pytest.mark.parametrize(
    "kind",
    [
        *(nets.Queries, nets.Kept, nets.Shuffled, nets.Columns, nets.ChannelsAsTokens, nets.ClassInTheMiddle),
        *(nets.WidthBeforeHeight, nets.Mirrored, nets.UpsideDown, nets.QuarterTurn, nets.QuartersSwapped),
    ],
)
def test_what_is_no_grid_of_the_image_is_passed_over_or_refused(kind):
    distance = found_or_refused(kind)
    assert distance is None or distance < 0.1


def test_a_crop_is_no_map_of_the_image():
    places = [(row, column) for row in (2, 3, 4, 5) for column in (2, 3, 4, 5)]
    distance = found_or_refused(nets.MiddleOnly, places)
    assert distance is None or distance < 0.1


@pytest.mark.parametrize("kind", [nets.Mirrored, nets.UpsideDown, nets.QuarterTurn, nets.MiddleOnly, nets.Kept])
def test_a_named_layer_that_lies_elsewhere_is_refused_too(kind):
    with pytest.raises(TargetLayerError, match="A heatmap of it would point at the wrong place"):
        audit(seeded(kind), nets.scenes(), explainers=[GradCAM("norm")])


def coloured():
    """A square of each colour at another place."""
    images = torch.zeros(2, 3, nets.SIZE, nets.SIZE)
    for channel, (top, left) in enumerate([(8, 8), (8, 40), (40, 24)]):
        images[:, channel, top : top + 16, left : left + 16] = 1.0
    return images


@pytest.mark.parametrize("kind", [nets.Members, nets.Joined, nets.CoarseAndFine])
def test_one_branch_does_not_answer_for_all(kind):
    with pytest.raises(TargetLayerError, match=r"explainers=\[GradCAM\(") as caught:
        audit(seeded(kind), coloured())
    assert str(caught.value).count("GradCAM(") == (3 if kind is nets.Members else 2)


def test_branches_that_meet_before_pooling_are_explained_where_they_meet():
    record = audit(seeded(nets.JoinedMaps), coloured())
    assert record.layer == ":cat"


def test_tiles_in_the_batch_are_explained_once_they_are_tokens_again():
    assert found_or_refused(nets.FourTiles, places=[(row, column) for row in (1, 5) for column in (1, 5)]) < 0.25


@pytest.mark.parametrize("kind", [nets.TwoCrops, nets.ChannelsAsFrames])
def test_parts_of_images_in_the_batch_are_refused_at_once(kind):
    with pytest.raises(TargetLayerError, match=r"Occlusion\(\)"):
        audit(seeded(kind), nets.scenes()[:4])


@pytest.mark.parametrize("kind", [nets.PixelsAndTokens, nets.MapAndSummary])
def test_a_layer_that_was_chosen_can_be_explained(kind):
    heatmaps = audit(seeded(kind), nets.scenes()).heatmaps[0]
    assert heatmaps.isfinite().all()
    assert (heatmaps.flatten(1).std(1) > 1e-9).all()


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.amax((2, 3)),
        lambda x: x.amax((2, 3)) - x.amin((2, 3)),
        lambda x: nn.functional.adaptive_max_pool2d(x.relu(), 1).flatten(1),
        lambda x: x.flatten(2).topk(4, 2).values.mean(2),
        lambda x: x.flatten(2).logsumexp(2),
    ],
    ids=["max", "max and min", "adaptive", "top 4", "log-sum-exp"],
)
def test_a_map_of_which_few_cells_get_gradient_is_explained(pool):
    record = audit(seeded(lambda: nets.Pooled(pool)), nets.scenes())
    assert record.maps["gradcam" if "gradcam" in record.maps else "hirescam"].layer.startswith(("conv", ":relu"))
    assert (record.heatmaps[0].flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    "style",
    [*("in place", "in place behind an Identity", "function", "function in place", "method", "maximum"), "operator"],
)
@pytest.mark.parametrize("explainer", [GradCAM(), HiResCAM()], ids=["gradcam", "hirescam"])
def test_the_same_net_has_the_same_map_however_it_is_written(style, explainer):
    plain = seeded(lambda: nets.Styled("module")).train()
    plain(torch.randn(16, 3, 64, 64))  # running statistics that are not 0 and 1
    other = nets.Styled(style)
    other.load_state_dict(plain.state_dict())
    images = nets.scenes()
    expected = audit(plain, images, explainers=[explainer]).heatmaps
    found = audit(other, images, explainers=[explainer]).heatmaps
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["PoolMixerStage", "PermuteMLPStage", "StochasticDropoutStage"])
def test_the_name_of_a_class_does_not_count(name):
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.short, self.conv = nn.Conv2d(16, 16, 1, 2), nn.Conv2d(16, 16, 3, 2, 1)

        def forward(self, x):
            return self.short(x) + self.conv(x).relu()

    def net(stage):
        stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        return nn.Sequential(stem, stage(), stage(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))

    expected, found = (
        audit(seeded(lambda kind=kind: net(kind)), nets.scenes()) for kind in (Mix, type(name, (Mix,), {}))
    )
    assert found.layer == expected.layer == "2"
    assert torch.equal(found.heatmaps, expected.heatmaps)


def test_a_head_of_one_by_one_convolutions_is_no_column():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 3, 1), nn.Flatten()
    )
    assert audit(seeded(lambda: model), nets.scenes()).layer == "1"


def test_a_map_of_four_cells_says_so():
    model = nn.Sequential(
        *(part for _ in range(5) for part in (nn.LazyConv2d(16, 3, 2, 1), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    model(torch.zeros(1, 3, 64, 64))
    record = audit(model, nets.scenes())
    assert record.heatmaps.shape[-2:] == (2, 2)
    assert "so few cells hardly say where" in record.layer_reason


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class _FullNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, images):
        return self.head(_Full.apply(self.second(self.first(images))).mean(dim=(2, 3)))


def test_a_full_memory_is_no_reason_to_explain_another_layer():
    probes = ProbeSet.from_tensors(torch.rand(4, 3, 16, 16), torch.arange(4) % 2)
    with pytest.raises(ConfigurationError, match=r"OutOfMemoryError: .* Lower `chunk_size`"):
        Auditor(probes).prepare(_FullNet())
