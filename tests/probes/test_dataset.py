"""Choosing probes from a dataset: stratified, reproducible, and without leaving a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from tests.probes.items import Items, indexes, labelled, picture
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


def rng_states():
    return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()


# --- stratified choice


def test_each_class_gives_the_same_number_of_probes_in_class_order():
    probes = ProbeSet.from_dataset(labelled(), per_class=4)
    assert probes.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [index % 3 for index in indexes(probes)] == probes.labels.tolist()
    assert len(set(indexes(probes))) == 12


def test_probes_of_a_class_are_sorted_by_dataset_index():
    chosen = indexes(ProbeSet.from_dataset(labelled(), per_class=4))
    assert all(chosen[k : k + 4] == sorted(chosen[k : k + 4]) for k in (0, 4, 8))


def test_the_same_seed_gives_the_same_set_and_another_seed_another():
    sets = [ProbeSet.from_dataset(labelled(), 4, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


def test_the_choice_of_seed_0_is_pinned():
    # If this changes, users' curves over versions are no longer of the same probes.
    assert indexes(ProbeSet.from_dataset(labelled(), per_class=2)) == [30, 33, 28, 34, 26, 35]


def test_the_choice_does_not_depend_on_how_the_labels_are_found():
    column = [i % 3 for i in range(60)]
    images = torch.stack([picture(i) for i in range(60)])
    sources = [
        labelled(),
        labelled(targets=column),
        labelled(labels=np.array(column)),
        labelled(targets=torch.tensor(column)[:, None]),
        TensorDataset(images, torch.tensor(column)),
        [(picture(i), i % 3) for i in range(60)],
    ]
    assert len({ProbeSet.from_dataset(source, 3).fingerprint for source in sources}) == 1


def test_strata_can_be_groups():
    items = Items(80, lambda i: (picture(i), i % 2, i // 20))
    probes = ProbeSet.from_dataset(items, 3, by="group", fields={"group": 2}, group_names=list("abcd"))
    assert probes.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [index // 20 for index in indexes(probes)] == probes.groups.tolist()
    assert [index % 2 for index in indexes(probes)] == probes.labels.tolist()


def test_unknown_groups_are_no_stratum():
    items = Items(20, lambda i: (picture(i), 0, i % 2 - 1))
    assert ProbeSet.from_dataset(items, 3, by="group", fields={"group": 2}).groups.tolist() == [0, 0, 0]


def test_only_unknown_groups_are_refused():
    with pytest.raises(ProbeSetError, match="all groups are -1"):
        ProbeSet.from_dataset([(picture(0), 0, -1)], by="group", fields={"group": 2})


def test_groups_are_kept_when_strata_are_labels():
    items = Items(20, lambda i: (picture(i), i % 2, i % 5 - 1))
    probes = ProbeSet.from_dataset(items, 3, fields={"group": 2})
    assert probes.groups.tolist() == [index % 5 - 1 for index in indexes(probes)]


def test_small_classes_give_all_they_have_with_one_warning_that_names_them():
    items = Items(30, lambda i: (picture(i), 0 if i >= 3 else 1 + i // 2))
    with pytest.warns(UserWarning, match="'dog' has 2, class 'owl' has 1") as caught:
        probes = ProbeSet.from_dataset(items, 4, class_names=["cat", "dog", "owl"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert probes.labels.tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_a_class_without_items_is_named_too_and_long_lists_are_cut():
    with pytest.warns(UserWarning, match=r"'c3' has 0.*'c7' has 0 and 12 more are short"):
        ProbeSet.from_dataset(labelled(), 2, class_names=[f"c{k}" for k in range(20)])


# --- reading no more than needed


def test_only_the_chosen_items_are_read_where_the_dataset_tells_its_labels():
    items = labelled(targets=[i % 3 for i in range(60)])
    probes = ProbeSet.from_dataset(items, 4)
    assert sorted(items.reads) == sorted(indexes(probes))


@pytest.mark.parametrize("wrap", ["subset", "concat", "nested"])
def test_labels_are_told_through_subsets_and_concatenations(wrap):
    inner = [labelled(targets=[i % 3 for i in range(60)]) for _ in range(2)]
    even = [Subset(one, range(0, 60, 2)) for one in inner]
    source = {
        "subset": even[0],
        "concat": ConcatDataset(inner),
        "nested": Subset(ConcatDataset([Subset(even[0], torch.arange(20)), inner[1]]), list(range(70))),
    }[wrap]
    probes = ProbeSet.from_dataset(source, 4)
    assert len(inner[0].reads) + len(inner[1].reads) == len(probes) == 12
    assert [index % 3 for index in indexes(probes)] == probes.labels.tolist()


def test_reading_stops_as_soon_as_every_known_class_is_full():
    items = labelled(3000)
    items.classes = ["cat", "dog", "owl"]
    probes = ProbeSet.from_dataset(items, 4)
    order = np.random.RandomState(0).permutation(3000)
    needed = next(n for n in range(3000) if all((order[:n] % 3 == k).sum() >= 4 for k in range(3)))
    assert sorted(items.reads) == sorted(order[:needed].tolist())
    assert probes.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_given_class_names_stop_the_reading_too():
    items = labelled(3000)
    ProbeSet.from_dataset(items, 4, class_names=["cat", "dog", "owl"])
    assert len(items.reads) < 60


def test_known_group_names_stop_the_reading():
    items = Items(3000, lambda i: (picture(i), 0, i % 2))
    ProbeSet.from_dataset(items, 4, by="group", fields={"group": 2}, group_names=["a", "b"])
    assert len(items.reads) < 60


def test_without_a_known_number_of_classes_every_item_is_read():
    items = labelled()
    ProbeSet.from_dataset(items, 4)
    assert set(items.reads) == set(range(60))


def test_labels_that_the_items_contradict_are_not_believed():
    items = Items(60, lambda i: (picture(i), i % 2), targets=[i % 3 for i in range(60)])
    honest = Items(60, lambda i: (picture(i), i % 2))
    probes = ProbeSet.from_dataset(items, 4)
    assert probes.labels.tolist() == [0] * 4 + [1] * 4
    assert probes.fingerprint == ProbeSet.from_dataset(honest, 4).fingerprint


@pytest.mark.parametrize(
    "targets", [["cat"] * 60, [{}] * 60, [0, 1], 7, [[0], [0, 1]] * 30, [i / 7 for i in range(60)]]
)
def test_attributes_that_are_no_labels_are_passed_over(targets):
    probes = ProbeSet.from_dataset(labelled(targets=targets), 2)
    assert probes.labels.tolist() == [0, 0, 1, 1, 2, 2]


# --- determinism under random augmentation, and no trace in the global generators


def noisy(index):
    noise = random.random() + np.random.rand() + torch.rand(1).item()
    return torch.full((1, 2, 2), noise / 3), index % 3


@pytest.mark.parametrize("attributes", [{}, {"targets": [i % 3 for i in range(60)]}])
def test_random_augmentation_gives_the_same_set_whatever_the_global_state(attributes):
    prints = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        prints.append(ProbeSet.from_dataset(Items(60, noisy, **attributes), 4).fingerprint)
    assert prints[0] == prints[1]


def test_augmentation_differs_from_item_to_item_and_seed_to_seed():
    values = ProbeSet.from_dataset(Items(60, noisy), 4).images[:, 0, 0, 0].tolist()
    assert len(set(values)) == 12
    assert ProbeSet.from_dataset(Items(60, noisy), 4, seed=1).images[:, 0, 0, 0].tolist() != values


def test_the_global_random_streams_are_left_untouched():
    random.seed(5)
    np.random.seed(5)
    np.random.standard_normal()  # leaves a cached second value behind, which must survive too
    torch.manual_seed(5)
    before = rng_states()
    ProbeSet.from_dataset(Items(60, noisy), 4)
    assert rng_states() == before


def test_the_global_random_streams_are_left_untouched_when_the_dataset_fails():
    def fails_late(index):
        noisy(index)
        raise OSError("disk gone")

    before = rng_states()
    with pytest.raises(ProbeSetError, match="disk gone"):
        ProbeSet.from_dataset(Items(60, fails_late), 4)
    assert rng_states() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_augmentation_on_a_cuda_device_is_reproducible_and_leaves_no_trace():
    def drawn_there(index):
        return torch.rand(1, 2, 2, device="cuda"), index % 3

    prints = []
    for state in (1, 2):
        torch.cuda.manual_seed_all(state)
        torch.rand(1, device="cuda")
        before = torch.cuda.get_rng_state_all()
        prints.append(ProbeSet.from_dataset(Items(60, drawn_there), 4).fingerprint)
        after = torch.cuda.get_rng_state_all()
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert prints[0] == prints[1]
