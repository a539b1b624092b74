"""Patches, tints, textures and watermarks: what each paints, to the pixel, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.interventions.paint import noise, painted
from tests.trials.exact import COLOURS, CUE, HEIGHT, OBJECT, WIDTH, box, scene, scenes
from tests.trials.exact import shown_of as shown
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import PatchCue, TextureCue, TintCue, WatermarkCue
from xai_callbacks.interventions.cues.overlays import TEXTURES
from xai_callbacks.interventions.fills import apply_fill, dilate

# ---- patch


def corners(side, gap, height=HEIGHT, width=WIDTH):
    tops, lefts = (gap, height - gap - side), (gap, width - gap - side)
    return [box(top, left, side, side, (height, width)) for top in tops for left in lefts]


@pytest.mark.parametrize(
    ("size", "side", "gap"), [(0.16, 2, 0), (0.3, 3, 0), (0.6, 6, 1), (0.9, 9, 1), (1.0, 10, 0), (0.01, 1, 0)]
)
def test_a_patch_is_a_square_in_a_corner_with_a_gap_where_there_is_room(size, side, gap):
    regions = PatchCue([0.5], 0, size=size).region(shown(noise(20)))
    places = corners(side, gap)
    assert all(any(torch.equal(region, place) for place in places) for region in regions)
    assert int(regions[0].sum()) == side**2


def test_every_corner_is_drawn_and_a_probe_keeps_its_own_in_every_company():
    probes = noise(60)
    cue = PatchCue([0.5], 0)
    whole = cue.region(shown(probes))
    assert {tuple(region.nonzero()[0].tolist()) for region in whole} == {(0, 0), (0, 8), (10, 0), (10, 8)}
    assert torch.equal(cue.region(shown(probes, [7, 3])), whole[[7, 3]])
    assert not torch.equal(cue.region(shown(probes, seed=1)), whole)


@pytest.mark.parametrize("free", range(4))
def test_a_patch_goes_where_the_object_is_not(free):
    core = torch.ones(HEIGHT, WIDTH, dtype=torch.bool) & ~corners(2, 0)[free]
    regions = PatchCue([0.5], 0).region(shown(noise(8, masks={"core": core.expand(8, -1, -1)})))
    assert all(torch.equal(region, corners(2, 0)[free]) for region in regions)


def test_a_patch_takes_the_corner_that_shares_least_where_none_is_free():
    core = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    core[0, 11, 9] = False
    assert torch.equal(PatchCue([0.5], 0).region(shown(noise(1, masks={"core": core})))[0], corners(2, 0)[3])


@pytest.mark.parametrize("opacity", [0.1, 0.25, 0.7, 1.0])
def test_a_patch_covers_by_its_opacity(opacity):
    probes = noise()
    cue = PatchCue([[0.2, 0.4, 0.6]], 0, opacity=opacity)
    regions = cue.region(shown(probes))
    for image, region, found in zip(probes.images, regions, painted(cue, probes), strict=True):
        for channel, colour in enumerate((0.2, 0.4, 0.6)):
            before, after = image[channel][region].double(), found[channel][region].double()
            torch.testing.assert_close(after, before + opacity * (colour - before), rtol=0, atol=1e-6)
        assert torch.equal(found[:, ~region], image[:, ~region])
    if opacity == 1:
        assert float(painted(cue, probes)[0, 1][regions[0]].unique()) == pytest.approx(0.4, abs=1e-7)


def test_a_patch_at_a_region_takes_the_place_of_what_the_probes_have():
    """No trace of their own cue is left, the rim included, and twins differ in the region only."""
    rim = dilate(CUE[None], 1)[0]
    images = scene([0] * 6, [-1] * 6)
    images[:, :, rim] = torch.rand(6, 3, int(rim.sum()))
    probes = scenes(6, images=images)
    twins = PatchCue(COLOURS, [0, 1, 2], at="spurious", opacity=0.5).twins(shown(probes))

    plain = apply_fill(images, rim.expand(6, -1, -1), "local_mean")
    assert torch.equal(twins.neutral, plain)
    assert torch.equal(twins.region, CUE.expand(6, -1, -1))
    for present, bare, cue in zip(twins.present, plain, twins.points_to.tolist(), strict=True):
        assert torch.equal(present[:, ~CUE], bare[:, ~CUE])
        expected = (bare[:, CUE] + torch.tensor(COLOURS[cue])[:, None]) / 2
        torch.testing.assert_close(present[:, CUE], expected)


def test_one_variant_at_a_region_is_compared_with_the_region_filled():
    twins = PatchCue([1.0, 0, 0], 0, at="spurious").twins(shown(scenes(3)))
    assert twins.absent is twins.neutral
    assert torch.equal(twins.present[:, :, ~CUE], twins.absent[:, :, ~CUE])


def test_a_region_named_corner_is_not_taken_for_the_corner():
    probes = noise(masks={"corner": OBJECT.expand(4, -1, -1)})
    assert not (PatchCue([0.5], 0).region(shown(probes)) & OBJECT).any()


@pytest.mark.parametrize("colours", [[0.5], [[0.5]], 3 * [0.5], torch.tensor([0.5]), np.array([[0.5]], np.float32)])
def test_one_value_stands_for_all_channels_whatever_holds_it(colours):
    probes = noise()
    assert torch.equal(painted(PatchCue(colours, 0), probes), painted(PatchCue([[0.5, 0.5, 0.5]], 0), probes))


# ---- tint and texture


def test_a_tint_multiplies_each_channel_and_cuts():
    probes = noise()
    found = painted(TintCue([[1, 1, 1], [0.5, 1.0, 1.5]], [0, 1]), probes, variant=1)
    for channel, gain in enumerate((0.5, 1.0, 1.5)):
        torch.testing.assert_close(found[:, channel], (probes.images[:, channel] * gain).clamp(max=1))
    assert float(found.max()) == 1


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (28, 28), (33, 40)])
@pytest.mark.parametrize("period", [0.01, 0.2, 0.5])
def test_textures_differ_from_each_other_and_from_a_plain_colour_at_every_size(size, period):
    probes = noise(1, *size)
    cue = TextureCue(list(TEXTURES), [0, 1, 2, 3], opacity=1.0, period=period)
    found = [painted(cue, probes, variant)[0, 0] for variant in range(4)]

    assert all(set(pattern.unique().tolist()) == {0.0, 1.0} for pattern in found)
    for one, other in itertools.combinations(found, 2):
        assert 0.1 < float((one != other).float().mean()) < 0.9


def test_stripes_run_down_to_the_left_with_their_period():
    pattern = painted(TextureCue("stripes", 0, opacity=1.0, period=0.25), noise(1, 32, 40))[0, 0]
    assert torch.equal(pattern[:, 8:], pattern[:, :-8])
    assert torch.equal(pattern[1:, :-1], pattern[:-1, 1:])
    assert float(pattern.mean()) == 0.5


def test_a_texture_covers_by_its_opacity():
    probes = noise()
    pattern = painted(TextureCue("checks", 0, opacity=1.0), probes)
    found = painted(TextureCue("checks", 0, opacity=0.3), probes)
    torch.testing.assert_close(found, 0.7 * probes.images + 0.3 * pattern)


def test_a_texture_leaves_the_region_it_keeps_bit_identical_and_covers_all_else():
    core = torch.stack([OBJECT, torch.zeros_like(OBJECT)])
    probes = noise(2, masks={"core": core})
    cue = TextureCue("dots", 0, keep="core", opacity=1.0)
    found = painted(cue, probes)
    whole = painted(TextureCue("dots", 0, opacity=1.0), probes)

    assert torch.equal(found[0][:, OBJECT], probes.images[0][:, OBJECT])
    assert torch.equal(found[0][:, ~OBJECT], whole[0][:, ~OBJECT])
    assert torch.equal(found[1], whole[1])  # a probe without the region
    assert torch.equal(cue.region(shown(probes)), ~core)


# ---- watermark


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (224, 224), (48, 200), (200, 48)])
@pytest.mark.parametrize("text", ["stock", "© agency 2021", "a"])
def test_a_watermark_lies_whole_in_the_lower_half_and_leaves_the_rest_bit_identical(size, text):
    height, width = size
    probes = ProbeSet.from_tensors(torch.full((1, 3, height, width), 0.5))
    cue = WatermarkCue(text, 0)
    changed = (painted(cue, probes) != 0.5).any(dim=1)[0]
    region = cue.region(shown(probes))[0]

    assert not (changed & ~region).any()
    rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
    assert int(rows.min()) >= height // 2
    assert int(rows.max() - rows.min()) + 1 <= math.ceil(height / 3) + 2
    assert int(columns.min()) > 0
    assert int(columns.max()) < width - 1
    assert abs(int(columns.min()) + int(columns.max()) - (width - 1)) <= 0.1 * width + 2  # in the middle
    assert 0.01 < float(changed.float().mean()) < 0.3


def test_a_long_watermark_is_as_wide_as_asked():
    probes = ProbeSet.from_tensors(torch.full((1, 1, 224, 224), 0.5))
    columns = (painted(WatermarkCue("© agency 2021", 0, width=0.6), probes) != 0.5)[0, 0].any(dim=0).nonzero()
    assert int(columns.max() - columns.min()) + 1 == pytest.approx(0.6 * 224, abs=5)


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_a_watermark_stands_out_on_black_grey_and_white(grey):
    probes = ProbeSet.from_tensors(torch.full((1, 3, 64, 64), grey))
    change = (painted(WatermarkCue("stock", 0), probes) - grey).abs()
    assert float(change.max()) > 0.35
    assert float(painted(WatermarkCue("stock", 0, opacity=0.1), probes).sub(grey).abs().max()) <= 0.1 + 1e-6


def test_texts_share_one_box_and_can_be_told_apart_at_32_pixels():
    probes = ProbeSet.from_tensors(torch.full((2, 3, 32, 32), 0.5))
    cue = WatermarkCue(["stock", "photo"], [0, 1])
    one, other = painted(cue, probes, 0), painted(cue, probes, 1)
    region = cue.region(shown(probes))
    assert torch.equal(region[0], region[1])
    assert not ((one != other).any(dim=1) & ~region).any()
    assert float((one - other).abs()[0].max()) > 0.3


# ---- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchCue([[0.1], [0.2]], 0), "Expected `colours` of the cue 'patch' to be 1 of equal length, one for"),
        (lambda: PatchCue([1, 0, 0], [0, 1, 2]), "to be 3 of equal length"),
        (lambda: PatchCue([[0.1], [0.1, 0.2]], [0, 1]), "to be 2 of equal length"),
        (lambda: PatchCue("red", 0), "to be 1 of equal length, .* but got 'red'"),
        (lambda: PatchCue(0.5, 0), "to be 1 of equal length, .* but got 0.5"),
        (lambda: PatchCue([], 0), "to be 1 of equal length"),
        (lambda: PatchCue([255, 0, 0], 0), r"to be in \[0, 1\], but got \[255"),
        (lambda: PatchCue([math.nan], 0), r"to be in \[0, 1\]"),
        (
            lambda: PatchCue([0.5], 0, size=0),
            r"Expected `size` of the cue 'patch' to be a number in \(0, 1\], but got 0",
        ),
        (lambda: PatchCue([0.5], 0, size=1.1), "Expected `size`"),
        (lambda: PatchCue([0.5], 0, opacity=math.nan), "Expected `opacity`"),
        (lambda: PatchCue([0.5], 0, opacity="half"), "Expected `opacity` .* but got 'half'"),
        (lambda: PatchCue([[0.5, 0.5]], 0).check(noise()), "one value, or one for each of 3 channels, but got 2"),
        (lambda: PatchCue([0.5], 0, at="top").check(noise()), "`at` of 'patch' to be a region .* They have none; pass"),
        (lambda: PatchCue([0.5], 0, at="cor").check(scenes()), "but got 'cor'. They have core, spurious"),
        (
            lambda: PatchCue([0.5], 0, at="a").check(noise(masks={"a": torch.zeros(4, 12, 10, dtype=torch.bool)})),
            "Expected some probes to have the region 'a', `at` of 'patch', but none has",
        ),
        (lambda: TintCue([-0.1], 0), "Expected `gains` of the cue 'tint' to be finite and 0 or more, but got"),
        (lambda: TintCue([math.inf], 0), "to be finite"),
        (lambda: TintCue([1.0, 1.0], 0).check(noise()), "but got 2"),
        (
            lambda: TextureCue("tartan", 0),
            "to be 1 different of stripes, checks, dots, rings, one a variant, but got 'tartan'",
        ),
        (lambda: TextureCue(["dots"], [0, 1]), "to be 2 different of stripes"),
        (lambda: TextureCue("dots", 0, period=0), "Expected `period`"),
        (lambda: TextureCue("dots", 0, keep="coer").check(scenes()), "Expected `keep` of 'texture' to be a region"),
        (lambda: WatermarkCue(["a", "b"], 0), "to be 1 different texts, one a variant"),
        (lambda: WatermarkCue(["a", "a"], [0, 1]), "to be 2 different texts"),
        (lambda: WatermarkCue("  ", 0), "to be of one line, in letters that the font of Pillow has"),
        (lambda: WatermarkCue("a\nb", 0), "to be of one line"),
        (lambda: WatermarkCue("版权 2021", 0), "but got '版权 2021', which has '版权'. Paint others with FunctionCue"),
        (lambda: WatermarkCue("a", 0, width=2), "Expected `width`"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
