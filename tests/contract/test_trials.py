"""What every trial must hold to, ready made or the user's own; a new one needs a line in `BUILD`."""

from __future__ import annotations

import inspect
import math
import pickle

import pytest
import torch
from torch import nn

from tests.contract.test_cues import PROBES, noise, normalised, refusal, shown_of
from tests.tiny import random_streams
from tests.trials.exact import HEIGHT, WIDTH, Constant, answers, tried, values
from xai_callbacks import ConfigurationError, ProbeSet, trials
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.audit.trial_runner import TrialRunner
from xai_callbacks.interventions.cues import PasteCue, PatchCue, TintCue
from xai_callbacks.record import Estimate, PerProbe
from xai_callbacks.trials import Answers, Trial, Views


class Own(Trial):
    """How much a probability moves when the image is mirrored."""

    name = "mirror"

    def check(self, probes):
        if not probes.task.classifies:
            raise ConfigurationError("Expected class probabilities, but got regression.")

    def views(self, shown):
        return Views({"mirrored": shown.images.flip(3)}, {"row": shown.rows})

    def judge(self, probes, answers):
        one, other = (outputs.double().softmax(dim=1) for outputs in (answers.given, answers.views["mirrored"]))
        moved = (one - other).abs().sum(dim=1) / 2
        return {"mirror/tv": PerProbe(moved, torch.zeros_like(moved))}


BUILD = {
    trials.CueTrial: [
        lambda: trials.CueTrial(PatchCue([[0.9], [0.1]], [0, 1])),
        lambda: trials.CueTrial(PatchCue([[0.9]], 1, at="spurious")),
        lambda: trials.CueTrial(TintCue([[0.5]], 0)),
        lambda: trials.CueTrial(PasteCue(0)),
    ],
    trials.RegionTrial: [
        lambda: trials.RegionTrial("spurious"),
        lambda: trials.RegionTrial("core", ["road", "uniform", "shuffle"], grow=0),
    ],
    trials.BackgroundTrial: [trials.BackgroundTrial, lambda: trials.BackgroundTrial("spurious", "gauss", grow=0)],
    trials.HalfTrial: [trials.HalfTrial, lambda: trials.HalfTrial("left", ["blur", "gauss"])],
    Own: [Own],
}
CASES = [(kind, make) for kind, makes in BUILD.items() for make in makes]
every_trial = pytest.mark.parametrize("make", [make for _, make in CASES], ids=[kind.__name__ for kind, _ in CASES])
every_kind = pytest.mark.parametrize("probes", [make() for make in PROBES.values()], ids=PROBES)

# Documented keys that do not begin with the name of their trial.
ELSEWHERE = {"fg/only_acc"}


class Linear(nn.Module):
    """K logits of the mean colour of the four quarters; no reduction over the batch."""

    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(4 * channels, classes, bias=False)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            self.head.weight.copy_(4 * torch.randn(classes, 4 * channels, generator=generator))

    def forward(self, images):
        return self.head(self.pool(images).flatten(1))


def suited(trial, probes):
    """Whether a trial takes these probes; it says why not in the house's form."""
    why = refusal(trial, probes)
    assert not why or (why.startswith("Expected ") and ", but " in why)
    return not why


def estimates(model, trial, probes, chunk_size=16):
    return values(model, probes, trial, chunk_size=chunk_size)


def test_the_contract_covers_what_is_exported():
    exported = (getattr(trials, name) for name in trials.__all__)
    concrete = {kind for kind in exported if inspect.isclass(kind) and not inspect.isabstract(kind)} - {Views, Answers}
    assert concrete == {kind for kind in BUILD if kind.__module__.startswith("xai_callbacks.")}
    assert all(issubclass(kind, Trial) for kind in BUILD)


@every_trial
@every_kind
def test_views_are_images_as_displayed_and_facts_have_a_row_a_probe(make, probes):
    trial = make()
    if not suited(trial, probes):
        return
    given = shown_of(probes)
    before = given.images.clone()
    views = trial.views(given)
    assert torch.equal(given.images, before)
    assert views.images
    for images in views.images.values():
        assert (images.shape, images.dtype) == (given.images.shape, torch.float32)
        assert ((images >= 0) & (images <= 1)).all()
    assert all(fact.shape[0] == len(probes) for fact in views.facts.values())


@every_trial
@every_kind
def test_views_are_the_same_at_every_call_and_in_every_chunk(make, probes):
    trial = make()
    if not suited(trial, probes):
        return
    whole, streams = trial.views(shown_of(probes)), random_streams()
    for size in (1, 3, len(probes)):
        for rows in torch.split(torch.arange(len(probes)), size):
            views = trial.views(shown_of(probes, rows))
            assert views.images.keys() == whole.images.keys()
            assert all(torch.equal(images, whole.images[name][rows]) for name, images in views.images.items())
            assert all(torch.equal(fact, whole.facts[name][rows]) for name, fact in views.facts.items())
    assert random_streams() == streams


