"""Found regions against a flood fill, Otsu's threshold against all cuts, and overlap against a loop over shifts."""

import math

import numpy as np
import pytest
import torch

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import Threshold, found_iou, found_on, found_regions, relevance
from xai_callbacks.metrics.found import otsu


def smooth(seed=0, size=(20, 26)):
    rough = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, size, mode="bicubic")[0, 0]


def flooded(above):
    """Components of a mask, each a set of pixels, by a flood from each pixel."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(above)}, []
    around = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    while left:
        waiting, region = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in around} & left
            left -= near
            waiting += near
        found.append(region)
    return found


@pytest.mark.parametrize("min_area", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_a_flood_fill(min_area, seed):
    values = torch.rand(12, 15, generator=torch.Generator().manual_seed(seed))
    threshold = Threshold("value", 0.6, min_area / values.numel())
    found = found_regions(values, threshold)
    expected = [each for each in flooded(values.numpy() > 0.6) if len(each) >= min_area]
    assert {frozenset(map(tuple, each.mask.nonzero().tolist())) for each in found} == set(map(frozenset, expected))
    assert [each.peak for each in found] == sorted((each.peak for each in found), reverse=True)
    for each in found:
        rows, columns = each.mask.nonzero().T
        assert each.box == (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        assert each.area == each.mask.sum()
        inside = values[each.mask].double()
        assert (each.mean, each.peak) == (pytest.approx(float(inside.mean())), float(inside.max()))
        assert float(values[each.place]) == each.peak


def test_the_place_of_a_flat_peak_is_in_its_middle():
    values = torch.zeros(12, 14)
    values[2:9, 3:8] = 1.0
    assert [each.place for each in found_regions(values)] == [(5, 5)]


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert len(found_regions(torch.eye(2))) == 1


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (Threshold(), lambda values: values > values.max() / 2),
        (Threshold("fraction", 0.8), lambda values: values > 0.8 * values.max()),
        (Threshold("quantile", 0.9), lambda values: values > values.flatten().quantile(0.9)),
        (Threshold("value", 0.3), lambda values: values > 0.3),
    ],
)
def test_what_is_found_exceeds_the_threshold(threshold, expected):
    values = smooth()
    union = torch.stack([each.mask for each in found_regions(values, threshold)]).any(dim=0)
    assert torch.equal(union, expected(values.double()))


@pytest.mark.parametrize("kind", ["fraction", "quantile", "value", "otsu"])
def test_nothing_is_found_where_nothing_stands_out(kind):
    threshold = Threshold(kind, 0.5)
    empty = torch.zeros(5, 6)
    for values in (empty, empty + math.nan, empty.index_fill(0, torch.tensor([2]), math.inf), torch.zeros(0, 4)):
        assert found_regions(values, threshold) == ()
    ones = found_regions(torch.ones(5, 6), threshold)
    assert [each.area for each in ones] == ([30] if kind in ("fraction", "value") else [])


def slow_otsu(values):
    """The cut with the smallest sum of squares within the two groups, of all cuts."""
    values = values.ravel()
    within = {
        cut: sum(((part - part.mean()) ** 2).sum() for part in (values[values <= cut], values[values > cut]))
        for cut in np.unique(values)[:-1]
    }
    return min(within, key=within.get)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_varies_least_within_the_groups(seed):
    values = smooth(seed).double().numpy()
    assert otsu(values) == slow_otsu(values)
    assert otsu(1e6 + values) == pytest.approx(1e6 + otsu(values), abs=1e-6)


def test_otsu_parts_as_skimage_does_up_to_a_bin():
    filters = pytest.importorskip("skimage.filters", reason="scikit-image is the oracle")
    values = torch.cat([torch.randn(500) * 0.1, torch.randn(300) * 0.2 + 2]).double().numpy()
    theirs = filters.threshold_otsu(values, nbins=256)
    assert ((values > otsu(values)) == (values > theirs)).mean() > 0.995
    assert ((values > otsu(values)) == (np.arange(800) >= 500)).all()


def test_the_overlap_is_that_of_the_best_region_and_its_chance_that_of_all_shifts():
    values, mask = smooth(3), torch.zeros(20, 26, dtype=torch.bool)
    mask[4:11, 12:20] = True
    regions = found_regions(values, Threshold("quantile", 0.7))
    assert len(regions) > 1

    def best(shift):
        moved = [torch.roll(each.mask, shift, dims=(0, 1)) for each in regions]
        return max(float((each & mask).sum() / (each | mask).sum()) for each in moved)

    every = [best((y, x)) for y in range(20) for x in range(26)]
    assert found_iou(regions, mask) == (pytest.approx(best((0, 0)), abs=1e-6), pytest.approx(np.mean(every), abs=1e-6))
    assert found_iou((), mask) == (0.0, 0.0)
    assert all(map(math.isnan, found_iou(regions, mask & False)))
    whole = found_regions(torch.ones(20, 26))
    assert found_iou(whole, mask) == (pytest.approx(float(mask.float().mean())),) * 2


def test_a_heatmap_finds_by_its_positive_part_on_the_image():
    heatmap = torch.tensor([[4.0, -9.0, 0.0], [0.0, 0.0, 1.0]])
    found = found_on(heatmap, (20, 30))
    expected = found_regions(relevance(heatmap, (20, 30)))
    assert torch.equal(found[0].mask, expected[0].mask)
    assert found_on(-heatmap.abs(), (20, 30)) == ()
    assert found_on(heatmap, (20, 30), peak=1e9) == ()
    assert found_on(heatmap, (20, 30), Threshold(min_area=0.9)) == ()
    assert found_on(heatmap + math.nan, (20, 30)) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold("mean"), "Expected `kind` to be one of fraction, quantile, value, otsu, but got 'mean'"),
        (lambda: Threshold("fraction", 1.0), "Expected `level` to be a number in [0, 1), but got 1.0"),
        (lambda: Threshold("value", math.nan), "Expected `level` to be a finite number"),
        (lambda: found_regions(torch.zeros(2, 2, 2)), "Expected a map (H, W)"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)
