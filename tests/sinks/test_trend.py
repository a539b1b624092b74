"""Ranks of probes over audits, bounded and resumable."""

from __future__ import annotations

import math

import pytest
import torch

from xai_callbacks.sinks import Trend


def test_a_rank_is_the_share_of_other_probes_that_score_lower():
    trend = Trend()
    trend.add(0, {"energy": torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0])})
    assert [trend.of("energy", index)[0] for index in range(5)] == pytest.approx([0.75, 0, 0.375, 0.375, 1])
    trend.add(4, {"energy": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])})
    assert trend.of("energy", 0) == pytest.approx((0.75, 0))
    assert trend.steps == (0, 4)


def test_a_score_that_was_left_out_has_a_gap():
    trend = Trend()
    trend.add(0, {"energy": torch.arange(3.0)})
    trend.add(1, {"odin": torch.arange(3.0)})
    assert trend.of("odin", 2)[1] == 1
    assert math.isnan(trend.of("odin", 2)[0])


def test_memory_is_bounded_and_keeps_the_first_and_the_latest():
    trend = Trend(capacity=4)
    for step in range(50):
        trend.add(step, {"energy": torch.rand(3)})
    assert len(trend.steps) <= 4
    assert (trend.steps[0], trend.steps[-1]) == (0, 49)


def test_other_probes_begin_anew_and_one_probe_is_in_the_middle():
    trend = Trend()
    trend.add(0, {"energy": torch.rand(3)})
    trend.add(1, {"energy": torch.rand(1)})
    assert trend.steps == (1,)
    assert trend.of("energy", 0) == (0.5,)


def test_state_goes_through_a_file_of_plain_data(tmp_path):
    trend, resumed = Trend(), Trend()
    for step in range(3):
        trend.add(step, {"energy": torch.rand(4)})
    torch.save(trend.state_dict(), tmp_path / "trend.pt")
    resumed.load_state_dict(torch.load(tmp_path / "trend.pt", weights_only=True))
    for each in (trend, resumed):
        each.add(3, {"energy": torch.arange(4.0)})
    assert (resumed.steps, resumed.of("energy", 1)) == (trend.steps, trend.of("energy", 1))
