"""`Separation` and `Conditions`: the functions themselves, and scores that say nothing."""

from __future__ import annotations

import math

import pytest
import torch

from tests.measures.records import Model, audit, context, measured
from tests.tiny import pictures, tiny_probes
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.interventions import LEVELS, condition_probes
from xai_callbacks.measures import Conditions, Separation
from xai_callbacks.metrics import separate
from xai_callbacks.probes import ProbeSet

NOVEL = tiny_probes(4, seed=3, names=("a", "b", "c", "d"))
AROUND = ("energy", "odin")


def scores(seed=0, count=6):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_scores_are_judged_by_novel_images():
    novel = {"energy": scores(5, 4), "odin": scores(6, 4), "knn": scores(7, 4)}
    model = Model(novel)
    record = audit(scores={"energy": scores(0), "odin": scores(1)})
    found = measured(Separation(NOVEL), record, around=context(novelty=AROUND, model=model))
    assert torch.equal(model.seen[0], NOVEL.images)
    assert len(found) == 10  # a score without values for the probes was left out
    for name in AROUND:
        for key, estimate in separate(record.scores[name], novel[name]).items():
            assert found[f"novelty/{name}/{key}"] == estimate


@pytest.mark.parametrize(
    ("useless", "why"),
    [
        (torch.tensor([0.0, math.nan, 1.0, 2.0]), "it is NaN or inf for 1 of 4 probes, first for 'b'"),
        (torch.full((4,), 2.0), "it is 2 for all 4 probes, so that it tells none from another"),
    ],
)
def test_a_useless_score_has_no_value_and_says_why(useless, why):
    around = context(novelty=AROUND, model=Model({"energy": useless.double(), "odin": scores(6, 4)}))
    record = audit(scores={"energy": scores(0), "odin": scores(1)})
    found = measured(Separation(NOVEL), record, around=around)
    assert around.notes == [f"The novelty score `energy` was not judged by novel images: {why}."]
    assert all(math.isnan(found[key].value) == key.startswith("novelty/energy") for key in found)
    assert found["novelty/energy/auroc"][1:] == (None, None, None, 0, 4)


def test_novel_images_must_have_the_shape_of_the_probes():
    with pytest.raises(ConfigurationError, match=r"shape of the probes, \(3, 8, 8\) .* got \(3, 9, 9\)"):
        Separation(ProbeSet.from_tensors(pictures(2, size=9))).keys(context())
    with pytest.raises(ConfigurationError, match=r"Expected `novel` to be a ProbeSet, .* but got Tensor"):
        Separation(pictures(2))


def test_scores_are_judged_by_the_probes_under_conditions():
    probes = tiny_probes()
    answers = [{"energy": scores(seed), "odin": scores(seed + 50)} for seed in range(1, 11)]
    answers[6]["odin"][2] = math.inf
    model = Model(*answers)
    record = audit(probes, scores={"energy": scores(0), "odin": scores(40)})
    around = context(probes, novelty=AROUND, model=model)
    found = measured(Conditions(["blur", "noise"]), record, around=around)
    shown = [(name, level) for name in ("blur", "noise") for level in LEVELS]
    assert len(found) == 20
    for (name, level), images, answer in zip(shown, model.seen, answers, strict=True):
        assert torch.equal(images, condition_probes(probes, name, level))
        assert found[f"novelty/energy/{name}_{level}/auroc"] == separate(scores(0), answer["energy"])["auroc"]
    broken = found["novelty/odin/noise_2/auroc"]
    assert math.isnan(broken.value)
    assert broken[1:] == (None, None, 0.5, 0, 1)


def test_conditions_must_exist():
    with pytest.raises(ConfigurationError, match=r"Expected `names` to be some of .*blur.*, but got 'fog'"):
        Conditions(["blur", "fog"])


def test_before_training_nothing_is_scored():
    record = audit(scores={"energy": scores()})
    for measure in (Separation(NOVEL), Conditions("blur")):
        assert measured(measure, record, around=context(novelty=AROUND)) == {}
