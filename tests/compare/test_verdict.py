import math
from dataclasses import replace

import pytest
import torch

from tests.record.samples import small
from xai_callbacks.compare import compare
from xai_callbacks.compare.verdict import quality_key
from xai_callbacks.record import Estimate, Finding, Key, summarize

ACCURACY = (Key("accuracy", "share of probes that are right", 0.0, 1.0, "1 / K", "share"),)
CLEAN = Finding("alarm/cue/patch", "no evidence", 0.0, "No evidence of the patch.")
ALARM = Finding("alarm/cue/patch", "alarm", 2.0, "The model uses the patch.")
WATCH = Finding("alarm/cue/patch", "watch", 1.0, "Watch the patch.")
EDITS = Finding("alarm/cue/patch", "reacts to any edit", 1.0, "Reacts to such an edit.")
UNTESTED = Finding("alarm/cue/patch", "no evidence", math.nan, "Not enough evidence.")
FAILED = Finding("expectation/x", "fail", 0.0, "Accuracy is too low.")
LOOKS = Finding("alarm/attribution/core", "watch", 1.0, "The model looks there.")


def model(right, *findings, count=64, **fields):
    """An audit of a model that is right on the first probes, and else says another class."""
    truth = torch.arange(count) % 4
    said = torch.where(torch.arange(count) < right, truth, (truth + 1) % 4)
    correct = (said == truth).double()
    given = {
        "names": tuple(map(str, range(count))), "truth": truth, "predictions": said, "correct": correct,
        "outputs": torch.nn.functional.one_hot(said, 4).float() * 4, "per_probe": {"accuracy": correct},
        "metrics": {"accuracy": summarize(correct, chance=torch.full_like(correct, 0.25))}, "keys": ACCURACY,
        "findings": findings,
    }  # fmt: skip
    return small(0, explainers=(), **{**given, **fields})


def verdict(**models):
    return compare(models).verdict


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_the_model_without_an_alarm_is_shipped(order):
    models = {"good": model(60, CLEAN), "bad": model(60, ALARM)}
    said = verdict(**{name: models[name] for name in order})
    assert said[0] == "Ship good: accuracy 0.938 [0.86, 0.99], the only one that nothing speaks against."
    assert said[1] == "Do not ship bad. The model uses the patch."


def test_a_failed_expectation_speaks_against_a_model():
    passed = replace(FAILED, state="pass", value=0.0)
    said = verdict(good=model(60, passed), bad=model(60, FAILED))
    assert said[0].startswith("Ship good: accuracy")
    assert said[1] == "Do not ship bad. Accuracy is too low."


def test_a_refused_model_that_answers_better_is_told():
    said = verdict(sound=model(40, CLEAN), accurate=model(64, ALARM))
    assert said[0] == "Ship sound only if its accuracy 0.625 [0.50, 0.74] will do: accurate is better, but refused."


def test_a_model_no_better_than_chance_is_never_shipped():
    said = verdict(untrained=model(16, CLEAN), trained=model(60, ALARM))
    assert said[0].startswith("Ship none of them: untrained, the best that nothing speaks against, is no better than")


def test_none_is_shipped_where_all_are_faulty():
    said = verdict(a=model(40, ALARM), b=model(64, ALARM))
    assert said[0].startswith("Ship none of them: each has an alarm")
    assert [sentence[:13] for sentence in said[1:3]] == ["Do not ship a", "Do not ship b"]


@pytest.mark.parametrize("doubt", [WATCH, EDITS])
def test_a_model_in_doubt_is_not_recommended(doubt):
    said = verdict(clean=model(40, CLEAN), doubtful=model(64, doubt))
    assert said[0].startswith("Ship clean only if its accuracy")
    assert said[1] == f"In doubt: doubtful. {doubt.sentence}"


def test_a_region_that_is_looked_at_is_no_reason_to_hold_a_model_back():
    said = verdict(looks=model(64, CLEAN, LOOKS), other=model(30, CLEAN))
    assert said[0].startswith("Ship looks: accuracy 1 [")


@pytest.mark.parametrize("findings", [(), (UNTESTED,), (replace(CLEAN, state="not due", value=0.0),)])
def test_a_model_that_was_not_tested_as_others_were_is_not_recommended(findings):
    said = verdict(untested=model(64, *findings, failed=("The trial CueTrial failed.",)), alarmed=model(50, ALARM))
    assert said[0].startswith("Ship none of them")
    assert "Not tested, or not with enough evidence: untested, for alarm/cue/patch. The trial CueTrial failed." in said


