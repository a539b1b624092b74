"""Measures and trials of others in an audit: what they see, what becomes of it, and none at the price of the rest."""

from __future__ import annotations

import math

import pytest
import torch

from tests.audit.alike import run_of, same_records
from tests.contract.third_party import Brighter
from tests.tiny import tiny_net, tiny_probes
from xai_callbacks import (
    Auditor,
    Baselines,
    ConfigurationError,
    CueTrial,
    Estimate,
    GradCAM,
    Key,
    Localization,
    Measure,
    Occlusion,
    PatchCue,
    PerProbe,
    Why,
    WhyRatherThan,
)
from xai_callbacks.access import randomised_copy


class Own(Measure):
    """Gives what it is told to, and says so."""

    def __init__(self, found=None, keys=()):
        self.found, self.declared = found, keys
        self.seen = []

    def keys(self, context):
        return self.declared

    def measure(self, record, past, context):
        self.seen.append((record, past, context))
        return self.found(context) if callable(self.found) else self.found

    def __repr__(self):
        return "Own()"


def audited(*measures, net=None, **arguments):
    return Auditor(tiny_probes(), measures=list(measures), **arguments).audit(tiny_net() if net is None else net)


def raising(error):
    def found(_context):
        raise error

    return found


# ---- what a measure finds


def test_numbers_of_probes_are_averaged_and_estimates_kept():
    values, chance = torch.tensor([1.0, 0, 0, 1, 1, math.nan]), torch.full((6,), 0.5)
    estimate = Estimate(3.0, valid=1)
    declared = [Key("own/*", "mine", 0.0, 4.0, "half")]
    found = {"own/share": PerProbe(values, chance), "own/count": estimate, "odd": PerProbe(torch.arange(6) % 2 == 0)}
    record = audited(Own(found, declared))

    assert record.failed == ()
    assert record.metrics["own/share"] == Estimate(0.6, None, None, 0.5, 5, 1)
    assert record.metrics["own/count"] is estimate
    assert record.metrics["odd"].value == 0.5
    torch.testing.assert_close(record.per_probe["own/share"], values.double(), equal_nan=True)
    torch.testing.assert_close(record.chances["own/share"], chance.double())
    assert "own/count" not in record.per_probe
    assert {record.per_probe[key].dtype for key in found if key in record.per_probe} == {torch.float64}
    assert record.key("own/share") is record.key("own/count") is declared[0]
    assert record.key("odd") is None


def test_labels_are_kept_and_not_averaged():
    kinds = torch.tensor([0.0, 1, 1, math.nan, 2, 0])
    declared = [Key("kind", "kind of probe", unit="label"), Key("size", "size of its kind")]
    record = audited(Own({"kind": PerProbe(kinds), "size": PerProbe(kinds)}, declared))

    assert record.failed == ()
    assert "kind" not in record.metrics
    assert record.metrics["size"].value == pytest.approx(0.8)
    torch.testing.assert_close(record.per_probe["kind"], kinds.double(), equal_nan=True)
    assert record.key("kind").unit == "label"


def test_a_measure_sees_what_was_found_before_it_and_the_past():
    first, last = Own({"own/first": Estimate(1.0)}), Own({})
    trial = CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0))
    auditor, net = Auditor(tiny_probes(), [Why()], trials=[trial], measures=[first, last]), tiny_net()
    history = run_of(auditor, net, net)

    (early, _, _), (late, past, context) = last.seen
    assert {"accuracy", "cue/patch/effect", "own/first"} <= early.metrics.keys()
    assert "gradcam/why/drift" in late.metrics
    assert [record.step for record in past] == [0]
    assert "own/first" not in first.seen[0][0].metrics
    assert (context.asked, context.maps) == (("gradcam/why",), ("gradcam/why",))
    assert history.last.metrics.keys() >= late.metrics.keys()


def test_the_past_of_other_probes_is_not_shown():
    own = Own({})
    history = run_of(Auditor(tiny_probes(seed=8)), tiny_net())
    Auditor(tiny_probes(), measures=[own]).audit(tiny_net(), past=history)
    assert [len(past) for _, past, _ in own.seen] == [0]


def test_a_measure_may_ask_the_model_once_more():
    probes, asked = tiny_probes(), {}

    def found(context):
        asked.update(scores=context.model.scores(probes.images), maps=[context.model.randomised(s) for s in (0, 0, 1)])
        return {}

    record = audited(Own(found), questions=[Why()], chunk_size=4)

    assert record.failed == ()
    torch.testing.assert_close(asked["scores"]["gradnorm"], record.scores["gradnorm"])
    one, again, other = (maps["gradcam"] for maps in asked["maps"])
    assert one.shape == record.heatmaps.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, record.heatmaps)


