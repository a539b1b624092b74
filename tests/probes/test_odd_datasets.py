"""Datasets that are broken, or lie: the package's own error, which names the item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet

IMAGE = torch.zeros(1, 2, 2)
PLAIN = TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4) % 2)


class Odd(Dataset):
    """Four items of two classes, but for what a test replaces."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError(index)
        return IMAGE, index % 2


def odd(**replaced):
    return type("Odd", (Odd,), replaced)()


def raising(error):
    def fails(*_):
        raise error

    return fails


class Hostile:
    """A part of an item that raises whatever is asked of it."""

    def __getattr__(self, name):
        raise ZeroDivisionError(name)

    def __str__(self):
        raise ZeroDivisionError("str")


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (Subset(PLAIN, [0, 1, 50]), "item 2 of the dataset .*IndexError"),
        (Subset(PLAIN, [0, -5]), "item 1 of the dataset .*IndexError"),
        (Subset(Subset(PLAIN, [0, 1]), [0, 7]), "item 1 of the dataset .*IndexError"),
        (ConcatDataset([PLAIN, Subset(PLAIN, torch.tensor([0, 4]))]), "item 5 of the dataset .*IndexError"),
        (Subset(PLAIN, np.array([0, 4])), "item 1 of the dataset .*IndexError"),
        (Subset(odd(), ["a", "b"]), "item [01] of the dataset"),
        (Subset(PLAIN, [2**70]), "item 0 of the dataset"),
        ([(IMAGE, 2**70)] * 3, "label of item 2 .*1180591620717411303424"),
        ([(IMAGE, [2**70, 1])] * 3, "label of item 2 .*1180591620717411303424"),
        (odd(__getitem__=raising(OSError("disk gone"))), "item 2 .*OSError: disk gone"),
        (odd(__getitem__=raising(MemoryError())), "item 2 .*MemoryError"),
        (odd(__getitem__=lambda *_: Hostile()), "item 2 "),
        (odd(__getitem__=lambda *_: (IMAGE, Hostile())), "item 2 "),
        (odd(__getitem__=lambda *_: None), "item 2 .*NoneType"),
        (odd(__len__=lambda *_: 6), "item [45] .*IndexError"),
        (None, "map-style"),
        (5, "map-style"),
        ("abc", "item 2 .*a str"),
        ({"a": 1}, "item 0 .*KeyError"),
        (torch.zeros(3, 1, 2, 2), "item 2 .*a Tensor"),
    ],
)
def test_a_broken_dataset_is_refused(dataset, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_dataset(dataset)


@pytest.mark.parametrize("name", ["targets", "labels", "classes", "transform", "transforms", "target_transform"])
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, [0, 1, 2, 3]), lambda d: ConcatDataset([d, d])])
def test_a_property_that_raises_is_passed_over(name, wrap):
    broken = wrap(odd(**{name: property(raising(FileNotFoundError("labels.csv")))}))
    assert ProbeSet.from_dataset(broken, 1).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "targets",
    [
        [0, 1],
        [0, 1, 0, 1, 0],
        [2**70] * 4,
        [[1], [1, 0]] * 2,
        object(),
        [object()] * 4,
        [[0, 1]] * 4,
        [float("inf")] * 4,
        [1e30] * 4,
    ],
)
def test_a_column_of_labels_that_lies_is_passed_over(targets):
    assert ProbeSet.from_dataset(odd(targets=targets), 1, class_names=["a", "b"]).labels.tolist() == [0, 1]


def test_parts_of_a_concatenation_that_tell_different_things_are_read():
    parts = [odd(targets=[0, 1, 0, 1]), odd(targets=[[0, 1]] * 4)]
    assert ProbeSet.from_dataset(ConcatDataset(parts), 1).labels.tolist() == [0, 1]


def test_negative_indexes_of_a_subset_count_from_the_end():
    assert ProbeSet.from_dataset(Subset(PLAIN, [-1, -2]), 1).labels.tolist() == [0, 1]


def test_a_huge_float_label_is_refused_by_item():
    with pytest.raises(ProbeSetError, match=r"`labels` of probe 0 .*1000000000000000019884624838656"):
        ProbeSet.from_dataset([(IMAGE, 1e30)], class_names=["a"])


@pytest.mark.parametrize("group", [2**70, 1e30])
def test_a_huge_group_is_refused_by_item(group):
    with pytest.raises(ProbeSetError, match=r"group of item 0 |groups"):
        ProbeSet.from_dataset([(IMAGE, 0, group)], 1, fields={"group": 2})


NOT_TEXTS = ["abc", b"ab", 5, [1], [None], {}, [], object()]


@pytest.mark.parametrize(
    "arguments",
    [
        *({"per_class": value} for value in (None, "4", 4.0, True, [4], -1)),
        *({"seed": value} for value in (None, "0", 0.0, True, [0])),
        *({"by": value} for value in (None, 5, ["label"])),
        *({"fields": value} for value in ("image", 5, [1], {1: 2}, {"image": [0]}, {"masks": None}, {"masks": {3: 1}})),
        *({"class_names": value} for value in NOT_TEXTS),
        *({"target_names": value} for value in NOT_TEXTS),
        *({"group_names": value} for value in NOT_TEXTS),
        {"mean": "abc", "std": [1.0]},
        {"mean": 0.5, "std": 1.0},
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments):
    with pytest.raises(ProbeSetError, match="Expected"):
        ProbeSet.from_dataset(odd(), **({"per_class": 1} | arguments))
