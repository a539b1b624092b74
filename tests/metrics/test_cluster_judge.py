"""Clusters over audits: keys, numbers that are kept, what is left out, and a real model."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.cluster_judge import Clustered, ClusterJudge
from xai_callbacks.metrics.clusters import spray, worst_cluster
from xai_callbacks.probes import ProbeSet

PLACES = {"above": (0, 3), "below": (5, 3), "left": (3, 0)}


def maps_at(*parts: tuple[str, int], seed: int = 0) -> torch.Tensor:
    """Maps (n, 8, 8) with their relevance at a place, so many of each."""
    generator = torch.Generator().manual_seed(seed)
    places = [PLACES[place] for place, count in parts for _ in range(count)]
    maps = 0.2 * torch.rand(len(places), 8, 8, generator=generator)
    for row, (top, left) in enumerate(places):
        maps[row, top : top + 3, left : left + 3] += 1.0
    return maps


def probe_set(*sizes: int, labelled: bool = True, masks: dict[str, torch.Tensor] | None = None) -> ProbeSet:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    names = ("cat", "dog", "cow")[: len(sizes)] if labelled else None
    images = torch.rand(len(labels), 3, 8, 8)
    return ProbeSet.from_tensors(images, labels if labelled else None, class_names=names, masks=masks)


def logits(answers: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(answers, classes).float()


def judge(
    judge: ClusterJudge, maps: torch.Tensor, answers: torch.Tensor, explained: torch.Tensor | None = None
) -> Clustered:
    truth = judge.probes.labels
    asked = (answers if truth is None else truth) if explained is None else explained
    return judge.judge(logits(answers), truth, maps[None], asked[None])


def answers_of(probes: ProbeSet, *wrong: int) -> torch.Tensor:
    assert probes.labels is not None
    answers = probes.labels.clone()
    answers[list(wrong)] = (answers[list(wrong)] + 1) % 3
    return answers


# ---- one audit


def test_metrics_are_those_of_the_functions():
    mask = torch.zeros(84, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    probes = probe_set(54, 30, masks={"sky": mask})
    maps = torch.cat([maps_at(("above", 30), ("below", 24)), maps_at(("left", 30))])
    answers = answers_of(probes, *range(30, 45), 60, 61)
    result = judge(ClusterJudge(probes), maps, answers)
    correct = answers == probes.labels
    found = spray(maps, probes.labels, correct, regions={"sky": mask})
    worst = worst_cluster(found, correct)
    assert set(result.metrics) == {"cluster/count", "cluster/worst_acc", "cluster/error_association"}
    assert result.metrics["cluster/worst_acc"] == worst.estimate
    assert worst.estimate.value == 9 / 24
    assert result.worst == worst
    assert result.metrics["cluster/count"] == (1.5, None, None, None, 2, 0)
    assert result.metrics["cluster/error_association"] == (found[0].clusters[0].p, None, None, None, 2, 0)
    assert result.classes[0].clusters[0].regions == found[0].clusters[0].regions
    assert result.notes == ()


def test_the_question_is_the_one_asked_for():
    probes = probe_set(40)
    kinds, noise = maps_at(("above", 20), ("below", 20)), torch.rand(40, 8, 8)
    explained = torch.zeros(2, 40).long()
    for index, count in ((0, 1), (1, 2)):
        result = ClusterJudge(probes, index).judge(
            logits(explained[0]), probes.labels, torch.stack([noise, kinds]), explained
        )
        assert result.metrics["cluster/count"].value == count


def test_unlabelled_probes_are_grouped_by_the_class_that_was_explained():
    probes = probe_set(50, labelled=False)
    maps = maps_at(("above", 20), ("below", 18), ("left", 12))
    explained = torch.tensor([0] * 38 + [2] * 12)
    result = judge(ClusterJudge(probes), maps, torch.zeros(50).long(), explained)
    assert [(kind.label, len(kind.clusters)) for kind in result.classes] == [(0, 2), (2, 1)]
    assert set(result.metrics) == {"cluster/count"}
    assert result.worst is None
    assert math.isnan(result.classes[0].clusters[0].accuracy.value)


def test_a_question_about_no_class_groups_by_the_answer():
    probes = probe_set(40, labelled=False)
    answers = torch.tensor([1] * 20 + [2] * 20)
    result = judge(ClusterJudge(probes), torch.rand(40, 8, 8), answers, torch.full((40,), -1))
    assert [kind.label for kind in result.classes] == [1, 2]


def test_maps_that_explain_another_class_than_the_label_are_not_held_against_errors():
    probes = probe_set(54)
    answers = answers_of(probes, *range(30, 45))
    maps = maps_at(("above", 30), ("below", 24))
    about_the_label, about_the_answer = (judge(ClusterJudge(probes), maps, answers, e) for e in (None, answers))
    assert about_the_label.metrics["cluster/error_association"].value < 0.001
    assert about_the_label.metrics["cluster/worst_acc"].chance is not None
    value = about_the_answer.metrics["cluster/error_association"]
    assert math.isnan(value.value)
    assert value.valid == 0
    worst = about_the_answer.metrics["cluster/worst_acc"]
    assert worst.value == about_the_label.metrics["cluster/worst_acc"].value
    assert worst.chance is None
    assert about_the_answer.worst is not None
    assert math.isnan(about_the_answer.worst.p)
    assert len(about_the_answer.notes) == 1
    assert 'Why("label")' in about_the_answer.notes[0]


def test_small_classes_and_broken_maps_are_noted():
    probes = probe_set(30, 9, 12)
    maps = torch.rand(51, 8, 8)
    maps[0], maps[50] = float("nan"), 0.0
    result = judge(ClusterJudge(probes), maps, answers_of(probes))
    assert [kind.label for kind in result.classes] == [0, 2]
    small, broken = result.notes
    assert "'dog'" in small
    assert "fewer than 10 probes" in small
    assert broken.startswith("2 heatmaps are empty or not finite")
    assert result.metrics["cluster/count"].degenerate == 2
    assert result.metrics["cluster/worst_acc"].degenerate == 2


def test_many_small_classes_are_counted_not_listed():
    probes = ProbeSet.from_tensors(torch.rand(24, 3, 8, 8), torch.arange(24) % 8)
    truth = probes.labels
    assert truth is not None
    (note,) = ClusterJudge(probes).judge(logits(truth, 8), truth, torch.rand(1, 24, 8, 8), truth[None]).notes
    assert "and 3 more" in note


def test_without_a_large_class_nothing_has_a_value():
    probes = probe_set(5, 5)
    result = judge(ClusterJudge(probes), torch.rand(10, 8, 8), answers_of(probes))
    assert result.classes == ()
    assert set(result.metrics) == {"cluster/count", "cluster/worst_acc", "cluster/error_association"}
    assert all(math.isnan(estimate.value) and estimate.valid == 0 for estimate in result.metrics.values())


# ---- over audits


def members_by_number(result: Clustered) -> dict[int, set[int]]:
    return {cluster.number: set(cluster.members.tolist()) for cluster in result.classes[0].clusters}


def test_a_cluster_keeps_its_number_as_others_outgrow_it():
    probes = probe_set(50)
    watcher = ClusterJudge(probes)
    first = judge(watcher, maps_at(("above", 28), ("below", 22)), answers_of(probes))
    second = judge(watcher, maps_at(("above", 21), ("below", 29)), answers_of(probes))
    assert members_by_number(first) == {0: set(range(28)), 1: set(range(28, 50))}
    assert members_by_number(second) == {0: set(range(21)), 1: set(range(21, 50))}


def test_a_number_is_never_given_to_another_cluster():
    probes = probe_set(60)
    watcher = ClusterJudge(probes)
    answers = answers_of(probes)
    three = maps_at(("above", 24), ("below", 20), ("left", 16))
    assert set(members_by_number(judge(watcher, three, answers))) == {0, 1, 2}
    assert set(members_by_number(judge(watcher, maps_at(("above", 44), ("left", 16)), answers))) == {0, 2}
    # What falls apart again is new: nobody knows whether it is what it was.
    assert members_by_number(judge(watcher, three, answers)) == {
        0: set(range(24)), 3: set(range(24, 44)), 2: set(range(44, 60)),
    }  # fmt: skip


def test_clusters_stand_in_the_order_of_their_numbers():
    probes = probe_set(50)
    watcher = ClusterJudge(probes)
    judge(watcher, maps_at(("above", 28), ("below", 22)), answers_of(probes))
    later = judge(watcher, maps_at(("above", 21), ("below", 29)), answers_of(probes))
    assert [cluster.number for cluster in later.classes[0].clusters] == [0, 1]
    assert later.worst is not None
    assert_close(later.classes[0].clusters[1].mean_map.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_numbers_survive_a_checkpoint_and_nothing_but_plain_data_is_kept():
    probes = probe_set(50)
    one, other = ClusterJudge(probes), ClusterJudge(probes)
    judge(one, maps_at(("above", 28), ("below", 22)), answers_of(probes))
    stream = io.BytesIO()
    torch.save(one.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    changed = maps_at(("above", 21), ("below", 29))
    expected = members_by_number(judge(one, changed, answers_of(probes)))
    assert members_by_number(judge(other, changed, answers_of(probes))) == expected
    assert expected[0] == set(range(21))


def test_a_state_of_other_probes_or_of_another_question_is_ignored_and_forgetting_begins_anew():
    probes = probe_set(50)
    maps, changed = maps_at(("above", 28), ("below", 22)), maps_at(("above", 21), ("below", 29))
    anew = {0: set(range(21, 50)), 1: set(range(21))}
    source = ClusterJudge(probes)
    judge(source, maps, answers_of(probes))
    for state in ({**source.state_dict(), "fingerprint": "other"}, {**source.state_dict(), "question_index": 1}):
        fresh = ClusterJudge(probes)
        fresh.load_state_dict(state)
        assert members_by_number(judge(fresh, changed, answers_of(probes))) == anew
    source.forget()
    assert members_by_number(judge(source, changed, answers_of(probes))) == anew


def test_an_audit_changes_nothing_that_it_was_given_and_no_global_randomness():
    probes = probe_set(50)
    maps, answers = maps_at(("above", 28), ("below", 22)), answers_of(probes, 3)
    copies, before = (maps.clone(), answers.clone()), torch.get_rng_state()
    watcher = ClusterJudge(probes)
    state = watcher.state_dict()
    judge(watcher, maps, answers)
    assert torch.equal(maps, copies[0])
    assert torch.equal(answers, copies[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert int(state["numbers"].max()) == -1  # a state taken before stays what it was


# ---- arguments


def test_regression_and_strange_questions_are_refused():
    values = ProbeSet.from_tensors(torch.rand(4, 3, 8, 8), targets=torch.rand(4))
    with pytest.raises(ConfigurationError, match="probes with one label each for `clusters`, but got regression"):
        ClusterJudge(values)
    with pytest.raises(ConfigurationError, match="`question_index` to be an integer of 0 or more"):
        ClusterJudge(probe_set(4), -1)