def test_altered_probes_and_copies_are_asked_what_the_model_was_asked():
    probes, net, seen = tiny_probes(), tiny_net(), {}
    other = probes.images.roll(1, dims=0)

    def found(context):
        rows = torch.tensor([4, 1, 1])
        seen["answers"] = context.model.answers(other[rows], rows)
        seen["maps"] = context.model.randomised(0, as_posed=True)["gradcam"]
        seen["anew"] = context.model.randomised(0)["gradcam"]
        return {}

    record = audited(Own(found), net=net, questions=[Why(), WhyRatherThan()])
    assert record.failed == ()

    outputs = net.eval()(other[[4, 1, 1]]).detach()
    facts, foils = (each[:, [4, 1, 1]] for each in (record.facts, record.foils))
    torch.testing.assert_close(seen["answers"][0], outputs.gather(1, facts[0][:, None])[:, 0])
    nats = torch.nn.functional.cross_entropy(outputs, foils[1], reduction="none")
    torch.testing.assert_close(seen["answers"][1], nats)
    copied = randomised_copy(net, probes.images, 0, chunk_size=16)
    by_class = [Auditor(probes, [Why(index)], explainers=[GradCAM()]).audit(copied).heatmaps[0] for index in range(3)]
    expected = torch.stack([by_class[fact][row] for row, fact in enumerate(record.facts[0].tolist())])
    torch.testing.assert_close(seen["maps"][0], expected)


def test_copies_are_asked_for_explainers_up_to_a_cost():
    seen = {}

    def found(context):
        seen.update({cost: set(context.model.randomised(0, max_cost=cost)) for cost in (0, 3, 4)})
        return {}

    audited(Own(found), questions=[Why()], explainers=[GradCAM(), Occlusion(4, 4)])
    assert seen == {0: {"gradcam"}, 3: {"gradcam"}, 4: {"gradcam", "occlusion"}}


def test_verdicts_of_a_measure_stand_in_the_record():
    def found(context):
        context.trust["gradcam/why"] = "passed"
        return {}

    assert audited(Own(found)).trust == {"gradcam/why": "passed"}
    assert audited(Own({})).trust == {}


def test_what_a_measure_has_to_say_stands_in_the_notes_once():
    def found(context):
        context.notes.append("Three probes were left out.")
        return {}

    assert audited(Own(found), Own(found)).notes == ("Three probes were left out.",)


# ---- one that fails


UNLIKE = [
    (raising(RuntimeError("no such thing")), "RuntimeError: no such thing."),
    (raising(KeyError("core")), "KeyError: 'core'."),
    (raising(ZeroDivisionError()), "ZeroDivisionError."),
    (raising(ValueError("a\nlong\nstory")), "ValueError: a."),
    (None, "to return results by key, but got NoneType"),
    ([("own", Estimate(1.0))], "to return results by key, but got list"),
    ({5: Estimate(1.0)}, "to judge by keys that are texts, but got 5"),
    ({"own": 0.5}, "to judge 'own' by an Estimate, or a PerProbe of (6,), but got float"),
    ({"own": torch.zeros(6)}, "but got Tensor"),
    ({"own": PerProbe(torch.zeros(5))}, "but got [(5,)]"),
    ({"own": PerProbe(torch.zeros(6, 2))}, "but got [(6, 2)]"),
    ({"own": PerProbe([0.0] * 6)}, "but got PerProbe"),
    ({"own": PerProbe(torch.zeros(6), torch.zeros(1))}, "but got [(6,), (1,)]"),
    ({"own": Estimate("much")}, "but got Estimate(value='much'"),
    ({"own": Estimate(torch.tensor(0.5))}, "but got Estimate(value=tensor(0.5000)"),
    ({"own": Estimate(0.5, chance="half")}, "chance='half'"),
    ({"own/new": Estimate(1.0), "accuracy": Estimate(1.0)}, "'accuracy' is measured already"),
    ({"kind": Estimate(1.0)}, "'kind' is measured already"),
]


@pytest.mark.parametrize(("found", "said"), UNLIKE, ids=[said[:40] for _, said in UNLIKE])
def test_a_measure_that_fails_costs_itself_alone_and_is_said(found, said):
    labels = Own({"kind": PerProbe(torch.arange(6.0))}, [Key("kind", "kind of probe", unit="label")])
    after = Own({"own/after": Estimate(2.0)})
    plain = audited(Localization(), labels, after)
    record = audited(Localization(), labels, Own(found), after)

    same_records(record, plain, tolerance=0)
    assert record.per_probe.keys() == plain.per_probe.keys()
    assert record.metrics["own/after"].value == 2
    assert plain.failed == ()
    assert len(record.failed) == 1
    assert record.failed[0].startswith("The measure Own() failed and was left out. ")
    assert said in record.failed[0]


