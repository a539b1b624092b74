"""Conditions of probes: applied as displayed, normalised again, and refused where that is unknown."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.interventions.degraded import DARKENING, every_condition, scenes
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions import apply_condition, condition_probes
from xai_callbacks.probes import ProbeSet


def probes(**normalisation) -> ProbeSet:
    images = scenes(3)
    if normalisation:
        mean, std = (torch.tensor(normalisation[key]).view(-1, 1, 1) for key in ("mean", "std"))
        images = (images - mean) / std
    return ProbeSet.from_tensors(images, torch.arange(3), **normalisation)


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@every_condition
def test_probes_are_conditioned_in_display_range_and_normalised_again(condition):
    mean, std = (torch.tensor(IMAGENET[key]).view(-1, 1, 1) for key in ("mean", "std"))
    normalised = probes(**IMAGENET)
    before = normalised.images.clone()

    edited = condition_probes(normalised, condition, 3, seed=5)

    expected = (apply_condition(scenes(3), condition, 3, seed=5) - mean) / std
    # JPEG rounds to grey levels first, and a value at the edge may fall to either side.
    difference = (edited - expected).abs()
    assert float(difference.median()) < 1e-5
    assert float(difference.max()) < (0.5 if condition == "jpeg" else 1e-4)
    assert edited.dtype == torch.float32
    assert torch.equal(normalised.images, before)


def test_one_value_of_normalisation_stands_for_all_channels():
    edited = condition_probes(probes(mean=[0.5], std=[0.25]), "darkening", 5)

    assert_close(edited, (scenes(3) * DARKENING[5] - 0.5) / 0.25, rtol=0, atol=1e-5)


def test_probes_in_display_range_need_no_normalisation():
    assert torch.equal(condition_probes(probes(), "noise", 2), apply_condition(scenes(3), "noise", 2))


def test_overshoot_of_resizing_is_cut():
    images = scenes(3)
    images[:, :, 0, 0] = 1.2
    normalised = ProbeSet.from_tensors((images - 0.5) / 0.25, mean=[0.5], std=[0.25])

    edited = condition_probes(normalised, "darkening", 1)

    assert_close(edited[:, :, 0, 0], torch.full((3, 3), (0.8 - 0.5) / 0.25), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Display pixels of the probes are stretched:UserWarning")
def test_probes_of_unknown_normalisation_are_refused_with_advice():
    unknown = ProbeSet.from_tensors(scenes(3) * 4 - 2)

    with pytest.raises(ConfigurationError, match=r"Expected `probes` to have `mean` and `std`.*Build the probe set"):
        condition_probes(unknown, "blur", 1)


@pytest.mark.filterwarnings("ignore:Display pixels of the probes are stretched:UserWarning")
def test_normalisation_in_units_of_255_is_refused_with_advice():
    wrong = ProbeSet.from_tensors((scenes(3) - 0.5) / 0.25, mean=[127.5], std=[63.75])

    with pytest.raises(ConfigurationError, match=r"once `mean` and `std` are undone.*in units of \[0, 1\] pixels"):
        condition_probes(wrong, "blur", 1)
