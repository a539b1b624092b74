"""`CueTrial` on probes of several labels: the label that the cue points to, present or not, in closed form."""

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
    OBJECT,
    Constant,
    Reads,
    scene,
    scenes,
    shown_of,
    tried,
    values,
)
from tests.trials.patched import patch
from xai_callbacks import Auditor, ConfigurationError
from xai_callbacks.interventions.cues import FunctionCue, PasteCue, PatchCue
from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, RegionTrial

COUNT = 12
# What the object tells, and a second label that nothing tells.
ROWS = torch.eye(3, dtype=torch.int64)[torch.arange(COUNT) % 3]


class Finds(Reads):
    """Finds the label of the colour that a region shows: logit `GAIN` (its mean in the channel - 1/2)."""

    def forward(self, images):
        return super().forward(images) - GAIN / 2


class Both(nn.Module):
    """Logit of a label: `cue` for its colour in the cue's region, `thing` for that of the object, less 1."""

    def __init__(self, cue, thing):
        super().__init__()
        self.cue, self.thing = Reads(CUE), Reads(OBJECT)
        self.weights = cue, thing

    def forward(self, images):
        return self.weights[0] * self.cue(images) / GAIN + self.weights[1] * self.thing(images) / GAIN - 1


def labelled(labels=ROWS, **fields):
    return scenes(COUNT, labels=labels, **fields)


def of_patch(model, probes=None, **changes):
    found = values(model, labelled() if probes is None else probes, patch(**changes))
    return {key.removeprefix("cue/patch/"): estimate for key, estimate in found.items()}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def twins_of(probes, trial):
    return trial.cue.twins(shown_of(probes))


def test_a_model_that_reads_only_the_cue_is_caught_whole():
    """The label of the colour shown has logit 10, every other -10."""
    found = of_patch(Finds(CUE))
    assert found["effect"].value == pytest.approx(sigmoid(GAIN / 2) - sigmoid(-GAIN / 2), abs=1e-6)
    assert found["effect"].value == pytest.approx(math.tanh(GAIN / 4), abs=1e-6)
    assert found["tv"].value == pytest.approx(found["effect"].value)
    # Present and absent are two classes of logits s / 2 and -s / 2, and s changes by 20.
    assert found["effect_logit"].value == pytest.approx(GAIN / 2)
    for key in ("flip_rate", "spurious_score", "only_acc"):
        assert found[key].value == 1, key
    assert found["consistency"].value == found["pair_acc"].value == 0
    assert found["only_acc"].chance == pytest.approx(1 / 2)
    assert (found["gain"].valid, found["loss"].valid) == (COUNT, 9)  # three labels are not there
    for key in found.keys() - {"gain", "loss"}:
        assert found[key].valid == COUNT, key


def test_a_model_that_reads_only_the_object_is_cleared_to_the_last_bit():
    found = of_patch(Finds(OBJECT))
    for key in ("effect", "effect_logit", "flip_rate", "tv", "spurious_score"):
        assert found[key].value == 0, key
    for key in ("consistency", "object_only_acc", "pair_acc"):
        assert found[key].value == 1, key


def test_a_constant_model_is_asked_about_one_label_and_not_about_the_likeliest():
    """Red is found in every image, the others in none: right is who says so of a label that is there, or is not."""
    probes = labelled()
    found = of_patch(Constant(0.3, -0.1, -0.2), probes)
    for key in ("effect", "effect_logit", "flip_rate", "tv"):
        assert found[key].value == 0, key
    assert found["consistency"].value == 1
    asked = twins_of(probes, patch()).points_to
    says_yes = asked == 0
    right = (ROWS[torch.arange(COUNT), asked] == 1) == says_yes
    assert 0 < int(right.sum()) < COUNT
    for key in ("object_only_acc", "pair_acc"):
        assert found[key].value == pytest.approx(float(right.double().mean())), key
    # Where red is found anyway, no cue can make it so.
    assert found["spurious_score"].valid == COUNT - int(says_yes.sum())
    assert found["only_acc"].value == pytest.approx(float(says_yes.double().mean()))


@pytest.mark.parametrize(("cue", "thing"), [(0.5, 1.5), (1.5, 0.75), (2.0, 3.0)])
def test_a_model_that_weighs_both_answers_as_computed_by_hand(cue, thing):
    probes = labelled(images=scene([k % 3 for k in range(COUNT)], [-1] * COUNT, grey=0.0))
    trial = patch()
    judged = tried(Both(cue, thing), probes, trial).judged
    twins = twins_of(probes, trial)
    shown = (twins.absent[:, :, CUE].mean(dim=-1) > 0.5).float()  # the colour of the other variant
    for row, (asked, label) in enumerate(zip(twins.points_to.tolist(), [k % 3 for k in range(COUNT)], strict=True)):
        assert shown[row, asked] == 0
        with_cue = cue + thing * (asked == label) - 1
        without = thing * (asked == label) - 1
        expected = {
            "effect": sigmoid(with_cue) - sigmoid(without),
            "effect_logit": cue / 2,
            "tv": sigmoid(with_cue) - sigmoid(without),
            "flip_rate": float(with_cue > 0 >= without),
            "consistency": float((with_cue > 0) == (without > 0)),
            "pair_acc": float(((with_cue > 0) == (asked == label)) and ((without > 0) == (asked == label))),
        }
        for key, value in expected.items():
            assert float(judged[f"cue/patch/{key}"].values[row]) == pytest.approx(value, abs=1e-6), (key, row)


