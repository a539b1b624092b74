"""Which scores suit regression, and labels that do not exclude each other, and what they learn there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.novelty.scores import Brightness, bright_probes, inliers
from tests.tiny import pictures, tiny_net
from xai_callbacks import Auditor, ProbeSet, Separation
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.novelty import (
    ODIN,
    ConfoundingLabels,
    Energy,
    GradientNorm,
    GradNorm,
    Inliers,
    JointEnergy,
    KNearest,
    LastLayerScore,
    Mahalanobis,
    MaxLogit,
    ViM,
)
from xai_callbacks.novelty.scoring import Scorer
from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel

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
