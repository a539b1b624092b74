"""Figures of the detection study: formulas against oracles, and a net that goes all the way."""

import json
import math
from pathlib import Path

import _detection_figures as figures
import _detection_statistics as statistics
import _shapes as shapes
import evaluate_detection as study
import pytest
import torch
from scipy.stats import binomtest

KEPT = Path(__file__).resolve().parents[2] / "docs" / "results" / "evidence.json"


@pytest.mark.parametrize(("hits", "trials"), [(0, 45), (2, 45), (21, 21), (7, 30), (1, 1)])
def test_exact_intervals_are_those_of_scipy(hits, trials):
    exact = binomtest(hits, trials).proportion_ci(method="exact")

    assert statistics.clopper_pearson(hits, trials) == pytest.approx([exact.low, exact.high], abs=1e-9)


@pytest.mark.parametrize(
    ("gap", "kind"),
    [((0.2, 0.01), "positive"), ((0.12, 0.08), "grey"), ((0.05, 0.01), "grey"), ((-0.03, 0.01), "negative"),
     ((-0.2, 0.01), "grey"), ((0.1, 0.01), "positive")],
)  # fmt: skip
def test_what_a_net_is_follows_from_its_measured_gap(gap, kind):
    assert figures.kind_of(gap) == kind


@pytest.mark.parametrize(
    ("curve", "epoch"),
    [([9, 1, 9, 1, 9], None), ([0, 9, 9, 0], 1), ([9, 9, 0, 0], None), ([0, math.nan, 9, 9], 2), ([0, 0, 0, 9], None)],
)
def test_an_alarm_persists_and_does_not_count_the_untrained_net(curve, epoch):
    assert figures._first_alarm(curve, 5) == epoch


def test_a_perfect_auroc_has_a_lower_end_within_1_96_standard_errors():
    low = statistics.perfect_auroc(70, 21)

    half = (70 + 21) / 2 - 1
    spread = 1 + half * (1 - low) / (2 - low) + half * low / (1 + low)
    assert 1 - low == pytest.approx(1.96 * math.sqrt(low * (1 - low) * spread / (70 * 21)), abs=1e-9)
    assert 0.9 < low < 0.95
    assert statistics.perfect_auroc(700, 210) > low


def test_leads_count_signs_that_never_come_as_one_epoch_too_late():
    lead = figures._lead([1, 2, None, 3], [2, 2, 5, None], epochs=8)

    assert (lead["median"], lead["mean"], lead["nets"]) == (1, 7 / 3, 3)
    assert (lead["earlier"], lead["later"], lead["other_never"]) == (2, 0, 1)


def test_a_drop_of_validation_accuracy_is_two_points_below_the_best_so_far():
    assert figures._drops([0.5, 0.8, 0.79, 0.77, 0.9]) == 3
    assert figures._drops([0.5, 0.8, 0.785, 0.9]) is None


def test_cues_have_the_strength_that_is_asked_for_and_are_else_any_other():
    labels = torch.arange(4).repeat(2500)

    for strength in (0.25, 0.9, 1.0):
        cues = shapes.drawn_cues(labels, strength, seed=3)
        error = 4 * math.sqrt(strength * (1 - strength) / len(labels))
        assert abs(float((cues == labels).double().mean()) - strength) <= error
    others = (shapes.drawn_cues(labels, 0.0, seed=3) - labels) % 4
    assert torch.bincount(others, minlength=4)[1:].min() > 3100


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_training_and_audit_paint_the_same_cue(family):
    pictures = shapes.draw(12, seed=5)
    probes = shapes.probe_set(family, 12, seed=5)
    cue = shapes.cue_of(family)
    cue.check(probes)

    for variant in range(4):
        variants = torch.full((12,), variant)
        painted = shapes.painted(pictures, variants, family)
        if family == "tint":
            shown = pictures.images * cue.gains[variants][:, :, None, None]
            assert torch.allclose(painted.double(), shown.clamp(0, 1), atol=1e-6)
        else:
            assert torch.equal(probes.masks["spurious"], pictures.corners)
            outside = ~pictures.corners[:, None].expand_as(painted)
            assert torch.equal(painted[outside], pictures.images[outside])
            assert float((painted - pictures.images)[~outside].abs().max()) > 0.1


def test_the_plan_has_every_strength_and_enough_negatives():
    plan = study.plan()

    assert len({spec.key for spec in plan}) == len(plan) == 138
    assert sum(spec.pool == "held-out" for spec in plan) == 45
    assert {spec.family for spec in plan if spec.pool == "held-out"} == {"none", "patch", "tint", "subtle"}
    seeds = {pool: {spec.seed for spec in plan if spec.pool == pool} for pool in ("calibration", "held-out", "trained")}
    assert not seeds["calibration"] & seeds["held-out"]


@pytest.mark.slow
def test_one_net_goes_all_the_way(monkeypatch):
    for name, value in (("TRAINED", 128), ("TESTED", 60), ("VALIDATED", 40), ("PROBES", 40), ("CONTEXT", 32)):
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "EPOCHS", 3)
    monkeypatch.setattr(study, "CONTEXT_EPOCHS", (1, 2, 3))
    bench = study.Bench()
    trained = [bench.learn(study.Spec("trained", family, 1.0, seed)) for family in shapes.FAMILIES for seed in (0, 1)]
    clean = [
        bench.learn(study.Spec(pool, family, 0.25, 5))
        for pool in study.NEGATIVES
        for family in ("none", "patch", "subtle")
    ]
    for net in trained:
        # Whether such a net uses its cue is not the point here.
        net["gap"] = {net["spec"]["family"]: [0.5, 0.01]}
    for net in clean:
        net["gap"] = {family: [0.0, 0.01] for family in net["gap"]}

    found = figures.summarized(json.loads(json.dumps([*trained, *clean])))

    assert set(found) >= {"patch", "tint", "subtle", "placebo", "rule", "salience"}
    assert found["patch"]["cue/effect"]["auroc_last"] is not None
    assert 0 <= found["rule"]["far_heldout"] <= 1
    assert len(trained[0]["looks"]["patch"]) == 4


def test_the_kept_figures_meet_the_bars():
    kept = json.loads(KEPT.read_text())

    for family in ("patch", "tint"):
        effect = kept[family]["cue/effect"]
        assert effect["auroc_last"] >= 0.95
        assert effect["auroc_last_ci"][0] >= 0.85
    assert kept["rule"]["far_heldout"] <= 0.10
    assert kept["rule"]["far_heldout_ci"][1] <= 0.20
    assert kept["patch"]["cue/effect"]["lead_time"]["over_flips"]["median"] >= 1
    assert kept["salience"]["cue/effect"]["passed"]
