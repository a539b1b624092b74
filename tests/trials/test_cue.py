"""`CueTrial`: exact answers of models that can be computed by hand, and what cannot be answered."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.trials.exact import (
    CLASSES,
    COLOURS,
    CUE,
    GAIN,
    HEIGHT,
    OBJECT,
    WIDTH,
    Breaks,
    Constant,
    Reads,
    box,
    scene,
    scenes,
    tried,
    values,
)
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import Cue, FunctionCue, PasteCue, PatchCue, TextureCue, TintCue, Twins
from xai_callbacks.interventions.fills import dilate
from xai_callbacks.interventions.pixels import PixelScale
from xai_callbacks.interventions.shown import Shown
from xai_callbacks.record import summarize
from xai_callbacks.trials import CueTrial

LABELLED = {"pull", "gap", "gain", "loss", "room", "control", "excess", "object_only_acc", "pair_acc"}
ORANGE = (1.0, 0.5, 0.0)
KEYS = LABELLED | {
    "effect",
    "effect_logit",
    "flip_rate",
    "tv",
    "consistency",
    "spurious_score",
    "only_acc",
}


def patch(**changes):
    return CueTrial(PatchCue(**{"colours": COLOURS, "points_to": CLASSES, "at": "spurious"} | changes))


def of_patch(model, probes=None, **changes):
    """Estimates by the last part of the key."""
    found = values(model, scenes() if probes is None else probes, patch(**changes))
    assert all(key.startswith("cue/patch/") for key in found)
    return {key.removeprefix("cue/patch/"): estimate for key, estimate in found.items()}


# ---- three models


def test_a_model_that_reads_only_the_cue_is_caught_whole():
    """Logits are (20, 0, 0) with a red cue, in some order with any other."""
    found = of_patch(Reads(CUE))
    certain = 1 / (1 + 2 * math.exp(-GAIN))
    assert found.keys() == KEYS
    assert found["effect"].value == pytest.approx(certain - certain * math.exp(-GAIN), abs=1e-12)
    assert found["effect"].value > 1 - 1e-8
    assert found["effect_logit"].value == pytest.approx(GAIN)
    for key in ("flip_rate", "spurious_score", "only_acc"):
        assert found[key].value == 1, key
    assert found["tv"].value == pytest.approx(found["effect"].value)
    assert found["consistency"].value == 0
    assert found["pair_acc"].value == 0


def test_a_model_that_reads_only_the_object_is_cleared_to_the_last_bit():
    found = of_patch(Reads(OBJECT))
    for key in ("effect", "effect_logit", "flip_rate", "tv", "spurious_score"):
        assert found[key].value == 0, key
    for key in ("consistency", "object_only_acc", "pair_acc"):
        assert found[key].value == 1, key


def test_a_constant_model_shows_no_effect_and_chance_accuracy():
    found = of_patch(Constant(0.3, 0.1, 0.2))
    for key in ("effect", "effect_logit", "flip_rate", "tv", "spurious_score"):
        assert found[key].value == 0, key
    assert found["consistency"].value == 1
    for key in ("object_only_acc", "pair_acc"):
        assert found[key].value == pytest.approx(1 / 3), key
    points_to = patch().cue.twins(shown_of(scenes())).points_to
    assert found["only_acc"].value == pytest.approx(float((points_to == 0).double().mean()))


def test_a_model_that_weighs_both_answers_as_computed_by_hand():
    """Half of the logits from the cue, the object three times as strong: the cue moves probabilities, no answer."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.cue, self.thing = Reads(CUE), Reads(OBJECT)

        def forward(self, images):
            return (self.cue(images) + 3 * self.thing(images)) / GAIN

    probes = scenes(images=scene([k % 3 for k in range(12)], [-1] * 12, grey=0.0))
    found = values(Both(), probes, patch())
    judged = tried(Both(), probes, patch()).judged["cue/patch/effect"]
    variants = PatchCue(COLOURS, CLASSES, at="spurious").twins(shown_of(probes)).points_to.tolist()
    for label, cue, effect in zip(probes.labels.tolist(), variants, judged.values.tolist(), strict=True):
        with_cue = [3.0 * (k == label) + (k == cue) for k in range(3)]
        # The twin has one of two other cues: either the label's, or one that is neither.
        expected = set()
        for other in {0, 1, 2} - {cue}:
            without = [3.0 * (k == label) + (k == other) for k in range(3)]
            p, q = (math.exp(row[cue]) / sum(map(math.exp, row)) for row in (with_cue, without))
            expected.add(round(p - q, 6))
        assert round(effect, 6) in expected
    assert found["cue/patch/effect_logit"].value == pytest.approx(1)
    assert found["cue/patch/consistency"].value == 1


