"""The script behind the cost of group metrics runs, and what is kept of it says what is claimed."""

import json
from pathlib import Path

import bench_groups
import pytest
import torch

KEPT = Path(bench_groups.__file__).resolve().parents[1] / "docs" / "results" / "groups_bench.json"


def test_bench_groups_writes_its_ratios(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_groups.SETTINGS, "small_cnn", (32, 16, 40))
    path = tmp_path / "new" / "groups.json"
    figures = bench_groups.main(["--pairs", "2", "--models", "small_cnn", "--json", str(path)])["models"]["small_cnn"]
    written = json.loads(path.read_text())
    assert written["models"]["small_cnn"] == figures
    for clock in ("wall", "cpu"):
        low, high = figures[f"{clock}_ratio_ci"]
        assert low <= figures[f"{clock}_ratio"] <= high
    assert (written["pairs"], figures["validation_images"]) == (2, 40)
    assert written["versions"].keys() >= {"torch", "torchvision", "pytorch-lightning"}


def test_neighbours_are_compared_in_changing_order(monkeypatch):
    monkeypatch.setitem(bench_groups.SETTINGS, "small_cnn", (32, 16, 16))
    seconds = bench_groups.measure("small_cnn", 3).seconds
    assert [len(seconds[on]) for on in (True, False)] == [3, 3]
    alternating = bench_groups.Alternating.__new__(bench_groups.Alternating)
    order = []
    for alternating.validations in range(8):
        order.append(alternating.on)
    assert order == [True, False, False, True] * 2


def test_interval_of_a_median_holds_it_and_shrinks_with_the_pairs():
    generator = torch.Generator().manual_seed(0)
    values = 1.01 + 0.05 * torch.randn(400, generator=generator, dtype=torch.float64)
    few, many = bench_groups.median_interval(values[:20]), bench_groups.median_interval(values)
    assert many[0] < float(values.median()) < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 2


@pytest.mark.parametrize("model", bench_groups.MODELS)
def test_groups_over_the_whole_validation_set_add_under_two_per_cent(model):
    kept = json.loads(KEPT.read_text())["models"][model]
    assert kept["cpu_ratio"] < 1.02
    assert kept["wall_ratio"] < 1.02
    assert 0 < kept["cpu_share_of_hooks"] < 0.02
