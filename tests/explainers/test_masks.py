"""Random masks against a loop over them, and against what they must give for a net that is linear in the pixels."""

import pytest
import torch
from torch import nn

from tests.explaining import explain, observed, subject_of
from xai_callbacks import RISE, Auditor, ProbeSet, Why, WhyNotCertain, WhyRatherThan
from xai_callbacks.access import undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.explainers.masks import _enlarged, grid_of

QUESTIONS = [Why(), WhyRatherThan(), WhyNotCertain(), Why(of=1)]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    return model.eval(), torch.randn(5, 3, 13, 17, generator=torch.Generator().manual_seed(1))


def masks_of(explainer, images, seed=0):
    """One at a time: cells enlarged by hand at the place where the window begins."""
    cells, shifts = explainer._drawn(images, seed)
    height, width = images.shape[-2:]
    rows, columns = cells.shape[1] - 1, cells.shape[2] - 1
    tall, wide = -(-height // rows), -(-width // columns)
    found = torch.zeros(len(cells), height, width)
    for mask, each, (down, right) in zip(found, cells, shifts.tolist(), strict=True):
        for row in range(height):
            for column in range(width):
                places = [
                    (row + int(down * tall) + 0.5) / tall - 0.5, (column + int(right * wide) + 0.5) / wide - 0.5
                ]  # fmt: skip
                lows = [max(place, 0.0) for place in places]
                firsts = [int(low) for low in lows]
                seconds = [min(first + 1, size - 1) for first, size in zip(firsts, each.shape, strict=True)]
                y, x = (low - first for low, first in zip(lows, firsts, strict=True))
                mask[row, column] = (
                    (1 - y) * (1 - x) * each[firsts[0], firsts[1]]
                    + (1 - y) * x * each[firsts[0], seconds[1]]
                    + y * (1 - x) * each[seconds[0], firsts[1]]
                    + y * x * each[seconds[0], seconds[1]]
                )
    return found


def test_masks_are_cells_enlarged_and_shifted(net):
    explainer, images = RISE(12, cells=4, keep=0.3), net[1]
    cells, shifts = explainer._drawn(images, 0)
    assert grid_of(images, 4) == (4, 5)
    torch.testing.assert_close(_enlarged(cells, shifts, (13, 17)), masks_of(explainer, images))


def test_cells_are_kept_with_the_probability_given_and_shifts_reach_everywhere():
    explainer = RISE(4000, cells=4, keep=0.3)
    cells, shifts = explainer._drawn(torch.zeros(1, 3, 16, 16), 0)
    masks = _enlarged(cells, shifts, (16, 16))
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.01)
    assert (masks.mean(dim=0) - 0.3).abs().max() < 0.04
    assert set((shifts * 4).long().flatten().tolist()) == {0, 1, 2, 3}


def test_a_map_equals_a_slow_loop_over_the_masks(net):
    model, images = net
    explainer = RISE(30, cells=4)
    found = explain(explainer, model, images, QUESTIONS, chunk_size=7).heatmaps
    base = images.mean(dim=(2, 3), keepdim=True)
    with torch.no_grad():
        outputs = model(images)
        for question, maps in zip(QUESTIONS, found, strict=True):
            posed = question.pose(outputs, None, subject_of(model, images)[0].task)
            masks = masks_of(explainer, images)
            scores = torch.stack([posed.score(model(images * mask + base * (1 - mask))) for mask in masks])
            sums = sum(score[:, None, None] * mask for score, mask in zip(scores, masks, strict=True))
            torch.testing.assert_close(maps, sums / masks.sum(dim=0) - scores.mean(dim=0)[:, None, None])


def test_the_map_of_a_linear_net_is_each_contribution_spread_as_masks_vary_together():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)), torch.randn(3, 3, 8, 8)
    explainer = RISE(200, cells=4, baseline=0.5)
    found = explain(explainer, model, images, [Why(of=1)]).heatmaps[0]
    contributions = (model[1].weight[1].reshape(3, 8, 8) * (images - 0.5)).sum(dim=1).flatten(1).detach().double()
    masks = _enlarged(*explainer._drawn(images, 0), (8, 8)).flatten(1).double()
    centred = masks - masks.mean(dim=0)
    spread = centred.T @ centred / len(masks)
    expected = contributions @ spread / masks.mean(dim=0)
    torch.testing.assert_close(found.flatten(1), expected.float(), rtol=1e-4, atol=1e-5)


def test_a_pixel_that_alone_counts_is_where_the_map_peaks():
    class Corner(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0, 3, 12], -images[:, 0, 3, 12]], dim=1)

    flat = explain(RISE(600), Corner(), torch.ones(1, 1, 21, 21), [Why(of=0)]).heatmaps
    assert flat.abs().max() < 1e-6  # the mean colour of an image of one colour hides nothing
    shown = explain(RISE(600, baseline=0.0), Corner(), torch.ones(1, 1, 21, 21), [Why(of=0), Why(of=1)]).heatmaps[:, 0]
    row, column = divmod(int(shown[0].argmax()), 21)
    assert max(abs(row - 3), abs(column - 12)) <= 1
    torch.testing.assert_close(shown[1], -shown[0])


def test_the_model_runs_once_a_mask_for_all_questions_and_progress_is_told(net):
    model, images = net
    seen, told = [], []
    with undisturbed(model):
        subject, trace = subject_of(model, images)
        plan = RISE(9).prepare(trace, None)
        observation = observed(subject, plan, images, QUESTIONS, trace=trace, chunk_size=10)
        observation.progress = told.append
        handle = model[0].register_forward_hook(lambda _module, _given, output: seen.append(len(output)))
        RISE(9).explain(observation, plan)
        handle.remove()
    assert plan.cost == 9
    assert plan.reason == "the pixels, under 9 random masks of 7 x 9 cells"
    assert seen == [10, 10, 10, 10, 5]
    assert told == [2 / 9, 4 / 9, 6 / 9, 8 / 9, 1.0]


def test_functions_are_explained_as_the_net_is(net):
    model, images = net
    probes = ProbeSet.from_tensors(images, mean=[0.5] * 3, std=[0.5] * 3)

    def black_box(batch):
        with torch.no_grad():
            return model(batch).numpy()

    records = [Auditor(probes, explainers=[RISE(20)]).audit(each) for each in (black_box, model)]
    torch.testing.assert_close(records[0].heatmaps, records[1].heatmaps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RISE(1), "Expected `masks` to be an integer of 2 or more, but got 1"),
        (lambda: RISE(cells=1), "Expected `cells`"),
        (lambda: RISE(keep=1), "Expected `keep` to be a number in (0, 1), but got 1"),
        (lambda: RISE(baseline="black"), "Expected `baseline` to be 'blur', 'mean' or a finite number"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_more_cells_than_pixels_are_refused(net):
    with pytest.raises(ConfigurationError, match="Expected `cells` to be at most 13, the shorter side of the images"):
        explain(RISE(cells=14), *net, [Why()])


def test_nothing_is_said_of_pixels_that_no_mask_kept():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), torch.rand(1, 3, 16, 16)
    nn.init.constant_(model[1].bias, 100.0)
    heatmap = explain(RISE(2, cells=8, keep=0.05), model, images, [Why(of=0)]).heatmaps[0, 0]
    assert (heatmap == 0).any()
    assert heatmap.abs().max() < 50