def shown_of(probes, rows=None):
    scale = PixelScale.of(probes)
    rows = torch.arange(len(probes)) if rows is None else torch.tensor(rows)
    return Shown(scale.displayed(probes.images[rows]), rows, probes, scale, 0)


def test_chance_levels_are_those_of_the_table():
    found = of_patch(Reads(OBJECT))
    chances = {key: estimate.chance for key, estimate in found.items()}
    third = pytest.approx(1 / 3)
    assert chances == {
        **dict.fromkeys(("pull", "gap", "gain", "loss", "control", "excess", "effect", "effect_logit"), 0),
        "spurious_score": 0,
        "only_acc": third,
        "object_only_acc": third,
        **dict.fromkeys(("flip_rate", "tv", "consistency", "pair_acc", "room")),
    }


def test_a_single_cue_against_none_by_hand():
    """A red patch over grey .25: the logit of red rises from 5 to 20, the others fall from 5 to 0."""
    probes = scenes(images=scene([-1] * 12, [-1] * 12))
    found = of_patch(Reads(CUE), probes, colours=COLOURS[0], points_to="red", at="corner", size=0.3)
    # The corner is drawn: a patch in another one is not read.
    hit = (patch(at="corner", size=0.3).cue.region(shown_of(probes)) == CUE).flatten(1).all(dim=1)
    assert 0 < int(hit.sum()) < 12
    rise = 1 / (1 + 2 * math.exp(-GAIN)) - 1 / 3
    judged = tried(Reads(CUE), probes, patch(colours=COLOURS[0], points_to="red", at="corner", size=0.3)).judged
    torch.testing.assert_close(judged["cue/patch/effect"].values, hit.double() * rise, rtol=0, atol=1e-7)
    torch.testing.assert_close(judged["cue/patch/effect_logit"].values, hit.double() * (20 - 20 / 3), rtol=0, atol=1e-5)
    assert found["effect"].valid == 12


@pytest.mark.parametrize(("colours", "points_to"), [(COLOURS[:2], [0, 0]), (COLOURS, [0, 0, 2])])
def test_variants_of_one_class_are_one_cue_and_never_twins(colours, points_to):
    model = Reads(CUE)
    with torch.no_grad():
        # Red and green are class 0, blue is class 2, grey is class 1.
        model.head.weight.copy_(GAIN * torch.tensor([[1.0, 1.0, -1.0], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0]]))
    found = values(model, scenes(24), CueTrial(PatchCue(colours, points_to, at="spurious")))

    assert found["cue/patch/effect"].value > 0.5
    assert found["cue/patch/effect"].valid == 24
    assert found["cue/patch/spurious_score"].value == 1
    if len(colours) == 3:
        # Of two variants of class 0, one against the other, the answers would be alike.
        assert found["cue/patch/consistency"].value == 0


def test_the_answer_as_shown_counts_as_the_answer_without_a_cue():
    """Of a single cue in a corner, probes answered by its class anyway are not asked for the spurious score."""
    probes = scenes(images=scene([-1] * 12, [0, 1, 2] * 4))
    found = of_patch(Reads(CUE), probes, colours=[0.9, 0.0, 0.0], points_to=0, at="corner")
    assert (found["effect"].valid, found["effect"].degenerate) == (12, 0)
    assert (found["spurious_score"].valid, found["spurious_score"].degenerate) == (8, 0)


def test_what_is_said_without_any_cue_is_said_of_the_probe_with_its_own_cue_filled():
    """A net by the cue, and by the object where there is none: it knows every object, and every cue overrules it."""

    class Overruled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cue, self.thing = Reads(CUE), Reads(OBJECT)

        def forward(self, images):
            return 3 * self.cue(images) + self.thing(images)

    probes = scenes(images=scene([0, 1, 2] * 4, [1, 2, 0] * 4, grey=0.0))
    found = of_patch(Overruled(), probes)
    points_to = PatchCue(COLOURS, CLASSES, at="spurious").twins(shown_of(probes)).points_to
    assert (points_to != probes.labels).all()
    assert (found["object_only_acc"].value, found["pair_acc"].value, found["consistency"].value) == (1, 0, 0)
    assert (found["spurious_score"].value, found["spurious_score"].valid) == (1, 12)
    assert found["spurious_score"].degenerate == 0


