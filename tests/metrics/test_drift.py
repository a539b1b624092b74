"""Explanation drift against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import explanation_drift


def test_drift_of_maps_worked_out_by_hand():
    before = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[3.0, 4.0]]])
    after = torch.tensor([[[5.0, 0.0]], [[0.0, 2.0]], [[-2.0, 0.0]], [[4.0, 3.0]]])

    drift = explanation_drift(before, after)

    assert drift.dtype == torch.float64
    torch.testing.assert_close(
        drift, torch.tensor([0.0, 1.0, 2.0, 1 - 24 / 25], dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_drift_equals_one_minus_the_cosine():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 3, 5, 4, 6, generator=generator, dtype=torch.float64)

    expected = 1 - torch.cosine_similarity(before.flatten(-2), after.flatten(-2), dim=-1)

    assert expected.shape == (3, 5)
    torch.testing.assert_close(explanation_drift(before, after), expected, rtol=1e-12, atol=1e-15)


def test_a_map_has_not_drifted_from_itself():
    heatmaps = torch.randn(20, 7, 7, generator=torch.Generator().manual_seed(1))

    assert explanation_drift(heatmaps, heatmaps).tolist() == [0.0] * 20


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_magnitude_does_not_count(factor):
    heatmaps = torch.randn(20, 7, 7, generator=torch.Generator().manual_seed(1))

    assert explanation_drift(heatmaps, heatmaps.double() * factor).max() < 1e-14
    assert explanation_drift(heatmaps, heatmaps.double() * -factor).max() <= 2


@pytest.mark.parametrize("spoil", [0.0, math.nan, math.inf])
def test_degenerate_map_on_either_side_is_nan(spoil):
    sound, spoiled = torch.ones(3, 2, 2), torch.ones(3, 2, 2)
    spoiled[1] = 0.0
    spoiled[1, 0, 0] = spoil

    assert explanation_drift(sound, spoiled).isnan().tolist() == [False, True, False]
    assert explanation_drift(spoiled, sound).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(("before", "after"), [((2, 3, 3), (2, 3, 4)), ((1, 3, 3), (2, 3, 3)), ((9,), (9,))])
def test_maps_that_cannot_be_compared_are_refused(before, after):
    with pytest.raises(ConfigurationError, match="Expected `before` and `after` to have one shape"):
        explanation_drift(torch.ones(before), torch.ones(after))
