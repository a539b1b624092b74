"""The data of the MNIST shortcuts are made as published, and the script runs at a small size."""

from __future__ import annotations

import json
import math

import _mnist_settings
import _mnist_shortcuts as made
import mnist_shortcuts
import numpy as np
import pytest
import torch

from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def strokes(count, seed=0):
    """Images with ink in the middle and a constant 7 around it, so that an edit shows; digits in turn."""
    pixels = torch.full((count, 28, 28), 7, dtype=torch.uint8)
    pixels[:, 8:20, 8:20] = torch.randint(1, 256, (count, 12, 12), generator=generator(seed), dtype=torch.uint8)
    return pixels, torch.arange(count) % 10


def small_digits(train=400, test=400):
    return _mnist_settings.Digits(strokes(train, seed=1), strokes(test, seed=2))


def within_binomial_limits(count, share, found):
    return abs(found - count * share) <= 4 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize("side", [4, 5])
def test_a_decoy_is_a_flush_corner_square_of_the_published_grey_and_nothing_else_changes(side):
    pixels, labels = strokes(2000)
    shades = torch.tensor(made.SHADES)[labels]
    found = made.decoyed(pixels, labels, shades, generator(), side=side)

    assert made.SHADES == (255, 230, 205, 180, 155, 130, 105, 80, 55, 30)
    rows = {"top": slice(0, side), "bottom": slice(28 - side, 28)}
    seen = []
    for image, plain, region, label in zip(found.images[:, 0], pixels, found.region, labels.tolist(), strict=True):
        place = [(down, right) for down in rows for right in rows if bool(region[rows[down], rows[right]].all())]
        assert len(place) == 1
        assert int(region.sum()) == side * side
        expected = plain.clone()
        expected[rows[place[0][0]], rows[place[0][1]]] = 255 - 25 * label
        assert torch.equal(image, expected)
        seen.extend(place)
    for corner in set(seen):
        assert within_binomial_limits(2000, 1 / 4, seen.count(corner))
    assert len(set(seen)) == 4
    assert torch.equal(found.cues, labels)


