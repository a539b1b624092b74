"""Items that are malformed, each refused by its index or name, and malformed arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from tests.probes.items import Items, labelled, picture
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet

# --- malformed items: the message names the item


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda i: (Image.new("L", (2, 2)), 0), "image of item 0 .*PIL.Image.*transform"),
        (lambda i: (np.zeros((1, 2, 2)), 0), "image of item 0 .*numpy.ndarray.*transform"),
        (lambda i: (torch.zeros(1, 2, 2, dtype=torch.uint8), 0), "image of item 0 .*torch.uint8.*transform"),
        (lambda i: (torch.zeros(2, 2), 0), r"image of item 0 .*\(2, 2\) torch.float32"),
        (lambda i: (picture(i), torch.tensor([0, 2, 0])), r"label of item 0 .*0, 1 or -1.*\[0, 2, 0\]"),
        (lambda i: (picture(i), np.array([0.5, 1.0])), r"label of item 0 .*\[0.5, 1.0\].*fields=\{'target': 1\}"),
        (lambda i: (picture(i), torch.zeros(2, 2)), "label of item 0 .*a vector.*Tensor"),
        (lambda i: (picture(i), []), r"label of item 0 .*list '\[\]'"),
        (lambda i: (picture(i), "cat"), "label of item 0 .*str 'cat'"),
        (lambda i: (picture(i), None), "label of item 0 .*NoneType"),
        (lambda i: (picture(i), -1), "'class-1_00000'.* has label -1"),
        (lambda i: (picture(i) * float("nan"), 0), "'class0_00000'.*NaN"),
        (picture, "item 0 .*a Tensor"),
        (lambda i: {"image": picture(i), "y": 0}, r"item 0 .*dict of \['image', 'y'\].*fields="),
        (lambda i: 1 / 0, "item 0 .*ZeroDivisionError"),
    ],
)
def test_a_malformed_item_is_refused_by_index(make, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_dataset(Items(1, make), 1)


@pytest.mark.parametrize(
    ("item", "fields", "said"),
    [
        ((picture(0), 0, torch.ones(3, 3)), {"masks": {"core": 2}}, r"mask 'core' .*'class0_00000'.*\(3, 3\)"),
        ((picture(0), 0, "x"), {"group": 2}, "group of item 0"),
        ((picture(0), 0, 0.5), {"group": 2}, "group of item 0"),
        ((picture(0), 0, -3), {"group": 2}, "'class0_00000'.* has group -3"),
        ((picture(0), 0, ""), {"name": 2}, r"names\[0\]"),
    ],
)
def test_a_malformed_part_is_refused_by_name(item, fields, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_dataset([item], 1, fields=fields)


def test_images_of_several_sizes_are_refused_by_name():
    items = Items(2, lambda i: (torch.zeros(1, 2 + i, 2), 0))
    with pytest.raises(ProbeSetError, match=r"one size.*probe 1 \('class0_00001'\) is \(1, 3, 2\)"):
        ProbeSet.from_dataset(items, 2)


def test_a_label_beyond_the_class_names_is_refused_by_name():
    with pytest.raises(ProbeSetError, match=r"'class2_000\d\d'.* has label 2"):
        ProbeSet.from_dataset(labelled(targets=[i % 3 for i in range(60)]), 1, class_names=["cat", "dog"])


def test_duplicate_names_in_a_field_are_refused():
    items = Items(4, lambda i: (picture(i), 0, "same"))
    with pytest.raises(ProbeSetError, match="2 probes are named 'same'"):
        ProbeSet.from_dataset(items, 2, fields={"name": 2})


def test_a_fractional_label_among_classes_is_refused_by_index():
    with pytest.raises(ProbeSetError, match=r"label of item 0 .*0\.5.*fields=\{'target': 1\}"):
        ProbeSet.from_dataset([(picture(0), 0.5)], 1, class_names=["a", "b"])


@pytest.mark.parametrize(
    "label", [1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor([1]), np.array([1]), True]
)
def test_whole_numbers_of_all_kinds_are_labels(label):
    assert ProbeSet.from_dataset([(picture(0), label)], 1).labels.tolist() == [1]


# --- malformed arguments


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(picture(0), 0)])


@pytest.mark.parametrize(
    ("dataset", "arguments", "said"),
    [
        (Stream(), {}, "map-style.*islice"),
        (iter([]), {}, "map-style"),
        ([], {}, "empty"),
        (labelled(), {"per_class": 0}, "per_class"),
        (labelled(), {"per_class": 2.0}, "per_class"),
        (labelled(), {"seed": -1}, "seed"),
        (labelled(), {"seed": 2**32}, "seed"),
        (labelled(), {"by": "labels"}, "'label', or 'group'"),
        (labelled(), {"by": "group"}, "fields"),
        (labelled(), {"class_names": "abc"}, "sequence of strings"),
    ],
)
def test_malformed_arguments_are_refused_before_any_item_is_read(dataset, arguments, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_dataset(dataset, **arguments)
    assert getattr(dataset, "reads", []) == []
