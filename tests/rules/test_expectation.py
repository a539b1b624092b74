"""The states, at estimates made by hand and at values of each probe; and mistakes told before training."""

from __future__ import annotations

import math

import pytest
import torch

from tests.rules.records import KEYS, estimate, history_of, made
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.record import AuditRecord, Key, interval, summarize
from xai_callbacks.rules import Expectation

PASS, FAIL, UNKNOWN, NOT_DUE = "pass", "fail", "not enough evidence", "not due"
MASS = "gradcam/why/relevance_mass/core"


def judged(sentence, metrics=None, per_probe=None, **fields):
    (finding,) = Expectation(sentence).conclude(History().with_record(made(metrics, per_probe, **fields)))
    return finding


def of_confidence(comparison, *numbers, **counts):
    return judged(f"confidence {comparison}", {"confidence": estimate(*numbers, **counts)})


@pytest.mark.parametrize(
    ("comparison", "numbers", "state"),
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
def test_interval_decides(comparison, numbers, state):
    assert of_confidence(comparison, *numbers).state == state


def test_finding_says_all_in_a_sentence_and_in_fields():
    finding = of_confidence("> 0.5", 0.61, 0.55, 0.66)
    assert finding.sentence == "confidence > 0.5: pass by 0.11, 0.61 [0.55, 0.66] on 64 probes."
    assert (finding.key, finding.about, finding.threshold) == ("expectation/confidence > 0.5", "confidence", 0.5)
    assert (finding.value, finding.estimate, finding.loud) == (None, estimate(0.61, 0.55, 0.66), False)


def test_finding_of_a_named_expectation_has_its_name():
    record = made({"confidence": estimate(0.3, 0.2, 0.4, degenerate=4)})
    (finding,) = Expectation("confidence > 50 %", "is sure").conclude(History().with_record(record))
    assert finding.key == "expectation/is sure"
    assert finding.sentence == (
        "is sure: confidence > 0.5: fail by 0.2, 0.3 [0.2, 0.4] on 64 probes (4 without a value)."
    )


def test_number_is_written_so_that_it_stands_on_its_side_of_the_bound():
    assert "0.50004 [0.5, 0.66] on 64 probes" in of_confidence("> 0.5", 0.50004, 0.5, 0.66).sentence


@pytest.mark.parametrize("value", [0.99, 0.01])
def test_few_probes_are_not_enough_evidence_however_good_the_value(value):
    assert of_confidence("> 0.5", value, valid=29).sentence == (
        f"confidence > 0.5: not enough evidence, {value} on 29 probes, too few for an interval (30)."
    )


@pytest.mark.parametrize(("comparison", "state"), [("> 0.5", "pass by 0.11"), ("> 0.7", "fail by 0.09")])
def test_value_decides_where_a_metric_has_no_interval_by_nature(comparison, state):
    key = "novelty/energy/rank_correlation"
    found = [judged(f"{key} {comparison}", {key: estimate(0.61, valid=valid)}) for valid in (29, 30)]
    assert [each.state for each in found] == [UNKNOWN, state[:4]]
    assert found[1].sentence == f"{key} {comparison}: {state}, 0.61 on 30 probes (no interval)."


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("comparison", ["> 2", "<= 2"])
@pytest.mark.parametrize("ends", [(None, None), (0.0, 1.0), (3.0, 4.0), (math.nan, math.nan)])
def test_value_that_is_none_never_passes_and_never_fails(value, comparison, ends):
    key = "gradcam/why/relevance_lift/core"
    finding = judged(f"{key} {comparison}", {key: estimate(value, *ends)})
    assert finding.sentence.startswith(f"{key} {comparison}: not enough evidence, no value on 64 probes")


@pytest.mark.parametrize("ends", [(math.nan, 0.9), (0.6, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("comparison", ["> 0.5", "< 0.5"])
def test_interval_that_is_none_never_passes_and_never_fails(comparison, ends):
    assert of_confidence(comparison, 0.7, *ends).state == UNKNOWN


def test_metric_that_was_not_measured_is_not_enough_evidence():
    finding = judged("switched < 0.5")
    assert finding.sentence == "switched < 0.5: not enough evidence, not measured at this audit."
    assert finding.estimate is None


@pytest.mark.parametrize(
    ("epoch", "state", "words"),
    [
        (1, NOT_DUE, "not due before epoch 2."),
        (2, PASS, "pass by 0.11, 0.61 [0.55, 0.66] on 64 probes."),
        (4, PASS, "pass by 0.11, 0.61 [0.55, 0.66] on 64 probes."),
        (5, NOT_DUE, "not due after epoch 4."),
    ],
)
def test_expectation_counts_from_its_first_epoch_to_its_last(epoch, state, words):
    sentence = "confidence > 0.5 from epoch 2 until epoch 4"
    finding = judged(sentence, {"confidence": estimate(0.61, 0.55, 0.66)}, epoch=epoch)
    assert (finding.state, finding.sentence) == (state, f"{sentence}: {words}")


def test_only_the_latest_audit_is_judged_and_nothing_of_none():
    good, bad = {"confidence": estimate(0.9, 0.8, 1.0)}, {"confidence": estimate(0.1, 0.0, 0.2)}
    assert [each.state for each in Expectation("confidence > 0.5").conclude(history_of([good, bad]))] == [FAIL]
    assert list(Expectation("confidence > 0.5").conclude(History())) == []


def test_a_history_says_the_same_from_a_folder_and_from_memory(tmp_path):
    per_probe = {MASS: torch.linspace(0, 1, 90, dtype=torch.float64)}
    record = made(per_probe=per_probe, truth=torch.arange(90) % 2)
    memory, folder = history_of([record] * 3), history_of([record] * 3, folder=tmp_path)
    rule = Expectation(f"{MASS} > 0.3 for class 1")

    found = rule.conclude(memory)
    assert found[0].state == PASS
    assert rule.conclude(folder) == rule.conclude(History(tmp_path)) == rule.conclude(memory) == found


# ---- metrics of other things than probes


def test_interval_of_images_decides():
    finding = judged("group/wga > 0.7", {"group/wga": estimate(0.72, 0.65, 0.78, valid=180)})
    assert finding.sentence == "group/wga > 0.7: not enough evidence, 0.72 [0.65, 0.78] on 180 images."


@pytest.mark.parametrize(("comparison", "state"), [("< 0.1", PASS), ("< 0.02", FAIL)])
def test_value_of_images_decides_without_an_interval_whatever_their_number(comparison, state):
    finding = judged(f"group/cond_mi {comparison}", {"group/cond_mi": estimate(0.04, valid=12)})
    assert finding.state == state
    assert finding.sentence.endswith("0.04 on 12 images (no interval).")


def test_groups_that_are_all_too_small_have_no_value():
    finding = judged("group/wga > 0.7", {"group/wga": estimate(math.nan, valid=0)})
    assert finding.sentence == "group/wga > 0.7: not enough evidence, no value on 0 images (no interval)."


def test_a_state_is_what_it_is():
    finding = judged("alarm/cue/tint < 1", {"alarm/cue/tint": estimate(0.0, valid=1)})
    assert finding.sentence == "alarm/cue/tint < 1: pass by 1, 0 (no interval)."


# ---- shares


def test_share_of_all_images_has_an_interval():
    finding = judged("group/accuracy_all > 0.3", {"group/accuracy_all": estimate(0.29, valid=100)})
    expected = interval((torch.arange(100) < 29).double(), bounds=(0.0, 1.0))
    assert finding.estimate[1:3] == pytest.approx(expected, abs=1e-12)
    assert finding.state == UNKNOWN


@pytest.mark.parametrize(("bound", "state"), [(0.85, PASS), (0.99, UNKNOWN)])
def test_share_of_probes_that_all_say_the_same_is_no_point(bound, state):
    finding = judged(f"accuracy > {bound}", per_probe={"accuracy": torch.ones(30, dtype=torch.float64)})
    assert 0.85 < finding.estimate.low < 0.95
    assert finding.state == state


def test_share_of_none_is_no_point():
    zeros = {"cue/tint/flip_rate": torch.zeros(64, dtype=torch.float64)}
    found = [judged(f"cue/tint/flip_rate < {bound}", per_probe=zeros) for bound in (0.04, 0.06)]
    assert [each.state for each in found] == [UNKNOWN, PASS]
    assert "0 [0, 0.0" in found[0].sentence


def test_no_effect_on_few_probes_is_no_proof_of_none():
    zeros = {"cue/tint/effect": torch.zeros(64, dtype=torch.float64)}
    states = [judged(f"cue/tint/effect < {bound}", per_probe=zeros).state for bound in (0.01, 0.06)]
    assert states == [UNKNOWN, PASS]


def test_few_probes_that_say_the_same_have_no_interval_all_the_same():
    finding = judged("accuracy > 0.5", per_probe={"accuracy": torch.ones(29, dtype=torch.float64)})
    assert (finding.state, finding.estimate.low) == (UNKNOWN, None)


# ---- some of the probes

VALUES = torch.rand(120, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TRUTH = torch.arange(120) % 3
SOME = {"per_probe": {MASS: VALUES}, "truth": TRUTH, "class_names": ("wolf", "husky", "great white")}


@pytest.mark.parametrize(("clause", "index"), [("wolf", 0), ("2", 2), ("'great white'", 2)])
def test_class_is_estimated_anew(clause, index):
    found = judged(f"{MASS} > 0.3 for class {clause}", **SOME).estimate
    by_hand = summarize(VALUES[index == TRUTH], bounds=(0.0, 1.0))
    assert (found.value, found.valid) == (pytest.approx(by_hand.value), 40)
    assert found[1:3] == pytest.approx(by_hand[1:3])


def test_group_and_class_together_are_the_probes_of_both():
    groups = tuple("sea" if row < 100 else "3" for row in range(120))
    for clause, rows in {"sea": torch.arange(120) < 100, "3": torch.arange(120) >= 100}.items():
        found = judged(f"{MASS} > 0.3 for class wolf for group {clause}", groups=groups, **SOME).estimate
        assert found.value == pytest.approx(float(VALUES[rows & (TRUTH == 0)].mean()))


def test_class_of_few_probes_is_not_enough_evidence():
    finding = judged(f"{MASS} > 0.3 for class 0", per_probe={MASS: VALUES[:60]}, truth=TRUTH[:60])
    assert finding.state == UNKNOWN
    assert "on 20 probes, too few for an interval (30)" in finding.sentence


def test_probes_of_the_class_without_a_value_are_counted():
    values = torch.where(torch.arange(120) < 12, torch.nan, VALUES)
    chances = torch.where(torch.arange(120) == 7, torch.nan, VALUES)  # has no such region
    finding = judged(f"{MASS} > 0.3 for class 1", per_probe={MASS: values}, chances={MASS: chances}, truth=TRUTH)
    assert "on 36 probes (3 without a value)" in finding.sentence


def test_novelty_of_a_class_is_that_of_its_scores():
    finding = judged("novelty/energy > 0.3 for class 0", scores={"energy": VALUES}, truth=TRUTH)
    assert finding.estimate.value == pytest.approx(float(VALUES[TRUTH == 0].mean()))


def test_metric_without_a_value_for_each_probe_was_not_measured():
    finding = judged("accuracy > 0.5 for class 0", {"accuracy": estimate(0.9, 0.8, 0.95)}, truth=TRUTH)
    assert finding.sentence.endswith("not enough evidence, not measured at this audit.")


# ---- mistakes


def refused(sentence, keys=KEYS, probes=64, identity=None):
    with pytest.raises(ConfigurationError) as error:
        Expectation(sentence).check(keys, probes, identity)
    return str(error.value)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("accurcy > 0.5", "Expected the key of a metric of this run, but got 'accurcy' in 'accurcy > 0.5'. "
         "Did you mean 'accuracy'?"),
        ("gradcam/why/relevance_mas/core > 0.5", "Did you mean 'gradcam/why/relevance_mass/core'?"),
        ("cue/snow/effect > 0.5", "Did you mean 'cue/tint/effect'?"),
        ("cue_effect[tint] > 0.5", "Known: accuracy, confidence, switched,"),
        ("zebra > 0.5", "Known: accuracy, confidence, switched,"),
        ("accuracy > 95", "Expected a bound that `accuracy` can meet, but got `> 95` in 'accuracy > 95'. Its values go "
         "from 0 to 1. Did you mean 95 %?"),
        ("cue/tint/effect > -2", "a bound that `cue/tint/effect` can miss, but got `> -2`"),
        ("confidence > 1", "a bound that `confidence` can meet, but got `> 1`"),
        ("confidence < 0", "a bound that `confidence` can meet, but got `< 0`"),
        ("confidence <= 100 %", "a bound that `confidence` can miss, but got `<= 1`"),
        ("confidence >= 0", "a bound that `confidence` can miss, but got `>= 0`"),
        ("gradcam/why/relevance_lift/core >= 0", "can miss, but got `>= 0`"),
        ("accuracy >= 1", "a bound that `accuracy` can be shown to meet, but got `>= 1`"),
        ("group/accuracy_all <= 0", "can be shown to meet, but got `<= 0`"),
        ("group/wga > 0.5 for class wolf", "a metric of the probes before `for class`, but got one of images"),
        ("cluster/count > 0.5 for group land", "a metric of the probes before `for group`, but got one of nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_an_error_before_training(sentence, message):
    assert message in refused(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "accuracy > 0.5", "confidence >= 1", "confidence <= 0", "cue/tint/effect < 0", "novelty/energy < -300",
        "gradcam/why/relevance_lift/core > 2", "cluster/count < 4", "alarm/cue/tint < 2", "audit/accuracy > 90 %",
        "`group/accuracy/wolf on snow` > 0.1", "accuracy > 0.5 for class wolf",
    ],
)  # fmt: skip
def test_what_can_be_asked_passes(sentence):
    assert list(Expectation(sentence).check(KEYS, 64)) == []


@pytest.mark.parametrize(
    ("clause", "fields", "message"),
    [
        ("class wulf", {}, "the name or index of a class after `for class`, but got 'wulf'"),
        ("class wulf", {}, "Did you mean 'wolf'?"),
        ("class zebra", {}, "Known: wolf, husky, cat, cat. Without `class_names` write an index."),
        ("class wolf", {"class_names": ()}, "but got 'wolf' in 'accuracy > 0.5 for class wolf'. Without"),
        ("class 4", {}, "but got 4 in"),
        ("class '0'", {}, "but got '0' in"),
        ("class cat", {}, "but got 2 of that name in 'accuracy > 0.5 for class cat'. Write the index."),
        ("class 3", {}, "Expected probes of the class and group, but got none"),
        ("class 9", {"class_names": ()}, "Expected probes of the class and group, but got none"),
        ("class wolf", {"truth": None}, "Expected labelled probes, to ask `for class`, but got none"),
        ("class wolf", {"truth": torch.rand(4)}, "Expected classes, to ask `for class`, but got values"),
        ("class wolf", {"truth": torch.eye(4).long()}, "but got several labels a probe"),
        ("group lnd", {}, "the name of a group after `for group`, but got 'lnd'"),
        ("group lnd", {}, "Did you mean 'land'?"),
        ("group land", {"groups": ()}, "Expected probes with groups, to ask `for group`, but got none"),
        ("class wolf for group sea", {}, "Expected probes of the class and group, but got none"),
    ],
)
def test_class_or_group_that_is_not_there_is_an_error_before_training(clause, fields, message):
    known = {"truth": torch.tensor([0, 0, 1, 1]), "class_names": ("wolf", "husky", "cat", "cat")}
    known |= {"groups": ("land", "land", "land", "sea")}
    assert message in refused(f"accuracy > 0.5 for {clause}", identity=AuditRecord(**(known | fields)))


def test_name_that_consists_of_digits_goes_before_the_index():
    named = {**SOME, "class_names": ("1", "0", "7")}
    found = [judged(f"{MASS} > 0.3 for class {clause}", **named).estimate.value for clause in ("0", "'1'", "2")]
    assert found == pytest.approx([float(VALUES[index == TRUTH].mean()) for index in (1, 0, 2)])


def test_too_few_probes_are_said_before_training():
    identity = AuditRecord(truth=torch.tensor([0, 1]).repeat(20))
    assert [
        len(Expectation(sentence).check(KEYS, 40, identity))
        for sentence in ("accuracy > 0.5", "accuracy > 0.5 for class 0", "group/wga > 0.5")
    ] == [0, 1, 0]
    (words,) = Expectation("accuracy > 0.5", "is right").check(KEYS, 29)
    assert words == (
        "Expected at least 30 probes to judge 'is right', but got 29: with fewer there is no interval, and never "
        "enough evidence."
    )


def test_the_first_declaration_that_matches_counts():
    keys = (Key("a/*", "", 0.0, 1.0), Key("a/b", "", 0.0, 9.0))
    assert "from 0 to 1" in refused("a/b > 5", keys=keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "Expected `sentence` to be text, but got 5."),
        (("accuracy > 0.5", " "), "Expected `name` to be readable text on one line, but got ' '."),
        (("accuracy > 0.5", "a\nb"), r"Expected `name` to be readable text on one line, but got 'a\\nb'."),
        (("accuracy > 0.5", 3), "Expected `name` to be readable text on one line, but got 3."),
    ],
)
def test_expectation_of_wrong_values_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Expectation(*arguments)


def test_expectations_are_equal_if_they_say_the_same():
    assert Expectation("`audit/accuracy`>50%") == Expectation("accuracy > 0.5")
    assert repr(Expectation("accuracy>50%", "right")) == "Expectation(sentence='accuracy > 0.5', name='right')"
