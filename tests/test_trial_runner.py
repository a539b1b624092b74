"""Trials in an audit: what they cost, that they disturb nothing, and that a mistake is told and loses nothing else."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from tests.tiny import random_streams, tiny_net
from tests.trials.exact import CLASSES, COLOURS, CUE, OBJECT, Reads, answers, every_trial, scenes, tried
from xai_callbacks import Auditor, ConfigurationError, GradCAM, History, ProbeSet, ShortcutMonitor
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.cues import FunctionCue, PasteCue, PatchCue, WatermarkCue
from xai_callbacks.record import Estimate, PerProbe
from xai_callbacks.trials import CueTrial, RegionTrial, Trial, Views


def looked(model, probes, *trials):
    """What an auditor does before training."""
    given = answers(model, probes)[:2]
    with undisturbed(model):
        TrialRunner(probes, trials).look(Subject(model), given)


class Own(Trial):
    """A user's own: each probe as `edit` leaves it, judged by `judge_by`."""

    def __init__(self, edit=lambda images: images * 0.5, judge_by=None, name="own"):
        self.edit, self.judge_by, self.name = edit, judge_by, name

    def check(self, probes):
        pass

    def views(self, shown):
        return Views({"edited": self.edit(shown.images)})

    def judge(self, probes, answers):
        if self.judge_by is not None:
            return self.judge_by(probes, answers)
        kept = answers.views["edited"].argmax(dim=1) == answers.given.argmax(dim=1)
        return {f"{self.name}/kept": PerProbe(kept.double())}


# ---- what a record holds


def test_a_record_holds_what_each_probe_adds_and_its_chance_level():
    record = Auditor(scenes(), trials=[CueTrial(PatchCue(COLOURS, CLASSES, at="spurious"))]).audit(tiny_net())
    effect = record.metrics["cue/patch/effect"]
    assert record.per_probe["cue/patch/effect"].shape == (12,)
    assert record.per_probe["cue/patch/effect"].mean().item() == pytest.approx(effect.value)
    assert record.chances["cue/patch/effect"].eq(0).all()
    assert record.failed == ()
    assert "cue/patch/tv" not in record.chances


def test_an_own_trial_is_run_and_judged():
    record = Auditor(scenes(), trials=[Own()]).audit(tiny_net())
    assert record.metrics["own/kept"].valid == 12


def test_every_ready_made_trial_passes_in_one_audit_and_says_the_same_at_the_next():
    auditor, net = Auditor(scenes(), trials=every_trial()), tiny_net()
    first, second = auditor.audit(net), auditor.audit(net)
    assert first.failed == second.failed == ()
    keys = {key for key in first.per_probe if key.split("/")[0] in ("cue", "region", "bg", "fg", "fill")}
    assert len(keys) > 70
    for key in keys:
        assert torch.equal(first.per_probe[key].nan_to_num(), second.per_probe[key].nan_to_num()), key
        assert torch.equal(first.per_probe[key].isnan(), second.per_probe[key].isnan()), key


# ---- in chunks


