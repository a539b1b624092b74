"""Display pixels of normalised images."""

from __future__ import annotations

import pytest
import torch

from xai_callbacks.probes import ProbeSet

BYTES = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)


def as_pixels(images):
    return images.permute(0, 2, 3, 1)


def test_images_within_the_unit_range_are_shown_as_they_are():
    probes = ProbeSet.from_tensors(BYTES.float() / 255)
    assert torch.equal(probes.pixels, as_pixels(BYTES))


def test_normalisation_is_undone_exactly():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shape = (1, 3, 1, 1)
    every_byte = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = (every_byte.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    probes = ProbeSet.from_tensors(images, mean=mean, std=std)
    assert torch.equal(probes.pixels.long(), as_pixels(every_byte))


def test_grey_images_become_three_equal_channels():
    probes = ProbeSet.from_tensors(BYTES[:, :1].float() / 255)
    assert torch.equal(probes.pixels, as_pixels(BYTES[:, :1]).expand(-1, -1, -1, 3))


def test_other_channel_counts_are_shown_as_their_grey_mean():
    images = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert (ProbeSet.from_tensors(images).pixels == 128).all()


def test_unknown_normalisation_is_stretched_over_the_set_with_one_warning():
    images = torch.tensor([[-1.0, 0.0], [1.0, 3.0]]).view(2, 1, 1, 2)
    with pytest.warns(UserWarning, match=r"pass mean= and std=") as caught:
        probes = ProbeSet.from_tensors(images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert probes.pixels[..., 0].tolist() == [[[0, 64]], [[128, 255]]]


def test_each_channel_is_stretched_on_its_own_and_a_constant_one_is_grey():
    images = torch.stack([torch.full((2, 2), -5.0), torch.eye(2) * 10, -torch.eye(2)])[None]
    with pytest.warns(UserWarning, match="stretched"):
        pixels = ProbeSet.from_tensors(images).pixels
    assert pixels[0, 0, 0].tolist() == [128, 255, 0]
    assert pixels[0, 0, 1].tolist() == [128, 0, 255]


def test_a_normalisation_on_another_scale_is_noticed():
    images = (BYTES.float() - 100.0) / 50.0
    with pytest.warns(UserWarning, match=r"units of \[0, 1\]"):
        pixels = ProbeSet.from_tensors(images, mean=[100.0], std=[50.0]).pixels
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_overshoot_after_undoing_the_normalisation_is_clipped_silently():
    images = torch.tensor([-3.0, 0.0, 0.5, 3.0]).view(1, 1, 2, 2)
    pixels = ProbeSet.from_tensors(images, mean=[0.5], std=[0.5]).pixels
    assert pixels[0, :, :, 0].flatten().tolist() == [0, 128, 191, 255]


def test_huge_finite_values_do_not_overflow_the_stretch():
    images = torch.tensor([-3e38, 3e38]).view(1, 1, 1, 2)
    with pytest.warns(UserWarning, match="stretched"):
        assert ProbeSet.from_tensors(images).pixels[0, 0, :, 0].tolist() == [0, 255]


def test_given_pixels_are_used_without_a_warning():
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ProbeSet.from_tensors(torch.full((2, 3, 4, 4), 7.0), pixels=pixels).pixels, pixels)
