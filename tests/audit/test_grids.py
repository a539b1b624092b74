"""Heatmaps at the size of the pixels are kept on at most 64 x 64 cells, and keep what they add up to."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from tests.tiny import CLASSES, centre_masks
from xai_callbacks import Auditor, IntegratedGradients, ProbeSet, Why
from xai_callbacks.audit.results import MOST_CELLS, bounded


def overlap(fine_index, coarse_index, fine, coarse):
    """Share of one fine cell that lies in one coarse cell, along one side, as an exact fraction."""
    low, high = Fraction(fine_index, fine), Fraction(fine_index + 1, fine)
    cell_low, cell_high = Fraction(coarse_index, coarse), Fraction(coarse_index + 1, coarse)
    return max(Fraction(0), min(high, cell_high) - max(low, cell_low)) * fine


def slow_twin(heatmap, height, width):
    """Each coarse cell gets of each fine cell the share of its area that lies in it, cell by cell."""
    found = torch.zeros(height, width, dtype=torch.float64)
    fine_height, fine_width = heatmap.shape
    for row in range(height):
        rows = [(fine, overlap(fine, row, fine_height, height)) for fine in range(fine_height)]
        for column in range(width):
            columns = [(fine, overlap(fine, column, fine_width, width)) for fine in range(fine_width)]
            found[row, column] = sum(
                float(vertical * horizontal) * float(heatmap[y, x])
                for y, vertical in rows
                if vertical
                for x, horizontal in columns
                if horizontal
            )
    return found


def maps(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((224, 224), (56, 56)),
        ((65, 65), (33, 33)),
        ((130, 70), (44, 24)),
        ((70, 130), (24, 44)),
        ((64, 64), (64, 64)),
        ((64, 7), (64, 7)),
        ((1, 1), (1, 1)),
        ((1, 300), (1, 60)),
        ((256, 256), (64, 64)),
        ((4096, 3), (64, 1)),
    ],
    ids=str,
)
def test_grids_have_at_most_64_cells_a_side_and_keep_sums(size, grid):
    given = maps(2, 3, *size)
    found = bounded(given)

    assert found.shape == (2, 3, *grid)
    assert max(grid) <= MOST_CELLS == 64
    assert found.dtype == torch.float32
    scale = math.sqrt(size[0] * size[1])
    torch.testing.assert_close(found.sum(dim=(2, 3)) / scale, given.sum(dim=(2, 3)) / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "size", [pytest.param((224, 224), marks=pytest.mark.slow), (65, 65), (130, 70), (66, 200)], ids=str
)
def test_cells_are_divided_by_area(size):
    given = maps(*size)
    found = bounded(given)
    torch.testing.assert_close(found.double(), slow_twin(given, *found.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [224, 128, 256])
def test_whole_factors_are_sums_of_blocks(size):
    given, factor = maps(2, size, size), math.ceil(size / 64)
    blocks = avg_pool2d(given[:, None], factor)[:, 0] * factor**2
    torch.testing.assert_close(bounded(given), blocks, rtol=1e-4, atol=1e-4)


def test_relative_maps_keep_their_values():
    given = maps(2, 130, 70)
    torch.testing.assert_close(bounded(torch.ones(130, 70), "relative"), torch.ones(44, 24))
    torch.testing.assert_close(bounded(given, "relative"), bounded(given) * (44 * 24) / (130 * 70))


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (64, 2), (1, 64)], ids=str)
def test_small_maps_are_kept_as_they_are(size):
    given = maps(2, *size)
    assert bounded(given) is given


@pytest.mark.parametrize("size", [(65, 65), (130, 70)], ids=str)
def test_a_constant_density_stays_constant(size):
    found = bounded(torch.ones(size))
    torch.testing.assert_close(found, torch.full_like(found, found.mean()))


def test_a_cell_stays_where_it_was():
    given = torch.zeros(130, 70)
    given[100:103, 30:33] = 1.0
    found = bounded(given)
    centre = (found * torch.arange(44.0)[:, None]).sum() / 9, (found * torch.arange(24.0)).sum() / 9
    assert float(centre[0]) / 44 == pytest.approx(101 / 130, abs=1 / 44)
    assert float(centre[1]) / 24 == pytest.approx(31 / 70, abs=1 / 24)


def test_the_maps_of_a_record_are_bounded_and_complete():
    """Integrated gradients of a net that is linear in the pixels add up to its logit, on any grid."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 65 * 70, 3, bias=False))
    images = torch.rand(4, 3, 65, 70, generator=torch.Generator().manual_seed(1))
    core = torch.zeros(4, 65, 70, dtype=torch.bool)
    core[:, 20:40, 20:40] = True
    probes = ProbeSet.from_tensors(images, [0, 1, 2, 0], class_names=CLASSES, masks={"core": core})
    record = Auditor(probes, [Why(0), Why(2)], explainers=[IntegratedGradients(2)], chunk_size=3).audit(net)

    maps = record.maps["integrated_gradients"].heatmaps
    assert maps.shape == (2, 4, 33, 35)
    torch.testing.assert_close(maps.sum(dim=(2, 3)).T, record.outputs[:, [0, 2]], rtol=1e-4, atol=1e-4)
    exact = (images * net[1].weight.detach()[0].reshape(3, 65, 70)).sum(dim=1)
    torch.testing.assert_close(maps[0], bounded(exact), rtol=1e-4, atol=1e-5)


def test_small_images_keep_every_pixel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3, bias=False))
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    probes = ProbeSet.from_tensors(images, torch.arange(6) % 3, masks=centre_masks())
    record = Auditor(probes, [Why(1)], explainers=[IntegratedGradients(2)]).audit(net)

    exact = (images * net[1].weight.detach()[1].reshape(3, 8, 8)).sum(dim=1)
    torch.testing.assert_close(record.heatmaps[0], exact, rtol=1e-4, atol=1e-6)