def test_other_labels_have_no_influence_on_what_is_said_of_one():
    """However strongly the model answers with a label that no variant points to."""

    class Loud(Finds):
        def forward(self, images):
            logits = super().forward(images)
            return torch.cat([logits, 1e4 * images.mean(dim=(1, 2, 3))[:, None]], dim=1)

    rows = torch.cat([ROWS, torch.ones(COUNT, 1, dtype=torch.int64)], dim=1)
    names = (*CLASSES, "bright")
    found, expected = of_patch(Loud(CUE), labelled(rows, class_names=names)), of_patch(Finds(CUE))
    assert found == expected


def test_labels_that_nobody_knows_are_left_out_of_what_is_right_and_of_nothing_else():
    rows = ROWS.clone()
    rows[:6] = -1
    found = of_patch(Finds(OBJECT), labelled(rows))
    assert found["effect"].valid == found["consistency"].valid == COUNT
    for key in ("object_only_acc", "pair_acc"):
        assert (found[key].value, found[key].valid) == (1, 6), key


def test_a_cue_that_hides_the_object_is_no_pair():
    hidden = values(Finds(CUE), labelled(), CueTrial(PatchCue(COLOURS, CLASSES, at="core")))
    for key in ("effect", "consistency", "pair_acc"):
        assert (hidden[f"cue/patch/{key}"].valid, hidden[f"cue/patch/{key}"].degenerate) == (0, COUNT), key
    assert math.isnan(hidden["cue/patch/effect"].value)


def test_probes_without_labels_have_no_accuracies():
    found = values(Reads(CUE), scenes(COUNT, labels=None), patch())
    assert "cue/patch/pair_acc" not in found
    assert "cue/patch/pair_acc" in values(Finds(CUE), labelled(), patch())


def test_a_cue_may_point_to_labels_by_name_or_index_and_to_no_other():
    assert of_patch(Finds(CUE), points_to=[0, 1, 2]) == of_patch(Finds(CUE))
    with pytest.raises(ConfigurationError, match="Did you mean 'red'"):
        patch(points_to=["rde", "green", "blue"]).check(labelled())
    with pytest.raises(ConfigurationError, match="below 3"):
        Auditor(labelled(class_names=None), trials=[patch(points_to=[0, 1, 7])], explainers=[])


def test_an_audit_tells_a_model_of_the_cue_from_one_of_the_object():
    count = 36
    rows = torch.eye(3, dtype=torch.int64)[torch.arange(count) % 3]
    probes = scenes(count, labels=rows)
    effects = {
        name: Auditor(probes, trials=[patch()], explainers=[], novelty=[]).audit(Finds(region)).metrics
        for name, region in (("cue", CUE), ("object", OBJECT))
    }
    assert effects["cue"]["cue/patch/effect"].low > 0.8
    assert effects["object"]["cue/patch/effect"].value == 0
    assert effects["object"]["cue/patch/effect"].high < 0.1
    assert effects["object"]["accuracy"].value == effects["object"]["exact_match"].value == 1


@pytest.mark.parametrize(
    "trial",
    [RegionTrial("core"), BackgroundTrial(), HalfTrial("top")],
    ids=lambda trial: trial.name,
)
def test_trials_that_count_right_answers_of_one_label_are_refused(trial):
    with pytest.raises(ConfigurationError, match="Expected probes with one label each"):
        trial.check(labelled())


def test_a_cue_of_ones_own_has_its_closed_form_too():
    """Half as bright, a red object has logit 0 instead of 10; others have -10 either way. Both weigh the same."""
    cue = FunctionCue(lambda images, variants: images * 0.5, "red")
    found = values(Finds(OBJECT), labelled(), CueTrial(cue))
    assert found["cue/own/effect"].value == pytest.approx((sigmoid(0) - sigmoid(GAIN / 2)) / 2, abs=1e-6)
    assert found["cue/own/effect_logit"].value == pytest.approx(-GAIN / 4 / 2)
    assert found["cue/own/pair_acc"].value == pytest.approx(2 / 3)


def test_a_cue_that_the_probes_carry_is_taken_away():
    red = labelled(images=scene([k % 3 for k in range(COUNT)], [0] * COUNT))
    found = {
        name: values(Finds(region), red, CueTrial(PasteCue("red"))) for name, region in (("it", CUE), ("not", OBJECT))
    }
    for key in ("cue/paste/effect", "cue/paste/effect_removed"):
        assert found["it"][key].valid == found["not"][key].valid == COUNT
        # Without the cue its region is nearly grey, far below one half in red.
        assert found["it"][key].value > sigmoid(GAIN / 2) - sigmoid(-GAIN / 8)
        assert found["not"][key].value == 0
