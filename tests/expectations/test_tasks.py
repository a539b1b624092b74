"""Expectations of several explainers, of several labels, and of values."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from tests.expectations.records import VOCABULARY, parsed
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, Every, GradCAM, Occlusion, ProbeSet
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.expectations import Outcome, Vocabulary, check, parse_expectations
from xai_callbacks.expectations.names import row_of_key

BOTH = replace(
    VOCABULARY,
    questions=("gradcam/why", "gradcam/why_rather_than", "occlusion/why", "occlusion/why_rather_than"),
)


def key_of(sentence, vocabulary=BOTH):
    return parsed(sentence, vocabulary=vocabulary)[0].target.key


# ---- several explainers


@pytest.mark.parametrize(
    ("sentence", "key"),
    [
        ("relevance_mass[core] > 0.5", "gradcam/why/relevance_mass/core"),
        ("relevance_mass[core] of why_rather_than > 0.5", "gradcam/why_rather_than/relevance_mass/core"),
        ("relevance_mass[core] of 'occlusion/why' > 0.5", "occlusion/why/relevance_mass/core"),
        ("drift of 'occlusion/why_rather_than' < 0.5", "occlusion/why_rather_than/drift"),
        ("`occlusion/why/soft_iou/spurious` < 0.5", "occlusion/why/soft_iou/spurious"),
    ],
)
def test_the_first_explainer_is_meant_unless_another_is_named(sentence, key):
    assert key_of(sentence) == key


def test_an_explainer_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'occlusion/why'\?"):
        key_of("drift of 'oclusion/why' < 0.5")
    with pytest.raises(ConfigurationError, match=re.escape("Known: gradcam/why, gradcam/why_rather_than, occlusion/w")):
        key_of("drift of 'shap/it' < 0.5")


def test_a_sentence_about_an_explainer_is_written_as_it_was_read():
    (found,) = parsed("relevance_mass[core] of 'occlusion/why' > 0.5", vocabulary=BOTH)
    assert parsed(str(found), vocabulary=BOTH)[0].target == found.target


def test_expectations_of_several_explainers_are_held_against_a_record():
    probes, explainers = tiny_probes(40), [GradCAM(), Every(2, Occlusion(4))]
    auditor, net = Auditor(probes, explainers=explainers), tiny_net()
    found = parse_expectations(
        ["relevance_mass[core] < 0.99", "relevance_mass[core] of 'occlusion/why' < 0.99"],
        Vocabulary.of_probes(probes, questions=auditor.asked),
    )
    first, second = (check(found, auditor.audit(net)) for _ in range(2))

    assert [verdict.outcome for verdict in first] == [Outcome.PASS, Outcome.PASS]
    # Occlusion does not answer at the second audit.
    assert [verdict.outcome for verdict in second] == [Outcome.PASS, Outcome.NOT_ENOUGH_EVIDENCE]
    assert second[1].reason == "not measured at this audit"


def test_a_record_knows_its_explainers():
    record = Auditor(tiny_probes(), explainers=[Occlusion(4), GradCAM()]).audit(tiny_net())
    vocabulary = Vocabulary.of_record(record)
    assert vocabulary.questions[:1] + vocabulary.questions[3:4] == ("occlusion/why", "gradcam/why")
    assert set(vocabulary.regions) == {"core", "spurious"}
    assert key_of("relevance_mass[core] < 0.9", vocabulary) == "occlusion/why/relevance_mass/core"
    assert key_of("drift of 'gradcam/why' < 0.9", replace(vocabulary, keys=None)) == "gradcam/why/drift"


def test_without_heatmaps_there_is_nothing_to_expect_of_them():
    record = Auditor(tiny_probes(), explainers=[]).audit(tiny_net())
    vocabulary = Vocabulary.of_record(record)
    assert vocabulary.questions == ()
    with pytest.raises(ConfigurationError, match="Expected a question whose heatmaps are judged, but got none"):
        key_of("relevance_mass[core] > 0.5", vocabulary)
    assert key_of("accuracy > 0.5", vocabulary) == "accuracy"


# ---- several labels


def multi_label():
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [-1, 1, 0]]).repeat(8, 1)
    return ProbeSet.from_tensors(pictures(40), labels, class_names=("a", "b", "c"))


def test_every_key_of_a_multi_label_audit_is_known_before_it():
    probes = multi_label()
    auditor = Auditor(probes, novelty=[])
    auditor.audit(tiny_net())
    record = auditor.audit(tiny_net(seed=1))
    before = Vocabulary.of_probes(probes, questions=auditor.asked, num_classes=3)

    found = parse_expectations([f"`{key}` > 0.25" for key in record.metrics], before)
    assert [each.target.key for each in found] == list(record.metrics)
    for each in found:
        values = record.per_probe[each.target.key]
        values = values[values.isfinite()]
        row = row_of_key(each.target.key, before)
        assert bool(((row.low <= values) & (values <= row.high)).all())
        # Of some labels of a probe being right, its accuracy is no share of the probes; exact match is.
        if each.target.share:
            assert bool(((values == 0) | (values == 1)).all())
    shares = {each.target.key: each.target.share for each in found}
    assert (shares["accuracy"], shares["exact_match"], shares["switched"]) == (False, True, True)


def test_a_multi_label_record_is_known_as_such():
    probes = multi_label()
    record = Auditor(probes, novelty=[]).audit(tiny_net())
    for found in (Vocabulary.of_record(record), Vocabulary.of_probes(probes)):
        assert (found.task, found.several_labels, found.classifies, found.regresses) == (
            "multi-label",
            True,
            True,
            False,
        )
        assert (found.labelled, found.labels) == (True, None)


def test_exact_match_can_be_expected_of_several_labels_only():
    several = replace(VOCABULARY, task="multi-label", labels=None)
    assert key_of("exact_match > 0.3", several) == "exact_match"
    with pytest.raises(ConfigurationError, match="but got one label a probe"):
        key_of("exact_match > 0.3", VOCABULARY)
    with pytest.raises(ConfigurationError, match="classes, to ask `for class`, but got several labels a probe"):
        key_of("exact_match > 0.3 for class wolf", several)


# ---- values


def test_the_error_of_each_value_can_be_expected_by_its_key():
    probes = ProbeSet.from_tensors(pictures(40), targets=torch.rand(40, 2), target_names=("blur", "grain of film"))
    auditor = Auditor(probes, novelty=[])
    record = auditor.audit(tiny_net(classes=2))
    before = Vocabulary.of_probes(probes, questions=auditor.asked)

    found = parse_expectations([f"`{key}` > 0.001" for key in record.metrics], before)
    assert {"absolute_error", "absolute_error/blur", "absolute_error/grain_of_film"} <= {f.target.key for f in found}
    assert [verdict.value for verdict in check(found, record)] == [each.value for each in record.metrics.values()]
    with pytest.raises(ConfigurationError, match="needs, but got a classifier"):
        key_of("`absolute_error/blur` < 1", VOCABULARY)