def test_reversing_the_greys_keeps_that_of_the_five_and_makes_two_digits_look_like_a_nine():
    pixels, labels = strokes(10)
    found = made.decoyed(pixels, labels, 25 * labels, generator(), side=5)

    assert found.cues.tolist() == [9, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert found.images.amin(dim=(1, 2, 3)).tolist()[0] == 0


@pytest.mark.parametrize("conflicting", [0.005, 0.01, 0.02, 0.05, 0.9])
def test_colours_are_planned_by_the_published_milestones(conflicting):
    labels = torch.randint(10, (6000,), generator=generator())
    found = made.planned_colours(labels, conflicting)

    shares = np.full((10, 10), conflicting / 9) + np.eye(10) * (1 - conflicting - conflicting / 9)
    for label in range(10):
        mine = found[labels == label]
        milestones = (len(mine) * np.cumsum(shares[label])).round()
        expected = [int(np.nonzero(milestones > index)[0].min()) for index in range(len(mine))]
        assert mine.tolist() == expected
    off = int((found != labels).sum())
    assert within_binomial_limits(6000, conflicting, off)


def test_a_ninety_percent_conflict_makes_colours_independent_of_digits():
    labels = torch.arange(10000) % 10
    counts = torch.stack([made.planned_colours(labels, 0.9)[labels == label].bincount() for label in range(10)])

    assert (counts == 100).all()


def test_conflicting_colours_are_never_the_own_one_and_equally_likely():
    labels = torch.zeros(9000, dtype=torch.long) + 3
    counts = made.conflicting_colours(labels, generator()).bincount(minlength=10).tolist()

    assert counts.pop(3) == 0
    assert all(within_binomial_limits(9000, 1 / 9, count) for count in counts)


def test_palette_colours_are_distinct_from_one_another_and_from_black():
    for seed in range(3):
        colours = made.palette(generator(seed))
        assert colours.shape == (10, 3)
        assert float(torch.pdist(colours).min()) >= 0.3
        assert float(colours.norm(dim=1).min()) >= 0.3
        assert float(colours.min()) >= 0
        assert float(colours.max()) <= 1


def test_a_coloured_digit_is_its_grey_times_one_colour_an_image_with_little_noise():
    pixels = torch.full((400, 28, 28), 255, dtype=torch.uint8)
    pixels[:, 0] = 0
    labels = torch.arange(400) % 10
    colours = torch.rand(10, 3, generator=generator(5)) * 0.8 + 0.1
    cues = (labels + 1) % 10
    found = made.coloured(pixels, labels, cues, colours, generator())

    assert (found.images[:, :, 0] == 0).all()
    inked = found.images[:, :, 1:].flatten(2)
    assert torch.equal(inked.amin(dim=2), inked.amax(dim=2))
    noise = inked[:, :, 0] / 255 - colours[cues]
    assert float(noise.std()) == pytest.approx(0.005, rel=0.15)
    assert float(noise.mean()) == pytest.approx(-0.5 / 255, abs=0.001)  # cut to whole numbers, as published


def test_irm_environments_have_the_published_shares_of_wrong_labels_and_other_colours():
    pixels, labels = strokes(8000)
    for flipped in (0.1, 0.2, 0.9):
        found = made.irm_environment(pixels, labels, flipped, generator())
        assert within_binomial_limits(8000, 0.25, int((found.labels != (labels < 5).long()).sum()))
        assert within_binomial_limits(8000, flipped, int((found.cues != found.labels).sum()))
        rows = torch.arange(8000)
        assert torch.equal(found.images[rows, found.cues], pixels[:, ::2, ::2])
        assert not found.images[rows, 1 - found.cues].any()


def test_the_two_training_environments_of_irm_are_mixed():
    task = _mnist_settings.SETTINGS["irm"].task(small_digits(train=12000), generator())

    first = task.train.rows(slice(5000))
    assert within_binomial_limits(5000, 0.15, int((first.cues != first.labels).sum()))
    assert len(task.train) == 10000
    assert len(task.tests["reversed"]) == 2000


@pytest.mark.parametrize("name", list(_mnist_settings.SETTINGS))
def test_data_depend_on_the_seed_alone(name):
    first, again, other = (_mnist_settings.SETTINGS[name].task(small_digits(), generator(seed)) for seed in (0, 0, 1))

    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.probes.fingerprint == again.probes.fingerprint
    assert first.tests.keys() == again.tests.keys()
    for test, images in first.tests.items():
        assert torch.equal(images.images, again.tests[test].images)
        assert len(images) == (67 if name == "irm" else 400)
    assert len(first.probes) == 200


@pytest.mark.parametrize(("name", "side"), [("decoy_ross", 4), ("decoy_cdep", 5)])
def test_the_trial_paints_the_decoys_of_training(name, side):
    data = small_digits()
    task = _mnist_settings.SETTINGS[name].task(data, generator())
    twins = twins_of(task)

    corners = made.decoyed(*strokes(200), torch.zeros(200), generator(), side=side).region.unique(dim=0)
    assert len(corners) == 4
    assert all(bool((corners == region).all(dim=(1, 2)).any()) for region in twins.region)
    shades = torch.tensor(made.SHADES)[twins.points_to]
    plain = data.test[0][data.probes]
    expected = torch.where(twins.region, shades[:, None, None], plain)[:, None] / 255
    torch.testing.assert_close(twins.present, expected.float())
    worn = (task.decoys.images[:, 0] * 255)[task.decoys.masks["spurious"]].round().long()
    assert set(worn.tolist()) == set(made.SHADES)


@pytest.mark.parametrize("name", ["coloured_5", "irm"])
def test_the_trial_paints_the_colours_of_training(name):
    white = torch.full((400, 28, 28), 255, dtype=torch.uint8), torch.arange(400) % 10
    task = _mnist_settings.SETTINGS[name].task(_mnist_settings.Digits(white, white), generator())
    twins = twins_of(task)

    for variant in set(twins.points_to.tolist()):
        shown = task.train.images[task.train.cues == variant].double().mean(dim=(0, 2, 3))
        painted = twins.present[twins.points_to == variant].double().mean(dim=(0, 2, 3)) * 255
        torch.testing.assert_close(painted, shown, atol=2, rtol=0)
    labels = task.probes.labels
    for label in set(labels.tolist()):  # each other class as often as any, to one image
        counts = twins.points_to[labels == label].bincount(minlength=len(set(labels.tolist())))
        others = [count for index, count in enumerate(counts.tolist()) if index != label]
        assert max(others) - min(others) <= 1
        assert sum(others) == int((labels == label).sum())


def twins_of(task):
    scale = PixelScale.of(task.probes)
    shown = Shown(scale.displayed(task.probes.images), torch.arange(200), task.probes, scale, seed=0)
    return task.trial.cue.twins(shown)


def test_the_nets_are_those_of_the_public_code():
    sizes = {
        made.ross_mlp: 784 * 50 + 50 + 50 * 30 + 30 + 30 * 10 + 10,
        made.lff_mlp: 2352 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10,
        made.irm_mlp: 392 * 256 + 256 + 256 * 256 + 256 + 256 + 1,
        made.lenet: 25 * 20 + 20 + 20 * 50 * 25 + 50 + 800 * 256 + 256 + 256 * 10 + 10,
    }
    for net, size in sizes.items():
        assert sum(parameter.numel() for parameter in net().parameters()) == size
    white = torch.ones(1, 1, 28, 28)
    assert float(made.ross_mlp()[0](white).max()) == 255
    assert float(made.lff_mlp()[0](white).max()) == pytest.approx(1 / 255)
    assert [float(made.lenet()[0](value * white).max()) for value in (0, 1)] == [-1, 1]


def test_the_onset_is_the_epoch_of_the_first_alarm():
    def rows(*states):
        return [{"epoch": epoch, "state": state} for epoch, state in enumerate(states)]

    assert mnist_shortcuts.onset(rows("no evidence", "watch", "alarm", "watch", "alarm")) == 2
    assert mnist_shortcuts.onset(rows("no evidence", "watch", "reacts to any edit")) is None


def test_without_mnist_the_script_says_what_it_needs(tmp_path):
    with pytest.raises(SystemExit, match="Pass --data"):
        mnist_shortcuts.main(["--data", str(tmp_path / "none"), "--cache", str(tmp_path)])


def test_the_page_holds_the_tables_of_the_kept_results():
    result = json.loads((mnist_shortcuts.ROOT / "docs" / "results" / "mnist_shortcuts.json").read_text())
    page = mnist_shortcuts.PAGE.read_text(encoding="utf-8")

    assert mnist_shortcuts.filled(page, result) == page
    assert result["settings"].keys() == _mnist_settings.SETTINGS.keys()
    for row in result["settings"].values():
        assert f"| {row['title']} |" in page


@pytest.mark.data
def test_the_script_keeps_its_figures_and_continues_from_its_cache(shared_data, tmp_path, capsys):
    path = tmp_path / "new" / "shortcuts.json"
    arguments = ["--data", str(shared_data / "mnist"), "--cache", str(tmp_path / "cache"), "--images", "2000"]
    arguments += ["--epochs", "2", "--seeds", "2", "--settings", "irm", "decoy_ross", "--json", str(path)]
    result = mnist_shortcuts.main([*arguments, "--picture", str(tmp_path)])

    assert json.dumps(json.loads(path.read_text())) == json.dumps(result)  # as text, since NaN differs from itself
    row = result["settings"]["irm"]
    assert row["accuracy"].keys() == {"train", "reversed", "independent"}
    assert [epoch["epoch"] for epoch in row["epochs_of_seed_0"]] == [0, 1, 2]
    for pull in row["cue"]["pull"]:
        assert pull["low"] <= pull["value"] <= pull["high"]
        assert pull["valid"] == 200
    # Red and green are learnt at once, and say the opposite at test.
    assert row["accuracy"]["train"]["mean"] > 0.7
    assert row["accuracy"]["reversed"]["mean"] < 0.35
    assert row["group"]["conflict_gap"]["mean"] > 0.5
    assert result["settings"]["decoy_ross"]["accuracy"].keys() == {"train", "random", "reversed", "without"}
    assert (tmp_path / "mnist_shortcuts_examples.png").stat().st_size > 10_000
    assert "irm, seed 1" in capsys.readouterr().out

    kept = tmp_path / "cache" / "irm_0_2_2000.json"
    edited = json.loads(kept.read_text())
    edited["rows"][-1]["accuracy"]["train"] = 0.25
    kept.write_text(json.dumps(edited))
    again = mnist_shortcuts.main(arguments)
    assert again["settings"]["irm"]["accuracy"]["train"]["per_seed"][0] == 0.25
    assert capsys.readouterr().out == ""
