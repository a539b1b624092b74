"""The study of undesirable pixels: which images it judges, and what it calls held."""

from __future__ import annotations

import pytest
import torch
import undesirable_pixels as study
from torch import nn

from xai_callbacks.metrics.hiding import HidingEffect


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(20, 3, 2, 2)


def test_images_that_none_of_their_classes_answers_are_judged_by_the_most_probable(linear):
    model, images = linear
    named = [[0, 1]] * 10 + [[2]] * 10
    case = study.misclassified(model, images, named)
    logits = model(images).detach()
    expected = [n for n, classes in enumerate(named) if int(logits[n].argmax()) not in classes]
    assert 0 < len(expected) < 20
    torch.testing.assert_close(case.images, images[expected])
    best = [max(named[n], key=lambda index, n=n: float(logits[n, index])) for n in expected]
    assert case.classes.tolist() == best


def test_halves_share_no_image(linear):
    case = study.Case(*linear, torch.arange(20) % 4)
    first, second = (case.half(second=each, count=99) for each in (False, True))
    torch.testing.assert_close(torch.cat([first.images, second.images]), case.images)
    torch.testing.assert_close(case.half(second=True, count=3).images, case.images[10:13])


def test_masks_in_place_are_held_against_the_same_masks_elsewhere(monkeypatch):
    """The effect of a mask is made its first cell, so that gains over other places are known."""

    class Case:
        classes = torch.zeros(40)

        def maps(self, explainers, question):
            torch.manual_seed(0)
            maps = {each.name: -torch.rand(40, 7, 7) for each in explainers}
            for each in maps.values():
                each[:, 0, 0] = -2.0
            return maps

        def effect(self, hidden):
            return HidingEffect(*7 * [hidden[:, 0, 0].double()])

    monkeypatch.setattr(study, "most_relevant", lambda maps, area: torch.zeros(len(maps), 7, 7))
    found = study.judged([Case()], study.KINDS)
    assert found["images"] == 40
    assert found["effects"]["target"]["target"][0] == 2
    mean, low, high = found["gains"]["target over target, random"]
    assert 1.3 < low < mean < high < 1.7
    assert found["gains"]["non-target over gradcam"][0] == 2
    assert found["gains"]["target over target, other image"][0] == 0
