"""Heatmaps in the unit of the colour scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gallery.records import probes_of
from xai_callbacks.gallery import color_scale, density
from xai_callbacks.gallery.heat import heat
from xai_callbacks.record import MapSet
from xai_callbacks.render import ColorScale

SCALE = ColorScale()


def test_density_is_in_logits_whatever_the_grid():
    """A map that says the same everywhere reads as the score itself, on any grid."""
    for side in (1, 4, 7):
        maps = torch.full((3, side, side), 5.0 / side**2)
        assert density(maps) == pytest.approx(np.full((3, side, side), 5.0))


def test_maps_at_the_pixels_are_means_over_neighbourhoods():
    maps = torch.zeros(1, 64, 32)
    maps[0, ::2] = 2 / (64 * 32)
    spots = density(maps, pixels=True)
    assert spots.shape == (1, 16, 8)
    assert spots == pytest.approx(np.ones((1, 16, 8)), abs=0.15)


@pytest.mark.parametrize("peaks", [(), (0.5, 2.0)])
def test_relative_maps_are_shares_of_the_strongest_of_the_run(peaks):
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 1, 2, 2], maps[1, 2, 0, 0] = 0.25, -2.0
    given = MapSet(heatmaps=maps, explainer="x", layer="l", units="relative", peaks=peaks)
    shown = heat(given, [1, 2], SCALE)
    assert shown.shape == (2, 2, 4, 4)
    assert shown[0, 0, 2, 2] == pytest.approx(25.0 if peaks else 50.0)
    assert shown[1, 1, 0, 0] == pytest.approx(-50.0)


def test_a_dead_relative_map_stays_dead():
    given = MapSet(heatmaps=torch.zeros(1, 2, 4, 4), explainer="x", layer="l", units="relative")
    assert (heat(given, [0, 1], SCALE) == 0).all()


def test_classifiers_share_one_scale_and_regression_follows_the_range_of_the_targets():
    assert color_scale(probes_of()) == color_scale(probes_of(3, labels=None)) == ColorScale()
    for spread, limit in [(0.5, 1.0), (1.0, 1.0), (30.0, 100.0), (0.02, 0.1)]:
        targets = torch.tensor([2.0, 2.0 + spread, 2.0])
        scale = color_scale(probes_of(3, labels=None, class_names=None, targets=targets))
        assert (scale.limit, scale.unit) == (pytest.approx(limit), "score")


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_targets_have_a_scale_too(value):
    targets = torch.full((3,), value)
    assert color_scale(probes_of(3, labels=None, class_names=None, targets=targets)).limit >= max(value, 1.0)
