"""`CueTrial`: exact answers of models that can be computed by hand, of every kind of head and image."""

from __future__ import annotations

import math

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
    Constant,
    Reads,
    scene,
    scenes,
    shown_of,
    tried,
    values,
)
from tests.trials.patched import KEYS, of_patch, patch
from xai_callbacks import ProbeSet
from xai_callbacks.interventions.cues import PatchCue
from xai_callbacks.trials import CueTrial

ORANGE = (1.0, 0.5, 0.0)

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
