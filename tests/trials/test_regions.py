"""Trials of regions: exact answers of models that can be computed by hand, and what cannot be answered."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.trials.exact import (
    CUE,
    GAIN,
    HEIGHT,
    OBJECT,
    WIDTH,
    Breaks,
    Constant,
    Reads,
    answers,
    box,
    scene,
    scenes,
    shown_of,
    tried,
    values,
)
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.fills import apply_fill, dilate
from xai_callbacks.interventions.regions import half_masks, partners
from xai_callbacks.record import summarize
from xai_callbacks.trials import BackgroundTrial, HalfTrial, RegionTrial


def everywhere(mask, count=12):
    return mask.expand(count, -1, -1)


def agreeing(count=12, **fields):
    """Scenes whose cue agrees with the label."""
    return scenes(count, images=scene([k % 3 for k in range(count)], [k % 3 for k in range(count)]), **fields)


# ---- a region filled


def test_a_model_loses_what_it_reads_and_nothing_else():
    """Black leaves no colour: three equal logits, of which the first is taken, right for a third."""
    lost = 1 - 1 / 3
    for region, reads, drop in (
        ("core", OBJECT, lost),
        ("spurious", CUE, lost),
        ("core", CUE, 0),
        ("spurious", OBJECT, 0),
    ):
        trial = RegionTrial(region, ["black", "white"], grow=0)
        found = values(Reads(reads), agreeing(), trial)
        for key in ("drop", "drop/black", "drop/white"):
            assert found[f"region/{region}/{key}"].value == pytest.approx(drop), (region, key)
        placebo = found[f"region/{region}/placebo_drop"]
        assert placebo.value == 0 or region == "core"
        assert found[f"region/{region}/drop"].chance == 0


def test_a_cue_that_contradicts_the_labels_has_a_drop_below_zero():
    found = values(Reads(CUE), scenes(), RegionTrial("spurious", ["black"], grow=0))
    assert found["region/spurious/drop"].value == pytest.approx(-1 / 3)


def test_the_drop_is_the_mean_over_the_fills_and_minus_its_placebo_where_both_are_known():
    judged = tried(Reads(CUE), agreeing(18), RegionTrial("spurious")).judged
    of = {key.removeprefix("region/spurious/"): values.values for key, values in judged.items()}

    torch.testing.assert_close(of["drop"], (of["drop/local_mean"] + of["drop/blur"] + of["drop/swap"]) / 3)
    known = ~of["placebo_drop"].isnan()
    assert known.any()
    assert torch.equal(of["drop_minus_placebo"][known], (of["drop"] - of["placebo_drop"])[known])
    assert of["drop_minus_placebo"][~known].isnan().all()
    assert set(of["drop/swap"].tolist()) == {0.0, 1.0}  # another probe's cue, of a class drawn at random


def test_a_placebo_that_takes_away_what_a_model_reads_is_subtracted():
    """Noise, and a net right by definition that reads everything beside the cue."""
    images = torch.rand(40, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(6))
    model = Reads(~CUE)
    labels = answers(model, ProbeSet.from_tensors(images)).argmax(dim=1)
    probes = ProbeSet.from_tensors(images, labels, masks={"spurious": everywhere(CUE, 40)})
    judged = tried(model, probes, RegionTrial("spurious", ["white", "swap"], grow=0)).judged
    drop, placebo, less = (
        judged[f"region/spurious/{key}"].values for key in ("drop", "placebo_drop", "drop_minus_placebo")
    )
    assert drop.eq(0).all()
    assert 0 < float(placebo.mean()) < 0.5
    assert torch.equal(less, -placebo)


def test_a_fill_of_its_own_place_and_of_another_one_are_those_of_the_functions():
    probes = agreeing()
    views = RegionTrial("spurious", ["white", "road"], grow=1, seed=3).views(shown_of(probes))
    grown = dilate(probes.masks["spurious"], 1)
    for fill in ("white", "road"):
        expected = apply_fill(probes.images, grown, fill, names=probes.names, seed=3)
        assert torch.equal(views.images[fill], expected)
    moved = (views.images["placebo white"] == 1).all(dim=1) & ~(probes.images == 1).all(dim=1)
    assert (moved.flatten(1).sum(dim=1) == 16).all()
    assert int((moved & probes.masks["core"]).flatten(1).sum(dim=1).max()) <= 3  # likewise
    assert int((moved & grown).flatten(1).sum(dim=1).max()) <= 3  # a fifth of 16


def test_a_swap_takes_the_place_from_a_class_drawn_at_random_however_probes_are_ordered():
    """Neighbours, in a set that is sorted by class, would be of the same class."""
    labels = torch.arange(30) // 10
    probes = scenes(30, labels=labels, images=scene(labels.tolist(), labels.tolist()))
    views = RegionTrial("spurious", ["swap"], grow=0).views(shown_of(probes))
    colour = views.images["swap"][:, :, 0, 0].argmax(dim=1)
    assert torch.equal(colour, labels[partners(labels, "rand", 0)])
    assert 12 <= int((colour != labels).sum()) <= 28
    part = RegionTrial("spurious", ["swap"], grow=0).views(shown_of(probes, [29, 4]))
    assert torch.equal(part.images["swap"], views.images["swap"][[29, 4]])


def test_probes_without_the_region_are_no_part_of_it_and_not_missing():
    marks = everywhere(CUE).clone()
    marks[:4] = False
    found = values(Reads(CUE), agreeing(masks={"spurious": marks}), RegionTrial("spurious", ["black"], grow=0))
    for estimate in found.values():
        assert (estimate.valid, estimate.degenerate) == (8, 0)
    assert found["region/spurious/drop"].value == pytest.approx(6 / 8)  # two of them are red


def test_a_region_that_cannot_move_has_no_placebo_and_is_counted():
    large = box(0, 0, HEIGHT, WIDTH - 1)
    found = values(Reads(CUE), agreeing(masks={"sky": everywhere(large)}), RegionTrial("sky", ["black"]))
    assert found["region/sky/drop"].valid == 12
    for key in ("placebo_drop", "drop_minus_placebo"):
        assert math.isnan(found[f"region/sky/{key}"].value)
        assert (found[f"region/sky/{key}"].valid, found[f"region/sky/{key}"].degenerate) == (0, 12)


def test_a_placebo_that_would_hide_the_cue_or_the_object_says_nothing_and_is_counted():
    """The cue spans the image: wherever the object's placebo lies, it hides some of it."""
    stripe = box(0, 0, 4, WIDTH)
    masks = {"core": everywhere(box(5, 0, 6, WIDTH)), "spurious": everywhere(stripe)}
    judged = tried(Reads(stripe), agreeing(masks=masks), RegionTrial("core", ["black"], grow=0)).judged
    assert judged["region/core/drop"].values.eq(0).all()
    assert judged["region/core/placebo_drop"].values.isnan().all()
    alone = tried(Reads(stripe), agreeing(masks={"core": masks["core"]}), RegionTrial("core", ["black"], grow=0)).judged
    assert not alone["region/core/placebo_drop"].values.isnan().any()


