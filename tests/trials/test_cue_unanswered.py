"""What `CueTrial` cannot answer: NaN and counted where it is a probe, left out where it is a key."""

from __future__ import annotations

import math

import pytest
import torch

from tests.trials.exact import (
    CLASSES,
    COLOURS,
    CUE,
    OBJECT,
    Breaks,
    Constant,
    Reads,
    box,
    scene,
    scenes,
    shown_of,
    tried,
    values,
)
from tests.trials.patched import KEYS, LABELLED, of_patch, patch
from xai_callbacks import ProbeSet
from xai_callbacks.interventions.cues import FunctionCue, PasteCue, PatchCue
from xai_callbacks.interventions.fills import dilate
from xai_callbacks.record import summarize
from xai_callbacks.trials import CueTrial


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
