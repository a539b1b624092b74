"""The studies that compare explainers, and the gallery: their formulas on nets whose answer is known."""

import inspect

import contrast_deletion
import evaluate_explainers
import gallery
import numpy as np
import pytest
import torch
from _explainer_tables import contrast_table, ends, net_table
from _gallery_rows import Row, Tile, heated
from torch import nn

from xai_callbacks import GradCAM, Gradient, InputXGradient, Occlusion, ProbeSet


class Corner(nn.Module):
    """Class 0 sees red texture in the upper left quarter, class 1 green in the lower right one, class 2 nothing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        red, green = images[:, 0, :16, :16].var(dim=(1, 2)), images[:, 1, 16:, 16:].var(dim=(1, 2))
        return self.scale * torch.stack([red, green, 0 * red], dim=1)


def probes(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    images[:, 1] *= 0.8
    core = torch.zeros(count, 32, 32, dtype=torch.bool)
    core[:, :16, :16] = True
    return ProbeSet.from_tensors(images, class_names=["red", "green", "none"], masks={"core": core})


@pytest.mark.parametrize(("size", "kept"), [(7, 7), (28, 14), (14, 14)])
def test_all_maps_are_judged_on_the_same_cells(size, kept):
    maps = torch.rand(2, size, size)
    cells = evaluate_explainers.on_cells(maps)
    assert cells.shape == (2, 14, 14)
    torch.testing.assert_close(cells.mean(dim=(1, 2)), maps.mean(dim=(1, 2)), rtol=0.1, atol=0)
    assert kept != 14 or size == 28 or torch.equal(cells, maps)


def test_hiding_what_counts_leaves_less_of_the_logit_than_a_random_order():
    deletion = evaluate_explainers.Deletion(Corner(), probes())
    red = probes().masks["core"].float()
    assert (deletion.less_random(red) < -0.05).all()
    assert (deletion.less_random(-red) > 0.05).all()


def test_an_explainer_is_judged_in_full():
    model, shown = Corner().eval(), probes(10)
    copy = Corner().eval()
    found = evaluate_explainers.judged(model, copy, evaluate_explainers.Deletion(model, shown), InputXGradient())
    assert found["mass_lift"] == pytest.approx(4)
    assert found["pointing"] == 1
    assert found["deletion_minus_random"] < 0
    assert found["randomisation"] == pytest.approx(1)  # the copy is the same net
    assert found["cost_forwards"] == 2
    assert found["grid"] == [32, 32]


def test_wrappers_and_masks_of_what_hinders_are_left_out_and_nothing_else():
    from xai_callbacks import explainers

    known = {type(each).__name__ for each in evaluate_explainers.chosen(None)}
    exported = {
        name
        for name in explainers.__all__
        if inspect.isclass(getattr(explainers, name))
        and issubclass(getattr(explainers, name), explainers.Explainer)
        and not inspect.isabstract(getattr(explainers, name))
    }
    assert exported - known == evaluate_explainers.LEFT_OUT
    assert [type(each) for each in evaluate_explainers.chosen(["GradCAM"])] == [GradCAM]


def test_the_fall_of_a_difference_is_that_of_the_pixels_which_are_hidden():
    model, shown = Corner(), probes()
    deletion = contrast_deletion.Deletion(model, shown, torch.zeros(8).long(), torch.ones(8).long())
    red = torch.zeros(8, 4, 4)
    red[:, :2, :2] = 1
    hidden = contrast_deletion.marked(red, (32, 32), contrast_deletion.SHARE)[:, None]
    with torch.no_grad():
        before, after = model(shown.images), model(torch.where(hidden, deletion.mean, shown.images))
    expected = (before - after)[:, 0] - (before - after)[:, 1]
    torch.testing.assert_close(deletion.fall(red), expected.double())
    assert (expected.abs() > 0.01).any()


def test_contrasts_are_judged_beside_why_and_random_maps():
    found = contrast_deletion.falls(Corner().eval(), probes(), InputXGradient())
    why, contrast, difference, random = found
    assert found.shape == (4, 8)
    assert random.abs().mean() < 0.5 * difference.abs().mean()
    row = contrast_deletion.judged(torch.cat([found] * 5, dim=1))
    assert row["difference_minus_why"][0] == pytest.approx(float((difference - why).mean()))
    assert row["contrast_minus_random"][0] == pytest.approx(float((contrast - random).mean()))
    assert row["contrast_minus_random"][1] < row["contrast_minus_random"][0] < row["contrast_minus_random"][2]


def test_tables_say_what_was_found_and_what_was_refused():
    row = {"mass_lift": 1.5, "mass_lift_ci": [1.2, 1.8], "pointing": 0.75, "deletion_minus_random": -0.5}
    row |= {"deletion_ci": [-0.7, -0.3], "randomisation": None, "randomisation_chance": None, "cost_forwards": 2.0}
    made = {"command": "python x.py", "date": "2026-01-01", "machine": "m", "versions": {"torch": "2"}}
    rows, setup = {"gradient": row, "cam": {"refused": "Expected ..."}}, {"photos": 34, "area": 0.3} | made
    lines = net_table("deit_tiny")({"deit_tiny": rows, "setup": setup}).splitlines()
    assert "| `gradient` | 1.50 (1.20 to 1.80) | 75 % | -0.50 (-0.70 to -0.30) | - | 2 |" in lines
    assert "Refused, with advice: `cam`. 34 COCO photos, objects cover 30 %" in lines[-1]
    falls = {"random": 0.1, "why": 0.2, "contrast": 0.4, "contrast_minus_why": [0.2, 0.1, 0.3]}
    falls |= {"contrast_minus_random": [0.3, 0.2, 0.4], "difference_minus_why": [0.1, -0.1, 0.2]}
    entry = {"gradcam": {"all": falls}, "guided_backprop": {"refused": "Expected ..."}}
    table = contrast_table({"nets": {"deit_tiny": entry}, "photos": {"coco": 2, "imagenet": 3}} | made)
    assert (
        "| DeiT-tiny, `gradcam` | 0.10 | 0.20 | 0.40 | 0.20 (0.10 to 0.30) | 0.30 (0.20 to 0.40) | 0.10 (-0.10" in table
    )
    assert "guided_backprop" not in table
    assert ends([0.5, None, None]) == "0.50 (- to -)"


def test_the_gallery_shows_rows_and_escapes_their_names():
    tile = Tile(heated(probes(1), 0, torch.rand(4, 4) - 0.5), "cat & <dog>")
    page = gallery.page([("A <title>", "Why?", [Row("gradcam", "about", [tile, tile])])])
    assert page.count("<img") == 2
    assert "A &lt;title&gt;" in page
    assert "cat &amp; &lt;dog&gt;" in page
    assert "<dog>" not in page
    assert "http" not in page


def test_the_gallery_draws_what_an_explainer_says_and_leaves_out_what_it_refuses(monkeypatch, capsys):
    monkeypatch.setattr(gallery, "chosen", lambda _names: [Gradient(), GradCAM("nowhere"), Occlusion(8)])
    rows = list(gallery.every_explainer(Corner().eval(), probes(2)))
    assert [row.name for row in rows] == ["photo", "gradient", "occlusion"]
    assert [tile.words.partition(",")[0] for tile in rows[0].tiles] == ["red", "red"]
    assert rows[1].about.startswith("The gradient of the score")
    assert all(len(row.tiles) == 2 for row in rows)
    assert "Expected `target_layer`" in capsys.readouterr().out


def test_a_map_of_zeros_leaves_the_photo_as_it_is():
    shown = probes(1)
    assert np.array_equal(heated(shown, 0, torch.zeros(4, 4)), shown.pixels[0].numpy())
