"""`CueTrial` with cues of the whole image, pasted cues and cues of a user, and what it refuses."""

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
    Reads,
    scene,
    scenes,
    shown_of,
    tried,
    values,
)
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import Cue, PasteCue, PatchCue, TextureCue, TintCue, Twins
from xai_callbacks.trials import CueTrial

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
