"""Between what a model expects and what is displayed: exact, and bit-identical where nothing was edited."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(count=3, channels=3, height=6, width=5, seed=3):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def column(values):
    return torch.tensor(values).view(-1, 1, 1)


def stored(images, **known):
    """With pixels for display of their own, so that building the set warns of nothing."""
    return ProbeSet.from_tensors(
        images, pixels=torch.zeros(len(images), *images.shape[2:], 3, dtype=torch.uint8), **known
    )


def normalised(count=3, **others):
    return ProbeSet.from_tensors((pixels(count) - column(MEAN)) / column(STD), mean=MEAN, std=STD, **others)


def test_normalisation_is_undone_channel_by_channel():
    probes = normalised()
    shown = PixelScale.of(probes).displayed(probes.images)

    for image, expected in zip(shown, probes.images, strict=True):
        for channel in range(3):
            plain = expected[channel].double() * STD[channel] + MEAN[channel]
            torch.testing.assert_close(image[channel].double(), plain.clamp(0, 1), rtol=0, atol=1e-6)


def test_without_mean_and_std_images_are_displayed_as_they_are():
    probes = ProbeSet.from_tensors(pixels())
    scale = PixelScale.of(probes)

    assert torch.equal(scale.displayed(probes.images), probes.images)
    assert torch.equal(scale.expected(1 - probes.images, probes.images), 1 - probes.images)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_what_is_not_edited_is_bit_identical_and_what_is_edited_is_normalised(seed, share):
    probes = normalised()
    scale = PixelScale.of(probes)
    shown = scale.displayed(probes.images)
    edited = torch.rand(shown.shape, generator=torch.Generator().manual_seed(seed)) < share
    images = torch.where(edited, 1 - shown / 2, shown)  # at least .5, and another value but at 2 / 3

    found = scale.expected(images, probes.images)

    same = images == shown
    assert torch.equal(found[same], probes.images[same])
    expected = (images.double() - column(MEAN)) / column(STD)
    torch.testing.assert_close(found[~same].double(), expected[~same], rtol=1e-5, atol=1e-5)


def test_an_overshoot_of_resizing_is_displayed_cut_and_given_back_whole():
    images = pixels()
    images[1, 0, 2, 2], images[2, 2, 0, 0] = 1.04, -0.03
    probes = ProbeSet.from_tensors((images - 0.5) / 0.25, mean=[0.5] * 3, std=[0.25] * 3)
    scale = PixelScale.of(probes)
    shown = scale.displayed(probes.images)

    assert (float(shown[1, 0, 2, 2]), float(shown[2, 2, 0, 0])) == (1.0, 0.0)
    assert torch.equal(scale.expected(shown, probes.images), probes.images)


def test_grey_images_have_one_scale():
    probes = ProbeSet.from_tensors(pixels(channels=1) * 2 - 1, mean=[0.5], std=[0.5])
    torch.testing.assert_close(PixelScale.of(probes).displayed(probes.images), pixels(channels=1))


@pytest.mark.parametrize(
    ("images", "known", "message"),
    [
        (
            pixels() * 2 - 1,
            {},
            r"Expected `probes` to have `mean` and `std`, .* 47% of .* from -0.997 to 0.989\. Build",
        ),
        (pixels() * 255, {}, r"images in \[0, 1\], but got neither: 100% of the values outside"),
        ((pixels() * 255 - 127) / 64, {"mean": [127.0], "std": [64.0]}, "in units of \\[0, 1\\] pixels"),
        (pixels() * 8 - 4, {"mean": MEAN, "std": STD}, "once `mean` and `std` are undone, but got"),
    ],
    ids=["forgotten", "bytes", "units of 255", "another normalisation"],
)
def test_an_unknown_or_wrong_scale_is_refused_with_what_was_found(images, known, message):
    with pytest.raises(ConfigurationError, match=message):
        PixelScale.of(stored(images, **known))


def test_rounding_is_let_pass_and_one_value_beyond_it_is_not():
    images = pixels()
    images[0, 0, 0, 0] = 1 + 5e-5
    PixelScale.of(stored(images))
    images[0, 0, 0, 0] = 1.001
    with pytest.raises(ConfigurationError, match="but got neither"):
        PixelScale.of(stored(images))


@pytest.mark.parametrize(("outside", "refused"), [(0.04, False), (0.06, True)])
def test_a_few_values_far_outside_may_be_an_overshoot_many_are_a_wrong_scale(outside, refused):
    images = torch.full((1, 1, 10, 10), 0.5)
    images.view(-1)[: round(outside * 100)] = 1.2
    probes = ProbeSet.from_tensors(images * 2 - 1, mean=[0.5], std=[0.5])
    if refused:
        with pytest.raises(ConfigurationError, match="6% of the values outside"):
            PixelScale.of(probes)
    else:
        assert float(PixelScale.of(probes).displayed(probes.images).max()) == 1


def test_shown_probes_know_their_names_and_regions():
    masks = {"core": pixels()[:, 0] > 0.5, "spurious": [None, pixels()[1, 0] > 0.9, None]}
    probes = normalised(names=["a", "b", "c"], masks=masks)
    scale = PixelScale.of(probes)
    shown = Shown(scale.displayed(probes.images[[2, 0]]), torch.tensor([2, 0]), probes, scale, seed=0)

    assert shown.names == ["c", "a"]
    assert torch.equal(shown.region("core"), masks["core"][[2, 0]])
    assert not shown.region("spurious").any()
    assert shown.region("sky") is None
