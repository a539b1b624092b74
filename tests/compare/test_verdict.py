from dataclasses import replace

import pytest
import torch

from tests.record.samples import small
from xai_callbacks.compare import compare
from xai_callbacks.record import Estimate, Finding, Key

ACCURACY = (Key("accuracy", "share of probes that are right", 0.0, 1.0, "1 / K", "share"),)


def model(right, *findings, count=64, **fields):
    """An audit of a model that is right on the first probes, whose wrong answers are of another class."""
    truth = torch.arange(count) % 2
    said = torch.where(torch.arange(count) < right, truth, 1 - truth)
    correct = (said == truth).double()
    return small(
        0, explainers=(), names=tuple(map(str, range(count))), truth=truth, predictions=said, correct=correct,
        outputs=torch.nn.functional.one_hot(said, 2).float() * 4, per_probe={"accuracy": correct},
        metrics={"accuracy": Estimate(right / count, 0.1, 0.9, 0.5, count)}, keys=ACCURACY, findings=findings, **fields,
    )  # fmt: skip


CLEAN = Finding("alarm/cue/patch", "no evidence", 0.0, "No evidence of the patch.")
ALARM = Finding("alarm/cue/patch", "alarm", 2.0, "The model uses the patch.")
FAILED = Finding("expectation/x", "fail", 0.0, "Accuracy is too low.")


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
@pytest.mark.parametrize("fault", [ALARM, FAILED])
def test_the_only_model_without_fault_is_shipped(order, fault):
    models = {"good": model(40, CLEAN), "bad": model(64, fault)}
    verdict = compare({name: models[name] for name in order}).verdict
    assert verdict[0] == "Ship good: it is the only one without an alarm or a failed expectation."
    assert verdict[1] == f"Do not ship bad. {fault.sentence}"


def test_the_description_of_a_cue_is_left_out():
    described = "cue 'patch' (of colour (0, 0, 0) for '0', (1, 1, 1) for '1' and 8 others)"
    fault = replace(ALARM, sentence=f"Alarm: the model answers by the {described}: it moves the answer.")
    bad = model(64, fault, tried={"patch": described})
    verdict = compare({"good": model(40, CLEAN), "bad": bad}).verdict
    assert verdict[1] == "Do not ship bad. Alarm: the model answers by the cue 'patch': it moves the answer."


def test_none_is_shipped_where_all_are_faulty():
    verdict = compare({"a": model(40, ALARM), "b": model(64, FAILED)}).verdict
    assert verdict[0] == "Ship none of them: each raises an alarm or fails an expectation."
    assert [sentence[:13] for sentence in verdict[1:3]] == ["Do not ship a", "Do not ship b"]


@pytest.mark.parametrize(("first", "second"), [(64, 30), (30, 64)])
def test_of_sound_models_the_more_accurate_one_is_shipped(first, second):
    verdict = compare({"a": model(first, CLEAN), "b": model(second, CLEAN)}).verdict
    best = "a" if first > second else "b"
    assert verdict[0] == f"Ship {best}: accuracy 1.00 [0.10, 0.90] is better beyond noise (probes)."
    assert f"{max(0, second - first)} probes gained, {max(0, first - second)} lost" in verdict[1]


def test_a_difference_within_noise_decides_nothing():
    verdict = compare({"a": model(62, CLEAN), "b": model(63, CLEAN)}).verdict
    assert verdict[0].startswith("Nothing measured speaks against a and b, and their accuracy does not differ beyond")
    assert "Beyond noise (probes): no metric." in verdict[1]


def test_without_a_cue_or_an_expectation_nothing_is_known_of_shortcuts():
    verdict = compare({"a": model(62), "b": model(63)}).verdict
    assert any("nothing here speaks against a shortcut" in sentence for sentence in verdict)
    tried = model(63)
    tried = replace(tried, metrics={**tried.metrics, "cue/patch/pull": Estimate(0.9)})
    verdict = compare({"a": model(62), "b": tried}).verdict
    assert any("no rule has concluded on them" in sentence for sentence in verdict)


def test_of_several_sound_models_none_is_chosen_by_a_difference_that_was_not_tested():
    models = {"base": model(40, CLEAN), "b": model(62, CLEAN), "c": model(63, CLEAN)}
    assert compare(models).verdict[0].startswith("Nothing measured speaks against base, b and c")
    models = {"base": model(64, CLEAN), "b": model(30, CLEAN), "c": model(31, CLEAN)}
    assert compare(models).verdict[0].startswith("Ship base: accuracy 1.00")


def test_models_without_labels_cannot_be_chosen_by_accuracy():
    models = {name: replace(model(40, CLEAN), metrics={}, per_probe={}) for name in "ab"}
    assert compare(models).verdict[0] == "Nothing speaks against a and b; no labels are known by which to choose."
