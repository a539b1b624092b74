"""What hiding does to a class, against the same taken image by image."""

import math

import pytest
import torch

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.hiding import HidingEffect, hiding_effect, most_relevant

WHOLE = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, -1.0], [4.0, 1.0, 1.5]])
HIDDEN = torch.tensor([[3.5, 2.5, 2.0], [0.5, 1.0, -1.0], [4.0, 1.0, 0.5]])
CLASSES = torch.tensor([0, 1, 0])


def slow(whole, hidden, label):
    """One image, in Python numbers."""
    others = [index for index in range(len(whole)) if index != label]
    rival = max(others, key=lambda index: whole[index])
    total = [math.log(sum(math.exp(logits[index]) for index in others)) for logits in (whole, hidden)]
    share = [math.exp(logits[label]) / sum(math.exp(each) for each in logits) for logits in (whole, hidden)]
    answers = [max(range(len(logits)), key=lambda index: logits[index]) for logits in (whole, hidden)]
    return HidingEffect(
        target=hidden[label] - whole[label],
        rival=whole[rival] - hidden[rival],
        others=total[0] - total[1],
        moved=sum(abs(hidden[index] - whole[index]) for index in others) / len(others),
        flips=float(answers[0] != label and answers[1] == label),
        before=share[0],
        after=share[1],
    )


def test_effects_are_those_of_each_image():
    found = hiding_effect(WHOLE, HIDDEN, CLASSES)
    expected = [slow(*pair) for pair in zip(WHOLE.tolist(), HIDDEN.tolist(), CLASSES.tolist(), strict=True)]
    for name, values in found._asdict().items():
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, torch.tensor([getattr(each, name) for each in expected]).double())
    assert found.flips.tolist() == [1, 1, 0]


def test_a_rival_that_falls_does_not_show_in_the_mean_of_the_others():
    """Why there is no such mean: the rest may rise meanwhile."""
    found = hiding_effect(torch.tensor([[0.0, 5.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 3.0, 3.0]]), torch.tensor([0]))
    assert found.rival.item() == 3
    assert found.others.item() > 0
    assert (torch.tensor([2.0, 3.0, 3.0]) - torch.tensor([5.0, 0.0, 0.0])).mean() > 0


def test_images_without_a_class_or_with_logits_that_are_not_finite_have_no_answer():
    hidden = HIDDEN.clone()
    hidden[2, 1] = torch.nan
    found = hiding_effect(WHOLE, hidden, torch.tensor([0, -1, 0]))
    for values in found:
        assert values.isnan().tolist() == [False, True, True]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="Expected logits"):
        hiding_effect(WHOLE, HIDDEN[:2], CLASSES)
    with pytest.raises(ConfigurationError, match="Expected `classes`"):
        hiding_effect(WHOLE, HIDDEN, CLASSES[:2])


@pytest.mark.parametrize("area", [0.05, 0.2, 0.5, 0.99])
def test_the_most_relevant_cells_fill_an_area_exactly(area):
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = most_relevant(maps, area)
    torch.testing.assert_close(masks.mean(dim=(2, 3)), torch.full((2, 3), area))
    order = maps.flatten(2).argsort(dim=2, descending=True)
    shares = masks.flatten(2).gather(2, order)
    assert (shares.diff(dim=2) <= 0).all()
    assert ((shares > 0) & (shares < 1)).sum(dim=2).max() <= 1


def test_of_equal_cells_the_earlier_ones_come_first():
    assert most_relevant(torch.zeros(1, 2, 2), 0.625).tolist() == [[[1, 1], [0.5, 0]]]


@pytest.mark.parametrize("area", [0, 1, -0.2, "half", float("nan")])
def test_areas_that_are_none_are_refused(area):
    with pytest.raises(ConfigurationError, match=r"Expected `area` to be a number in \(0, 1\)"):
        most_relevant(torch.zeros(1, 2, 2), area)
