"""Several scores at once, in an audit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import pictures, tiny_net, tiny_probes
from xai_callbacks import Auditor, ProbeSet
from xai_callbacks.access import Subject, undisturbed
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import separate
from xai_callbacks.metrics.score_judge import why_useless
from xai_callbacks.novelty import ODIN, Energy, GradNorm, KNearest, Mahalanobis, ModelScore, ViM
from xai_callbacks.novelty.scoring import Scorer


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
    auditor = Auditor(tiny_probes(), novelty=scores, inliers=inliers(), novel=bright_probes(), chunk_size=4)

    record = auditor.audit(tiny_net())

    assert set(record.scores) == set(record.novel_scores) == {score.name for score in scores}
    torch.testing.assert_close(record.scores["brightness"], pictures().double().flatten(1).mean(dim=1))
    expected = (pictures(5, seed=5) / 2 + 0.5).double().flatten(1).mean(dim=1)
    torch.testing.assert_close(record.novel_scores["brightness"], expected)
    judged = separate(record.scores["brightness"], record.novel_scores["brightness"])
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

    Auditor(tiny_probes(), novelty=[Mahalanobis(), ODIN()], inliers=inliers(), novel=bright_probes()).audit(net)

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training and not module._forward_hooks for module in net.modules())


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return self.features(images).relu().mean(dim=(2, 3))


def test_without_a_linear_head_only_scores_that_need_it_are_left_out():
    record = Auditor(tiny_probes(), novelty=[Energy(), Brightness()], novel=bright_probes()).audit(Headless())

    assert list(record.scores) == list(record.novel_scores) == ["brightness"]
    assert any("does not end in one linear layer" in note for note in record.notes)


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
        Scorer([Energy(), Energy(temperature=2.0)])


def test_a_learner_without_inliers_is_refused():
    with pytest.raises(ConfigurationError, match=r"Expected `inliers`.*from which mahalanobis, vim can learn"):
        Auditor(tiny_probes(), novelty=[Mahalanobis(), ViM()])


@pytest.mark.parametrize("argument", ["inliers", "novel"])
def test_images_that_are_no_probe_set_are_refused(argument):
    with pytest.raises(ConfigurationError, match=f"Expected `{argument}` to be a ProbeSet, but got Tensor"):
        Auditor(tiny_probes(), **{argument: pictures()})


def test_chunks_do_not_matter():
    net, scorer = tiny_net(), Scorer([Energy(), ODIN()])
    with undisturbed(net):
        together = scorer.score(Subject(net), "6", pictures(), chunk_size=6)
        apart = scorer.score(Subject(net), "6", pictures(), chunk_size=4)

    for name, values in together.items():
        torch.testing.assert_close(apart[name], values, rtol=1e-5, atol=1e-6)
