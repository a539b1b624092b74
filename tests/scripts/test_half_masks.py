"""The study of hidden halves counts what it says, and its page shows the kept figures."""

import json
from pathlib import Path

import half_masks
import pytest
import torch
from torch import nn

RESULTS = half_masks.PAGE.parent / "results" / "half_masks.json"


class ByHalves(nn.Module):
    """Six classes: whether the top is light, dark or between, as far as it goes; the last three tell the bottom."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((2, 1))

    def forward(self, images):
        level = self.pool(images).mean(dim=1).flatten(1)
        return torch.stack([level, -level, 0.8 - level.abs()], dim=2).flatten(1) * torch.tensor([3.0] * 3 + [0.1] * 3)


def images(count=5):
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.4


def test_answers_are_counted_by_fill():
    found = half_masks.answers(ByHalves(), images())["halves"]
    assert found["top"]["all_fills_agree"] == 0
    assert found["top"]["kept"] == {"white": 0, "black": 0, "noise": 1}
    assert found["top"]["two_fills_agree"] == 0
    assert found["bottom"]["all_fills_agree"] == 1
    assert set(found["bottom"]["kept"].values()) == {1.0}
    assert 0.5 < found["bottom"]["top5_shared"] <= 1


def test_shares_are_zero_against_a_background_filled_alike_and_sums_are_right():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 121, 5)).eval()
    found = half_masks.shares(model, images(3), images(5)[3:])
    for half in half_masks.HALVES:
        assert all(row["same fill"] == 0 for row in found["filled"][half].values())
        assert found["filled"][half]["white"]["sample"] > 0.5
        assert 0 < found["noise_of_its_own"][half] < 1
    assert found["whole"]["top"]["sample"] + found["whole"]["bottom"]["sample"] == pytest.approx(1)
    assert found["largest_error"] < 1e-4


def test_noise_is_the_same_in_all_images_and_another_with_another_seed():
    shown = half_masks.filled(images(), "top", "noise")
    assert torch.equal(shown[0, :, :12], shown[1, :, :12])
    assert torch.equal(shown[:, :, 12:], images()[:, :, 12:])
    assert not torch.equal(half_masks.filled(images(), "top", "noise", seed=1), shown)


def test_the_page_shows_the_kept_figures():
    page = half_masks.PAGE.read_text(encoding="utf-8")
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert half_masks.page_of(page, result) == page
    assert all(f"<!-- {name} table -->" in page for name in half_masks.TABLES)
    assert all(found["largest_error"] < 1e-4 for found in result["shares"].values())


@pytest.mark.slow
def test_the_study_runs_and_draws_where_it_is_told(shared_data, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(half_masks.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    options = ["--data", str(shared_data), "--count", "1", "--explained", "1", "--sample", "1", "--page", str(page)]
    result = half_masks.main([*options, "--json", str(tmp_path / "new.json"), "--out", str(tmp_path / "pictures")])
    assert json.loads((tmp_path / "new.json").read_text()) == result
    assert half_masks.page_of(page.read_text(), result) == page.read_text()
    assert len(list(Path(tmp_path / "pictures").rglob("*.png"))) == 12
