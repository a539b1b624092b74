"""Scores that fail in an audit: each is told, and costs itself alone."""

from __future__ import annotations

import pytest
import torch

from tests.novelty.scores import ERRORS, Brightness, Careless, Fails, FailsAtTheEnd, auditors
from tests.tiny import pictures, tiny_net
from xai_callbacks import Auditor, ProbeSet
from xai_callbacks.access import Subject, tap, undisturbed
from xai_callbacks.errors import AuditError, ConfigurationError
from xai_callbacks.novelty import (
    ODIN,
    ConvAutoencoder,
    Energy,
    FisherNovelty,
    GradientNorm,
    GradNorm,
    KNearest,
    Mahalanobis,
    ReconstructionError,
    ViM,
)
from xai_callbacks.novelty.scoring import Scorer


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
