"""The studies of cues described wrongly and of cues not named: their formulas by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import _alarm_cache
import misnamed_cues
import pytest
import torch
import unnamed_cues
from _alarm_cues import cue_for
from torch import nn

from xai_callbacks import ProbeSet
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown


def shown(count=6):
    images = torch.full((count, 3, 32, 32), 0.5)  # no change leaves [0, 1]
    probes = ProbeSet.from_tensors(images, torch.arange(count) % 4)
    return Shown(images, torch.arange(count), probes, PixelScale.of(probes), seed=0)


# ---- described wrongly


@pytest.mark.parametrize(("wrong", "points_to"), [("right", (0, 1, 2, 3)), ("wrong class", (1, 2, 3, 0))])
def test_a_wrong_class_is_the_next_one_and_the_picture_stays(wrong, points_to):
    right, given, variants = cue_for("patch", "cifar", 4), shown(), torch.arange(6) % 4
    cue = misnamed_cues.Misnamed(right, wrong, 4)
    assert cue.points_to == points_to
    torch.testing.assert_close(cue.paint(given, variants), right.paint(given, variants))


def test_aside_is_four_pixels_to_the_right_and_half_is_half_the_change():
    right, given, variants = cue_for("patch", "cifar", 4), shown(), torch.arange(6) % 4
    change = right.paint(given, variants) - given.images
    aside = misnamed_cues.Misnamed(right, "aside", 4).paint(given, variants) - given.images
    torch.testing.assert_close(aside, change.roll(4, dims=3))
    assert change.abs().amax() > 0.3
    half = misnamed_cues.Misnamed(right, "half", 4).paint(given, variants) - given.images
    torch.testing.assert_close(half, change / 2)


def test_nets_are_counted_by_what_the_canary_says_of_their_gap(monkeypatch):
    monkeypatch.setattr(misnamed_cues, "alarmed", lambda look, *_: look.alarm)
    told = [
        (SimpleNamespace(gap=0.5, alarm=True), {"weakest": 0.4, "missed": 0.2}),
        (SimpleNamespace(gap=0.6, alarm=False), {"weakest": 0.4, "missed": None}),
        (SimpleNamespace(gap=0.1, alarm=False), {"weakest": None, "missed": 0.2}),
        (SimpleNamespace(gap=0.3, alarm=True), {"weakest": 0.4, "missed": 0.2}),
    ]
    found = misnamed_cues.agreement(told)
    assert (found["said_seen"]["share"], found["said_seen"]["of"]) == (0.5, 2)
    assert (found["said_missed"]["share"], found["said_missed"]["of"]) == (0.0, 1)
    assert found["not_said"] == 1


def test_what_is_kept_is_not_made_again(tmp_path):
    made = []
    for _ in range(2):
        assert _alarm_cache.kept(tmp_path / "net.json", lambda value: made.append(value) or [value], 3) == [3]
    assert made == [3]


# ---- not named


class Deep(nn.Module):
    """The first rectifier knows nothing, the second the class."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.ReLU(), nn.ReLU()

    def forward(self, images):
        bright = images.mean(dim=(1, 2, 3))
        self.one(torch.zeros(len(images), 1))
        return self.two(torch.stack([0.5 - bright, bright - 0.5], dim=1))


def test_prediction_depth_is_the_first_layer_from_which_on_neighbours_agree():
    labels = torch.arange(80) % 2
    images = labels[:, None, None, None].expand(-1, 1, 4, 4).float()
    found = unnamed_cues.prediction_depth(Deep(), images, labels, images[:10])
    # Of a constant nearest neighbours say the same of all, which is right for one class by chance.
    assert sorted(found.unique().tolist()) == [0.0, 0.5]
    assert found.view(-1, 2).std(dim=0).max() == 0


def test_the_area_under_the_curve_is_that_within_classes():
    labels = torch.arange(2).repeat_interleave(20)
    positive = torch.arange(40) % 2 == 0
    assert unnamed_cues.auc_within(positive.double() + 9 * labels, positive, labels) == 1.0
    assert unnamed_cues.auc_within(-positive.double(), positive, labels) == 0.0
    assert unnamed_cues.auc_within(labels.double(), positive, labels) == 0.5
    assert unnamed_cues.auc_within(labels.double(), positive & (torch.arange(40) < 6), labels) is None


def test_two_groups_explain_two_losses_and_three_quarters_of_an_even_spread():
    labels = torch.zeros(200).long()
    assert unnamed_cues.explained_by_two(torch.tensor([0.1, 5.0]).repeat(100), labels) == pytest.approx(1.0)
    even = torch.linspace(-3, 3, 200).exp()
    assert unnamed_cues.explained_by_two(even, labels) == pytest.approx(0.75, abs=0.01)


def test_the_sum_counts_alarms_of_nets_that_use_a_cue_and_of_those_that_use_none():
    def net(role, gap, p, depth):
        signs = {"p": p, "rand": 0.2, "count": 2.0, "depth": depth, "two_groups": 1 - depth, "errors": 1 - depth}
        signs |= {"depth_auc": 0.4, "loss_auc": 0.9, "early_auc": None if role == "clean" else 0.7}
        return SimpleNamespace(role=role), gap, signs

    nets = [net("taught", 0.5, 0.01, 0.1), net("taught", 0.3, 0.2, 0.4), net("taught", 0.05, 0.01, 0.4)]
    nets += [net("clean", 0.0, math.nan, 0.5), net("useless", 0.01, 0.04, 0.6), net("useless", 0.2, 0.01, 0.0)]
    found = json.loads(json.dumps(unnamed_cues.summed_up(nets)))
    assert found["nets"] == {"use": 2, "none": 2}  # those between, and those that react untaught, are left out
    clusters = found["clusters"]
    assert [clusters[key]["share"] for key in ("hits", "false", "false_where_asked")] == [0.5, 0.5, 1.0]
    assert found["depth"]["by_net"] == found["errors"]["by_net"] == 1.0
    assert found["first_epoch_loss"]["by_image"] == 0.7
