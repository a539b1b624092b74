"""The novelty tables run at a small size, and the kept ones have what the README and the issue need."""

import json

import _small_nets
import novelty_classifiers
import novelty_conditions
import pytest
import torch
from scipy import stats

SMALL = ["--epochs", "1", "--images", "320", "--fit-images", "100", "--test-images", "40"]


def test_interval_over_seeds_is_that_of_scipy():
    values = [0.71, 0.74, 0.69, 0.77, 0.70]
    row = _small_nets.mean_and_interval(values)
    low, high = stats.t.interval(0.95, df=4, loc=sum(values) / 5, scale=stats.sem(values))

    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.722, low, high), abs=1e-4)
    assert _small_nets.mean_and_interval([0.7])["low"] is None


def test_relabelled_classes_keep_their_images():
    pixels = torch.arange(6.0).view(6, 1, 1, 1)
    found = _small_nets.Images(pixels, torch.tensor([3, 5, 3, 9, 5, 0])).of_classes([5, 3])

    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.pixels.flatten().tolist() == [0, 1, 2, 4]


def test_no_class_is_known_and_unknown():
    for seed in range(5):
        known, unknown = novelty_classifiers.split_classes(seed)
        assert len(known) == 6
        assert sorted(known + unknown) == list(range(10))


@pytest.mark.slow
@pytest.mark.data
def test_classifier_table_holds_every_score(shared_data, tmp_path, capsys):
    path = tmp_path / "new" / "table.json"
    result = novelty_classifiers.main([*SMALL, "--seeds", "2", "--data", str(shared_data), "--json", str(path)])

    assert json.loads(path.read_text()) == result
    names = {score.name for score in _small_nets.all_scores()} | {"pixel_mean", "pixel_mean_distance"}
    for group in ("near", "far"):
        assert result[group].keys() == names
        for row in result[group].values():
            assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
            assert len(row["per_seed"]) == 2
    assert "purview_distance" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.data
def test_condition_table_holds_every_level_and_chance_without_a_condition(shared_data, tmp_path, capsys):
    path = tmp_path / "table.json"
    result = novelty_conditions.main([*SMALL, "--seeds", "1", "--data", str(shared_data), "--json", str(path)])

    assert json.loads(path.read_text()) == result
    for conditions in result["scores"].values():
        assert conditions["noise"].keys() == {"1", "2", "3", "4", "5", "mean"}
        assert 0.3 < conditions["clean"]["0"]["mean"] < 0.7
    assert "darkening 5" in capsys.readouterr().out
