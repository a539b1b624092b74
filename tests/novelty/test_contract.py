"""What every exported novelty score must hold to; one that is missing from the lists below is reported by name."""

import copy
import inspect
import pickle
import random
import re
from contextlib import nullcontext
from functools import cache, partial
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import random_streams
from xai_callbacks import Auditor, ProbeSet, Separation, novelty
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty.losses import Label
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel


class SmallNet(nn.Module):
    """A CNN with batch norm, dropout and in-place activations, all but untrained; its last layer is `head`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(8, 3)
        nn.init.normal_(self.head.weight)
        for norm in (self.stem[1], self.body[1]):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, images):
        return self.head(self.dropout(self.body(self.stem(images)).mean(dim=(2, 3))))


class SmallAutoencoder(nn.Module):
    """Images `(N, 1, 28, 28)` to logits of the same shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 4, 2, 1)
        )
        self.dropout = nn.Dropout(0.5)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 1, 4, 2, 1)
        )
        nn.init.uniform_(self.encoder[1].running_var, 0.5, 2.0)
        self.constraint = novelty.GradientConstraint(self.decoder)
        for name, mean in self.constraint.references.items():
            mean.copy_(self.constraint.weights[name].detach().cos())

    def forward(self, images):
        return self.decoder(self.dropout(self.encoder(images)))


def gradcon():
    return novelty.GradConScore("constraint")


OF_CLASSES = [
    novelty.GradNorm,
    novelty.ConfoundingLabels,
    novelty.GradTrust,
    novelty.MaxSoftmax,
    novelty.MaxLogit,
    novelty.Energy,
    novelty.Entropy,
    novelty.Mahalanobis,
    novelty.KNearest,
    novelty.ViM,
    novelty.ODIN,
    *[partial(novelty.GradientNorm, label) for label in get_args(Label)],
    novelty.PurviewDistance,
    partial(novelty.FisherNovelty, "uniform"),
]
CLASSIFIERS = [*OF_CLASSES, novelty.JointEnergy]
AUTOENCODERS = [
    partial(novelty.FisherNovelty, "bce"),
    gradcon,
    novelty.ReconstructionError,
]
SCORES = CLASSIFIERS + AUTOENCODERS
TASKS = (SingleLabel(), MultiLabel(width=3), Regression(width=3))
DISTANCES = (novelty.Mahalanobis, novelty.KNearest, novelty.PurviewDistance, novelty.FisherNovelty)
NEED_TRAINABLE = (novelty.GradientNorm, novelty.PurviewDistance, novelty.FisherNovelty, novelty.GradConScore)


def label(make):
    return "-".join([getattr(make, "func", make).__name__, *getattr(make, "args", ())])


every_score = pytest.mark.parametrize("make", SCORES, ids=label)
every_learner = pytest.mark.parametrize("make", [make for make in SCORES if make().learns], ids=label)


def model_for(make):
    return SmallNet() if make in CLASSIFIERS else SmallAutoencoder()


def pictures(make, count=6, seed=5):
    """Familiar images, each with a brightness and a contrast of its own."""
    stream = torch.Generator().manual_seed(seed)
    if make in CLASSIFIERS:
        contrast, brightness = torch.rand(2, count, 3, 1, 1, generator=stream)
        return torch.randn(count, 3, 12, 12, generator=stream) * (0.5 + contrast) + brightness
    coarse = torch.rand(count, 1, 7, 7, generator=stream)
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def inliers(make):
    return pictures(make, 40, seed=11)


def ask(score, make, batch, *, model=None, chunk_size=64, fit=True):
    """The scores of a batch, as an audit asks for them; the score learns before unless told otherwise."""
    model = model_for(make) if model is None else model
    head = "head" if make in CLASSIFIERS else None
    task = next(task for task in TASKS if task.kind in score.tasks)
    scorer = Scorer([score], inliers(make), task=task, strict=True)
    with undisturbed(model):
        subject = Subject(model, task)
        if fit:
            scorer.fit(subject, head, chunk_size=16)
        return scorer.score(subject, head, batch, chunk_size=chunk_size)[score.name]


@cache
def fitted(make):
    score = make()
    ask(score, make, pictures(make))
    return score


@cache
def expected(make):
    return ask(fitted(make), make, pictures(make), fit=False)


def test_the_contract_covers_what_is_exported():
    exported = {getattr(novelty, name) for name in novelty.__all__}
    classes = {each for each in exported if inspect.isclass(each) and issubclass(each, novelty.NoveltyScore)}
    bases = {novelty.NoveltyScore, novelty.LastLayerScore, novelty.ModelScore}
    assert {type(make()) for make in SCORES} == classes - bases


@every_score
def test_a_score_is_one_finite_number_an_image(make):
    score, found = fitted(make), expected(make)
    assert (found.shape, found.dtype, found.requires_grad) == ((6,), torch.float64, False)
    assert found.isfinite().all()
    assert len(found.unique()) == 6
    assert re.fullmatch(r"[\w.-]+", score.name)
    assert isinstance(score.learns, bool)