# ---- other heads, classes and images


class TwoColours(nn.Module):
    """One logit, red against blue in the cue, as of a sigmoid."""

    def __init__(self, probability=False):
        super().__init__()
        self.net, self.probability = Reads(CUE), probability

    def forward(self, images):
        logits = self.net(images)
        difference = logits[:, 2] - logits[:, 0]
        return difference.sigmoid() if self.probability else difference


def test_a_sigmoid_head_is_two_classes():
    probes = scenes(labels=[0, 1] * 6, class_names=("red", "blue"))
    trial = patch(colours=[COLOURS[0], COLOURS[2]], points_to=["red", "blue"])
    found = values(TwoColours(), probes, trial)
    # Logits are (-s / 2, s / 2) with s of -20 or 20, and centred already.
    odds = 1 / (1 + math.exp(-GAIN))
    assert found["cue/patch/effect"].value == pytest.approx(odds - (1 - odds), abs=1e-9)
    assert found["cue/patch/effect_logit"].value == pytest.approx(GAIN)
    assert found["cue/patch/only_acc"].value == 1
    assert found["cue/patch/only_acc"].chance == 0.5


def test_one_class_only_is_answered_all_the_same():
    """One class among the probes, one of the model: the cue may still point to others."""
    found = of_patch(Reads(CUE), scenes(labels=[1] * 12))
    assert found["effect"].value == pytest.approx(1, abs=1e-6)
    assert found["object_only_acc"].valid == 12


def test_grey_images_take_a_patch_of_one_value():
    images = torch.full((6, 1, HEIGHT, WIDTH), 0.5)
    probes = ProbeSet.from_tensors(images, [0, 1] * 3, masks={"spurious": CUE.expand(6, -1, -1)})

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Reads(CUE, classes=1, channels=1)

        def forward(self, grey):
            value = self.net(grey)
            return torch.cat([GAIN - value, value], dim=1)

    found = values(Bright(), probes, patch(colours=[[0.0], [1.0]], points_to=[0, 1]))
    assert found["cue/patch/effect"].value == pytest.approx(1, abs=1e-6)
    assert found["cue/patch/flip_rate"].value == 1
    assert "cue/patch/only_acc" not in found  # there is no mask of the object