class Watched(nn.Module):
    """Looks at two pixels, exactly, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return 5 * torch.stack([images[:, 0, 0, 0], images[:, 1, 6, 5], images[:, 2, 1, 8]], dim=1)


@pytest.mark.parametrize(
    "index",
    range(len(every_trial())),
    ids=[type(getattr(trial, "cue", trial)).__name__ + str(index) for index, trial in enumerate(every_trial())],
)
def test_chunks_change_neither_what_a_model_is_shown_nor_what_is_found(index):
    shown, found = [], []
    for size in (1, 3, 12):
        model, trial = Watched(), every_trial()[index]
        given = answers(model, scenes())
        model.seen.clear()
        with undisturbed(model):
            found.append(TrialRunner(scenes(), [trial]).run(Subject(model), given, chunk_size=size))
        shown.append(sorted(image.numpy().tobytes() for batch in model.seen for image in batch))
    assert all(one.failed == () for one in found)
    for other in (1, 2):
        assert shown[0] == shown[other]
        for key, judged in found[0].judged.items():
            pair = [one.judged[key] for one in (found[0], found[other])]
            if isinstance(judged, Estimate):
                assert str(pair[0]) == str(pair[1])
            else:
                torch.testing.assert_close(pair[0].values, pair[1].values, rtol=0, atol=0, equal_nan=True)


def test_no_graph_is_kept():
    graphs = []

    class Asks(Watched):
        def forward(self, images):
            graphs.append(torch.is_grad_enabled())
            return super().forward(images)

    tried(Asks(), scenes(), RegionTrial("core"))
    assert graphs[1:] == [False] * 18  # after that of the probes as they are: six views in three chunks


# ---- cost


def rows_of(net, auditor, past=None):
    """Images that pass through the model in one audit, after `prepare`."""
    auditor.prepare(net)
    rows = []
    with net.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0]))):
        auditor.audit(net, past=past)
    return sum(rows)


MUTED = ((0.9, 0.2, 0.1), (0.1, 0.9, 0.2), (0.2, 0.1, 0.9))
"""Colours that no scene shows already."""


@pytest.mark.parametrize(("at", "most"), [("corner", 8), ("spurious", 9)])
def test_the_monitor_of_one_cue_stays_within_twelve_forward_passes_a_probe(at, most):
    """One of the audit; with the cue of another class and of the own, without the object; two for each of two controls.

    At a region there is one more, without any cue. Models with random weights are asked at the first audit only.
    """
    auditor, net, past = ShortcutMonitor(scenes(64), PatchCue(MUTED, CLASSES, at=at)).auditor, tiny_net(), History()
    past.append(auditor.audit(net))
    assert 6 * 64 < rows_of(net, auditor, past) <= most * 64 <= 12 * 64


def test_a_cue_of_one_variant_spares_the_passes_of_the_probes_as_they_are():
    def cost(cue, probes):
        return rows_of(tiny_net(), Auditor(probes, trials=[CueTrial(cue, controls=())])) / len(probes)

    probes = scenes(64)
    assert cost(PatchCue(MUTED[0], "red"), probes) == 1 + 2
    assert cost(PatchCue(MUTED[0], 0), ProbeSet.from_tensors(probes.images, probes.labels)) == 1 + 1
    assert cost(PatchCue(MUTED, CLASSES), probes) == 1 + 3
    assert cost(WatermarkCue("ab", 0), probes) == 1 + 2
    assert cost(PasteCue("red"), probes) == 1 + 2


def test_a_pasted_cue_costs_one_pass_for_each_pair_as_the_other_image_is_the_probe_itself():
    marks = CUE.expand(64, -1, -1).clone()
    marks[1::2] = False
    images = torch.rand(64, 3, *CUE.shape, generator=torch.Generator().manual_seed(1))
    probes = scenes(64, images=images, masks={"spurious": marks})
    assert rows_of(tiny_net(), Auditor(probes, trials=[CueTrial(PasteCue("red"), controls=())])) == (1 + 1) * 64


def test_an_image_that_is_as_it_was_shown_or_as_in_an_earlier_view_is_not_run_again_and_answers_alike():
    class Copies(Own):
        """Three views: every other probe darker; the same once more; and all darker."""

        def views(self, shown):
            darker = shown.images * 0.5
            first = torch.where((shown.rows % 2 == 0)[:, None, None, None], darker, shown.images)
            return Views({"first": first, "again": first.clone(), "darker": darker})

        def judge(self, probes, answers):
            own = answers.given[1::2]
            assert torch.equal(answers.views["first"], answers.views["again"])
            assert torch.equal(answers.views["first"][1::2], own)
            assert torch.equal(answers.views["first"][::2], answers.views["darker"][::2])
            assert not torch.equal(answers.views["darker"][1::2], own)
            return {}

    auditor = Auditor(scenes(), trials=[Copies()], chunk_size=5)
    assert rows_of(tiny_net(), auditor) == 12 + 6 + 6
    assert auditor.audit(tiny_net()).failed == ()


def test_no_trials_cost_nothing():
    assert rows_of(tiny_net(), Auditor(scenes(64))) == 64


# ---- undisturbed


def test_a_model_and_the_random_streams_are_as_they_were_after_every_trial():
    net = tiny_net().train()
    net[1].eval()
    auditor = Auditor(scenes(), trials=every_trial())
    weights, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    streams = random_streams()
    record = auditor.audit(net)
    assert record.failed == ()
    assert random_streams() == streams
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_random_streams_are_not_read():
    auditor, net = Auditor(scenes(), trials=every_trial()), tiny_net()
    first = auditor.audit(net)
    torch.manual_seed(99)
    second = auditor.audit(net)
    for key, values in first.per_probe.items():
        torch.testing.assert_close(values, second.per_probe[key], rtol=0, atol=0, equal_nan=True)


def test_training_between_audits_is_bit_identical():
    def trained(audited):
        net, probes = tiny_net(), scenes()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        auditor = Auditor(probes, trials=every_trial()) if audited else None
        torch.manual_seed(5)
        for _ in range(3):
            net.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(probes.images), probes.labels).backward()
            if auditor is not None:
                auditor.audit(net)
            optimizer.step()
        return net.state_dict(), random_streams()

    (with_audits, streams), (without, plain) = trained(True), trained(False)
    assert all(torch.equal(value, without[name]) for name, value in with_audits.items())
    assert streams == plain


def test_probes_are_as_they_were():
    probes = scenes()
    before = probes.images.clone(), {name: mask.clone() for name, mask in probes.masks.items()}
    Auditor(probes, trials=every_trial()).audit(tiny_net())
    assert torch.equal(probes.images, before[0])
    assert all(torch.equal(mask, before[1][name]) for name, mask in probes.masks.items())


# ---- a trial that fails


def fails_from(first):
    """A user's function that raises from a certain call on."""
    calls = itertools.count()

    def edit(images, _variants):
        if next(calls) >= first:
            raise RuntimeError("no such file: cue.png")
        return images * 0.5

    return edit


