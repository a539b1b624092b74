"""Expectations as tests, on records of real audits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.expectations.records import estimate, made_record
from tests.tiny import CLASSES, pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet
from xai_callbacks.errors import ConfigurationError, XAICallbacksError
from xai_callbacks.expectations import (
    ExpectationsFailed,
    Outcome,
    Vocabulary,
    assert_expectations,
    check,
    parse_expectations,
)
from xai_callbacks.expectations.names import row_of_key
from xai_callbacks.interventions.cues import PatchCue
from xai_callbacks.metrics import summarize
from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, NoiseTrial, RegionTrial

GOOD = {"confidence": estimate(0.61, 0.55, 0.66), "switched": estimate(0.5, 0.25, 0.75)}


@pytest.fixture(scope="module")
def probes():
    return tiny_probes(96, groups=torch.arange(96) % 2, group_names=("land", "sea"))


@pytest.fixture(scope="module")
def record(probes):
    auditor, net = Auditor(probes), tiny_net()
    auditor.audit(net)
    return auditor.audit(net)


def test_record_that_meets_expectations_passes():
    (verdict,) = assert_expectations(made_record(GOOD), ["confidence > 0.5"])
    assert verdict.outcome is Outcome.PASS


def test_record_that_does_not_fails_with_the_table():
    with pytest.raises(ExpectationsFailed) as error:
        assert_expectations(made_record(GOOD, epoch=3, step=40), ["confidence > 0.5", "confidence < 0.5"])
    assert str(error.value) == "\n".join(
        [
            "1 of 2 expectations not met at epoch 3, step 40.",
            "",
            "      expectation       measured",
            "pass  confidence > 0.5  0.61 [0.55, 0.66]",
            "FAIL  confidence < 0.5  0.61 [0.55, 0.66]",
        ]
    )
    assert [verdict.outcome for verdict in error.value.verdicts] == [Outcome.PASS, Outcome.FAIL]


def test_failure_is_an_assertion_and_one_of_our_errors():
    assert issubclass(ExpectationsFailed, AssertionError)
    assert issubclass(ExpectationsFailed, XAICallbacksError)


def test_missing_evidence_is_a_warning():
    with pytest.warns(UserWarning, match="Not enough evidence") as warned:
        assert_expectations(made_record(GOOD), ["confidence > 0.5", "switched < 0.4"])
    assert str(warned[0].message) == (
        "Not enough evidence for 1 of 2 expectations: 'switched < 0.4': 0.5 [0.25, 0.75] on 64 probes; expected < 0.4. "
        "Add probes, or pass strict=True to let the test fail."
    )
    assert warned[0].filename == __file__


def test_missing_evidence_fails_a_strict_test():
    with pytest.raises(ExpectationsFailed, match=r"1 of 2 expectations not met"):
        assert_expectations(made_record(GOOD), ["confidence > 0.5", "switched < 0.4"], strict=True)


def test_expectation_that_is_not_due_fails_no_test():
    (verdict,) = assert_expectations(made_record(GOOD, epoch=2), ["confidence < 0.5 from epoch 3"], strict=True)
    assert verdict.outcome is Outcome.NOT_DUE


def test_record_alone_can_be_asked_about_all_it_has(record):
    found = parse_expectations([f"`{key}` > 0.25" for key in record.metrics], Vocabulary.of_record(record))
    assert len(found) > 20
    assert [verdict.value for verdict in check(found, record)] == [each.value for each in record.metrics.values()]


def test_record_alone_knows_indexes_of_classes(record):
    verdicts = assert_expectations(record, ["relevance_mass[core] < 0.99 for class 2"])
    assert verdicts[0].value == summarize(record.per_probe["gradcam/why/relevance_mass/core"][record.truth == 2]).value
    with pytest.raises(ConfigurationError, match="and a record has none: write an index"):
        assert_expectations(record, ["relevance_mass[core] < 0.99 for class owl"])


def test_record_without_values_of_each_probe_has_no_classes(record):
    old = dataclasses.replace(record, per_probe={}, chances={})
    with pytest.raises(ConfigurationError, match="Expected a metric that each probe has a value of before `for class`"):
        assert_expectations(old, ["accuracy > 0.5 for class 2"])


def test_probes_lend_a_record_their_names_and_groups(record, probes):
    vocabulary = Vocabulary.of_record(record, probes)
    sentences = ["relevance_mass[core] < 0.99 for class owl", "relevance_mass[core] < 0.99 for group sea"]
    verdicts = assert_expectations(record, sentences, vocabulary)
    values = record.per_probe["gradcam/why/relevance_mass/core"]
    by_hand = summarize(values[2::3]).value, summarize(values[1::2]).value
    assert tuple(verdict.value for verdict in verdicts) == by_hand


def test_other_probes_are_refused(record):
    with pytest.raises(ConfigurationError, match="Expected `probes` to be those of the record"):
        Vocabulary.of_record(record, tiny_probes(6))


def test_what_the_record_does_not_have_is_refused(record):
    for sentence, message in {
        "cue_effect[snow] < 0.05": "Add a CueTrial",
        "worst_group_accuracy > 0.5": "Pass `group=`",
        "novelty[grad_norm].auroc > 0.5": "Pass them by `novel=`",
        "relevance_mass[cor] > 0.5": "Did you mean 'core'?",
        "`gradcam/why/relevance_mass/cor` > 0.5": "Did you mean 'gradcam/why/relevance_mass/core'?",
    }.items():
        with pytest.raises(ConfigurationError, match=message.replace("?", r"\?")):
            assert_expectations(record, [sentence])


def test_metric_that_was_not_measured_at_that_audit_is_refused(record):
    first = dataclasses.replace(record, metrics={k: v for k, v in record.metrics.items() if k != "switched"})
    for sentence in ("switched < 0.5", "`switched` < 0.5"):
        with pytest.raises(ConfigurationError, match="Expected a metric of the record, but got 'switched'"):
            assert_expectations(first, [sentence])


def test_vocabulary_of_probes_and_of_their_record_agree(record, probes):
    auditor = Auditor(probes)
    before = Vocabulary.of_probes(
        probes,
        questions=auditor.asked,
        novelty=[score.name for score in auditor.novelty],
        num_classes=len(CLASSES),
    )
    after = Vocabulary.of_record(record, probes)
    assert dataclasses.replace(after, extra=(), keys=None, per_probe=None) == before


def test_every_key_of_an_audit_with_all_trials_is_known_before_it(probes):
    trials = [
        CueTrial(PatchCue([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 1], size=0.3)),
        RegionTrial("core"),
        BackgroundTrial(),
        NoiseTrial(),
        HalfTrial(),
    ]
    auditor = Auditor(probes, trials=trials, novel=tiny_probes(40, seed=3))
    auditor.audit(tiny_net())
    record = auditor.audit(tiny_net())
    vocabulary = Vocabulary.of_probes(
        probes,
        questions=auditor.asked,
        trials=[trial.name for trial in trials],
        novelty=[score.name for score in auditor.novelty],
        novel=True,
    )
    found = parse_expectations([f"`{key}` > 0.25" for key in record.metrics], vocabulary)
    assert [each.target.key for each in found] == list(record.metrics)
    after = Vocabulary.of_record(record, probes)
    assert set(after.trials) == set(vocabulary.trials)
    assert (after.novel, after.novelty) == (True, vocabulary.novelty)
    for each, key in zip(found, record.metrics, strict=True):
        row = row_of_key(key, vocabulary)
        assert row.per_probe == (key in record.per_probe or key.removeprefix("novelty/") in record.scores)
        values = record.per_probe.get(key, torch.tensor([record.metrics[key].value]))
        values = values[values.isfinite()]
        assert bool(((row.low <= values) & (values <= row.high)).all())
        if each.target.share:
            assert bool(((values == 0) | (values == 1)).all())


def test_vocabulary_of_a_record_finds_trials_in_its_keys():
    keys = ("cue/a/b/effect", "region/core/placebo_drop", "rfs/core", "bg/gap", "fill/disagree", "group/wga")
    record = made_record({key: estimate(0.5) for key in (*keys, "group/conflict_gap", "cluster/count", "alarm/a/b")})
    found = Vocabulary.of_record(record)
    assert found.trials == ("cue/a/b", "region/core", "rfs/core", "bg", "fill")
    assert (found.cues, found.ablated, found.noised) == (("a/b",), ("core",), ("core",))
    assert (found.backgrounds, found.half_fill) == (True, True)
    assert (found.group_metrics, found.aligned, found.train_counts) == (True, True, False)
    assert (found.clusters, found.alarms) == (True, True)


def test_vocabulary_of_a_regression_has_values_and_no_classes():
    probes = ProbeSet.from_tensors(pictures(4), targets=torch.rand(4))
    record = Auditor(probes).audit(tiny_net(classes=1))
    for found in (Vocabulary.of_record(record), Vocabulary.of_probes(probes)):
        assert (found.regresses, found.classifies, found.labelled, found.labels) == (True, False, True, None)
    bare = dataclasses.replace(record, truth=None)
    assert Vocabulary.of_record(bare).regresses
