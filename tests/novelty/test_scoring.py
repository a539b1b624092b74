"""Several scores at once, in an audit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet, Separation
from xai_callbacks.access import Subject, tap, undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.metrics import separate
from xai_callbacks.metrics.novelty import why_useless
from xai_callbacks.novelty import (
    ODIN,
    ConfoundingLabels,
    ConvAutoencoder,
    Energy,
    FisherNovelty,
    GradientNorm,
    GradNorm,
    Inliers,
    JointEnergy,
    KNearest,
    LastLayerScore,
    Mahalanobis,
    MaxLogit,
    ModelScore,
    PurviewDistance,
    ReconstructionError,
    ViM,
)
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel


class Brightness(ModelScore):
    """The mean pixel, which shows exactly what was scored."""

    name = "brightness"

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        return images.double().flatten(1).mean(dim=1)


def inliers(count=40):
    return tiny_probes(count, seed=11)


def bright_probes(count=5):
    return ProbeSet.from_tensors(pictures(count, seed=5) / 2 + 0.5, pixels=None)


def test_scores_of_every_kind_are_recorded_for_probes_and_novel_images():
    scores = [GradNorm(), Energy(), Mahalanobis(), KNearest(k=3), ODIN(), Brightness()]
    auditor = Auditor(
        tiny_probes(), novelty=scores, inliers=inliers(), measures=[Separation(bright_probes())], chunk_size=4
    )

    record = auditor.audit(tiny_net())

    assert set(record.scores) == {score.name for score in scores}
    torch.testing.assert_close(record.scores["brightness"], pictures().double().flatten(1).mean(dim=1))
    expected = (pictures(5, seed=5) / 2 + 0.5).double().flatten(1).mean(dim=1)
    judged = separate(record.scores["brightness"], expected)
    assert record.metrics["novelty/brightness/auroc"] == judged["auroc"]
    assert record.metrics["novelty/brightness/auroc"].value == 1


def test_learners_are_fitted_on_what_the_head_sees_of_the_inliers():
    net, known = tiny_net().eval(), inliers()
    nearest = KNearest(k=3)

    record = Auditor(tiny_probes(), novelty=[nearest], inliers=known, chunk_size=7).audit(net)

    def features(images):
        with torch.no_grad():
            return nn.functional.normalize(nn.Sequential(*list(net)[:6])(images).double(), dim=1)

    distances = torch.cdist(features(pictures()), features(known.images)).sort(dim=1).values[:, 2]
    torch.testing.assert_close(record.scores["k_nearest"], distances, rtol=1e-4, atol=1e-5)


def test_learners_follow_the_model():
    auditor = Auditor(tiny_probes(), novelty=[Mahalanobis()], inliers=inliers())

    first = auditor.audit(tiny_net(seed=0)).scores["mahalanobis"]
    second = auditor.audit(tiny_net(seed=1)).scores["mahalanobis"]

    expected = Auditor(tiny_probes(), novelty=[Mahalanobis()], inliers=inliers()).audit(tiny_net(seed=1))
    assert not torch.equal(first, second)
    assert torch.equal(second, expected.scores["mahalanobis"])


def test_an_audit_with_every_kind_of_score_leaves_the_model_as_it_was():
    net = tiny_net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    Auditor(
        tiny_probes(), novelty=[Mahalanobis(), ODIN()], inliers=inliers(), measures=[Separation(bright_probes())]
    ).audit(net)

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training and not module._forward_hooks for module in net.modules())


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return self.features(images).relu().mean(dim=(2, 3))


def test_without_a_linear_head_default_scores_are_left_out_and_those_the_user_named_refused():
    record = Auditor(tiny_probes()).audit(Headless())

    assert not record.scores
    assert any("does not end in one linear layer" in note for note in record.notes)
    with pytest.raises(ConfigurationError, match="one linear layer for the novelty scores energy"):
        Auditor(tiny_probes(), novelty=[Energy(), Brightness()]).prepare(Headless())


def test_scores_of_the_last_layer_that_the_user_named_are_refused_of_a_model_without_one():
    with undisturbed(net := Headless()):
        Scorer([Energy(), Brightness()]).check(Subject(net), None, pictures(2))
        Scorer([Brightness()], required=True).check(Subject(net), None, pictures(2))
        with pytest.raises(ConfigurationError, match=r"one linear layer for the novelty scores energy, .* Leave them"):
            Scorer([Energy(), Brightness()], required=True).check(Subject(net), None, pictures(2))


class Broken(ModelScore):
    name = "broken"

    def __init__(self, value):
        self.value = value

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        values = torch.arange(len(images), dtype=torch.float64)
        values[1] = self.value
        return values if self.value is not None else torch.zeros_like(values)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_is_left_out_and_names_the_probe(value):
    record = Auditor(tiny_probes(), novelty=[Broken(value), Energy()]).audit(tiny_net())

    assert list(record.scores) == ["energy"]
    assert "novelty/broken" not in record.metrics
    assert list(record.useless) == [
        "The novelty score `broken` of the whole model was left out: it is NaN or inf for 1 of 6 probes, first for "
        f"{tiny_probes().names[1]!r}."
    ]


def test_a_constant_score_is_useless():
    assert why_useless(torch.ones(3), ["a", "b", "c"]) == (
        "it is 1 for all 3 probes, so that it tells none from another"
    )
    assert why_useless(torch.tensor([1.0, 2.0]), ["a", "b"]) is None
    assert why_useless(torch.ones(1), ["a"]) is None


def test_scores_of_one_name_are_refused():
    with pytest.raises(ConfigurationError, match=r"different names, but got 'energy' twice"):
        Scorer([Energy(), Energy()])


def test_a_learner_without_inliers_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `inliers`.*from which mahalanobis, vim can learn"):
        Auditor(tiny_probes(), novelty=[Mahalanobis(), ViM()])


# ---- scores that fail


class Fails(ModelScore):
    """Fails from the n-th time on that it is asked, or while it learns."""

    name = "fails"
    learns = True

    def __init__(self, at, error=None):
        self.at, self.asked = at, 0
        self.error = RuntimeError("out of luck.\nAt great length.") if error is None else error

    def fit(self, subject: Subject, images: Tensor, *, chunk_size: int = 64) -> None:
        if self.at == "fit":
            raise self.error

    def score(self, subject: Subject, images: Tensor) -> Tensor:
        self.asked += 1
        if self.at != "fit" and self.asked >= self.at:
            raise self.error
        return images.double().flatten(1).mean(dim=1)


class FailsAtTheEnd(LastLayerScore):
    """The same of the last layer."""

    name = "fails"
    learns = True

    def __init__(self, at, error=None):
        self.at, self.asked = at, 0
        self.error = RuntimeError("out of luck.\nAt great length.") if error is None else error

    def fit(self, inliers):
        Fails.fit(self, None, None)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return Fails.score(self, None, features)


def auditors(scores, **given):
    given = {"inliers": inliers(), "measures": [Separation(bright_probes())], "chunk_size": 4, **given}
    return [Auditor(tiny_probes(), questions, novelty=scores, **given) for questions in (None, [])]


@pytest.mark.parametrize("kind", [Fails, FailsAtTheEnd])
@pytest.mark.parametrize("at", ["fit", 1, 2, 3])
def test_a_score_that_fails_is_left_out_alone(kind, at):
    """At 2 it fails in the second chunk of the probes, at 3 in the first of the novel images."""
    for index, kept in enumerate(auditors([GradNorm(), Brightness(), Mahalanobis()])):
        failing = kind(at)
        record = auditors([failing, GradNorm(), Brightness(), Mahalanobis()])[index].audit(tiny_net())

        where = "the whole model" if kind is Fails else "layer `6`"
        said = f"The novelty score `fails` of {where} was left out because it failed: RuntimeError: out of luck."
        later = "The novelty score `fails` of further images failed and was left out. RuntimeError: out of luck."
        assert record.useless == ((said,) if at != 3 else ())
        assert record.failed == ((later,) if at == 3 else ())
        expected = kept.audit(tiny_net())
        own = {"novelty/fails"} if at == 3 else set()
        assert set(record.metrics) == set(expected.metrics) | own
        assert all(record.metrics[key] == wanted for key, wanted in expected.metrics.items())
        assert set(record.scores) == set(expected.scores) | ({"fails"} if at == 3 else set())
        assert all(torch.equal(record.scores[name], wanted) for name, wanted in expected.scores.items())
        assert failing.asked == (0 if at == "fit" else at)


def test_a_score_that_failed_has_another_chance_at_the_next_audit():
    for index in range(2):
        failing = Fails(1, AuditError("Expected luck, but got none. Try again."))
        auditor = auditors([failing, Energy()])[index]
        assert auditor.audit(tiny_net()).useless == (
            "The novelty score `fails` of the whole model was left out because it failed: Expected luck, but got none. "
            "Try again.",
        )
        failing.at = 9
        record = auditor.audit(tiny_net())
        assert record.useless == ()
        assert set(record.scores) == {"fails", "energy"}


ERRORS = [
    IndexError("out of range"),
    ValueError("no variance"),
    KeyError("layer"),
    ZeroDivisionError("division by zero"),
    NotImplementedError(),
    TypeError("wrong"),
    AssertionError("no"),
    np.linalg.LinAlgError("singular matrix"),
    type("SomeoneElsesError", (Exception,), {})("of a library"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [Fails, FailsAtTheEnd])
@pytest.mark.parametrize("at", ["fit", 1])
def test_whatever_a_score_raises_costs_itself_alone(kind, at, error):
    net, scorer = tiny_net(), Scorer([kind(at, error), Energy(), Brightness(), KNearest(k=3)], pictures())
    with undisturbed(net):
        scorer.fit(Subject(net), "6", chunk_size=4)
        found = scorer.score(Subject(net), "6", pictures(), chunk_size=4)

    assert list(found) == ["brightness", "energy", "k_nearest"]
    assert list(scorer.failures) == ["fails"]
    assert scorer.failures["fails"].startswith(type(error).__name__)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_user_who_stops_is_heard(stop):
    net, scorer = tiny_net(), Scorer([Fails(1, stop()), Energy()], pictures())
    with undisturbed(net), pytest.raises(stop):
        scorer.score(Subject(net), "6", pictures(), chunk_size=4)


def test_memory_that_runs_out_is_named():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAt length.")
    net, scorer = tiny_net(), Scorer([Fails(1, error), Energy()], pictures())
    with undisturbed(net):
        assert list(scorer.score(Subject(net), "6", pictures(), chunk_size=4)) == ["energy"]

    assert scorer.failures["fails"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."


class Careless(LastLayerScore):
    """Writes into what it gets."""

    name = "careless"

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        features.zero_()
        return logits.fill_(3)[:, 0]


def test_a_score_that_writes_into_what_it_gets_spoils_no_other():
    net = tiny_net().eval()
    with tap(Subject(net), "6", detach=False) as calls:
        outputs = net(pictures())
    found = Scorer([Careless(), Energy(), GradNorm()]).of_last_layer(calls[0])

    expected = Scorer([Energy(), GradNorm()]).of_last_layer(calls[0])
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert not any(values.requires_grad for values in found.values())
    outputs.sum().backward()  # the graph is whole


def test_a_net_without_a_positive_logit_costs_vim_alone():
    net = tiny_net()
    with torch.no_grad():
        net[6].bias.sub_(100)
    for auditor in auditors([ViM(dimensions=2), Energy()]):
        record = auditor.audit(net)
        assert list(record.scores) == ["energy"]
        (sentence,) = record.useless
        assert "`vim` of layer `6` was left out because it failed: Expected the largest logit" in sentence


def test_an_autoencoder_with_a_dead_layer_costs_fisher_alone():
    def digits(count, seed):
        return ProbeSet.from_tensors(torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed)))

    model = ConvAutoencoder()
    with torch.no_grad():
        model.decoder[0].bias.fill_(-100)  # no gradient gets past it
    scores = [FisherNovelty(parameters=["encoder.0.weight"]), ReconstructionError()]
    auditor = Auditor(digits(6, 1), [], novelty=scores, inliers=digits(9, 2))
    auditor.prepare(model)
    record = auditor.audit(model)

    assert list(record.scores) == ["reconstruction"]
    assert "`fisher` of the whole model was left out: it is 0 for all 6 probes" in record.useless[0]


def test_a_model_that_is_frozen_in_training_costs_the_scores_of_gradients_alone():
    net = tiny_net()
    for auditor in auditors([GradientNorm(), FisherNovelty("uniform"), Energy(), ODIN()]):
        auditor.prepare(net)
        record = auditor.audit(net.requires_grad_(False))
        assert set(record.scores) == {"energy", "odin"}
        assert [sentence.split("`")[1] for sentence in record.useless] == ["fisher", "gradient_norm_uniform"]
        net.requires_grad_(True)


def test_inliers_that_the_model_cannot_take_cost_what_learns_of_the_last_layer():
    scorer = Scorer([Mahalanobis(), KNearest(k=3), Energy()], torch.rand(9, 1, 8, 8))
    with undisturbed(net := tiny_net()):
        scorer.fit(Subject(net), "6", chunk_size=4)
        found = scorer.score(Subject(net), "6", pictures(), chunk_size=4)
    assert list(found) == ["energy"]
    assert set(scorer.failures) == {"mahalanobis", "k_nearest"}


def test_outside_of_an_audit_what_fails_is_raised():
    scorer, net = Scorer([FailsAtTheEnd(1), Energy()], pictures()), tiny_net().eval()
    with tap(Subject(net), "6") as calls:
        net(pictures())
    with pytest.raises(ConfigurationError, match=r"novelty score `fails` .* RuntimeError: out of luck"):
        scorer.of_last_layer(calls[0], ["fails"])
    assert list(scorer.of_last_layer(calls[0])) == ["energy"]
    with pytest.raises(ConfigurationError, match="out of luck"):
        scorer.of_last_layer(calls[0], ["fails", "energy"])


# ---- before training


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


# ---- regression


def regression_probes(count=6):
    return ProbeSet.from_tensors(pictures(count), targets=torch.linspace(0, 1, count))


def test_a_regression_net_has_scores_of_features_and_a_note_on_the_others():
    scores = [GradNorm(), KNearest(k=3), Energy(), Mahalanobis(), ViM()]
    given = {"inliers": inliers(), "measures": [Separation(bright_probes())], "chunk_size": 4}
    for questions in (None, []):
        record = Auditor(regression_probes(), questions, novelty=scores, **given).audit(tiny_net(classes=1))
        assert list(record.scores) == ["k_nearest", "mahalanobis"]
        assert record.useless == ()
        assert [note for note in record.notes if "regression" in note] == [
            "Novelty by `gradnorm`, `energy`, `vim` was left out: not of regression outputs. docs/novelty.md lists "
            "what suits."
        ]


def test_all_familiar_images_of_a_regression_net_are_one_class():
    """With the sign of the value taken for a class, the distance would be to the nearer of two means."""
    net, known = tiny_net(classes=1).eval(), inliers()
    with torch.no_grad():
        net[6].bias.copy_(-net(known.images).median())
        features = nn.Sequential(*list(net)[:6])(known.images)
    # The labels that these happen to have are no classes of this net.
    record = Auditor(regression_probes(), [], novelty=[Mahalanobis()], inliers=known).audit(net)

    score = Mahalanobis()
    labels = torch.zeros(len(features), dtype=torch.int64)
    score.fit(Inliers(features, net[6](features).detach(), labels, net[6].weight, net[6].bias))
    with torch.no_grad():
        asked = nn.Sequential(*list(net)[:6])(pictures())
    torch.testing.assert_close(record.scores["mahalanobis"], score.score(asked, net[6](asked)), rtol=1e-4, atol=0)


def test_regression_probes_without_a_score_that_suits_are_refused_or_have_none():
    with pytest.raises(ConfigurationError, match=r"something to audit, but got nothing. Novelty by `energy`"):
        Auditor(regression_probes(), [], novelty=[Energy()])
    record = Auditor(regression_probes()).audit(tiny_net(classes=1))
    assert record.scores == {}
    assert any("Novelty by `gradnorm` was left out" in note for note in record.notes)


# ---- labels that do not exclude each other


def test_of_labels_a_softmax_is_left_out_with_a_note_and_the_rest_stays():
    scores = [GradNorm(), Energy(), JointEnergy(), MaxLogit(), ConfoundingLabels(), GradientNorm(), KNearest(k=3)]
    net, scorer = tiny_net().eval(), Scorer([*scores, ODIN()], pictures(), task=MultiLabel(width=3))
    subject = Subject(net, MultiLabel(width=3))
    with undisturbed(net):
        scorer.check(subject, "6", pictures(2))
        scorer.fit(subject, "6", chunk_size=4)
        found = scorer.score(subject, "6", pictures(), chunk_size=4)

    assert scorer.notes == (
        "Novelty by `gradnorm`, `energy`, `odin` was left out: not of multi-label outputs. docs/novelty.md lists what "
        "suits.",
    )
    assert set(found) == {score.name for score in scores[2:]}
    with torch.no_grad():
        logits = net(pictures()).double()
    torch.testing.assert_close(found["joint_energy"], -nn.functional.softplus(logits).sum(dim=1))
    torch.testing.assert_close(found["max_logit"], -logits.amax(dim=1))


def test_of_classes_a_joint_energy_is_left_out_with_a_note():
    scorer = Scorer([JointEnergy(), Energy()])
    assert [score.name for score in scorer.scores] == ["energy"]
    assert scorer.notes == (
        "Novelty by `joint_energy` was left out: not of single-label outputs. docs/novelty.md lists what suits.",
    )


def test_all_familiar_images_of_labels_are_one_class():
    net, known = tiny_net().eval(), pictures(40, seed=11)
    labels = torch.randint(2, (40, 3), generator=torch.Generator().manual_seed(0))
    scorer = Scorer([Mahalanobis()], known, labels, task=MultiLabel(width=3))
    subject = Subject(net, MultiLabel(width=3))
    with undisturbed(net):
        scorer.fit(subject, "6", chunk_size=16)
        found = scorer.score(subject, "6", pictures(), chunk_size=4)["mahalanobis"]

    body = nn.Sequential(*list(net)[:6])
    with torch.no_grad():
        features, asked = body(known), body(pictures())
        score = Mahalanobis()
        one = torch.zeros(40, dtype=torch.int64)
        score.fit(Inliers(features, net[6](features), one, net[6].weight.detach(), net[6].bias.detach()))
        torch.testing.assert_close(found, score.score(asked, net[6](asked)), rtol=1e-4, atol=0)


class OfValues(LastLayerScore):
    """A user's own, for regression alone."""

    name = "of_values"
    tasks = ("regression",)

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        return logits[:, 0].double().abs()


