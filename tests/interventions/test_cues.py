"""Cues: what each paints, to the pixel, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trials.exact import COLOURS, CUE, HEIGHT, OBJECT, WIDTH, box, scene, scenes
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import (
    FunctionCue,
    PasteCue,
    PatchCue,
    TextureCue,
    TintCue,
    WatermarkCue,
)
from xai_callbacks.interventions.cues.overlays import TEXTURES
from xai_callbacks.interventions.cues.painted import paired_variants
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown

FIRST = torch.zeros(1, dtype=torch.int64)


def shown(probes, rows=None, seed=0):
    scale = PixelScale.of(probes)
    rows = torch.arange(len(probes)) if rows is None else torch.tensor(rows)
    return Shown(scale.displayed(probes.images[rows]), rows, probes, scale, seed)


def noise(count=4, height=HEIGHT, width=WIDTH, channels=3, **fields):
    """Probes of noise."""
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(2))
    return ProbeSet.from_tensors(images, **fields)


def painted(cue, probes, variant=0):
    """One variant on all probes."""
    return cue.paint(shown(probes), torch.full((len(probes),), variant))


# ---- which variant


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=40),
    seed=st.integers(0, 10**6),
)
def test_a_labelled_image_gets_another_class_and_its_twin_its_own_or_none(classes, labels, seed):
    """Case by case, as the sentence says it."""
    labels = torch.tensor(labels)
    first, second = paired_variants(classes, len(labels), seed, labels)
    for label, one, other in zip(labels.tolist(), first.tolist(), second.tolist(), strict=True):
        to, twin = classes[one], None if other < 0 else classes[other]
        if label < 0:
            assert twin != to
            assert (twin is None) == (set(classes) == {to})
        elif set(classes) == {label}:
            assert (to, twin) == (label, None)
        else:
            assert to != label
            assert twin == (label if label in classes else None)
    assert all(map(torch.equal, paired_variants(classes, len(labels), seed, labels), (first, second)))


@given(classes=st.lists(st.integers(0, 4), min_size=1, max_size=6), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_without_labels_variants_are_equally_frequent_and_twins_point_to_another_class(classes, count, seed):
    first, second = paired_variants(classes, count, seed, None)
    frequent = torch.bincount(first, minlength=len(classes))
    assert int(frequent.max() - frequent.min()) <= 1
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        assert (other < 0) == (len(set(classes)) == 1)
        assert other < 0 or classes[one] != classes[other]


def test_each_other_class_is_equally_frequent_and_seeds_differ():
    labels = torch.arange(4000) % 4
    first, _ = paired_variants([0, 1, 2, 3, 3], 4000, 0, labels)
    points_to = torch.tensor([0, 1, 2, 3, 3])[first]
    for label in range(4):
        frequent = torch.bincount(points_to[labels == label], minlength=4).tolist()
        assert frequent.pop(label) == 0
        assert frequent == pytest.approx([1000 / 3] * 3, abs=1.5)  # dealt in turn
    assert not torch.equal(first, paired_variants([0, 1, 2, 3, 3], 4000, 1, labels)[0])


def test_one_variant_is_compared_with_the_very_image_as_it_is():
    given = shown(scenes())
    twins = PatchCue([1.0, 0, 0], "red").twins(given)
    assert twins.absent is given.images
    assert twins.neutral is given.images
    assert twins.points_to.tolist() == [0] * 12


def test_several_variants_are_compared_with_another_one_each():
    given = shown(scenes())
    twins = PatchCue(COLOURS, [0, 1, 2], size=0.3).twins(given)
    rows = zip(*twins[:2], twins.points_to.tolist(), given.probes.labels.tolist(), twins.region, strict=True)
    for present, absent, cue, label, region in rows:
        assert cue != label
        assert present[:, region].unique(dim=1).T.tolist() == [list(COLOURS[cue])]
        assert absent[:, region].unique(dim=1).T.tolist() == [list(COLOURS[label])]
        assert torch.equal(present[:, ~region], absent[:, ~region])


# ---- which class


@pytest.mark.parametrize(("points_to", "expected"), [("blue", (2,)), (1, (1,)), (["green", 0], (1, 0))])
def test_classes_are_given_by_name_or_index(points_to, expected):
    count = 1 if isinstance(points_to, (str, int)) else len(points_to)
    assert PatchCue([[0.0]] * count, points_to).classes(scenes()) == expected


@pytest.mark.parametrize(
    ("points_to", "fields", "message"),
    [
        ("bleu", {}, "Expected `points_to` of the cue `patch` to name a class, but got 'bleu'. Did you mean 'blue'?"),
        ("wolf", {}, "but got 'wolf'. A class is one of red, green, blue."),
        ("red", {"class_names": None}, "but got 'red'. A class has no names: give its index."),
        (3, {}, "to be the index of a class below 3, the number of outputs, but got 3"),
        (-1, {"class_names": None}, "to be the index of a class, but got -1"),
    ],
)
def test_a_class_that_is_not_there_is_refused(points_to, fields, message):
    with pytest.raises(ConfigurationError) as caught:
        PatchCue([0.0], points_to).check(scenes(**fields))
    assert message in str(caught.value)


@pytest.mark.parametrize("points_to", [None, [], True, 1.0, [0, None], b"x", torch.tensor([0])])
def test_what_is_no_class_is_refused_at_construction(points_to):
    with pytest.raises(ConfigurationError, match="to be an index or a name of a class for each variant, but got"):
        TintCue([1.0], points_to)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é!", None, 5, ["a"]])
def test_a_name_that_would_break_a_key_is_refused(name):
    with pytest.raises(ConfigurationError, match="Expected `name` of a cue to be letters"):
        PatchCue([0.0], 0, name=name)


def test_variants_of_one_class_are_compared_with_the_image_without_any():
    given, cue = shown(scenes(labels=None)), PatchCue(COLOURS[:2], ["blue", 2], size=0.3)
    cue.check(given.probes)
    twins = cue.twins(given)
    assert twins.absent is twins.neutral is given.images
    assert twins.points_to.tolist() == [2] * 12
    rows = zip(twins.present, twins.region, strict=True)
    colours = [tuple(image[:, region][:, 0].tolist()) for image, region in rows]
    assert [colours.count(colour) for colour in COLOURS[:2]] == [6, 6]


def test_a_twin_never_has_a_variant_of_the_same_class():
    twins = PatchCue(COLOURS, ["red", "red", "blue"], size=0.3).twins(shown(scenes(30, labels=None)))
    for absent, points_to, region in zip(twins.absent, twins.points_to.tolist(), twins.region, strict=True):
        seen = absent[:, region][:, 0].tolist()
        assert seen in ([list(COLOURS[2])] if points_to == 0 else [list(COLOURS[0]), list(COLOURS[1])])


def test_regression_probes_are_refused():
    probes = scenes(labels=None, class_names=None, targets=torch.linspace(0, 1, 12))
    with pytest.raises(ConfigurationError, match="probes with labels for `the cue patch`, but got regression probes"):
        PatchCue([0.0], 0).check(probes)


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
            r"Expected `size` of the cue 'patch' to be a share in \(0, 1\], but got 0",
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


# ---- the user's own


def test_an_own_function_gets_images_and_variants_and_may_edit_what_it_gets():
    def brighten(images, variants):
        images *= 1 - 0.1 * variants[:, None, None, None]
        variants.zero_()
        return images

    probes = noise(6)
    given = shown(probes)
    before = given.images.clone()
    twins = FunctionCue(brighten, [0, 1]).twins(given)

    assert torch.equal(given.images, before)
    variant = twins.points_to
    torch.testing.assert_close(twins.present, before * (1 - 0.1 * variant[:, None, None, None]))
    torch.testing.assert_close(twins.absent, before * (0.9 + 0.1 * variant[:, None, None, None]))
    assert twins.region is None


def test_an_own_function_may_be_off_by_rounding_and_return_another_float_type():
    found = painted(FunctionCue(lambda images, _: (images + 1).double().clamp(max=1 + 5e-5), 0), noise())
    assert found.dtype == torch.float32
    assert float(found.max()) == 1


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda images, _: images * 2 - 1, "values from -"),
        (lambda images, _: images * torch.nan, "values from nan to nan"),
        (lambda images, _: images[:, :1], r"torch.float32 \(4, 1, 12, 10\)"),
        (lambda images, _: images[0], r"torch.float32 \(3, 12, 10\)"),
        (lambda images, _: (images * 255).to(torch.uint8), "torch.uint8"),
        (lambda images, _: images.numpy(), "ndarray"),
        (lambda images, _: None, "NoneType"),
    ],
)
def test_what_an_own_function_may_not_return_is_named(function, got):
    with pytest.raises(ConfigurationError, match=rf"`function` of the cue 'own' to return images .* but got {got}"):
        painted(FunctionCue(function, 0), noise())


def test_an_own_region_is_used_and_checked():
    probes = noise()
    cue = FunctionCue(lambda images, _: images, 0, region=lambda images: images[:, 0] > 0.5)
    assert torch.equal(cue.twins(shown(probes)).region, probes.images[:, 0] > 0.5)
    for wrong in (lambda images: images[:, 0], lambda images: images > 0.5, lambda _: None):
        with pytest.raises(ConfigurationError, match=r"`region` of the cue 'own' to return booleans \(4, 12, 10\)"):
            FunctionCue(lambda images, _: images, 0, region=wrong).twins(shown(probes))


@pytest.mark.parametrize("wrong", [{"function": "blur"}, {"region": "core"}])
def test_what_cannot_be_called_is_refused_at_construction(wrong):
    with pytest.raises(ConfigurationError, match=r"to be callable, but got str"):
        FunctionCue(**{"function": lambda images, _: images, "points_to": 0} | wrong)


# ---- cut and paste


def pasted_probes(has=(True, False, True, False, False), *, core=OBJECT, cues=None, **fields):
    """Noise with a cue of red on some probes, in another place each."""
    count = len(has)
    places = [box(0, 2 * index, 2, 2) for index in range(count)] if cues is None else cues
    masks = {"spurious": torch.stack([place & flag for place, flag in zip(places, has, strict=True)])}
    if core is not None:
        masks["core"] = core.expand(count, -1, -1)
    images = torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) * 0.5
    for image, mask in zip(images, masks["spurious"], strict=True):
        image[:, mask] = torch.tensor(COLOURS[0])[:, None]
    return ProbeSet.from_tensors(images, masks=masks, **fields)


@pytest.mark.parametrize("grow", [0, 1])
def test_a_cue_is_pasted_where_it_lies_in_its_source_and_the_rest_is_bit_identical(grow):
    probes = pasted_probes()
    twins = PasteCue(1, grow=grow).twins(shown(probes))
    masks = dilate(probes.masks["spurious"], grow)

    assert twins.added.tolist() == [False, True, False, True, True]
    assert twins.points_to.tolist() == [1] * 5
    for row in (1, 3, 4):
        sources = [donor for donor in (0, 2) if torch.equal(twins.region[row], masks[donor])]
        assert len(sources) == 1
        mask = masks[sources[0]]
        assert torch.equal(twins.present[row][:, mask], probes.images[sources[0]][:, mask])
        assert torch.equal(twins.present[row][:, ~mask], probes.images[row][:, ~mask])
        assert torch.equal(twins.absent[row], probes.images[row])


@pytest.mark.parametrize("fill", ["local_mean", "road", "shuffle"])
def test_a_cue_is_taken_from_those_that_have_it_and_filled(fill):
    probes = pasted_probes()
    twins = PasteCue(1, fill=fill, grow=1).twins(shown(probes))
    masks = dilate(probes.masks["spurious"], 1)
    emptied = apply_fill(probes.images, masks, fill, names=probes.names)
    for row in (0, 2):
        assert torch.equal(twins.present[row], probes.images[row])
        assert torch.equal(twins.absent[row], emptied[row])
        assert torch.equal(twins.region[row], masks[row])
    assert twins.neutral is twins.absent


def test_sources_are_drawn_by_name_among_all_that_have_the_cue():
    probes = pasted_probes([index < 3 for index in range(40)], cues=[box(0, 4 * (i % 3), 2, 2) for i in range(40)])
    whole = PasteCue(0, grow=0).twins(shown(probes))
    places = whole.region[3:].flatten(1).double().argmax(dim=1)
    assert set(places.tolist()) == {0, 4, 8}
    part = PasteCue(0, grow=0).twins(shown(probes, [30, 5]))
    assert torch.equal(part.present, whole.present[[30, 5]])
    assert not torch.equal(PasteCue(0, grow=0).twins(shown(probes, seed=1)).region, whole.region)


@pytest.mark.parametrize("grow", [0, 1])
def test_no_source_ever_hides_the_object_and_without_one_there_is_no_pair(grow):
    """One source lies clear of the object, one touches it where it has grown, one covers it."""
    # The object is 16 pixels, of which a fifth, three, may be hidden. The second source has one row of four beside it.
    places = [box(0, 0, 2, 2), box(4, 4, 1, 4), OBJECT, *[box(0, 0, 1, 1)] * 30]
    probes = pasted_probes([True] * 3 + [False] * 30, cues=places)
    regions = PasteCue(0, grow=grow).twins(shown(probes)).region[3:]

    assert int((regions & OBJECT).flatten(1).sum(dim=1).max()) <= 3
    allowed = {0, 1} if grow == 0 else {0}
    grown = dilate(torch.stack(places[:3]), grow)
    assert {next(k for k in range(3) if torch.equal(region, grown[k])) for region in regions} == allowed

    only = pasted_probes([True, False, False], cues=[places[1] if grow else OBJECT] * 3)
    twins = PasteCue(0, grow=grow).twins(shown(only))
    assert twins.points_to.tolist() == [0, -1, -1]
    assert torch.equal(twins.present[1:], only.images[1:])
    assert not twins.region[1:].any()


@pytest.mark.parametrize(("rows", "points_to"), [(2, 0), (3, -1)])
def test_a_source_may_hide_a_fifth_of_the_object_and_no_more(rows, points_to):
    probes = pasted_probes([True, False], core=box(4, 4, 5, 2), cues=[box(4, 5, rows, 2)] * 2)
    assert int(probes.masks["core"][0].sum()) == 10
    assert PasteCue(0, grow=0).twins(shown(probes)).points_to.tolist() == [0, points_to]


def test_without_a_mask_of_the_object_any_source_will_do():
    probes = pasted_probes([True, False], core=None, cues=[OBJECT, OBJECT])
    assert PasteCue(0).twins(shown(probes)).points_to.tolist() == [0, 0]


def test_one_source_serves_all_and_where_all_have_the_cue_none_is_added():
    one = PasteCue(0, grow=0).twins(shown(pasted_probes([False, True, False])))
    assert torch.equal(one.region, box(0, 2, 2, 2).expand(3, -1, -1))
    everyone = PasteCue(0).twins(shown(pasted_probes([True] * 4)))
    assert not everyone.added.any()
    assert everyone.points_to.tolist() == [0] * 4


def test_a_cue_is_pasted_as_displayed_between_normalised_probes():
    plain = pasted_probes()
    probes = ProbeSet.from_tensors(plain.images * 2 - 1, masks=plain.masks, mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(PasteCue(0).twins(shown(probes)).present, PasteCue(0).twins(shown(plain)).present)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PasteCue([0, 1]), "to be one class, that of the region, but got"),
        (lambda: PasteCue(0, fill="swap"), "Expected `fill` of the cue 'paste' to be one of black, white, local_mean"),
        (lambda: PasteCue(0, fill="fog"), "but got 'fog'"),
        (lambda: PasteCue(0, grow=-1), "Expected `grow` to be an integer of 0 or more, but got -1"),
        (lambda: PasteCue(0, region="patch").check(scenes()), "`region` of 'paste' to be a region of the probes"),
        (lambda: PasteCue(0).check(noise()), "They have none; pass `masks="),
        (lambda: PasteCue(0).check(pasted_probes([False] * 3)), "Expected some probes to have the region 'spurious'"),
    ],
)
def test_what_cannot_be_pasted_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


# ---- any images


@settings(max_examples=25)
@given(
    height=st.integers(5, 40), width=st.integers(5, 40), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 10**4)
)
def test_edited_images_of_any_shape_lie_in_the_display_range(height, width, channels, seed):
    images = (torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 1.5).clamp(max=1)
    probes = ProbeSet.from_tensors(images, pixels=torch.zeros(2, height, width, 3, dtype=torch.uint8))
    generator = np.random.default_rng(seed)
    opacity, size = generator.uniform(0.01, 1, 2)
    for cue in (
        PatchCue([1.0], 0, opacity=opacity, size=size),
        PatchCue([0.0], 0, opacity=opacity, size=size),
        TintCue([float(size) * 3], 0),
        TextureCue("rings", 0, opacity=opacity),
        WatermarkCue("ab", 0, opacity=opacity, width=size),
    ):
        present = cue.twins(shown(probes)).present
        assert present.shape == images.shape
        assert ((present >= 0) & (present <= 1)).all()
