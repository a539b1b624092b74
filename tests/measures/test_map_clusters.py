"""Clusters over audits: keys, numbers that are kept, what is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.measures.records import audit, context, map_set, measured, past, with_metrics
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.history import History
from xai_callbacks.measures import MapClusters
from xai_callbacks.metrics.clusters import error_association, worst_cluster
from xai_callbacks.probes import ProbeSet
from xai_callbacks.record import AuditRecord, Estimate, PerProbe

PLACES = {"above": (0, 3), "below": (5, 3), "left": (3, 0)}


def maps_at(*parts: tuple[str, int], seed: int = 0) -> torch.Tensor:
    """Maps (n, 8, 8) with their relevance at a place, so many of each."""
    generator = torch.Generator().manual_seed(seed)
    places = [PLACES[place] for place, count in parts for _ in range(count)]
    maps = 0.2 * torch.rand(len(places), 8, 8, generator=generator)
    for row, (top, left) in enumerate(places):
        maps[row, top : top + 3, left : left + 3] += 1.0
    return maps


def probe_set(*sizes: int, labelled: bool = True) -> ProbeSet:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    names = ("cat", "dog", "cow", *"abcdefgh")[: len(sizes)] if labelled else None
    return ProbeSet.from_tensors(torch.rand(len(labels), 3, 8, 8), labels if labelled else None, class_names=names)


def look(
    probes: ProbeSet, maps: torch.Tensor, wrong=(), explained: torch.Tensor | None = None, **fields
) -> AuditRecord:
    """An audit whose second question, the one about the label, has the maps; the first has noise."""
    truth = torch.zeros(len(maps), dtype=torch.long) if probes.labels is None else probes.labels
    answers = truth.clone()
    answers[list(wrong)] = (answers[list(wrong)] + 1) % 3
    outputs = torch.nn.functional.one_hot(answers, max(3, int(truth.max()) + 1)).float()
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(5))
    facts = torch.stack([answers, truth if explained is None else explained])
    heatmaps = {"gradcam": map_set(torch.stack([noise, maps]))}
    return audit(probes, heatmaps, outputs=outputs, facts=facts, **fields)


def clusters(record: AuditRecord, history: History | None = None, notes: list[str] | None = None):
    around = context(probes_of[record.fingerprint], notes=[] if notes is None else notes)
    return measured(MapClusters(), record, history, around)


probes_of: dict[str, ProbeSet] = {}


def known(probes: ProbeSet) -> ProbeSet:
    probes_of[probes.fingerprint] = probes
    return probes


def members(found) -> dict[int, set[int]]:
    numbers = found["cluster/number"].values
    return {int(each): set((numbers == each).nonzero()[:, 0].tolist()) for each in numbers[~numbers.isnan()].unique()}


# ---- one audit


def test_metrics_are_those_of_the_functions():
    probes = known(probe_set(54, 30))
    maps = torch.cat([maps_at(("above", 30), ("below", 24)), maps_at(("left", 30))])
    record, notes = look(probes, maps, wrong=(*range(30, 45), 60, 61)), []
    found = clusters(record, notes=notes)
    numbers = torch.tensor([0] * 30 + [1] * 24 + [0] * 30)
    correct = record.predictions == probes.labels
    assert found["cluster/number"].values.tolist() == numbers.tolist()
    assert found["cluster/count"] == Estimate(1.5, valid=2)
    assert found["cluster/seen"] == Estimate(2.0)
    assert found["cluster/worst_acc"] == worst_cluster(numbers, probes.labels, correct)
    assert found["cluster/worst_acc"].value == 9 / 24
    assert found["cluster/error_association"] == error_association(numbers, probes.labels, correct)
    assert found["cluster/error_association"].value < 0.001
    assert notes == []


def test_without_the_question_about_the_label_the_first_is_clustered():
    probes = known(probe_set(40))
    record = look(probes, maps_at(("above", 20), ("below", 20)))
    assert clusters(record)["cluster/count"].value == 2
    assert clusters(replace(record, questions=("why", "why_not_certain")))["cluster/count"].value == 1


def test_unlabelled_probes_are_grouped_by_the_class_that_was_explained_or_else_by_the_answer():
    probes = known(probe_set(50, labelled=False))
    explained = torch.tensor([0] * 38 + [2] * 12)
    record = look(probes, maps_at(("above", 20), ("below", 18), ("left", 12)), explained=explained)
    found = clusters(record)
    assert found["cluster/number"].values.tolist() == [0] * 20 + [1] * 18 + [0] * 12
    assert found.keys() == {"cluster/count", "cluster/number", "cluster/seen"}
    about_none = clusters(replace(record, facts=torch.full((2, 50), -1)))
    assert about_none["cluster/count"] == Estimate(3.0, valid=1)  # all answers are of one class


def test_maps_that_explain_another_class_than_the_label_are_not_held_against_errors():
    probes, notes = known(probe_set(54)), []
    record = look(probes, maps_at(("above", 30), ("below", 24)), wrong=range(30, 45))
    found = clusters(replace(record, facts=record.facts[[0, 0]]), notes=notes)
    assert math.isnan(found["cluster/error_association"].value)
    assert found["cluster/error_association"].valid == 0
    assert found["cluster/worst_acc"] == clusters(record)["cluster/worst_acc"]._replace(chance=None)
    assert len(notes) == 1
    assert 'Why("label")' in notes[0]


def test_small_classes_and_broken_maps_are_noted():
    probes, notes = known(probe_set(30, 9, 12)), []
    maps = torch.rand(51, 8, 8)
    maps[0], maps[50] = float("nan"), 0.0
    found = clusters(look(probes, maps), notes=notes)
    assert found["cluster/number"].values.isnan().nonzero()[:, 0].tolist() == [0, *range(30, 39), 50]
    small, broken = notes
    assert "the classes 'dog': they have fewer than 10 probes" in small
    assert broken.startswith("2 heatmaps are empty or not finite")
    assert {found[f"cluster/{name}"].degenerate for name in ("count", "worst_acc", "error_association")} == {2}


def test_without_a_large_class_nothing_has_a_value_and_many_classes_are_counted_not_listed():
    probes, notes = known(ProbeSet.from_tensors(torch.rand(24, 3, 8, 8), torch.arange(24) % 8)), []
    found = clusters(look(probes, torch.rand(24, 8, 8)), notes=notes)
    assert all(math.isnan(found[f"cluster/{name}"].value) for name in ("count", "worst_acc", "error_association"))
    assert found["cluster/seen"].value == 0
    assert "and 3 more" in notes[0]


def test_there_is_nothing_at_audits_at_which_the_explainer_does_not_answer():
    probes = known(probe_set(20))
    assert clusters(audit(probes)) == {}
    around = context(probes, asked=(), maps=())
    assert measured(MapClusters(), look(probes, torch.rand(20, 8, 8)), around=around) == {}


# ---- over audits


def followed(probes: ProbeSet, *looks: torch.Tensor, **fields):
    """What is found at each of several audits."""
    history, all_found = History(), []
    for step, maps in enumerate(looks):
        record = replace(look(probes, maps), step=step)
        found = clusters(record, history)
        history.append(with_metrics(record, found))
        all_found.append(found)
    return all_found


def test_a_cluster_keeps_its_number_as_others_outgrow_it():
    first, second = followed(
        known(probe_set(50)), maps_at(("above", 28), ("below", 22)), maps_at(("above", 21), ("below", 29))
    )
    assert members(first) == {0: set(range(28)), 1: set(range(28, 50))}
    assert members(second) == {0: set(range(21)), 1: set(range(21, 50))}


def test_a_number_is_never_given_to_another_cluster():
    three = maps_at(("above", 24), ("below", 20), ("left", 16))
    first, second, third = followed(known(probe_set(60)), three, maps_at(("above", 44), ("left", 16)), three)
    assert set(members(first)) == {0, 1, 2}
    assert set(members(second)) == {0, 2}
    # What falls apart again is new: nobody knows whether it is what it was.
    assert members(third) == {0: set(range(24)), 3: set(range(24, 44)), 2: set(range(44, 60))}
    assert [found["cluster/seen"].value for found in (first, second, third)] == [3, 3, 4]


def test_classes_are_followed_each_on_its_own():
    one, two = maps_at(("above", 28), ("below", 22)), maps_at(("above", 21), ("below", 29))
    other, joined = maps_at(("left", 15), ("above", 14)), maps_at(("left", 29))
    first, second, third = followed(
        known(probe_set(50, 29)), torch.cat([one, other]), torch.cat([two, joined]), torch.cat([one, other])
    )
    assert first["cluster/number"].values.tolist() == [0] * 28 + [1] * 22 + [0] * 15 + [1] * 14
    assert second["cluster/number"].values.tolist() == [0] * 21 + [1] * 29 + [0] * 29
    assert third["cluster/number"].values.tolist() == [0] * 28 + [1] * 22 + [0] * 15 + [2] * 14


@pytest.mark.parametrize("between", [True, False], ids=["thinned and silent audits between", "the audit before"])
def test_numbers_follow_from_the_latest_audit_at_which_the_explainer_answered(between: bool):
    probes = known(probe_set(50))
    first = look(probes, maps_at(("above", 28), ("below", 22)))
    history = past(with_metrics(first, clusters(first)), *([audit(probes)] * 2 if between else []))
    found = clusters(look(probes, maps_at(("above", 21), ("below", 29))), history)
    assert members(found) == {0: set(range(21)), 1: set(range(21, 50))}


def test_another_question_is_not_followed_but_gets_numbers_of_its_own():
    probes = known(probe_set(50))
    first = look(probes, maps_at(("above", 28), ("below", 22)))
    history = past(with_metrics(replace(first, asked=("Why()", "Why('label', 2)")), clusters(first)))
    found = clusters(look(probes, maps_at(("above", 21), ("below", 29))), history)
    assert members(found) == {2: set(range(21, 50)), 3: set(range(21))}


def test_an_audit_changes_nothing_that_it_was_given_and_no_global_randomness():
    probes = known(probe_set(50))
    record = look(probes, maps_at(("above", 28), ("below", 22)), wrong=(3,))
    maps, before = record.heatmaps.clone(), torch.get_rng_state()
    found = clusters(record)
    assert torch.equal(record.heatmaps, maps)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(found["cluster/number"], PerProbe)


def test_probes_without_classes_of_their_own_are_refused():
    images = torch.rand(4, 3, 8, 8)
    values = ProbeSet.from_tensors(images, targets=torch.rand(4))
    several = ProbeSet.from_tensors(images, torch.ones(4, 2).long())
    for probes, kind in ((values, "regression"), (several, "multi-label")):
        with pytest.raises(ConfigurationError, match=rf"one label each for `MapClusters\(\)`, but got {kind} probes"):
            MapClusters().keys(context(probes))
