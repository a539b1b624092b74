"""Images that are said to be normalised and are not."""

from __future__ import annotations

import warnings

import pytest
import torch

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(count=8, channels=3):
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


RAW = {
    "noise": noise(),
    "black on white": (noise(channels=1) > 0.3).float().expand(-1, 3, -1, -1),
    "white on black": (noise(channels=1) > 0.9).float().expand(-1, 3, -1, -1),
    "dark": 0.4 * noise(),
    "bright": 0.7 + 0.3 * noise(),
}


@pytest.mark.parametrize("images", RAW.values(), ids=RAW)
@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5,), (0.5,)), ((0.13,), (0.31,))], ids=["ImageNet", "-1 to 1", "MNIST"]
)
def test_images_that_were_not_normalised_are_told_once(images, mean, std):
    with pytest.warns(UserWarning, match="as if the transform had been forgotten") as caught:
        probes = ProbeSet.from_tensors(images, mean=mean, std=std)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probes.select([0, 1])


@pytest.mark.parametrize("images", RAW.values(), ids=RAW)
@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5,), (0.5,)), ((0.0,), (1.0,)), ((0.0,), (0.5,)), ((0.13,), (0.31,))]
)
def test_normalised_images_give_no_warning(images, mean, std):
    shape = (1, -1, 1, 1)
    normalised = (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    # Of these, no pixel is darker than the mean, nor above 1: they look like raw ones, and only their pixels tell.
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    ProbeSet.from_tensors(normalised, mean=mean, std=std, pixels=pixels if (normalised >= 0).all() else None)


@pytest.mark.parametrize(
    ("images", "mean", "std"),
    [
        (noise(), (0.0,), (1.0,)),  # says that nothing was done
        (noise(), (0.0,), (2.0,)),
        (0.4 * noise(), (0.0,), (0.5,)),  # dark images of a range from 0 to 2
        (torch.zeros(2, 3, 4, 4), MEAN, STD),  # the mean itself
        (noise(), None, None),
    ],
)
def test_what_may_well_be_normalised_gives_no_warning(images, mean, std):
    ProbeSet.from_tensors(images, mean=mean, std=std)


def test_white_that_ends_at_one_is_told_although_black_stays_black():
    with pytest.warns(UserWarning, match="forgotten"):
        ProbeSet.from_tensors(RAW["black on white"], mean=[0.0], std=[0.5])


def test_a_saved_set_is_told_once(tmp_path):
    with pytest.warns(UserWarning, match="forgotten"):
        probes = ProbeSet.from_tensors(noise(), mean=MEAN, std=STD)
    probes.save(tmp_path / "set")
    ProbeSet.load(tmp_path / "set")


@pytest.mark.parametrize("given", ["1", "0.5", 0.5, None, {0.5: 1}, [10**400], [None], ["a"], object()])
def test_what_is_no_normalisation_is_refused(given):
    for arguments in ({"mean": given, "std": [1.0]}, {"mean": [0.5], "std": given}):
        with pytest.raises(ProbeSetError, match=r"`(mean|std)`"):
            ProbeSet.from_tensors(noise(), **arguments)


def test_tensors_and_arrays_are_a_normalisation():
    probes = ProbeSet.from_tensors(noise() - 0.5, mean=torch.tensor([0.5]), std=torch.tensor([1.0] * 3).numpy())
    assert (probes.mean, probes.std) == ((0.5,) * 3, (1.0,) * 3)
