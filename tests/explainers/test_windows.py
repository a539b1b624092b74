"""Sliding windows and window maps against slow loops, and the border where windows do not fit."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, pad

from tests.explaining import explain, observed, subject_of
from xai_callbacks import Auditor, Patchwise, ProbeSet, SlidingWindow, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers import GradCAM, HiResCAM, InputXGradient, Windows, window_scores
from xai_callbacks.novelty import NoveltyMap
from xai_callbacks.questions import WhyValueRatherThan
from xai_callbacks.tasks import MultiLabel, Regression

SIZES = [(10, 10, 4, 2), (11, 14, 4, 3), (9, 12, 5, 5), (8, 8, 8, 1), (7, 10, 3, 2), (10, 7, 4, 4)]
BORDERS = ["flush", "drop", "pad"]


def images(count=3, size=(12, 12), seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def net(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs)
    ).eval()


def slow_starts(side, window, stride, border):
    starts, start = [], 0
    while start + window <= side:
        starts.append(start)
        start += stride
    if border == "flush" and starts[-1] + window < side:
        starts.append(side - window)
    if border == "pad" and starts[-1] + window < side:
        starts.append(start)
    return starts


def slow_windows(batch, window, stride, border):
    """Windows (N, rows, columns, C, window, window), one after another, and where they begin."""
    tops, lefts = (slow_starts(side, window, stride, border) for side in batch.shape[-2:])
    beyond = pad(batch, (0, window, 0, window), mode="replicate")
    parts = [[beyond[..., top : top + window, left : left + window] for left in lefts] for top in tops]
    return torch.stack([torch.stack(row, dim=1) for row in parts], dim=1), tops, lefts


def slow_pixels(values, tops, lefts, window, size, reduce):
    """Each pixel by itself: all windows that hold it, or those of the nearest pixel that some do."""
    found = torch.empty(*values.shape[:-2], *size)
    for y in range(size[0]):
        for x in range(size[1]):
            near_y, near_x = min(y, tops[-1] + window - 1), min(x, lefts[-1] + window - 1)
            inside = [
                values[..., i, j]
                for i, top in enumerate(tops)
                for j, left in enumerate(lefts)
                if top <= near_y < top + window and left <= near_x < left + window
            ]
            found[..., y, x] = reduce(torch.stack(inside))
    return found


# ---- windows


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_the_grid_is_that_of_a_slow_loop(height, width, window, stride, border):
    batch = images(2, (height, width))
    windows = Windows.over((height, width), window, stride, border)
    parts, tops, lefts = slow_windows(batch, window, stride, border)
    assert (list(windows.tops), list(windows.lefts)) == (tops, lefts)
    found = window_scores(lambda given, rows: given.sum(dim=(1, 2, 3))[None] + rows, batch, windows, chunk_size=5)
    expected = parts.sum(dim=(3, 4, 5)) + torch.arange(2)[:, None, None]
    torch.testing.assert_close(found, expected[None])
    if border == "drop":
        assert windows.grid == ((height - window) // stride + 1, (width - window) // stride + 1)
    else:
        assert windows.grid == tuple(math.ceil((side - window) / stride) + 1 for side in (height, width))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_a_pixel_gets_the_mean_or_the_maximum_of_the_windows_that_cover_it(height, width, window, stride, border):
    windows = Windows.over((height, width), window, stride, border)
    values = torch.randn(2, *windows.grid)
    for reduce, slow in ((torch.mean, lambda each: each.mean(dim=0)), (torch.amax, lambda each: each.amax(dim=0))):
        expected = slow_pixels(values, windows.tops, windows.lefts, window, (height, width), slow)
        torch.testing.assert_close(windows.spread(values, (height, width), reduce), expected)
    covered = torch.zeros(windows.tops[-1] + window, windows.lefts[-1] + window)
    for place in range(math.prod(windows.grid)):
        covered[windows.at(place)] += 1
    assert torch.equal(windows.counts(), covered)


def test_a_stride_of_the_window_gives_tiles_side_by_side():
    windows = Windows.over((8, 12), 4, 4)
    assert (windows.counts() == 1).all()
    values = torch.randn(*windows.grid)
    expected = values.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    assert torch.equal(windows.spread(values, (8, 12)), expected)


def test_the_last_row_is_added_left_out_or_padded():
    assert [Windows.over((10, 8), 4, 4, border).tops for border in BORDERS] == [(0, 4, 6), (0, 4), (0, 4, 8)]
    assert [Windows.over((10, 8), 4, 4, border).lefts for border in BORDERS] == [(0, 4)] * 3
    batch = images(1, (10, 8))
    parts = [torch.cat([part for part, *_ in Windows.over((10, 8), 4, 4, border).cut(batch, 4)]) for border in BORDERS]
    torch.testing.assert_close(parts[0][-2:, :, -1, :], batch[0, :, 9].reshape(3, 2, 4).transpose(0, 1))
    torch.testing.assert_close(parts[2][-1, :, 2:], batch[0, :, 9:, 4:].expand(3, 2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(0), "Expected `window` to be an integer of 1 or more, but got 0"),
        (lambda: SlidingWindow(4, 5), "Expected `stride` to be at most `window`, 4, so that no pixel is left out"),
        (lambda: SlidingWindow(4, border="wrap"), "Expected `border` to be one of flush, drop, pad, but got 'wrap'"),
        (lambda: SlidingWindow(reduce="sum"), "Expected `reduce` to be one of mean, max, but got 'sum'"),
        (lambda: SlidingWindow(enlarge=1), "Expected `enlarge` to be True or False"),
        (lambda: SlidingWindow(probability="no"), "Expected `probability` to be True or False"),
        (lambda: Patchwise(HiResCAM, 4), "Expected `explainer` to be an explainer such as HiResCAM()"),
        (lambda: Windows.over((8, 6), 7, 2), "Expected `window` to be at most 6, the shorter side of the images"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


# ---- what the model says of them


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("enlarge", [True, False])
def test_the_probability_of_the_fact_is_that_of_a_slow_loop(border, reduce, enlarge):
    model, batch = net(), images(3, (11, 13))
    explainer = SlidingWindow(5, 3, border=border, reduce=reduce, enlarge=enlarge)
    explained = explain(explainer, model, batch, [Why(), WhyRatherThan(), Why(of=1)], chunk_size=7)
    parts, tops, lefts = slow_windows(batch, 5, 3, border)
    flat = parts.flatten(0, 2)
    flat = interpolate(flat, (11, 13), mode="bilinear", align_corners=False) if enlarge else flat
    with torch.no_grad():
        said = model(flat).softmax(dim=1).unflatten(0, parts.shape[:3])
    facts = [explained.outputs.argmax(dim=1)] * 2 + [torch.ones(3, dtype=torch.int64)]
    slow = torch.Tensor.mean if reduce == "mean" else torch.Tensor.amax
    for heatmaps, fact in zip(explained.heatmaps, facts, strict=True):
        values = torch.stack([said[row, :, :, each] for row, each in enumerate(fact.tolist())])
        expected = slow_pixels(values, tops, lefts, 5, (11, 13), lambda each: slow(each, dim=0))
        torch.testing.assert_close(heatmaps, expected)


def test_one_set_of_passes_answers_all_questions():
    model, seen = net(), []
    model[0].register_forward_hook(lambda _module, given, _output: seen.append(tuple(given[0].shape)))
    explained = explain(SlidingWindow(6, enlarge=False), model, images(4), [Why(), WhyNotCertain()], chunk_size=16)
    assert sum(shape[0] for shape in seen if shape[-1] == 6) == 2 + 4 * explained.plan.cost == 38  # two to prepare
    assert max(shape[0] for shape in seen) <= 16
    assert explained.plan.reason == "9 windows of 6 x 6 pixels, each on its own"


@pytest.mark.parametrize("explainer", [SlidingWindow(4), Patchwise(HiResCAM(), 4)])
def test_progress_goes_from_0_to_1(explainer):
    model, told = net(), []
    with undisturbed(model):
        subject, trace = subject_of(model, images())
        plan = explainer.prepare(trace, None)
        observation = observed(subject, plan, images(), [Why()], chunk_size=4)
        observation.progress = told.append
        explainer.explain(observation, plan)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert len(told) > 10


def test_windows_default_to_half_of_the_shorter_side():
    plan = explain(SlidingWindow(), net(), images(2, (12, 20)), [Why()]).plan
    assert plan.reason == "18 windows of 6 x 6 pixels, each on its own"


def test_values_have_no_probability_and_labels_that_are_missing_have_0():
    with pytest.raises(ConfigurationError, match="Use `probability=False`"):
        explain(SlidingWindow(4), net(1), images(), [Why()], task=Regression())
    values = explain(SlidingWindow(4, probability=False), net(1), images(), [Why()], task=Regression())
    assert values.heatmaps.std() > 0
    truth = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0]])
    found = explain(SlidingWindow(4), net(), images(), [Why("label")], truth, MultiLabel(width=3)).heatmaps[0]
    assert (found[1] == 0).all()
    assert (found[[0, 2]] > 0).all()


def test_a_net_with_a_fixed_input_needs_windows_of_the_size_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
    assert explain(SlidingWindow(6), model, images(), [Why()]).heatmaps.std() > 0
    for explainer, message in (
        (SlidingWindow(6, enlarge=False), r"windows of 6 x 6 pixels, but it raised RuntimeError: .* `enlarge=True`"),
        (Patchwise(InputXGradient(), 6), "Expected the model to run on probe images"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            explain(explainer, model, images(), [Why()])


def test_a_function_is_explained_as_the_net_in_it():
    model = net()
    probes = ProbeSet.from_tensors(images(), [0, 1, 2], mean=[0.5] * 3, std=[0.5] * 3)
    found = [
        Auditor(probes, explainers=[SlidingWindow(4)]).audit(each).heatmaps
        for each in (model, lambda batch: model(batch).detach().numpy())
    ]
    torch.testing.assert_close(*found)


# ---- each window explained


def patch_scores(model, batch, window, stride):
    parts, tops, lefts = slow_windows(batch, window, stride, "flush")
    with torch.no_grad():
        return model(parts.flatten(0, 2)).unflatten(0, parts.shape[:3]), tops, lefts


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 2), (5, 3)])
def test_a_contrast_of_values_is_decided_patch_by_patch(window, stride):
    """`C_q = 2 (y_patch - q) R` of each, by a loop over windows; with q between the patches, signs differ."""
    model, batch = net(1), images(2)
    scores, tops, lefts = patch_scores(model, batch, window, stride)
    q = float(scores.median())
    explainer = Patchwise(HiResCAM(), window, stride)
    found = explain(explainer, model, batch, [Why(), WhyValueRatherThan(q)], task=Regression(), chunk_size=5)
    sums, counts = torch.zeros(2, 2, 12, 12), torch.zeros(12, 12)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            at = slice(top, top + window), slice(left, left + window)
            counts[at] += 1
            for row in range(2):
                # The net ends in global average pooling: the map is a weighted sum of what comes in, cell by cell.
                features = model[:2](batch[row : row + 1, :, *at]).detach()
                raw = torch.einsum("d,dhw->hw", model[4].weight[0].detach(), features[0])
                sums[0, row, *at] += raw
                sums[1, row, *at] += 2 * (scores[row, i, j, 0] - q) * raw
    torch.testing.assert_close(found.heatmaps, sums / counts / 144)
    assert len({bool(sign) for sign in (scores > q).flatten()}) == 2


def test_maps_of_tiles_add_up_to_the_mean_score_of_the_patches():
    model, batch = net(1), images(2, (8, 12))
    found = explain(Patchwise(HiResCAM(), 4, 4), model, batch, [Why()], task=Regression()).heatmaps[0]
    scores, *_ = patch_scores(model, batch, 4, 4)
    torch.testing.assert_close(found.sum(dim=(1, 2)), (scores - model[4].bias.detach()).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("explainer", [GradCAM(), InputXGradient(), SlidingWindow(2, probability=False)], ids=repr)
def test_a_window_of_the_whole_image_is_the_explainer_itself(explainer):
    model, batch = net(), images()
    found = explain(Patchwise(explainer, 12), model, batch, [Why(), WhyRatherThan()]).heatmaps
    alone = explain(explainer, model, batch, [Why(), WhyRatherThan()]).heatmaps
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


def test_what_no_window_reaches_gets_what_is_nearest():
    found = explain(Patchwise(HiResCAM(), 4, 4, border="drop"), net(), images(2, (11, 14)), [Why()]).heatmaps[0]
    assert torch.equal(found[:, 8:], found[:, 7:8].expand(-1, 3, -1))
    assert torch.equal(found[..., 12:], found[..., 11:12].expand(-1, -1, 2))
    padded = explain(Patchwise(HiResCAM(), 4, 4, border="pad"), net(), images(2, (11, 14)), [Why()]).heatmaps[0]
    torch.testing.assert_close(padded[:, :8, :12], found[:, :8, :12])


def test_the_layer_and_the_last_layer_are_found_on_windows():
    """As of a net that cannot be explained on the whole image: it cuts it into patches itself."""

    class MeanOfPatches(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(2)

        def forward(self, batch):
            parts = batch.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
            return self.net(parts.flatten(0, 2)).unflatten(0, (len(batch), -1)).mean(dim=1)

    model, batch = MeanOfPatches(), images(2)
    found = explain(Patchwise(HiResCAM(), 4, 4), model, batch, [Why(of=1)])
    inside = explain(Patchwise(HiResCAM(), 4, 4), model.net, batch, [Why(of=1)])
    assert found.plan.inner.layers[0].name == "net.1"
    assert found.plan.cost == 9
    torch.testing.assert_close(found.heatmaps, inside.heatmaps)
    # The maps of the net are those of the score of the whole image, since that is the mean over the tiles.
    torch.testing.assert_close(found.heatmaps[0].sum(dim=(1, 2)), found.outputs[:, 1] - model.net[4].bias[1].detach())


def test_explainers_about_images_take_windows_too():
    found = explain(Patchwise(NoveltyMap(), 6), net(), images(), [Why(), WhyRatherThan()])
    assert found.heatmaps.shape == (1, 3, 12, 12)
    assert found.heatmaps.std() > 0
    assert Patchwise(NoveltyMap(), 6).name == "novelty_map_patchwise"
    assert repr(Patchwise(GradCAM(), 6)).startswith("Patchwise(GradCAM(), window=6, stride=None")