@every_score
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_score_suits_a_task_or_is_left_out_of_it_with_a_note(make, task):
    score, model = make(), model_for(make)
    scorer = Scorer([score], inliers(make), task=task, strict=True)
    if task.kind not in score.tasks:
        assert scorer.scores == ()
        assert f"Novelty by `{score.name}` was left out" in scorer.notes[0]
        return
    assert scorer.notes == ()
    with undisturbed(model):
        subject, head = Subject(model, task), "head" if make in CLASSIFIERS else None
        scorer.check(subject, head, pictures(make)[:2])
        scorer.fit(subject, head, chunk_size=16)
        found = scorer.score(subject, head, pictures(make), chunk_size=4)[score.name]
    assert found.isfinite().all()


def test_scores_suit_what_their_formulas_can_read():
    suited = {task.kind: {make().name for make in SCORES if task.kind in make().tasks} for task in TASKS}
    of_any = {"mahalanobis", "k_nearest", "fisher", "gradcon", "reconstruction"}
    of_logits = {"max_logit", "confounding_labels", "purview_distance"} | {
        f"gradient_norm_{each}" for each in get_args(Label)
    }
    of_softmax = {"gradnorm", "gradtrust", "max_softmax", "energy", "entropy", "vim", "odin"}
    assert suited["regression"] == of_any
    assert suited["multi-label"] == of_any | of_logits | {"joint_energy"}
    assert suited["single-label"] == of_any | of_logits | of_softmax


@every_score
def test_a_score_asked_directly_is_as_tidy(make):
    score, model = fitted(make), model_for(make).eval()
    registered, streams = hooks(model), random_streams()
    if isinstance(score, novelty.LastLayerScore):
        features = torch.linspace(0, 1, 32).view(4, 8)
        found = score.score(features, model.head(features).detach())
    else:
        found = score.score(Subject(model), pictures(make, 4))
    assert (found.shape, found.dtype, found.requires_grad) == ((4,), torch.float64, False)
    assert hooks(model) == registered
    assert random_streams() == streams


def hooks(model):
    owners = [*model.modules(), *model.parameters()]
    held = [getattr(owner, name, None) for owner in owners for name in sorted(dir(owner)) if "_hooks" in name]
    return [dict(each) for each in held if isinstance(each, dict)]


@every_score
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_nothing_is_left_behind(make, grad):
    score, model, batch = make(), model_for(make).train(), pictures(make)
    stem, *_, last = model.children()
    stem[1].eval()
    model(batch).sum().backward()
    first, second, third, *_ = model.parameters()
    first.grad = None
    second.requires_grad_(False)
    passed = []
    model.register_forward_hook(lambda *_: passed.append("forward"))
    model.dropout.register_forward_pre_hook(lambda *_: passed.append("before"))
    last.register_full_backward_hook(lambda *_: None)
    third.register_hook(lambda gradient: gradient)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [(each.grad, None if each.grad is None else each.grad.clone()) for each in model.parameters()]
    flags = [module.training for module in model.modules()], [each.requires_grad for each in model.parameters()]
    registered, streams, original = hooks(model), random_streams(), batch.clone()
    with torch.set_grad_enabled(grad):
        ask(score, make, batch, model=model)
        assert torch.is_grad_enabled() == grad
    assert {"forward", "before"} == set(passed)
    assert torch.equal(batch, original)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter, (same, content) in zip(model.parameters(), held, strict=True):
        assert parameter.grad is same
        assert same is None or torch.equal(same, content)
    assert ([each.training for each in model.modules()], [each.requires_grad for each in model.parameters()]) == flags
    assert hooks(model) == registered
    assert random_streams() == streams


@every_score
def test_the_mode_of_the_model_and_the_random_streams_do_not_matter(make):
    truth, models = expected(make), (model_for(make).eval(), model_for(make).train())
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    for model in models:
        assert torch.equal(ask(make(), make, pictures(make), model=model), truth)


@every_score
@pytest.mark.parametrize("chunk_size", [1, 3, 6])
def test_images_do_not_influence_each_other(make, chunk_size):
    found = ask(fitted(make), make, pictures(make), chunk_size=chunk_size, fit=False)
    torch.testing.assert_close(found, expected(make), rtol=1e-4, atol=0)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    found = ask(fitted(make), make, pictures(make)[order], chunk_size=chunk_size, fit=False)
    torch.testing.assert_close(found, expected(make)[order], rtol=1e-4, atol=0)