def test_normalised_probes_reach_the_model_normalised_and_untouched_outside_the_cue():
    plain = scenes()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    images = (plain.images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    probes = scenes(images=images, mean=mean.tolist(), std=std.tolist())
    seen = []

    class Undoes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Reads(CUE)

        def forward(self, batch):
            seen.append(batch.clone())
            return self.net(batch * std.view(3, 1, 1) + mean.view(3, 1, 1))

    trial = CueTrial(PatchCue(ORANGE, 0, size=0.3), controls=())
    found = values(Undoes(), probes, trial, chunk_size=12)
    # What was seen: the probes as they are, then with the cue, and without the object.
    _, present, only = seen
    region = patch(at="corner", size=0.3).cue.region(shown_of(probes))
    outside = ~region[:, None].expand_as(present)
    assert torch.equal(present[outside], probes.images[outside])
    assert torch.equal(only[:, :, 4:8, :3], probes.images[:, :, 4:8, :3])  # neither object nor cue lie there
    red = ((torch.tensor(ORANGE) - mean) / std).view(1, 3, 1, 1).expand_as(present)
    torch.testing.assert_close(present[~outside], red[~outside])
    reference = values(Reads(CUE), plain, patch(colours=ORANGE, points_to=0, at="corner", size=0.3))
    assert found["cue/patch/effect"].value == pytest.approx(reference["cue/patch/effect"].value, abs=1e-6)


# ---- what cannot be answered is NaN and counted


def test_a_logit_that_is_not_finite_is_nan_for_its_probe_and_counted():
    """The net breaks where it sees red in the first pixel."""
    judged = tried(Breaks(CUE), scenes(images=scene([0, 1, 2] * 4, [-1] * 12)), patch()).judged
    twins = PatchCue(COLOURS, CLASSES, at="spurious").twins(shown_of(scenes()))
    broken = torch.stack([images[:, 0, 0, 0] > 0.99 for images in (twins.present, twins.absent)]).any(dim=0)
    assert 0 < int(broken.sum()) < 12
    for key in ("effect", "effect_logit", "flip_rate", "tv", "consistency", "pair_acc"):
        assert torch.equal(judged[f"cue/patch/{key}"].values.isnan(), broken), key
    effect = judged["cue/patch/effect"]
    effect = summarize(effect.values, chance=effect.chance)
    assert (effect.valid, effect.degenerate) == (12 - int(broken.sum()), int(broken.sum()))
    assert effect.value == pytest.approx(1, abs=1e-6)


def test_a_model_of_nan_gives_nan_and_no_number():
    found = of_patch(Constant(math.nan, 0.0, 0.0))
    for key, estimate in found.items():
        assert math.isnan(estimate.value), key
        assert (estimate.valid, estimate.degenerate) == (0, 12), key


def test_a_cue_that_hides_the_object_is_left_out_and_counted():
    """Of nine pixels of the cue, three, four and none lie on an object of sixteen, of which a fifth is 3.2."""
    core = torch.stack([box(0, 2, 4, 4), box(0, 1, 2, 5) | box(3, 0, 2, 3), OBJECT] * 4)
    assert (core & CUE).flatten(1).sum(dim=1).tolist() == [3, 4, 0] * 4
    assert core.flatten(1).sum(dim=1).tolist() == [16] * 12
    probes = scenes(masks={"core": core, "spurious": CUE.expand(12, -1, -1)})
    found = of_patch(Reads(CUE), probes)
    for key in KEYS - {"object_only_acc", "spurious_score"}:
        assert (found[key].valid, found[key].degenerate) == (8, 4), key
    judged = tried(Reads(CUE), probes, patch()).judged["cue/patch/effect"]
    assert judged.values.isnan().tolist() == [False, True, False] * 4


def test_probes_that_lack_the_region_of_a_patch_are_left_out_and_counted():
    marks = CUE.expand(12, -1, -1).clone()
    marks[::4] = False
    probes = scenes(masks={"core": OBJECT.expand(12, -1, -1), "spurious": marks})
    for changes in ({}, {"colours": COLOURS[0], "points_to": 0}):
        found = of_patch(Reads(CUE), probes, **changes)
        for key in ("effect", "flip_rate", "tv", "consistency", "only_acc", "pair_acc"):
            assert (found[key].valid, found[key].degenerate) == (9, 3), key


def test_twins_that_are_alike_say_nothing_and_are_counted():
    """A black patch on black corners, a function that does nothing, two patches of one colour."""
    images = scene([0, 1, 2] * 4, [-1] * 12, grey=0.0)
    images[6:] += 0.1
    probes = scenes(images=images.clamp(max=1), masks=None)
    black = of_patch(Reads(CUE), probes, colours=[0.0], points_to=0, at="corner")
    assert (black["effect"].valid, black["effect"].degenerate) == (6, 6)

    idle = values(Reads(CUE), probes, CueTrial(FunctionCue(lambda images, _: images, 0)))
    assert (idle["cue/own/effect"].valid, idle["cue/own/effect"].degenerate) == (0, 12)
    assert math.isnan(idle["cue/own/effect"].value)

    same = of_patch(Reads(CUE), probes, colours=[[0.5], [0.5]], points_to=[0, 1], at="corner")
    # A probe of the third class has no variant of its own, and its twin none: these differ.
    assert (same["effect"].valid, same["consistency"].valid, same["only_acc"].valid) == (4, 4, 4)


def test_objects_that_are_not_marked_have_no_accuracy_without_them():
    core = OBJECT.expand(12, -1, -1).clone()
    core[:5] = False
    found = of_patch(Reads(CUE), scenes(masks={"core": core, "spurious": CUE.expand(12, -1, -1)}))
    assert (found["only_acc"].valid, found["only_acc"].degenerate) == (7, 0)
    assert found["effect"].valid == 12


def test_the_object_is_blotted_out_with_its_rim_and_the_cue_is_not():
    """An object that is marked a pixel too small, beside a cue of the probe's own."""
    rim = dilate(OBJECT[None], 1)[0]
    mark = box(4, 0, 2, 4)  # its last column is rim of the object
    images = scene([0, 1, 2] * 4, [0] * 12, core=rim, cue=mark)
    probes = scenes(images=images, masks={"core": OBJECT.expand(12, -1, -1), "spurious": mark.expand(12, -1, -1)})
    only = CueTrial(PasteCue("red", grow=0)).views(shown_of(probes)).images["only"]
    filled = rim & ~mark
    assert torch.equal(only[:, :, ~filled], images[:, :, ~filled])
    means = images[:, :, ~filled].double().mean(dim=2)[:, :, None]
    torch.testing.assert_close(only[:, :, filled].double(), means.expand(-1, -1, int(filled.sum())), rtol=0, atol=1e-6)


def test_unlabelled_probes_have_all_but_what_needs_labels():
    found = of_patch(Reads(CUE), scenes(labels=None))
    assert found.keys() == KEYS - LABELLED


def test_probes_without_masks_have_all_but_what_needs_the_object():
    found = of_patch(
        Reads(CUE), ProbeSet.from_tensors(scenes().images, [0, 1, 2] * 4), points_to=[0, 1, 2], at="corner"
    )
    assert found.keys() == KEYS - {"only_acc"}


def test_one_probe_is_enough():
    found = of_patch(Reads(CUE), scenes(1))
    assert found["effect"].value == pytest.approx(1, abs=1e-6)
    assert (found["effect"].valid, found["effect"].low) == (1, None)


def test_thirty_probes_have_an_interval():
    found = of_patch(Reads(CUE), scenes(30))["effect"]
    assert 0.8 < found.low < found.value <= found.high == 1


# ---- cues of the whole image, and pasted ones


class Brightness(nn.Module):
    """Two classes: dark and bright, of the whole image."""

    def forward(self, images):
        level = images.mean(dim=(1, 2, 3))
        return GAIN * torch.stack([1 - level, level], dim=1)


def test_a_tint_hides_nothing_and_moves_a_model_of_brightness():
    images = torch.full((8, 3, HEIGHT, WIDTH), 0.5)
    probes = ProbeSet.from_tensors(images, [0, 1] * 4, masks={"core": OBJECT.expand(8, -1, -1)})
    found = values(Brightness(), probes, CueTrial(TintCue([[0.0], [2.0]], [0, 1])))
    # All black, or all white: logits of (20, 0) and (0, 20).
    odds = 1 / (1 + math.exp(-GAIN))
    assert found["cue/tint/effect"].value == pytest.approx(2 * odds - 1, abs=1e-9)
    assert found["cue/tint/only_acc"].value == 1
    assert found["cue/tint/effect"].valid == 8


def test_a_texture_that_keeps_the_object_leaves_a_model_of_the_object_alone():
    trial = CueTrial(TextureCue(["stripes", "dots"], [0, 1], keep="core", opacity=1.0))
    found = values(Reads(OBJECT), scenes(), trial)
    assert found["cue/texture/effect"].value == 0
    assert found["cue/texture/effect"].valid == 12
    assert values(Brightness(), scenes(labels=[0, 1] * 6), trial)["cue/texture/tv"].value > 0.01


def half_marked(count=12):
    """Grey scenes, every other one with a red cue."""
    marks = CUE.expand(count, -1, -1).clone()
    marks[1::2] = False
    images = scene([0, 1, 2] * (count // 3), [0, -1] * (count // 2))
    return scenes(count, images=images, masks={"core": OBJECT.expand(count, -1, -1), "spurious": marks})


def test_a_pasted_cue_is_judged_where_it_was_added_and_where_it_was_removed():
    found = values(Reads(CUE), half_marked(), CueTrial(PasteCue("red", grow=0)))
    rise = 1 / (1 + 2 * math.exp(-GAIN)) - 1 / 3
    # Added onto grey .25; removed, the mean of what is left remains, which a third of objects tint.
    assert found["cue/paste/effect_added"].value == pytest.approx(rise, abs=1e-6)
    for key in ("effect_added", "effect_removed"):
        assert (found[f"cue/paste/{key}"].valid, found[f"cue/paste/{key}"].degenerate) == (6, 0)
    both = (found["cue/paste/effect_added"].value + found["cue/paste/effect_removed"].value) / 2
    assert found["cue/paste/effect"].value == pytest.approx(both)
    assert values(Reads(OBJECT), half_marked(), CueTrial(PasteCue("red")))["cue/paste/effect"].value == 0


def test_probes_for_which_there_is_no_source_are_counted_as_added():
    """The only source lies where the object of all others is."""
    marks = torch.zeros(6, HEIGHT, WIDTH, dtype=torch.bool)
    marks[0] = OBJECT
    core = OBJECT.expand(6, -1, -1).clone()
    core[0] = CUE
    found = values(Reads(CUE), scenes(6, masks={"core": core, "spurious": marks}), CueTrial(PasteCue("red", grow=0)))
    added, removed = found["cue/paste/effect_added"], found["cue/paste/effect_removed"]
    assert (added.valid, added.degenerate, removed.valid, removed.degenerate) == (0, 5, 1, 0)
    assert (found["cue/paste/effect"].valid, found["cue/paste/effect"].degenerate) == (1, 5)


def test_where_every_probe_has_the_cue_none_was_added_and_none_is_missing():
    found = values(Reads(CUE), scenes(), CueTrial(PasteCue("red")))
    assert (found["cue/paste/effect_added"].valid, found["cue/paste/effect_added"].degenerate) == (0, 0)
    assert found["cue/paste/effect_removed"].valid == 12


# ---- an own cue, and mistakes


class Inverted(Cue):
    """A negative, of the whole image."""

    def __init__(self, edit=lambda twins: twins):
        super().__init__("negative", 1)
        self.edit = edit

    def twins(self, shown):
        points_to = torch.ones(len(shown.images), dtype=torch.int64)
        return self.edit(Twins(1 - shown.images, shown.images, shown.images, points_to, None))


def test_an_own_cue_needs_nothing_but_twins():
    images = torch.full((4, 3, HEIGHT, WIDTH), 0.25)
    found = values(Brightness(), ProbeSet.from_tensors(images, [0, 1] * 2), CueTrial(Inverted()))
    # Brightness rises from .25 to .75: logits of (15, 5) become (5, 15).
    odds = 1 / (1 + math.exp(-10))
    assert found["cue/negative/effect"].value == pytest.approx(2 * odds - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda twins: twins._replace(present=twins.present[:, :1]),
            r"`present` of the twins .* \(5, 3, 12, 10\), but",
        ),
        (lambda twins: twins._replace(absent=twins.absent.double()), "`absent` .* but got torch.float64"),
        (
            lambda twins: twins._replace(region=twins.present[:, 0]),
            r"to be torch.bool \(5, 12, 10\), but got .*float32",
        ),
        (lambda twins: twins._replace(region=twins.present > 0), r"but got torch.bool \(5, 3, 12, 10\)"),
        (lambda twins: twins._replace(points_to=twins.points_to + 2), "to be -1 or below 3, the number of classes of"),
        (lambda twins: twins._replace(points_to=twins.points_to[0]), r"`points_to` .* to be torch.int64 \(5,\)"),
        (lambda twins: twins._replace(added=twins.points_to), r"`added` .* to be torch.bool \(5,\)"),
        (lambda twins: twins._replace(present=twins.present * 3), r"view 'present' of the trial 'cue/negative' .* \[0"),
    ],
)
def test_twins_that_do_not_fit_fail_with_a_sentence(edit, message):
    failed = tried(Reads(CUE), scenes(), CueTrial(Inverted(edit))).failed
    assert len(failed) == 1
    assert failed[0].startswith("The trial 'cue/negative' failed and was left out.")
    assert re.search(message, failed[0]), failed[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CueTrial(lambda images: images), "Expected `cue` to be a cue such as PatchCue"),
        (lambda: CueTrial(PatchCue), "but got ABCMeta"),
        (lambda: CueTrial(TintCue([1.0], 0), seed=-1), "Expected `seed` to be an integer of 0 or more, but got -1"),
        (lambda: CueTrial(TintCue([1.0], "rde")).check(scenes()), "Did you mean 'red'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_seeds_differ_in_variants_and_corners_and_one_seed_never_does():
    given = shown_of(scenes(40))
    first, again, other = (
        CueTrial(PatchCue(COLOURS, CLASSES), seed=seed).views(replace(given, seed=9)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.images["present"], again.images["present"])
    assert not torch.equal(first.facts["points_to"], other.facts["points_to"])
