"""Several scores at once, in an audit."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from tests.novelty.scores import Brightness, bright_probes, inliers
from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, Separation
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import separate
from xai_callbacks.metrics.novelty import why_useless
from xai_callbacks.novelty import (
    ODIN,
    Energy,
    GradientNorm,
    GradNorm,
    KNearest,
    Mahalanobis,
    ModelScore,
    PurviewDistance,
    ViM,
)
from xai_callbacks.novelty.scoring import Scorer


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


def test_chunks_do_not_matter():
    net, scorer = tiny_net(), Scorer([Energy(), ODIN()])
    with undisturbed(net):
        together = scorer.score(Subject(net), "6", pictures(), chunk_size=6)
        apart = scorer.score(Subject(net), "6", pictures(), chunk_size=4)

    for name, values in together.items():
        torch.testing.assert_close(apart[name], values, rtol=1e-5, atol=1e-6)
