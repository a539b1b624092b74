"""The outcomes, at estimates made by hand and at values of each probe."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.expectations.records import VOCABULARY, estimate, made_record, parsed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations import Expectation, Outcome, check
from xai_callbacks.metrics import summarize
from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.record import Estimate, NoveltyRecord

PASS, FAIL, UNKNOWN, NOT_DUE = Outcome.PASS, Outcome.FAIL, Outcome.NOT_ENOUGH_EVIDENCE, Outcome.NOT_DUE


def judged(sentence, metrics=None, *, vocabulary=VOCABULARY, epoch=None, **fields):
    (verdict,) = check(parsed(sentence, vocabulary=vocabulary), made_record(metrics, **fields), epoch)
    return verdict


def of_confidence(sentence, *numbers, **counts):
    return judged(sentence, {"confidence": estimate(*numbers, **counts)})


def test_outcomes_read_as_words():
    assert [str(outcome) for outcome in Outcome] == ["pass", "fail", "not enough evidence", "not due"]


@pytest.mark.parametrize(
    ("comparison", "numbers", "outcome"),
    [
        ("> 0.5", (0.61, 0.55, 0.66), PASS),
        ("> 0.5", (0.61, 0.5, 0.66), UNKNOWN),  # the end does not exceed the bound
        (">= 0.5", (0.61, 0.5, 0.66), PASS),
        ("> 0.5", (0.55, 0.45, 0.66), UNKNOWN),
        ("> 0.5", (0.45, 0.40, 0.55), UNKNOWN),
        ("> 0.5", (0.4, 0.3, 0.5), FAIL),
        (">= 0.5", (0.4, 0.3, 0.5), UNKNOWN),
        ("> 0.5", (0.4, 0.3, 0.45), FAIL),
        ("< 0.5", (0.4, 0.3, 0.45), PASS),
        ("< 0.5", (0.4, 0.3, 0.5), UNKNOWN),
        ("<= 0.5", (0.4, 0.3, 0.5), PASS),
        ("< 0.5", (0.4, 0.3, 0.6), UNKNOWN),
        ("< 0.5", (0.6, 0.5, 0.7), FAIL),
        ("<= 0.5", (0.6, 0.5, 0.7), UNKNOWN),
        ("<= 0.5", (0.6, 0.51, 0.7), FAIL),
        ("> 0.5", (0.49, 0.51, 0.6), UNKNOWN),  # a value outside its own interval proves nothing
    ],
)
def test_interval_decides(comparison, numbers, outcome):
    assert of_confidence(f"confidence {comparison}", *numbers).outcome is outcome


def test_verdict_says_all_in_a_sentence():
    verdict = of_confidence("confidence > 0.5", 0.61, 0.55, 0.66)
    assert verdict.reason == "0.61 [0.55, 0.66] on 64 probes; expected > 0.5"
    assert (verdict.value, verdict.low, verdict.high, verdict.valid) == (0.61, 0.55, 0.66, 64)
    assert verdict.measured == "0.61 [0.55, 0.66]"


def test_verdict_counts_probes_without_a_value():
    verdict = of_confidence("confidence > 0.5", 0.61, 0.55, 0.66, valid=60, degenerate=4)
    assert verdict.reason == "0.61 [0.55, 0.66] on 60 probes (4 without a value); expected > 0.5"


def test_number_is_written_so_that_it_stands_on_its_side_of_the_bound():
    verdict = of_confidence("confidence > 0.5", 0.50004, 0.5, 0.66)
    assert verdict.reason == "0.50004 [0.5, 0.66] on 64 probes; expected > 0.5"


@pytest.mark.parametrize(("comparison", "margin"), [("> 0.25", 0.375), ("< 0.25", -0.375), ("<= 0.75", 0.125)])
def test_margin_is_positive_on_the_expected_side(comparison, margin):
    assert of_confidence(f"confidence {comparison}", 0.625, 0.5, 0.7).margin == margin


@pytest.mark.parametrize("value", [0.99, 0.01])
def test_few_probes_are_not_enough_evidence_however_good_the_value(value):
    verdict = of_confidence("confidence > 0.5", value, valid=29)
    assert verdict.outcome is UNKNOWN
    assert verdict.reason == f"{value} on 29 probes, too few for an interval (30); expected > 0.5"


@pytest.mark.parametrize(("comparison", "outcome"), [("> 0.5", PASS), ("> 0.7", FAIL)])
def test_value_decides_where_a_metric_has_no_interval_by_nature(comparison, outcome):
    key = "novelty/energy/rank_correlation"
    verdict = judged(f"novelty[energy].rank_correlation {comparison}", {key: estimate(0.61)})
    assert verdict.outcome is outcome
    assert verdict.reason == f"0.61 on 64 probes (no interval); expected {comparison}"


def test_thirty_probes_are_enough_for_it():
    key = "novelty/energy/rank_correlation"
    verdicts = [judged("novelty[energy].rank_correlation > 0.5", {key: estimate(0.61, valid=n)}) for n in (29, 30)]
    assert [verdict.outcome for verdict in verdicts] == [UNKNOWN, PASS]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sentence", ["relevance_lift[core] > 2", "relevance_lift[core] <= 2"])
@pytest.mark.parametrize("ends", [(None, None), (0.0, 1.0), (3.0, 4.0), (math.nan, math.nan)])
def test_value_that_is_none_never_passes_and_never_fails(value, sentence, ends):
    verdict = judged(sentence, {"gradcam/why/relevance_lift/core": estimate(value, *ends)})
    assert verdict.outcome is UNKNOWN
    assert math.isnan(verdict.margin)
    assert verdict.reason.startswith("no value on 64 probes; expected ")


@pytest.mark.parametrize("ends", [(math.nan, 0.9), (0.6, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("comparison", ["> 0.5", "< 0.5"])
def test_interval_that_is_none_never_passes_and_never_fails(comparison, ends):
    assert of_confidence(f"confidence {comparison}", 0.7, *ends).outcome is UNKNOWN


def test_metric_that_was_not_measured_is_not_enough_evidence():
    verdict = judged("switched < 0.5")
    assert (verdict.outcome, verdict.reason) == (UNKNOWN, "not measured at this audit")
    assert math.isnan(verdict.value)


@pytest.mark.parametrize(
    ("epoch", "outcome", "reason"),
    [
        (1, NOT_DUE, "not due before epoch 2"),
        (2, PASS, "0.61 [0.55, 0.66] on 64 probes; expected > 0.5"),
        (4, PASS, "0.61 [0.55, 0.66] on 64 probes; expected > 0.5"),
        (5, NOT_DUE, "not due after epoch 4"),
    ],
)
def test_expectation_counts_from_its_first_epoch_to_its_last(epoch, outcome, reason):
    metrics = {"confidence": estimate(0.61, 0.55, 0.66)}
    sentence = "confidence > 0.5 from epoch 2 until epoch 4"
    for verdict in (judged(sentence, metrics, epoch=epoch), *check(parsed(sentence), made_record(metrics), epoch)):
        assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_epoch_is_that_of_the_record_unless_another_is_given():
    (expectation,) = parsed("confidence > 0.5 from epoch 5")
    record = made_record({"confidence": estimate(0.61, 0.55, 0.66)}, epoch=5)
    assert [check([expectation], record, epoch)[0].outcome for epoch in (None, 4, 0)] == [PASS, NOT_DUE, NOT_DUE]


class TestOfTheWholeValidationSet:
    def test_interval_of_the_record_decides(self):
        verdict = judged("worst_group_accuracy > 0.7", {"group/wga": estimate(0.72, 0.65, 0.78, valid=180)})
        assert verdict.outcome is UNKNOWN
        assert verdict.reason == "0.72 [0.65, 0.78] on 180 images; expected > 0.7"

    @pytest.mark.parametrize(("comparison", "outcome"), [("< 0.1", PASS), ("< 0.02", FAIL)])
    def test_value_decides_without_an_interval_whatever_the_number_of_images(self, comparison, outcome):
        verdict = judged(f"conditional_mi {comparison}", {"group/cond_mi": estimate(0.04, valid=12)})
        assert verdict.outcome is outcome
        assert verdict.reason == f"0.04 on 12 images (no interval); expected {comparison}"

    def test_share_of_all_images_has_wilsons_interval(self):
        verdict = judged("validation_accuracy > 0.3", {"group/accuracy_all": estimate(0.29, valid=100)})
        low, high = wilson_interval(torch.tensor(29), torch.tensor(100))
        assert (verdict.low, verdict.high) == (float(low), float(high))
        assert verdict.outcome is UNKNOWN

    def test_group_of_three_images_proves_nothing(self):
        low, high = (float(end) for end in wilson_interval(torch.tensor(3), torch.tensor(3)))
        metrics = {"group/accuracy/0_1": estimate(1.0, low, high, valid=3)}
        assert judged("`group/accuracy/0_1` > 0.9", metrics).outcome is UNKNOWN
        assert judged("`group/accuracy/0_1` > 0.4", metrics).outcome is PASS

    def test_groups_that_are_all_too_small_have_no_value(self):
        verdict = judged("worst_group_accuracy > 0.7", {"group/wga": estimate(math.nan, valid=0)})
        assert (verdict.outcome, verdict.reason) == (UNKNOWN, "no value on 0 images; expected > 0.7")

    def test_alarm_is_what_it_is(self):
        metrics = {"alarm/cue/tint": estimate(0.0, valid=0)}
        verdict = judged("alarm[tint] < 1", metrics)
        assert (verdict.outcome, verdict.reason) == (PASS, "0 (no interval); expected < 1")


class TestWhereEveryProbeSaysTheSame:
    @pytest.mark.parametrize(("sentence", "outcome"), [("accuracy > 0.85", PASS), ("accuracy > 0.99", UNKNOWN)])
    def test_share_has_wilsons_interval(self, sentence, outcome):
        verdict = judged(sentence, per_probe={"accuracy": torch.ones(30, dtype=torch.float64)})
        low, _ = wilson_interval(torch.tensor(30), torch.tensor(30))
        assert (verdict.low, verdict.high) == (float(low), 1.0)
        assert verdict.outcome is outcome

    def test_share_of_none_has_one_too(self):
        zeros = {"cue/tint/flip_rate": torch.zeros(64, dtype=torch.float64)}
        verdicts = [judged(f"cue_flip_rate[tint] < {bound}", per_probe=zeros) for bound in (0.05, 0.06)]
        assert [verdict.outcome for verdict in verdicts] == [UNKNOWN, PASS]
        assert verdicts[0].measured == "0 [0, 0.0566]"

    def test_measurement_is_exact(self):
        zeros = {"cue/tint/effect": torch.zeros(64, dtype=torch.float64)}
        verdict = judged("cue_effect[tint] < 0.01", per_probe=zeros)
        assert (verdict.outcome, verdict.low, verdict.high) == (PASS, 0.0, 0.0)

    def test_few_probes_have_no_interval_all_the_same(self):
        verdict = judged("accuracy > 0.5", per_probe={"accuracy": torch.ones(29, dtype=torch.float64)})
        assert (verdict.outcome, verdict.low) == (UNKNOWN, None)


class TestTopClassThatIsStable:
    def test_is_what_does_not_disagree(self):
        metrics = {"fill/disagree": estimate(0.125, 0.0625, 0.1875)}
        verdict = judged("top1_stable under half_fill > 0.8", metrics)
        assert (verdict.value, verdict.low, verdict.high) == (0.875, 0.8125, 0.9375)
        assert (verdict.outcome, verdict.margin) == (PASS, pytest.approx(0.075))

    @pytest.mark.parametrize(
        ("numbers", "outcome"),
        [((0.02, 0.0, 0.05), PASS), ((0.04, 0.01, 0.06), UNKNOWN), ((0.2, 0.1, 0.3), FAIL)],
    )
    def test_means_95_percent_without_a_comparison(self, numbers, outcome):
        assert judged("top1_stable under half_fill", {"fill/disagree": estimate(*numbers)}).outcome is outcome

    def test_in_all_probes_is_no_proof_of_all(self):
        per_probe = {"fill/disagree": torch.zeros(64, dtype=torch.float64)}
        verdict = judged("top1_stable under half_fill", per_probe=per_probe)
        assert (verdict.value, verdict.high, verdict.outcome) == (1.0, 1.0, UNKNOWN)
        assert verdict.low == pytest.approx(0.9434, abs=1e-4)


class TestForSomeProbes:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(120, generator=generator, dtype=torch.float64)
    chances = torch.rand(120, generator=generator, dtype=torch.float64)
    truth = torch.arange(120) % 3
    key = "gradcam/why/relevance_mass/core"

    def test_class_is_summarized_as_by_hand(self):
        verdict = judged(
            "relevance_mass[core] > 0.3 for class husky",
            per_probe={self.key: self.values},
            chances={self.key: self.chances},
            truth=self.truth,
        )
        rows = self.truth == 1
        by_hand = summarize(self.values[rows], chance=self.chances[rows])
        assert Estimate(verdict.value, verdict.low, verdict.high, by_hand.chance, verdict.valid, 0) == by_hand
        assert (verdict.valid, verdict.outcome) == (40, PASS)
        assert verdict.low != summarize(self.values).low

    def test_class_of_few_probes_is_not_enough_evidence(self):
        verdict = judged(
            "relevance_mass[core] > 0.3 for class wolf",
            per_probe={self.key: self.values[:60]},
            truth=self.truth[:60],
        )
        assert verdict.outcome is UNKNOWN
        assert "on 20 probes, too few for an interval (30)" in verdict.reason

    def test_probes_of_the_class_without_a_value_are_counted(self):
        values = torch.where(torch.arange(120) < 12, torch.nan, self.values)
        chances = torch.where(torch.arange(120) == 7, torch.nan, self.chances)  # has no such region
        verdict = judged(
            "relevance_mass[core] > 0.3 for class husky",
            per_probe={self.key: values},
            chances={self.key: chances},
            truth=self.truth,
        )
        assert "on 36 probes (3 without a value)" in verdict.reason

    def test_class_that_no_probe_of_the_record_has_is_no_value(self):
        for truth in (torch.zeros(120, dtype=torch.int64), None):
            verdict = judged(
                "relevance_mass[core] > 0.3 for class husky", per_probe={self.key: self.values}, truth=truth
            )
            assert (verdict.outcome, verdict.reason) == (UNKNOWN, "no value on 0 probes; expected > 0.3")

    def test_group_is_summarized_as_by_hand(self):
        groups = (torch.arange(120) % 2 - 1).tolist()
        vocabulary = replace(VOCABULARY, groups=tuple(groups), group_names=("sea",))
        verdict = judged(
            "relevance_mass[core] > 0.3 for group sea", vocabulary=vocabulary, per_probe={self.key: self.values}
        )
        by_hand = summarize(self.values[1::2])
        assert (verdict.value, verdict.low, verdict.high, verdict.valid) == (by_hand[0], by_hand[1], by_hand[2], 60)

    def test_class_and_group_together_are_the_probes_of_both(self):
        vocabulary = replace(VOCABULARY, groups=(0,) * 100 + (1,) * 20)
        verdict = judged(
            "relevance_mass[core] > 0.3 for class wolf for group 0",
            vocabulary=vocabulary,
            per_probe={self.key: self.values},
            truth=self.truth,
        )
        assert verdict.value == summarize(self.values[:100][self.truth[:100] == 0]).value

    def test_group_of_other_probes_is_refused(self):
        vocabulary = replace(VOCABULARY, groups=(0, 1))
        with pytest.raises(ConfigurationError, match=r"Expected a record of the 2 probes .* but got one of 120"):
            judged("relevance_mass[core] > 0.3 for group 0", vocabulary=vocabulary, per_probe={self.key: self.values})

    def test_novelty_of_a_class_is_that_of_its_scores(self):
        verdict = judged("novelty[energy] > 0.3 for class 0", scores={"energy": self.values}, truth=self.truth)
        assert verdict.value == summarize(self.values[self.truth == 0]).value

    def test_stability_of_a_class_is_that_of_its_probes(self):
        disagree = (torch.arange(120) % 6 == 0).double()  # half of class 0
        verdict = judged(
            "top1_stable under half_fill for class 0", per_probe={"fill/disagree": disagree}, truth=self.truth
        )
        assert (verdict.value, verdict.outcome) == (0.5, FAIL)

    def test_metric_without_a_value_for_each_probe_was_not_measured(self):
        verdict = judged("accuracy > 0.5 for class 0", {"accuracy": estimate(0.9, 0.8, 0.95)}, truth=self.truth)
        assert (verdict.outcome, verdict.reason) == (UNKNOWN, "not measured at this audit")


def test_record_of_novelty_alone_can_be_checked():
    scores = torch.arange(40, dtype=torch.float64)
    metrics = {"novelty/energy/auroc": Estimate(0.9, 0.85, 0.95, 0.5, 80, 0)}
    record = NoveltyRecord(
        step=0, epoch=0, fingerprint="", scores={"energy": scores}, novel_scores={}, metrics=metrics, seconds={},
        notes=(), useless=(),
    )  # fmt: skip
    found = check(parsed("novelty[energy].auroc > 0.8", "accuracy > 0.5", "accuracy > 0.5 for class 0"), record)
    assert [verdict.outcome for verdict in found] == [PASS, UNKNOWN, UNKNOWN]


def test_expectation_that_was_not_looked_up_is_refused():
    with pytest.raises(ConfigurationError, match="Expected expectations from `parse_expectations`, but got 'accuracy"):
        check([Expectation("accuracy", ">", 0.5)], made_record())