@every_trial
@every_kind
def test_every_probe_has_a_value_or_none_under_a_key_of_the_trial(make, probes):
    trial = make()
    if not suited(trial, probes):
        return
    found = tried(Linear(probes.images.shape[1]), probes, trial)
    assert found.failed == ()
    assert found.judged
    for key, judged in found.judged.items():
        assert key == trial.name or key.startswith(f"{trial.name}/") or key in ELSEWHERE
        if isinstance(judged, Estimate):
            continue
        assert (judged.values.shape, judged.values.dtype) == ((len(probes),), torch.float64)
        assert not judged.values.isinf().any()
        if judged.chance is not None:
            assert (judged.chance.shape, judged.chance.dtype) == ((len(probes),), torch.float64)
            # What has a value has a chance level.
            assert not (judged.chance.isnan() & ~judged.values.isnan()).any()


@every_trial
def test_counts_add_up_and_values_lie_between_the_ends_of_their_interval(make):
    probes = noise(40)
    for key, estimate in estimates(Linear(), make(), probes).items():
        assert 0 <= estimate.valid + estimate.degenerate <= 40, key
        assert estimate.valid > 0 or key.endswith("spurious_score"), key  # that of a model with one answer is empty
        assert (estimate.low is None) is (estimate.valid < 30 or math.isnan(estimate.value)), key
        if estimate.low is not None:
            assert estimate.low - 1e-12 <= estimate.value <= estimate.high + 1e-12, key


@every_trial
def test_what_has_a_chance_of_zero_is_exactly_zero_for_a_constant_model(make):
    found = estimates(Constant(0.4, 0.1, 0.2), make(), noise(8))
    zero = [estimate.value for estimate in found.values() if estimate.chance == 0 and not math.isnan(estimate.value)]
    assert zero == [0] * len(zero)
    assert zero or make().name == "fill"


@every_trial
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_is_not_finite_gives_no_number(make, broken):
    for key, estimate in estimates(Constant(broken, 0.0, 0.0), make(), noise(8)).items():
        if make().name != "mirror" or math.isnan(broken):
            assert math.isnan(estimate.value), key
            assert estimate.valid == 0, key


@every_trial
@pytest.mark.parametrize(
    "probes",
    [
        noise(labels=None),
        noise(masks={}),
        noise(masks={name: torch.zeros(7, HEIGHT, WIDTH, dtype=torch.bool) for name in ("core", "spurious")}),
        noise(masks={name: torch.ones(7, HEIGHT, WIDTH, dtype=torch.bool) for name in ("core", "spurious")}),
        noise(labels=[1] * 7),
        noise(1),
        noise(labels=None, targets=torch.zeros(7)),
    ],
    ids=["no labels", "no masks", "empty masks", "full masks", "one class", "one probe", "regression"],
)
def test_what_is_missing_is_refused_in_words_or_counted(make, probes):
    trial = make()
    if not suited(trial, probes):
        return
    assert probes.task.classifies
    for key, estimate in estimates(Linear(), trial, probes).items():
        assert math.isnan(estimate.value) or estimate.valid > 0, key


@every_trial
@pytest.mark.parametrize("classes", [1, 2], ids=["sigmoid", "two classes"])
def test_two_classes_will_do(make, classes):
    found = estimates(Linear(classes=classes), make(), noise(10))
    assert all(
        estimate.chance is None or estimate.chance in (0, 0.5) or math.isnan(estimate.chance)
        for estimate in found.values()
    )


@every_trial
def test_a_normalised_set_is_judged_as_the_same_images_without(make):
    """The model undoes the normalisation that the probes went through."""
    probes = normalised(9)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (probes.mean, probes.std))

    class Undoes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Linear()

        def forward(self, images):
            return self.net(images * std + mean)

    plain = ProbeSet.from_tensors((probes.images * std + mean).clamp(0, 1), probes.labels, masks=probes.masks)
    expected = tried(Linear(), plain, make()).judged
    for key, judged in tried(Undoes(), probes, make()).judged.items():
        if isinstance(judged, PerProbe):
            torch.testing.assert_close(judged.values, expected[key].values, rtol=0, atol=1e-5, equal_nan=True)


@every_trial
def test_a_look_before_training_accepts_it(make):
    model, probes = Linear(), noise()
    given = answers(model, probes)[:2]
    with undisturbed(model):
        TrialRunner(probes, [make()]).look(Subject(model), given)


@every_trial
def test_a_trial_can_be_sent_to_another_process(make):
    trial = make()
    twin = pickle.loads(pickle.dumps(trial))
    assert str(estimates(Linear(), trial, noise())) == str(estimates(Linear(), twin, noise()))