def test_a_measure_that_recovers_is_taken_again():
    own, net = Own({"own": Estimate(1.0)}), tiny_net()
    auditor = Auditor(tiny_probes(), measures=[own])
    history = run_of(auditor, net)
    own.found = raising(RuntimeError("for now"))
    run_of(auditor, net, past=history)
    own.found = {"own": Estimate(3.0)}
    run_of(auditor, net, past=history)

    assert [len(record.failed) for record in history] == [0, 1, 0]
    assert [estimate.value for _, estimate in history.estimates("own")] == [1, 3]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (raising(KeyError("core")), "to declare its keys, but it raised KeyError: 'core'."),
        (lambda _: None, "to declare its keys as a list of Key, but got None"),
        (lambda _: "own", "to declare its keys as a list of Key, but got 'own'"),
        (lambda _: [Key("own", "mine"), "other"], "to declare its keys as a list of Key, but got"),
        (raising(ConfigurationError("Expected regions, but got none.")), "Expected regions, but got none."),
    ],
)
def test_a_measure_that_cannot_declare_its_keys_is_refused_at_construction(keys, said):
    class Undeclared(Own):
        def keys(self, context):
            return keys(context)

    with pytest.raises(ConfigurationError) as caught:
        Auditor(tiny_probes(), measures=[Undeclared()])
    assert said in str(caught.value)


# ---- what an auditor says of them beforehand


def test_an_auditor_declares_the_keys_of_all_measures_and_trials():
    declared = Key("own/*", "mine")
    trial = CueTrial(PatchCue([1.0, 0.0, 0.0], points_to=0))
    auditor = Auditor(tiny_probes(), trials=[trial], measures=[Baselines(), Own({"own/a": Estimate(1.0)}, [declared])])
    auditor.prepare(tiny_net())
    record = auditor.audit(tiny_net())

    for key in (*record.metrics, *record.per_probe):
        assert [each for each in auditor.keys if each.matches(key)], key
        assert record.key(key) is not None, key
    assert declared in auditor.keys
    assert [type(each).__name__ for each in auditor.measures] == ["Answers", "Drift", "Scores", "Baselines", "Own"]


def test_undeclared_keys_of_a_trial_of_others_are_declared_once_it_has_been_run():
    class Declares(Brighter):
        name = "declared"

        def keys(self):
            return [Key("declared/*", "share of answers moved", 0.0, 1.0, unit="share")]

        def judge(self, probes, answers):
            return {"declared/moved": next(iter(super().judge(probes, answers).values()))}

    auditor = Auditor(tiny_probes(), trials=[Brighter(), Declares()])
    assert [key.key for key in auditor.keys if key.matches("declared/moved")] == ["declared/*"]
    assert not [key for key in auditor.keys if key.matches("bright/moved")]
    auditor.prepare(tiny_net())
    (declared,) = [key for key in auditor.keys if key.matches("bright/moved")]
    record = auditor.audit(tiny_net())

    assert (declared.words, declared.low, declared.high) == ("bright moved", None, None)
    assert record.key("bright/moved") == declared
    assert record.key("declared/moved").unit == "share"
    assert record.metrics["bright/moved"] == record.metrics["declared/moved"]


def test_labels_of_a_trial_are_not_averaged_either():
    class Kinds(Brighter):
        def keys(self):
            return [Key("bright/kind", "answer to the brighter image", unit="label")]

        def judge(self, probes, answers):
            return {"bright/kind": PerProbe(answers.views["brighter"].argmax(dim=1).double())}

    record = audited(trials=[Kinds()])
    assert "bright/kind" not in record.metrics
    assert record.per_probe["bright/kind"].shape == (6,)


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({5: PerProbe(torch.zeros(2))}, "the trial 'bright' to judge by keys that are texts, but got 5"),
        ({"accuracy": PerProbe(torch.zeros(2))}, "keys of its own, but got 'accuracy' from 'bright'"),
    ],
)
def test_a_trial_that_judges_by_no_key_or_that_of_a_measure_is_refused_before_training(judged, said):
    class Misnamed(Brighter):
        def judge(self, probes, answers):
            return judged

    with pytest.raises(ConfigurationError) as caught:
        Auditor(tiny_probes(), trials=[Misnamed()]).prepare(tiny_net())
    assert said in str(caught.value)


def test_an_extended_auditor_has_more_trials_and_measures_and_leaves_the_first_as_it_was():
    own = Own({"own": Estimate(1.0)})
    given = Auditor(tiny_probes(), [Why()], novelty=[], measures=[own], chunk_size=4)
    extended = given.extended(questions=[Why(0)], trials=[Brighter()], measures=[Localization(), Own({})])
    record = extended.audit(tiny_net())

    assert record.questions == ("why_0",)
    assert {"own", "bright/moved", "gradcam/why_0/relevance_mass/core"} <= record.metrics.keys()
    assert extended.measures[3] is own
    assert len(extended.measures) == 5
    assert (extended.novelty, extended.chunk_size) == ((), 4)
    assert "bright/moved" not in given.audit(tiny_net()).metrics