def test_a_users_score_says_which_tasks_it_suits():
    kinds = (SingleLabel(), MultiLabel(width=3), Regression())
    assert [len(Scorer([OfValues(), Brightness()], task=task).scores) for task in kinds] == [1, 1, 2]


# ---- what is done once


def test_a_model_is_traced_once_and_gradients_of_all_chunks_are_measured_alike():
    """Forward passes: two and three images show the axis of the images, once an audit; two probes are looked at."""
    net, sizes = tiny_net(), []
    net[6].register_forward_hook(lambda _module, given, _output: sizes.append(len(given[0])))
    auditor = Auditor(
        tiny_probes(10), [], novelty=[GradientNorm(), PurviewDistance(), Energy()], inliers=inliers(15), chunk_size=5
    )
    audits = []
    for _ in range(2):
        sizes.clear()
        auditor.audit(net)
        audits.append(sorted(sizes))

    # Three chunks of inliers, and two of probes for each of three scores.
    assert audits[1] == [2, 3] + [5] * (3 + 2 * 3)
    once = Counter(audits[0]) - Counter(audits[1])
    assert set(once) <= {1, 2, 3}
    assert once.total() < 10


def test_a_model_of_another_structure_is_looked_at_anew():
    auditor = Auditor(tiny_probes(), [], novelty=[Energy()])
    for net in (tiny_net(), nn.Sequential(*tiny_net(), nn.Softmax(dim=1)), nn.Sequential(nn.Identity(), *tiny_net())):
        found = auditor.audit(net).scores["energy"]
        assert torch.equal(found, Auditor(tiny_probes(), [], novelty=[Energy()]).audit(net).scores["energy"])


