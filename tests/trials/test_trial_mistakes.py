"""Mistakes in a trial: refused before training, or told in the record, where they lose nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tiny import tiny_net
from tests.trials.exact import CLASSES, COLOURS, CUE, OBJECT, Reads, answers, every_trial, scenes, tried
from tests.trials.own import Own
from xai_callbacks import Auditor, ConfigurationError, ProbeSet
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.cues import FunctionCue, PatchCue
from xai_callbacks.record import Estimate, PerProbe
from xai_callbacks.trials import CueTrial, RegionTrial


def looked(model, probes, *trials):
    """What an auditor does before training."""
    given = answers(model, probes)[:2]
    with undisturbed(model):
        TrialRunner(probes, trials).look(Subject(model), given)


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