def test_a_trial_that_raises_is_told_and_loses_nothing_else():
    probes, net = scenes(), tiny_net()
    others = [RegionTrial("core"), CueTrial(PatchCue(COLOURS, CLASSES))]
    broken = CueTrial(FunctionCue(fails_from(6), 0))
    auditor = Auditor(probes, trials=[others[0], broken, others[1]], chunk_size=4)
    auditor.prepare(net)
    record = auditor.audit(net)

    assert record.failed == ("The trial 'cue/own' failed and was left out. RuntimeError: no such file: cue.png.",)
    assert not any(key.startswith("cue/own") for key in record.metrics)
    whole = Auditor(probes, trials=others, chunk_size=4).audit(net)
    assert record.metrics.keys() == whole.metrics.keys()
    assert str(record.metrics) == str(whole.metrics)


def test_what_fails_is_told_at_each_audit_and_may_recover():
    calls = itertools.count()

    def edit(images, _variants):
        if 4 <= next(calls) < 8:
            raise OSError("gone")
        return images * 0.5

    auditor, net = Auditor(ProbeSet.from_tensors(scenes().images), trials=[CueTrial(FunctionCue(edit, 0))]), tiny_net()
    auditor.prepare(net)  # two calls
    told = [len(auditor.audit(net).failed) for _ in range(7)]
    assert told == [0, 0, 1, 1, 1, 1, 0]


# ---- mistakes come to light before training


def test_a_class_beyond_those_of_the_model_is_refused_before_training_whichever_probes_are_looked_at():
    """Of four variants one points too high; the first two probes show others."""
    probes = scenes(12, class_names=None)
    for seed in range(6):
        trial = CueTrial(PatchCue([[0.1], [0.2], [0.3], [0.4]], [0, 1, 2, 3]), seed=seed)
        with pytest.raises(ConfigurationError, match=r"`points_to` of the cue 'patch' to be below 3, .* but got 3"):
            Auditor(probes, trials=[trial]).prepare(tiny_net())
    Auditor(probes, trials=[trial]).prepare(tiny_net(classes=4))


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (CueTrial(FunctionCue(lambda images, _: torch.rand_like(images), 0)), "in the same way at every call"),
        (CueTrial(FunctionCue(lambda images, _: images.flip(0), 0)), "whichever probes are shown with"),
        (CueTrial(FunctionCue(lambda images, _: images - 0.5, 0)), r"`function` of the cue 'own' .* values from -0.5"),
        (Own(lambda images: images.mul_(0.5)), "to leave the images that it is shown as they are"),
        (Own(lambda images: images - 0.5), r"view 'edited' of the trial 'own' to be float images \(2, 3, 12, 10\) in"),
        (Own(lambda images: images * torch.nan), "but got values from nan to nan"),
        (Own(lambda images: images[..., :4]), r"but got torch.float32 \(2, 3, 12, 4\)"),
        (Own(lambda images: (images * 255).to(torch.uint8)), "but got torch.uint8"),
        (Own(judge_by=lambda *_: {"own/kept": 0.5}), "trial 'own' to judge 'own/kept' by an Estimate, .* got float"),
        (Own(judge_by=lambda *_: {"own/kept": torch.zeros(2)}), "but got Tensor"),
        (Own(judge_by=lambda *_: {"own/kept": PerProbe(torch.zeros(3))}), r"a PerProbe of \(2,\), but got \[\(3,\)\]"),
        (Own(judge_by=lambda *_: {"own/kept": PerProbe(torch.zeros(2), torch.zeros(1))}), r"\[\(2,\), \(1,\)\]"),
        (
            Own(judge_by=lambda *_: {"cue/patch/effect": PerProbe(torch.zeros(2))}),
            "by keys of its own, but got 'cue/pa",
        ),
    ],
)
def test_a_mistake_in_an_own_trial_is_refused_before_training(trial, message):
    with pytest.raises(ConfigurationError, match=message):
        looked(Reads(CUE), scenes(), CueTrial(PatchCue(COLOURS, CLASSES)), trial)


