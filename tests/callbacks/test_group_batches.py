"""Labels and cues in validation batches of all kinds."""

from __future__ import annotations

import math
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from tests.callbacks.grouped import fit, shown
from xai_callbacks import ConfigurationError, GroupAccuracy
from xai_callbacks.callbacks import group_accuracy
from xai_callbacks.callbacks.steps import read_integers, read_labels

Pair = namedtuple("Pair", ["image", "target", "place"])
META = SimpleNamespace(place=torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ([0, 0, torch.tensor([1, 0])], 2),
        ([0, 0, torch.tensor([1, 0])], -1),
        ({"place": torch.tensor([1, 0])}, "place"),
        ({"place": {"kind": torch.tensor([1, 0])}}, "place.kind"),
        ({"place.kind": torch.tensor([1, 0])}, "place.kind"),
        ({7: torch.tensor([1, 0])}, 7),
        ((0, {"place": torch.tensor([1, 0])}), "1.place"),
        ((0, META), "1.place"),
        (Pair(0, 0, torch.tensor([1, 0])), "place"),
        ({"meta": META}, lambda batch: batch["meta"].place),
        ([torch.tensor([True, False])], 0),
        ([torch.tensor([[1.0], [0.0]])], 0),
        ([torch.tensor([1, 0], dtype=torch.uint8)], 0),
        ([[1, 0]], 0),
        ([[torch.tensor(1), torch.tensor(0)]], 0),
    ],
)
def test_cues_are_read_wherever_they_are(batch, where):
    values = read_integers(batch, where, "cue")
    assert (values.tolist(), values.dtype) == ([1, 0], torch.int64)


@pytest.mark.parametrize("name", ["label", "labels", "target", "targets", "y", "class"])
def test_labels_are_found_under_their_usual_names(name):
    labels = torch.tensor([2, 0])
    assert read_labels({"image": torch.zeros(2, 3, 8, 8), name: labels}, None).tolist() == [2, 0]
    assert read_labels((torch.zeros(2, 3, 8, 8), labels, torch.zeros(2)), None).tolist() == [2, 0]
    assert read_labels(Pair(0, labels, 0), None).tolist() == [2, 0]
    assert read_labels({"mine": labels, "y": None}, "mine").tolist() == [2, 0]


@pytest.mark.parametrize(
    ("batch", "where", "message"),
    [
        ({"image": torch.zeros(2, 3)}, "place", r"got 'place' for a dict of \{image: a tensor \(2, 3\)\}"),
        ([torch.zeros(2), torch.zeros(2)], 2, r"got 2 for a list of \[a tensor \(2,\), a tensor \(2,\)\].*dataloader="),
        (torch.zeros(2, 3), "2", "for a tensor"),
        ((0, META), "1.plaice", "'1.plaice'"),
        ({"place": torch.zeros(2, 3)}, "place", r"one integer an image, \(N,\), but got a tensor \(2, 3\)"),
        ({"place": torch.tensor([0.5, 1.0])}, "place", "whole numbers, but got fractions"),
        ({"place": torch.tensor([math.nan])}, "place", "fractions or NaN"),
        ({"place": ["sea", "land"]}, "place", "function of the batch that returns them"),
        ({}, lambda batch: batch["place"], "raised KeyError: 'place'. The batch is a dict"),
    ],
)
def test_cues_that_cannot_be_read_are_named_with_what_there_is(batch, where, message):
    with pytest.raises(ConfigurationError, match=message):
        read_integers(batch, where, "cue")


def test_missing_labels_list_what_the_batch_has():
    with pytest.raises(ConfigurationError, match=r"target, targets, y, class, but got a dict of \{image: 3\}"):
        read_labels({"image": 3}, None)


def test_values_do_not_depend_on_how_many_batches_wait(tmp_path, monkeypatch):
    def values(waiting):
        monkeypatch.setattr(group_accuracy, "_WAITING", waiting)
        one, _ = fit(tmp_path / str(waiting), GroupAccuracy(2, min_count=1, each=False), max_epochs=1)
        return shown(one)

    together = values(2**20)
    for waiting in (0, 4 * 3 * 2):  # each batch by itself, and three at a time
        assert values(waiting) == pytest.approx(together, rel=1e-6, nan_ok=True)
