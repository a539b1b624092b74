"""Probes from datasets of several labels, of several values, and of floats that may be either."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from tests.probes.items import indexes, picture
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.tasks import MultiLabel

COUNT, LABELS = 200, 4
ORDER = np.random.RandomState(0).permutation(COUNT)
# Label k has every (k + 2)nd item; nobody has the rest.
TABLE = (np.arange(COUNT)[:, None] % np.arange(3, 3 + LABELS) == 0).astype(np.int64)


class Items(Dataset):
    """Items whose label is a row of a table, as `kind` makes it; counts what is read."""

    def __init__(self, table=TABLE, kind=torch.tensor, **attributes):
        self.table, self.kind, self.reads = table, kind, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        self.reads.append(index)
        return picture(index), self.kind(self.table[index])


def expected(table=TABLE, per_class=3, order=ORDER):
    """The slow obvious twin: of each label the first that have it, then the first that have none."""
    chosen = set()
    for has in (*(table == 1).T, (table == 0).any(axis=1) & ~(table == 1).any(axis=1)):
        chosen.update([index for index in order.tolist() if has[index]][:per_class])
    return chosen


# --- several labels


@pytest.mark.parametrize(
    "source",
    [
        Items(),
        Items(kind=lambda row: row),
        Items(kind=lambda row: row.tolist()),
        Items(kind=lambda row: torch.tensor(row).float()),
        Items(kind=lambda row: row.astype(bool)),
        Items(targets=TABLE),
        Items(labels=TABLE.tolist()),
        TensorDataset(torch.stack([picture(i) for i in range(COUNT)]), torch.tensor(TABLE)),
        TensorDataset(torch.stack([picture(i) for i in range(COUNT)]), torch.tensor(TABLE).float()),
    ],
)
def test_of_each_label_the_first_items_that_have_it_and_the_first_that_have_none(source):
    probes = ProbeSet.from_dataset(source, 3)
    assert isinstance(probes.task, MultiLabel)
    assert set(indexes(probes)) == expected()
    assert len(set(indexes(probes))) == len(probes)
    assert probes.labels.tolist() == TABLE[indexes(probes)].tolist()
    assert probes.names[0] == f"item_{indexes(probes)[0]:05d}"


def test_the_set_is_sorted_by_first_label_and_index():
    probes = ProbeSet.from_dataset(Items(), 3)
    first = [row.index(1) if 1 in row else LABELS for row in probes.labels.tolist()]
    keys = list(zip(first, indexes(probes), strict=True))
    assert keys == sorted(keys)
    assert first[-3:] == [LABELS] * 3


def test_only_the_chosen_items_are_read_where_the_dataset_tells_its_labels():
    inner = Items(targets=TABLE)
    probes = ProbeSet.from_dataset(ConcatDataset([Subset(inner, range(0, COUNT, 2)), Subset(inner, [1, 3])]), 2)
    assert sorted(inner.reads) == sorted(indexes(probes))


def test_reading_stops_when_every_label_and_none_are_full():
    table = np.tile(np.eye(3, 2, dtype=np.int64), (1000, 1))
    items = Items(table)
    ProbeSet.from_dataset(items, 2)
    assert len(items.reads) < 60


def test_an_item_of_which_nothing_is_known_is_passed_over_and_unknown_labels_are_kept():
    table = np.full((60, 2), -1)
    table[::3] = [1, -1]
    table[1::3] = [-1, 0]
    with pytest.warns(UserWarning, match="label '1' has 0") as caught:
        probes = ProbeSet.from_dataset(Items(table), 2)
    assert len(caught) == 1
    assert probes.labels.tolist() == [[1, -1]] * 2 + [[-1, 0]] * 2


def test_a_rare_label_is_named_in_one_warning_and_no_items_without_labels_are_none():
    table = np.ones((40, 2), dtype=np.int64)
    table[:, 1] = 0
    table[5, 1] = 1
    with pytest.warns(UserWarning, match="label 'rare' has 1") as caught:
        probes = ProbeSet.from_dataset(Items(table, classes=["common", "rare"]), 2)
    assert (len(caught), probes.class_names) == (1, ("common", "rare"))
    assert 5 in indexes(probes)


def test_labels_that_the_items_contradict_are_not_believed():
    wrong = Items(targets=1 - TABLE)
    assert ProbeSet.from_dataset(wrong, 3).fingerprint == ProbeSet.from_dataset(Items(), 3).fingerprint


def test_strata_of_several_labels_can_be_groups():
    items = [(picture(i), TABLE[i], i % 2) for i in range(COUNT)]
    probes = ProbeSet.from_dataset(items, 3, by="group", fields={"group": 2})
    assert probes.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert probes.labels.tolist() == TABLE[indexes(probes)].tolist()


def test_the_same_seed_gives_the_same_set_and_another_seed_another():
    sets = [ProbeSet.from_dataset(Items(), 2, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize(
    ("items", "arguments", "said"),
    [
        ([(picture(0), [0, 1]), (picture(1), [0, 1, 1])], {}, r"'item_0000\d'\) has \("),
        ([(picture(0), [0, 1]), (picture(1), 1)], {}, "label of item 0 .*one whole number"),
        ([(picture(0), [0, 1]), (picture(1), [0, float("nan")])], {}, "label of item 1 .*-1 .unknown"),
        ([(picture(0), [0, 1]), (picture(1), [0, 7])], {}, "label of item 1 "),
        ([(picture(0), [-1, -1])], {}, "at least one item with a known label"),
        ([(picture(0), [0, 1])], {"class_names": ["a", "b", "c"], "per_class": 1}, "each of 2 labels"),
        ([(picture(0), [0, 1])], {"target_names": ["a", "b"]}, "target_names"),
    ],
)
def test_malformed_labels_are_refused_and_never_answered_by_argmax(items, arguments, said):
    with pytest.raises(ProbeSetError, match=said) as error:
        ProbeSet.from_dataset(items, **arguments)
    assert "argmax" not in str(error.value)


# --- several values


def values(index):
    return [(index * 37 % 101) / 10, index / 2]


@pytest.mark.parametrize(
    "source",
    [
        [(picture(i), values(i)) for i in range(101)],
        [(picture(i), torch.tensor(values(i))) for i in range(101)],
        TensorDataset(torch.stack([picture(i) for i in range(101)]), torch.tensor([values(i) for i in range(101)])),
    ],
)
def test_a_target_may_be_a_vector_and_is_spread_over_its_first_value(source):
    probes = ProbeSet.from_dataset(source, 1, fields={"target": 1}, target_names=["blur", "noise"])
    assert probes.target_names == ("blur", "noise")
    assert torch.allclose(probes.targets, torch.tensor([values(index) for index in indexes(probes)]))
    assert probes.targets[:, 0].tolist() == pytest.approx([0, 1.1, 2.2, 3.3, 4.4, 5.6, 6.7, 7.8, 8.9, 10.0])


def test_a_vector_of_zeros_and_ones_is_a_target_where_the_fields_say_so():
    probes = ProbeSet.from_dataset(Items(), 1, fields={"target": 1})
    assert probes.task.kind == "regression"
    assert probes.targets.shape == (10, LABELS)


def test_targets_of_several_lengths_are_refused():
    with pytest.raises(ProbeSetError, match=r"as long for each as for .*has \("):
        ProbeSet.from_dataset([(picture(0), [0.5, 1]), (picture(1), [0.5])], fields={"target": 1})


# --- floats of one column


def binary(index):
    return picture(index), torch.tensor([float(index % 2)])


def test_float_labels_of_0_and_1_are_targets_and_that_is_said():
    with pytest.warns(UserWarning, match=r"read as values.*class_names=.*fields=\{'target': 1\}") as caught:
        probes = ProbeSet.from_dataset([binary(i) for i in range(20)], 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert probes.task.kind == "regression"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [({"fields": {"target": 1}}, "regression"), ({"class_names": ["no", "yes"]}, "single-label")],
)
def test_what_float_labels_are_can_be_said(arguments, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ProbeSet.from_dataset([binary(i) for i in range(20)], 1, **arguments).task.kind == kind


def test_a_label_of_one_number_in_a_vector_is_a_class():
    assert ProbeSet.from_dataset([(picture(i), [i % 2]) for i in range(20)], 2).labels.tolist() == [0, 0, 1, 1]
