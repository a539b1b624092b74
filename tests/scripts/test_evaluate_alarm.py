"""Figures of the study of the alarm: shares, gaps, what a net is, and settings that have not seen what they judge."""

from __future__ import annotations

import evaluate_alarm as study
import pytest
import torch
from _alarm_cues import FAMILIES, gap
from scipy.stats import binomtest

from xai_callbacks import Estimate


@pytest.mark.parametrize(("hits", "of"), [(0, 45), (2, 45), (21, 21), (7, 30), (1, 1)])
def test_intervals_are_exact(hits, of):
    exact = binomtest(hits, of).proportion_ci(method="exact")
    assert study.share(hits, of)["ci"] == pytest.approx([exact.low, exact.high], abs=1e-9)


def test_a_gap_is_a_mean_over_classes():
    labels = torch.tensor([0] * 8 + [1] * 2)
    own, other = torch.ones(10, dtype=torch.bool), torch.tensor([True] * 4 + [False] * 4 + [True] * 2)
    value, error = gap(own, other, labels)
    assert value == pytest.approx((0.5 + 0.0) / 2)
    assert error == pytest.approx(((0.25 * 8 / 7) / 8) ** 0.5 / 2)


def look(family="patch", *, role="taught", measured=0.3, pull=0.3, low=0.2):
    audit = {f"cue/{family}/{key}": Estimate(pull, low, 2 * pull - low, 0.0, 128) for key in study.KEYS}
    audits = {count: dict.fromkeys(range(1, study.EPOCHS + 1), audit) for count in study.PROBES}
    return study.Look(f"{role} {family}", role, family, 4, False, measured, audits)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (look(measured=0.1), "use"),
        (look(measured=0.05), "between"),
        (look(role="clean", measured=-0.03), "clean"),
        (look(role="useless", measured=0.12), "reacts"),
    ],
)
def test_what_a_net_is_follows_from_its_gap_and_what_it_was_taught(given, kind):
    assert given.kind == kind


def test_a_setting_is_settled_without_the_family_that_it_judges():
    # Of all other families clean nets stay below .05; the clean ones of `patch` do not.
    others = [look("tint"), *(look("tint", role="clean", measured=0.0, pull=0.06, low=0.04) for _ in range(30))]
    patches = [look("patch"), *(look("patch", role="clean", measured=0.0, pull=0.2, low=0.1) for _ in range(30))]
    table = study.Table([*others, *patches], 128)
    assert table.settled["patch"][0] == 0.05
    assert table.of("clean", family="patch")["share"] == 1.0
    assert set(table.settled) == set(FAMILIES)


def test_a_lead_is_counted_in_epochs():
    found = study.lead([look()], 128)
    assert found["median"] == 0
    assert found["earlier"]["of"] == 1
