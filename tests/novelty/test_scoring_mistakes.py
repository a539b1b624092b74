"""What no score can learn from, and scores that cannot work: refused before training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.novelty.scores import ERRORS, Brightness, Careless, Fails, auditors
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet, Separation
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty import Energy, FisherNovelty, GradientNorm, KNearest, Mahalanobis, PurviewDistance, ViM
from xai_callbacks.novelty.scoring import Scorer


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (KNearest(k=9), r"10 familiar images or more for `KNearest` with k = 9, but got 9"),
        (ViM(dimensions=4), "below the 4 features, but got 4"),
        (ViM(dimensions=12), "below the 4 features, but got 12"),
        (FisherNovelty("uniform", parameters=["headd.*"]), "'headd.*' matches none"),
        (FisherNovelty("bce"), "one shape"),
        (Fails(1), None),
    ],
)
def test_what_could_not_learn_is_refused_before_training(score, message):
    for auditor in auditors([Energy(), score], inliers=tiny_probes(9, seed=11)):
        if message is None:  # only an audit can show it
            auditor.prepare(tiny_net())
        else:
            with pytest.raises(ConfigurationError, match=message):
                auditor.prepare(tiny_net())


class FailsToCheck(Brightness):
    """Cannot even be looked at."""

    def __init__(self, error):
        self.error = error

    def check(self, subject: Subject, images: Tensor) -> None:
        raise self.error


class NeedsNothing(Brightness):
    """Fails when it is asked."""

    def __init__(self, error):
        self.error = error

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        raise self.error


class OfTheLastLayer(Careless):
    """Fails when it is asked."""

    def __init__(self, error):
        self.error = error

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [*ERRORS, RuntimeError("of torch")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [FailsToCheck, NeedsNothing, OfTheLastLayer])
def test_a_mistake_in_a_users_score_is_named_before_training(kind, error):
    net, score = tiny_net(), kind(error)
    kind_of_error = type(error).__name__
    message = f"Expected the novelty score `{score.name}` to work on this model, but it raised {kind_of_error}.* Mend"
    with undisturbed(net), pytest.raises(ConfigurationError, match=message) as raised:
        Scorer([Energy(), score]).check(Subject(net), "6", pictures(2))
    assert raised.value.__cause__ is error


def test_an_error_of_the_package_is_passed_on_as_it_is():
    net, error = tiny_net(), ConfigurationError("Expected something else. Do so.")
    with undisturbed(net), pytest.raises(ConfigurationError) as raised:
        Scorer([NeedsNothing(error)]).check(Subject(net), "6", pictures(2))
    assert raised.value is error


@pytest.mark.parametrize("make", [GradientNorm, PurviewDistance, lambda: FisherNovelty("uniform")])
def test_a_frozen_model_is_refused_before_training_where_gradients_are_asked_for(make):
    for auditor in auditors([make()]):
        with pytest.raises(ConfigurationError, match=r"Unfreeze|requires_grad_\(True\)|that require grad"):
            auditor.prepare(tiny_net().requires_grad_(False))


@pytest.mark.parametrize("make", [PurviewDistance, lambda: FisherNovelty("uniform")])
def test_one_familiar_image_is_refused_before_training(make):
    for auditor in auditors([make()], inliers=tiny_probes(1, seed=11)):
        with pytest.raises(ConfigurationError, match="2 familiar images or more to learn from, but got 1"):
            auditor.prepare(tiny_net())


@pytest.mark.parametrize("argument", ["inliers", "novel"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 8)])
def test_images_of_another_shape_are_refused(argument, shape):
    others = ProbeSet.from_tensors(torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)))
    message = rf"images of `{argument}` to have the shape of the probes, \(3, 8, 8\)"
    given = {"inliers": others} if argument == "inliers" else {"measures": [Separation(others)]}
    for questions in (None, []):
        with pytest.raises(ConfigurationError, match=message):
            Auditor(tiny_probes(), questions, novelty=[Energy()], **given)


def test_preparing_does_not_learn():
    for auditor in auditors([Fails("fit"), Mahalanobis()]):
        auditor.prepare(tiny_net())


@pytest.mark.parametrize("argument", ["inliers", "novel"])
def test_images_that_are_no_probe_set_are_refused(argument):
    with pytest.raises(ConfigurationError, match=f"Expected `{argument}` to be a ProbeSet, .* but got Tensor"):
        Auditor(
            tiny_probes(),
            **({"inliers": pictures()} if argument == "inliers" else {"measures": [Separation(pictures())]}),
        )