@pytest.mark.parametrize(("first", "second"), [(64, 30), (30, 64)])
def test_of_sound_models_the_more_accurate_one_is_shipped(first, second):
    said = verdict(a=model(first, CLEAN), b=model(second, CLEAN))
    best = "a" if first > second else "b"
    assert said[0].startswith(f"Ship {best}: accuracy 1 [")
    assert said[0].endswith("better than the others beyond noise (probes).")
    assert f"{max(0, second - first)} probes gained, {max(0, first - second)} lost" in said[1]


@pytest.mark.parametrize("rights", [(6, 50, 64), (64, 50, 6), (50, 6, 64)])
def test_of_many_sound_models_those_that_cannot_be_told_apart_are_named(rights):
    names = {6: "bad", 50: "good", 64: "best"}
    said = verdict(**{names[right]: model(right, CLEAN) for right in rights})
    assert said[0].startswith("Ship best: accuracy 1 [")
    close = verdict(**{names[right]: model(63 if right == 50 else right, CLEAN) for right in rights})[0]
    assert close.startswith("Nothing speaks against best and good, which cannot be told apart by accuracy beyond noise")
    assert close.endswith("of best; bad is worse.")


def test_without_rules_answers_alone_decide_and_it_is_said():
    said = verdict(a=model(30), b=model(63))
    assert said[0].startswith("By its answers alone, take b: accuracy 0.984")
    assert any("nothing here speaks against a shortcut" in sentence for sentence in said)
    tried = model(63)
    tried = replace(tried, metrics={**tried.metrics, "cue/patch/pull": Estimate(0.9)})
    assert any("no rule has concluded on them" in sentence for sentence in verdict(a=model(62), b=tried))


def test_models_without_labels_cannot_be_chosen_by_accuracy():
    blind = {name: replace(model(40, CLEAN), metrics={}, per_probe={}, weights=name) for name in "ab"}
    assert verdict(**blind)[0] == "Nothing speaks against a and b; no labels are known by which to choose."


def test_a_value_that_is_unknown_wins_nothing():
    broken = replace(model(64, CLEAN), metrics={"accuracy": Estimate(math.nan)}, weights="x")
    assert verdict(broken=broken, sound=model(60, CLEAN))[0].startswith("Nothing speaks against broken and sound;")


def test_several_labels_are_judged_by_all_of_them():
    record = model(64, CLEAN)
    both = {"accuracy": Estimate(0.95), "exact_match": Estimate(0.1)}
    assert quality_key([replace(record, metrics=both)]) == "exact_match"
    assert quality_key([replace(record, metrics={"absolute_error": Estimate(1.0)})]) == "absolute_error"
    several = {"absolute_error": Estimate(1.0), "absolute_error/size": Estimate(1.0)}
    assert quality_key([replace(record, metrics=several)]) == ""


def test_smaller_errors_are_better():
    def values(error, name):
        errors = torch.full((64,), error).double() + 0.01 * torch.rand(64)
        return model(
            64, CLEAN, weights=name, keys=(Key("absolute_error", "mean absolute error", 0.0),),
            metrics={"absolute_error": summarize(errors)}, per_probe={"absolute_error": errors},
        )  # fmt: skip

    assert verdict(a=values(0.5, "a"), b=values(0.2, "b"))[0].startswith("Ship b: absolute error 0.20")
    assert verdict(a=values(0.2, "a"), b=values(0.5, "b"))[0].startswith("Ship a: absolute error 0.20")


def test_the_description_of_a_cue_is_left_out():
    described = "cue 'patch' (of colour (0, 0, 0) for '0', (1, 1, 1) for '1' and 8 others)"
    fault = replace(ALARM, sentence=f"Alarm: the model answers by the {described}: it moves the answer.")
    said = verdict(good=model(60, CLEAN), bad=model(60, fault, tried={"patch": described}))
    assert said[1] == "Do not ship bad. Alarm: the model answers by the cue 'patch': it moves the answer."


def test_a_verdict_of_many_models_stays_short():
    said = verdict(**{f"m{place}": model(60 + place % 2, CLEAN, weights=str(place)) for place in range(30)})
    assert "and 27 more, which cannot be told apart" in said[0]
    assert len(said) < 10
    assert said[-1] == "And 26 more models, each against m0."