def test_an_error_in_an_own_function_is_raised_before_training():
    with pytest.raises(RuntimeError, match=r"cue\.png"):
        Auditor(scenes(), trials=[CueTrial(FunctionCue(fails_from(0), 0))]).prepare(tiny_net())


def test_an_own_trial_may_judge_by_an_estimate():
    estimate = Estimate(0.5, None, None, None, 12, 0)
    assert tried(Reads(CUE), scenes(), Own(judge_by=lambda *_: {"own/kept": estimate})).judged == {"own/kept": estimate}


def test_a_mistake_that_only_later_probes_show_fails_with_a_sentence():
    def edit(images, variants):
        return images * 3 if len(images) > 2 else images * 0.5

    failed = tried(Reads(CUE), scenes(), CueTrial(FunctionCue(edit, 0))).failed
    assert failed[0].startswith("The trial 'cue/own' failed and was left out. Expected `function`")


def test_a_look_at_one_probe_passes_whatever_needs_no_second():
    """A set of one probe."""
    needy = ("region/spurious", "region/core", "cue/background")
    looked(Reads(OBJECT), scenes(1), *[trial for trial in every_trial() if trial.name not in needy])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Auditor(scenes(), trials=CueTrial(PatchCue([0.0], 0))), "Expected `trials` to be a list of Trial"),
        (lambda: Auditor(scenes(), trials=[PatchCue([0.0], 0)]), "Expected `trials` to be a list of Trial instances"),
        (lambda: Auditor(scenes(), trials=[CueTrial]), "Pass trials such as"),
        (
            lambda: Auditor(scenes(), trials=[RegionTrial("core"), RegionTrial("core", ["black"])]),
            "Expected trials with different names, but got 'region/core' twice",
        ),
        (lambda: Auditor(scenes(), trials=[CueTrial(PatchCue([0.0], "rde"))]), "Did you mean 'red'"),
        (lambda: Auditor(scenes(), trials=[RegionTrial("sky")]), "but got 'sky'"),
    ],
)
def test_what_does_not_suit_is_refused_at_construction(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_images_of_which_black_and_white_are_unknown_are_refused_with_trials_only():
    images = scenes().images * 4 - 2
    probes = ProbeSet.from_tensors(images, pixels=torch.zeros(12, 12, 10, 3, dtype=torch.uint8))
    Auditor(probes)
    with pytest.raises(ConfigurationError, match="Build the probe set with the `mean` and `std`"):
        Auditor(probes, trials=[CueTrial(PatchCue([0.0], 0))])


# ---- the whole chain


def test_an_audit_tells_a_model_of_the_cue_from_one_of_the_object():
    trials = [CueTrial(PatchCue(COLOURS, CLASSES, at="spurious"))]
    effects = {
        name: Auditor(scenes(40), trials=trials, explainers=[GradCAM("features")], novelty=[])
        .audit(Reads(region))
        .metrics
        for name, region in (("cue", CUE), ("object", OBJECT))
    }
    assert effects["cue"]["cue/patch/effect"].low > 0.8
    assert effects["object"]["cue/patch/effect"].value == 0
    assert effects["object"]["cue/patch/effect"].high < 0.1
