"""Cues of the image as a whole, frames, masks for functions and descriptions: to the pixel, beside slow twins."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.nn.functional import interpolate

from tests.interventions.paint import noise, painted
from tests.trials.exact import CLASSES, COLOURS, CUE, HEIGHT, OBJECT, WIDTH, box, scenes
from tests.trials.exact import shown_of as shown
from xai_callbacks import BackgroundCue, ConfigurationError, FrameCue, FunctionCue, ProbeSet, QualityCue, ShiftCue
from xai_callbacks.interventions import apply_condition
from xai_callbacks.interventions.cues import PasteCue, PatchCue, TextureCue, TintCue, WatermarkCue
from xai_callbacks.interventions.fills import apply_fill, dilate

MULTI = torch.eye(3, dtype=torch.int64)[[0, 1, 2] * 2]
PICTURES = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(3))


def objects(count=6, *, core=OBJECT, **fields):
    """Noise with an object marked, labels 0, 1, 2 in turn."""
    given = {"labels": torch.arange(count) % 3, "masks": {"core": core.expand(count, -1, -1)}} | fields
    return noise(count, *core.shape, **given)


# ---- quality


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("condition", ["blur", "darkening", "jpeg"])
@pytest.mark.parametrize("level", [1, 5])
def test_a_quality_is_the_condition_of_that_level_whatever_stands_beside(condition, channels, level):
    probes = noise(3, 17, 11, channels=channels)
    found = painted(QualityCue(condition, 0, level=level), probes)
    torch.testing.assert_close(found, apply_condition(probes.images, condition, level), rtol=0, atol=1e-6)
    for row in range(3):
        alone = QualityCue(condition, 0, level=level).paint(shown(probes, [row]), torch.zeros(1, dtype=torch.int64))
        assert torch.equal(alone[0], found[row])


def test_qualities_are_painted_by_variant():
    probes, variants = noise(4), torch.tensor([1, 0, 1, 0])
    found = QualityCue(["jpeg", "darkening"], [0, 1], level=4).paint(shown(probes), variants)
    for image, variant, original in zip(found, variants.tolist(), probes.images.split(1), strict=True):
        assert torch.equal(image, apply_condition(original, ["jpeg", "darkening"][variant], 4)[0])


# ---- frame


@pytest.mark.parametrize(("width", "side"), [(0.01, 1), (0.1, 1), (0.2, 2), (0.5, 5), (1.0, 10)])
@pytest.mark.parametrize("opacity", [0.4, 1.0])
def test_a_frame_runs_along_all_four_edges(width, side, opacity):
    probes = noise(3)
    cue = FrameCue([[0.2, 0.4, 0.6]], 0, width=width, opacity=opacity)
    found, region = painted(cue, probes), cue.region(shown(probes))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            edge = min(row, column, HEIGHT - 1 - row, WIDTH - 1 - column) < side
            assert bool(region[0, row, column]) == edge
            before, after = probes.images[:, :, row, column], found[:, :, row, column]
            colour = torch.tensor([0.2, 0.4, 0.6])
            expected = before + opacity * (colour - before) if edge else before
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-6 if edge else 0)


# ---- backgrounds


def test_a_picture_stands_behind_the_object_and_the_object_stays_bit_identical():
    probes, variants = objects(), torch.tensor([2, 0, 1, 1, 0, 2])
    found = BackgroundCue(PICTURES, [0, 1, 2]).paint(shown(probes), variants)
    resized = interpolate(PICTURES, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
    assert torch.equal(found[:, :, OBJECT], probes.images[:, :, OBJECT])
    assert torch.equal(found[:, :, ~OBJECT], resized[variants][:, :, ~OBJECT])


@pytest.mark.parametrize("size", [(12, 10), (4, 4), (200, 30)])
def test_a_plain_picture_is_a_plain_background_at_every_size_and_opacity(size):
    plain = torch.full((1, 1, *size), 0.75)
    probes = objects()
    found = painted(BackgroundCue(plain, 0, opacity=0.4), probes)
    expected = probes.images + 0.4 * (0.75 - probes.images)
    torch.testing.assert_close(found[:, :, ~OBJECT], expected[:, :, ~OBJECT])


def test_a_borrowed_background_is_that_of_another_probe_of_the_class_its_object_imputed():
    """Objects of odd probes lie elsewhere, so that what is imputed shows beside the object of the borrower."""
    masks = torch.stack([OBJECT, OBJECT.roll(-4, 0)] * 6)
    probes = objects(12, masks={"core": masks})
    cue, given = BackgroundCue("probes", [0, 1, 2]), shown(probes)
    variants = (probes.labels + 1) % 3
    found = cue.paint(given, variants)
    for row in range(12):
        lenders = [k for k in range(12) if k % 3 == variants[row]]
        matches = 0
        for k in lenders:
            emptied = apply_fill(probes.images[[k]], dilate(masks[[k]], 1), "road", names=[probes.names[k]])[0]
            matches += torch.equal(found[row], torch.where(masks[row], probes.images[row], emptied))
        assert matches == 1
    part = cue.paint(shown(probes, [7, 2]), variants[[7, 2]])
    assert torch.equal(part, found[[7, 2]])


def test_a_probe_borrows_from_itself_only_where_it_is_alone_in_its_class():
    probes = objects(40, labels=[0] * 39 + [1])
    cue = BackgroundCue("probes", [0, 1])
    own = cue.paint(shown(probes), probes.labels)
    around = ~dilate(OBJECT[None], 1)[0]
    same = (own[:, :, around] == probes.images[:, :, around]).flatten(1).all(dim=1)
    assert same.tolist() == [False] * 39 + [True]


def test_probes_without_an_object_have_no_other_background_and_lend_none():
    masks = OBJECT.expand(9, -1, -1).clone()
    masks[:3] = False
    probes = objects(9, masks={"core": masks})
    for cue in (BackgroundCue("probes", [0, 1, 2]), BackgroundCue(PICTURES, [0, 1, 2])):
        twins = cue.twins(shown(probes))
        assert torch.equal(twins.present[:3], probes.images[:3])
        assert not twins.region[:3].any()
        assert (twins.present[3:] != twins.absent[3:]).flatten(1).any(dim=1).all()


# ---- places


@pytest.mark.parametrize("shift", [(0.25, -0.3), (0.0, 1.0), (-1.0, 0.1), (0.0, 0.0)])
def test_a_whole_image_is_moved_and_its_edge_repeated(shift):
    probes = noise(2, 9, 7, channels=1)
    found = painted(ShiftCue(shift, 0), probes)
    down, right = round(shift[0] * 9), round(shift[1] * 7)
    for row in range(9):
        for column in range(7):
            source = min(max(row - down, 0), 8), min(max(column - right, 0), 6)
            assert torch.equal(found[:, :, row, column], probes.images[:, :, source[0], source[1]])


@pytest.mark.parametrize(("shift", "step"), [((0.1, -0.2), (1, -2)), ((1.0, 0.0), (3, 0)), ((-1.0, -1.0), (-5, -4))])
def test_an_object_is_moved_as_far_as_the_border_allows_and_its_place_imputed(shift, step):
    probes = objects()
    found = painted(ShiftCue(shift, 0, region="core"), probes)
    emptied = apply_fill(probes.images, dilate(probes.masks["core"], 1), "road", names=probes.names)
    there = box(5 + step[0], 4 + step[1], 4, 4)
    assert torch.equal(found[:, :, ~there], emptied[:, :, ~there])
    assert torch.equal(found[:, :, there], probes.images[:, :, OBJECT])


def test_what_cannot_be_moved_stays_bit_identical():
    masks = torch.stack([OBJECT, torch.zeros_like(OBJECT), torch.ones_like(OBJECT), box(8, 0, 4, 3)])
    probes = objects(4, masks={"core": masks})
    found = painted(ShiftCue([0.5, 0.0], 0, region="core"), probes)
    assert [torch.equal(*pair) for pair in zip(found, probes.images, strict=True)] == [False, True, True, True]


# ---- functions with masks


def where_object(images, variants, masks):
    return torch.where(masks["core"][:, None], images * 0.5, images)


def test_a_function_with_a_third_parameter_gets_the_masks_of_its_probes():
    masks = torch.stack([OBJECT, CUE, OBJECT | CUE])
    probes = noise(3, masks={"core": masks, "spurious": masks})
    cue = FunctionCue(where_object, 0, region=lambda images, regions: regions["spurious"])
    for rows in (None, [2, 0]):
        given = shown(probes, rows)
        twins = cue.twins(given)
        assert torch.equal(twins.region, masks[given.rows])
        assert torch.equal(twins.present, torch.where(twins.region[:, None], given.images * 0.5, given.images))


def test_masks_may_be_edited_and_are_none_without_regions():
    def clears(images, variants, masks):
        assert set(masks) == {"core"}
        masks["core"][:] = False
        return images * 0.5

    probes = objects()
    painted(FunctionCue(clears, 0), probes)
    assert probes.masks["core"].any()
    assert painted(FunctionCue(lambda images, _, masks: images * (1 - len(masks)), 0), noise()).equal(noise().images)


def optional(images, variants, masks=None):
    return images * (0.5 if masks else 1.0)


def strength(images, variants, strength=0.5):
    return images * strength


def rest(images, variants, *more, **others):
    return images * (0.5 if not more and not others else 1.0)


class Callable:
    def __call__(self, images, variants, masks):
        return images * (0.5 if "core" in masks else 1.0)


@pytest.mark.parametrize("function", [optional, strength, rest, functools.partial(where_object), Callable()])
def test_a_parameter_with_another_meaning_keeps_its_default(function):
    probes = objects()
    found = painted(FunctionCue(function, 0), probes)
    assert torch.equal(found[:, :, OBJECT], probes.images[:, :, OBJECT] * 0.5)


# ---- words


@pytest.mark.parametrize(
    ("cue", "said"),
    [
        (PatchCue([0.9, 0.1, 0.1], 0, size=0.3), "a square of 3 px in a corner, of colour (0.9, 0.1, 0.1)"),
        (
            PatchCue(COLOURS[:2], CLASSES[:2], at="spurious", opacity=0.5),
            "the region 'spurious' (9 px on average) filled, of colour (1, 0, 0) for 'red' and (0, 1, 0) for 'green', "
            "opacity 0.5",
        ),
        (FrameCue([0.5], 1, width=0.2), "a frame 2 px wide, of colour (0.5)"),
        (TintCue([1.3, 0.8, 0.8], 0), "the whole image times (1.3, 0.8, 0.8)"),
        (TextureCue("dots", 0, keep="core"), "dots of 4 px, opacity 0.5, over all but the region 'core'"),
        (QualityCue("jpeg", 0, level=4), "JPEG of quality 4"),
        (
            QualityCue(["blur", "darkening"], ["red", "blue"], level=3),
            "a blur with a standard deviation of 0.3 px for 'red' and darkening to 42% for 'blue'",
        ),
        (BackgroundCue(PICTURES[:1], 0), "the user's picture, opacity 1, behind the region 'core' (16 px on average)"),
        (ShiftCue([0.25, -0.2], 0), "the image moved 3 px down and -2 px right"),
        (FunctionCue(where_object, 0), "whatever 'where_object' paints"),
        (FunctionCue(Callable(), 0), "whatever 'Callable' paints"),
        (
            PasteCue(0),
            "the region 'spurious' (9 px on average) of other probes pasted in, or a probe's own filled by local_mean, "
            "grown by 2 px",
        ),
    ],
)  # fmt: skip
def test_what_is_painted_is_described_in_pixels(cue, said):
    assert cue.describe(scenes()) == said


def test_a_text_is_described_by_the_width_of_its_ink():
    probes = ProbeSet.from_tensors(torch.full((1, 3, 64, 64), 0.5))
    cue = WatermarkCue("PHOTO", 0, width=0.5)
    inked = (painted(cue, probes) != 0.5).any(dim=1)[0].any(dim=0)
    words = cue.describe(probes)
    assert words.startswith("near the lower edge, opacity 0.8, the text 'PHOTO', ")
    assert int(words.split()[-3]) == pytest.approx(int(inked.sum()), abs=2) == pytest.approx(32, abs=3)


def test_many_variants_are_not_all_listed():
    cue = PatchCue([[k / 10] for k in range(10)], list(range(10)))
    said = cue.describe(noise())
    assert said.endswith("(0) for '0', (0.1) for '1', (0.2) for '2', (0.3) for '3' and 6 others")


# ---- what does not suit


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QualityCue("noise", 0), "`conditions` .* 'quality' to be 1 different of blur, darkening, jpeg"),
        (lambda: QualityCue(["blur"], [0, 1]), "to be 2 different"),
        (lambda: QualityCue("blur", 0, level=6), "Expected `level` to be an integer from 1 to 5, but got 6"),
        (lambda: QualityCue("blur", 0, level=0), "Expected `level`"),
        (lambda: QualityCue(3, 0), "Expected `conditions` to be a text or a list of texts, but got 3"),
        (lambda: FrameCue([0.5], 0, width=0), "Expected `width` of the cue 'frame' to be a number in"),
        (lambda: FrameCue([2.0], 0), r"`colours` of the cue 'frame' to be in \[0, 1\]"),
        (lambda: FrameCue([0.5, 0.5], 0).check(noise()), "for each of 3 channels, but got 2"),
        (lambda: BackgroundCue("folder", 0), "to be \"probes\" or 1 pictures, one a variant, but got 'folder'"),
        (lambda: BackgroundCue(PICTURES, [0, 1]), "or 2 pictures, one a variant, but got 3"),
        (lambda: BackgroundCue(PICTURES * 255, [0, 1, 2]), r"Expected `images` to lie in \[0, 1\]"),
        (lambda: BackgroundCue(PICTURES[0], 0), r"Expected `images` to be floats \(N, C, H, W\)"),
        (lambda: BackgroundCue([1], 0), "Expected `images` to be pictures"),
        (lambda: BackgroundCue("probes", 0, region=None), "Expected `region` to be the name of a region"),
        (lambda: BackgroundCue("probes", 0, region="sky").check(scenes()), "`region` of 'background' to be a region"),
        (lambda: BackgroundCue(PICTURES, [0, 1, 2]).check(objects(channels=1)), "for each of 1 channels, but got 3"),
        (lambda: BackgroundCue("probes", [0, 2]).check(objects(2)), "but got none of class '2'"),
        (lambda: BackgroundCue("probes", 0).check(objects(labels=None)), "a labelled probe .* got none of class '0'"),
        (lambda: BackgroundCue("probes", 0).check(objects(labels=MULTI)), "one label each"),
        (lambda: ShiftCue([0.1], 0), r"to be pairs \(down, right\), but got \[0.1\]"),
        (lambda: ShiftCue([0.1, -1.5], 0), r"`shifts` of the cue 'shift' to be in \[-1, 1\]"),
        (lambda: ShiftCue([0.1, math.nan], 0), r"to be in \[-1, 1\]"),
        (lambda: ShiftCue([0.1, 0.1], 0, region=4), "Expected `region` to be the name of a region"),
        (lambda: ShiftCue([0.1, 0.1], 0, region="sky").check(scenes()), "`region` of 'shift' to be a region"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