def test_parameters_that_are_frozen_between_two_scores_are_not_measured():
    net = tiny_net().eval()
    subject, score = Subject(net), GradientNorm()
    score.score(subject, pictures())
    net[0].requires_grad_(False)
    assert torch.equal(score.score(subject, pictures()), score.score(Subject(net), pictures()))


def test_a_head_whose_weight_is_computed_can_be_learnt_from():
    plain, normed = tiny_net(), tiny_net()
    for net in (plain, normed):
        nn.init.constant_(net[6].bias, 2.0)  # `ViM` wants positive logits
    nn.utils.parametrizations.weight_norm(normed[6])
    auditor = Auditor(tiny_probes(), [], novelty=[ViM(dimensions=2), KNearest(k=3)], inliers=inliers())
    auditor.prepare(normed)
    found, expected = auditor.audit(normed).scores, auditor.audit(plain).scores

    assert list(expected) == ["vim", "k_nearest"]
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argument", ["inliers", "novel"])
def test_images_that_are_no_probe_set_are_refused(argument):
    with pytest.raises(ConfigurationError, match=f"Expected `{argument}` to be a ProbeSet, .* but got Tensor"):
        Auditor(
            tiny_probes(),
            **({"inliers": pictures()} if argument == "inliers" else {"measures": [Separation(pictures())]}),
        )


def test_chunks_do_not_matter():
    net, scorer = tiny_net(), Scorer([Energy(), ODIN()])
    with undisturbed(net):
        together = scorer.score(Subject(net), "6", pictures(), chunk_size=6)
        apart = scorer.score(Subject(net), "6", pictures(), chunk_size=4)

    for name, values in together.items():
        torch.testing.assert_close(apart[name], values, rtol=1e-5, atol=1e-6)