@every_score
@pytest.mark.parametrize("where", [(1,), (1, 0, 3, 3)], ids=["image", "pixel"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_image_scores_nan_alone(make, where, broken):
    spoilt, whole = pictures(make), torch.arange(6) != 1
    spoilt[where] = broken
    found = ask(fitted(make), make, spoilt, fit=False)
    assert found[1].isnan()
    torch.testing.assert_close(found[whole], expected(make)[whole], rtol=1e-5, atol=0)
    assert ask(fitted(make), make, spoilt[1:2], fit=False).isnan().all()


@every_learner
def test_what_is_broken_is_not_learnt_and_spoils_nothing(make, monkeypatch):
    score, truth, spoilt = copy.deepcopy(fitted(make)), expected(make), inliers(make)
    spoilt[7] = torch.nan
    monkeypatch.setitem(globals(), "inliers", lambda _: spoilt)
    with pytest.raises(AuditError, match="finite"):
        ask(score, make, pictures(make))
    assert torch.equal(ask(score, make, pictures(make), fit=False), truth)


@every_score
def test_asked_twice_the_answer_is_the_same(make):
    assert torch.equal(ask(fitted(make), make, pictures(make), fit=False), expected(make))
    assert torch.equal(ask(make(), make, pictures(make)), expected(make))


@every_learner
def test_a_second_fit_replaces_the_first(make, monkeypatch):
    # Before the inliers are exchanged: what is expected is computed once, by whichever test asks first.
    score, truth, others = make(), expected(make), pictures(make, 30, seed=2) * 2
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "inliers", lambda _: others)
        assert not torch.allclose(ask(score, make, pictures(make)), truth)
    assert torch.equal(ask(score, make, pictures(make)), truth)


@every_score
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_a_surrounding_mode_does_not_matter(make, surrounding):
    score, model, truth = make(), model_for(make), expected(make)
    with surrounding():
        found = ask(score, make, pictures(make), model=model)  # images made inside are inference tensors
        assert not torch.is_grad_enabled()
    assert torch.equal(found, truth)


@every_learner
def test_a_score_that_must_learn_refuses_before(make):
    with pytest.raises(ConfigurationError, match="`fit` has not been called"):
        ask(make(), make, pictures(make), fit=False)


@every_score
@pytest.mark.parametrize("twin_of", [lambda score: pickle.loads(pickle.dumps(score)), copy.deepcopy])
def test_a_copy_scores_the_same(make, twin_of):
    twin = twin_of(fitted(make))
    assert torch.equal(ask(twin, make, pictures(make), fit=False), expected(make))


@every_score
def test_a_frozen_model_is_scored_or_refused_with_advice(make):
    score, model = make(), model_for(make).requires_grad_(False)
    refused = isinstance(score, NEED_TRAINABLE)
    with pytest.raises(ConfigurationError, match=r"Unfreeze|requires_grad_\(True\)") if refused else nullcontext():
        assert torch.equal(ask(score, make, pictures(make), model=model), expected(make))


@pytest.mark.parametrize("make", [make for make in SCORES if isinstance(make(), DISTANCES)], ids=label)
def test_loud_noise_is_farther_from_what_is_familiar(make):
    noise = 20 * torch.rand_like(pictures(make, 20))
    familiar = ask(fitted(make), make, pictures(make, 20, seed=6), fit=False)
    assert ask(fitted(make), make, noise, fit=False).mean() > familiar.mean()


class Flat(novelty.LastLayerScore):
    name = "flat"

    def score(self, features, logits):
        return torch.full((len(logits),), 0.25, dtype=torch.float64)


class Holed(novelty.LastLayerScore):
    name = "holed"

    def score(self, features, logits):
        scores = logits[:, 0].double()
        scores[2:3] = torch.nan
        return scores


def probes(count, seed, prefix):
    batch = pictures(novelty.Energy, count, seed)
    names = [f"{prefix}{index}" for index in range(count)]
    grey = torch.full((count, 12, 12, 3), 127, dtype=torch.uint8)
    return ProbeSet.from_tensors(batch, torch.arange(count) % 3, pixels=grey, names=names)


def test_an_audit_judges_every_score_of_a_classifier():
    scores = [make() for make in OF_CLASSES]
    given = {"inliers": probes(40, 11, "inlier"), "measures": [Separation(probes(5, 3, "novel"))], "chunk_size": 4}
    record = Auditor(probes(8, 5, "probe"), novelty=scores, **given).audit(SmallNet().train())
    assert record.notes == ()
    assert set(record.scores) == {score.name for score in scores}
    for score in scores:
        assert 0 <= record.metrics[f"novelty/{score.name}/auroc"].value <= 1


def test_an_audit_leaves_out_scores_without_an_order_and_says_why():
    auditor = Auditor(probes(8, 5, "probe"), novelty=[Flat(), novelty.Energy(), Holed()])
    record = auditor.audit(SmallNet())
    assert set(record.scores) == {"energy"}
    assert {key.split("/")[1] for key in record.metrics if key.startswith("novelty/")} == {"energy"}
    flat, holed = record.useless
    assert "`flat`" in flat
    assert "0.25 for all 8" in flat
    assert "`holed`" in holed
    assert "'probe2'" in holed
