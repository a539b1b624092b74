"""Clusters of an audit: keys, and what is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.measures.records import audit, context, map_set, measured
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
    assert found["cluster/worst_acc"] == worst_cluster(numbers, probes.labels, correct)
    assert found["cluster/worst_acc"].value == 9 / 24
    assert found["cluster/error_association"] == error_association(numbers, probes.labels, correct)
    assert found["cluster/error_association"].value == 1 / 1000
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
    assert found.keys() == {"cluster/count", "cluster/number"}
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
    assert "and 3 more" in notes[0]


def test_there_is_nothing_at_audits_at_which_the_explainer_does_not_answer():
    probes = known(probe_set(20))
    assert clusters(audit(probes)) == {}
    around = context(probes, asked=(), maps=())
    assert measured(MapClusters(), look(probes, torch.rand(20, 8, 8)), around=around) == {}


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
