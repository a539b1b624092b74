"""Probes from datasets of one value an item: spread evenly over the targets."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.probes.items import Items, indexes, picture
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


def values(index):
    return (index * 37 % 101) / 10


@pytest.mark.parametrize(
    "source",
    [
        Items(101, lambda i: (picture(i), values(i))),
        Items(101, lambda i: (picture(i), torch.tensor([values(i)])), targets=[values(i) for i in range(101)]),
        TensorDataset(
            torch.stack([picture(i) for i in range(101)]), torch.tensor([values(i) for i in range(101)])[:, None]
        ),
    ],
)
def test_float_labels_give_a_regression_set_spread_evenly_over_the_targets(source):
    probes = ProbeSet.from_dataset(source, per_class=1)
    assert probes.task.kind == "regression"
    assert torch.allclose(probes.targets, torch.tensor([0, 1.1, 2.2, 3.3, 4.4, 5.6, 6.7, 7.8, 8.9, 10.0]))
    assert [values(index) for index in indexes(probes)] == pytest.approx(probes.targets.tolist())
    assert probes.names[0] == "item_00000"


def test_targets_told_by_the_dataset_are_read_without_items():
    items = Items(101, lambda i: (picture(i), values(i)), targets=[values(i) for i in range(101)])
    ProbeSet.from_dataset(items, 1)
    assert len(items.reads) == 10


def test_targets_found_in_items_only_are_sampled_in_a_bounded_number():
    items = Items(5000, lambda i: (picture(i % 1000), i / 10))
    probes = ProbeSet.from_dataset(items, 1)
    assert len(set(items.reads)) == 1000
    assert len(probes) == 10


def test_a_small_regression_dataset_gives_every_item_once():
    assert len(ProbeSet.from_dataset(Items(7, lambda i: (picture(i), i / 2)), per_class=4)) == 7


def test_a_target_field_makes_whole_numbers_regression():
    items = Items(30, lambda i: {"x": picture(i), "age": i}, classes=["unused"])
    probes = ProbeSet.from_dataset(items, 1, fields={"image": "x", "target": "age"})
    assert probes.task.kind == "regression"
    assert probes.class_names is None


def test_regression_can_be_stratified_by_group():
    items = Items(40, lambda i: (picture(i), i / 10, i % 2))
    probes = ProbeSet.from_dataset(items, 3, by="group", fields={"group": 2})
    assert probes.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert probes.targets.tolist() == pytest.approx([index / 10 for index in indexes(probes)])


def test_float_labels_with_class_names_are_classes():
    probes = ProbeSet.from_dataset(Items(40, lambda i: (picture(i), float(i % 2))), 2, class_names=["no", "yes"])
    assert probes.labels.tolist() == [0, 0, 1, 1]


def test_a_nan_target_is_refused_by_name():
    items = Items(50, lambda i: (picture(i), float("nan") if i == 33 else i / 10))
    with pytest.raises(ProbeSetError, match=r"'item_00033'.*nan"):
        ProbeSet.from_dataset(items, 1)