def test_logits_that_are_not_finite_are_counted_where_they_occur():
    """The net breaks at probes whose first pixel is red."""
    images = scene([0, 1, 2] * 4, [-1] * 12)
    images[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    probes = scenes(images=images)
    found = tried(Breaks(OBJECT), probes, RegionTrial("core", ["white"], grow=0)).judged
    assert found["region/core/drop"].values.isnan().tolist() == [True] + [False] * 11
    assert summarize(*found["region/core/drop"][:1], chance=found["region/core/drop"].chance).degenerate == 1


@pytest.mark.parametrize(
    ("make", "probes", "message"),
    [
        (lambda: RegionTrial("core"), scenes(labels=None), "Expected labelled probes for the trial 'region/core'"),
        (
            lambda: RegionTrial("coer"),
            scenes(),
            "`region` of 'region/coer' to be a region of the probes, but got 'coer'",
        ),
        (
            lambda: RegionTrial("core"),
            scenes(masks=None).select([0]),
            "for the fill 'swap' of region/core, but got one",
        ),
        (lambda: RegionTrial("core", ["fog"]), None, "to be a list of 1 or more of black, .*, but got"),
        (lambda: RegionTrial("core", ["mean"]), None, "but got"),
        (lambda: RegionTrial("core", []), None, r"but got \[\]"),
        (lambda: RegionTrial("core", "blur"), None, "but got 'blur'"),
        (lambda: RegionTrial("core", ["blur", "blur"]), None, "Expected `fills` to be different ones"),
        (lambda: RegionTrial("core", grow=-1), None, "Expected `grow`"),
        (lambda: RegionTrial("core", seed=0.5), None, "Expected `seed`"),
        (BackgroundTrial, scenes(labels=None), "Expected labelled probes for the trial 'bg'"),
        (BackgroundTrial, scenes(masks={}), "They have none; pass `masks="),
        (lambda: BackgroundTrial(fill="swap"), None, "but got"),
        (lambda: BackgroundTrial(grow=True), None, "Expected `grow`"),
        (lambda: HalfTrial(None), None, "Expected `half` to be one of"),
        (lambda: HalfTrial(fills=None), None, "Expected `fills` to be a list of .*, but got None"),
        (lambda: HalfTrial(fills=3), None, "Expected `fills` to be a list of .*, but got 3"),
        (lambda: HalfTrial("middle"), None, "Expected `half` to be one of top, bottom, left, right, keep_object"),
        (lambda: HalfTrial(fills=["white"]), None, "to be a list of 2 or more of"),
        (lambda: HalfTrial(fills=["white", "swap"]), None, "but got"),
        (lambda: HalfTrial(fills=["white", "white"]), None, "to be different ones"),
        (HalfTrial, scenes(masks={}), "`half='keep_object'` of 'fill' to be a region of the probes"),
        (
            lambda: HalfTrial("top"),
            "regression",
            "Expected probes with one label each for `HalfTrial`, but got regression",
        ),
        (lambda: RegionTrial("core"), "regression", "Expected labelled probes"),
    ],
)
def test_what_does_not_suit_is_refused(make, probes, message):
    if probes == "regression":
        probes = scenes(labels=None, class_names=None, targets=torch.linspace(0, 1, 12))
    if probes == "no object":
        probes = scenes(masks={"core": torch.zeros(12, HEIGHT, WIDTH, dtype=torch.bool)})
    with pytest.raises(ConfigurationError, match=message):
        make().check(probes)


# ---- backgrounds


def stripes(count=12):
    """The object tells the class, and so does the background."""
    labels = [k % 3 for k in range(count)]
    images = scene(labels, labels, cue=~OBJECT)
    return scenes(count, images=images, masks={"core": everywhere(OBJECT, count)})


def test_a_model_of_the_background_has_the_largest_gap_and_one_of_the_object_none():
    of_background = values(Reads(~OBJECT), stripes(30), BackgroundTrial(grow=0))
    assert of_background["bg/same_acc"].value == of_background["bg/only_acc"].value == 1
    assert of_background["bg/other_acc"].value == 0
    assert of_background["bg/gap"].value == 1

    of_object = values(Reads(OBJECT), stripes(30), BackgroundTrial(grow=0))
    assert of_object["bg/gap"].value == 0
    for key in ("bg/same_acc", "bg/other_acc", "fg/only_acc"):
        assert of_object[key].value == 1, key


def test_what_a_background_gives_away_does_not_hold_the_object():
    """Filled by the mean of a grey scene, no colour of the object is left."""
    probes = scenes(30, images=scene([k % 3 for k in range(30)], [-1] * 30))
    found = values(Reads(OBJECT), probes, BackgroundTrial())
    assert found["bg/only_acc"].value == pytest.approx(1 / 3)
    assert found["bg/only_acc"].chance == pytest.approx(1 / 3)


def test_no_rim_of_an_object_that_is_marked_too_small_is_lent_or_left():
    rim = dilate(OBJECT[None], 1)[0]
    probes = scenes(images=scene([0, 1, 2] * 4, [-1] * 12, core=rim), masks={"core": everywhere(OBJECT)})
    views = BackgroundTrial().views(shown_of(probes))
    assert views.images["background"].eq(0.25).all()
    for kind in ("same", "other"):
        assert views.images[kind][:, :, ~OBJECT].eq(0.25).all()
        assert torch.equal(views.images[kind][:, :, OBJECT], probes.images[:, :, OBJECT])
    foreground = views.images["foreground"]
    assert torch.equal(foreground[:, :, OBJECT], probes.images[:, :, OBJECT])


def test_a_gap_is_the_difference_of_its_accuracies_probe_by_probe():
    judged = tried(Reads(~OBJECT), stripes(9), BackgroundTrial()).judged
    same, rand, gap = (judged[f"bg/{key}"].values for key in ("same_acc", "other_acc", "gap"))
    assert torch.equal(gap, same - rand)


def test_the_only_image_of_a_class_has_no_background_of_its_class_and_is_counted():
    probes = scenes(7, labels=[0, 1, 1, 1, 2, 2, 2], images=scene([0, 1, 1, 1, 2, 2, 2], [-1] * 7))
    found = values(Reads(OBJECT), probes, BackgroundTrial())
    for key, counts in {"same_acc": (6, 1), "gap": (6, 1), "other_acc": (7, 0), "only_acc": (7, 0)}.items():
        assert (found[f"bg/{key}"].valid, found[f"bg/{key}"].degenerate) == counts, key


def test_probes_of_one_class_have_no_other_background_and_are_counted():
    found = values(Reads(OBJECT), scenes(labels=[1] * 12), BackgroundTrial())
    for key, counts in {"same_acc": (12, 0), "gap": (0, 12), "other_acc": (0, 12), "only_acc": (12, 0)}.items():
        assert (found[f"bg/{key}"].valid, found[f"bg/{key}"].degenerate) == counts, key
    assert math.isnan(found["bg/gap"].value)


def test_one_probe_has_no_other_background_and_is_counted():
    found = values(Reads(OBJECT), scenes(1), BackgroundTrial())
    for key, counts in {"same_acc": (0, 1), "gap": (0, 1), "other_acc": (0, 1), "only_acc": (1, 0)}.items():
        assert (found[f"bg/{key}"].valid, found[f"bg/{key}"].degenerate) == counts, key


def test_probes_whose_object_is_not_marked_neither_count_nor_lend():
    """Their object would stay in the background that they lend. So it is where the object is all there is."""
    core = everywhere(OBJECT).clone()
    core[3:6] = False
    core[6:9] = True
    probes = scenes(masks={"core": core})
    views = BackgroundTrial(grow=0).views(shown_of(probes))
    found = values(Reads(OBJECT), probes, BackgroundTrial())
    for estimate in found.values():
        assert (estimate.valid, estimate.degenerate) == (6, 0)

    suited = [0, 1, 2, 9, 10, 11]
    filled = apply_fill(probes.images, core, "local_mean", names=probes.names)
    for kind in ("same", "other"):
        for row in suited:
            backgrounds = [
                other for other in suited if torch.equal(filled[other][:, ~OBJECT], views.images[kind][row][:, ~OBJECT])
            ]
            assert backgrounds
            assert kind == "other" or row % 3 in [other % 3 for other in backgrounds]


def test_a_background_is_filled_by_the_name_of_the_probe_that_lends_it():
    """So that it is the same, whoever stands on it. Objects of every other probe lie three pixels lower."""
    probes = scenes(images=torch.rand(12, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(6)))
    shifted = probes.masks["core"].clone()
    shifted[::2] = shifted[::2].roll(3, dims=1)
    moved = scenes(images=probes.images, masks={"core": shifted})
    views = BackgroundTrial(fill="uniform", grow=0, seed=2).views(shown_of(moved))
    filled = apply_fill(moved.images, shifted, "uniform", names=moved.names, seed=2)
    for row, other in enumerate(partners(moved.labels, "same", 2).tolist()):
        assert torch.equal(views.images["same"][row], torch.where(shifted[row], moved.images[row], filled[other]))


# ---- halves


@pytest.mark.parametrize("half", ["top", "bottom", "left", "right", "keep_object"])
def test_a_model_of_the_other_half_is_at_one_with_itself_and_one_of_the_filled_half_is_not(half):
    probes = scenes(masks={"core": everywhere(box(9, 2, 2, 4))})
    marked = half_masks(probes.masks["core"], (HEIGHT, WIDTH), half)[0]
    assert torch.equal(marked, box(0, 0, 6, WIDTH)) or half not in ("top", "keep_object")

    class Bright(nn.Module):
        """Two logits by the brightness of a region."""

        def __init__(self, region):
            super().__init__()
            self.region = region

        def forward(self, images):
            level = images[:, :, self.region].mean(dim=(1, 2))
            return GAIN * torch.stack([0.5 - level, level - 0.5], dim=1)

    trial = HalfTrial(half, ["white", "black"])
    kept = values(Bright(~marked), probes, trial)
    assert (kept["fill/tv"].value, kept["fill/disagree"].value) == (0, 0)

    filled = values(Bright(marked), probes, trial)
    # White gives logits (-10, 10), black (10, -10): each a half of their difference from the mean.
    odds = 1 / (1 + math.exp(-GAIN))
    assert filled["fill/tv"].value == pytest.approx(odds - 0.5)
    assert filled["fill/disagree"].value == 1


def test_an_answer_has_changed_if_it_is_another_than_that_of_the_whole_image():
    """Black leaves three equal logits, of which the first is taken: two of three answers change."""
    judged = tried(Reads(box(0, 0, 2, 2)), agreeing(), HalfTrial("top", ["black", "blur"], name="fill_top")).judged
    assert list(judged) == [f"fill_top/{key}" for key in ("tv", "disagree", "changed/black", "changed/blur")]
    assert judged["fill_top/changed/black"].values.tolist() == [float(k % 3 != 0) for k in range(12)]
    below = values(Reads(box(0, 0, 2, 2)), agreeing(), HalfTrial("bottom", ["black", "white"]))
    assert below["fill/changed/black"].value == below["fill/changed/white"].value == 0


def test_three_fills_are_their_mean_distance():
    found = values(Reads(box(0, 0, 2, 2)), scenes(masks={}), HalfTrial("top", ["white", "black", "uniform"]))
    assert 0 < found["fill/tv"].value < 2 / 3
    assert found["fill/tv"].valid == 12


def test_half_fills_need_no_labels_and_count_probes_without_an_object():
    core = everywhere(OBJECT).clone()
    core[:5] = False
    found = values(Reads(CUE), scenes(labels=None, masks={"core": core}), HalfTrial())
    assert (found["fill/tv"].valid, found["fill/disagree"].valid) == (7, 7)
    assert found["fill/tv"].degenerate == 5


def test_a_constant_model_is_at_chance_everywhere():
    found = values(Constant(0.1, 0.2, 0.3), scenes(), RegionTrial("spurious"), BackgroundTrial(), HalfTrial())
    for key, estimate in found.items():
        if key.endswith("_acc"):
            assert estimate.value == pytest.approx(1 / 3), key
        elif estimate.valid:
            assert estimate.value == pytest.approx(0, abs=1e-15), key
