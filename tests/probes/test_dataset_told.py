"""What a dataset tells of itself: names, classes, and the normalisation in its transform."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from tests.probes.items import Items, indexes, labelled, picture
from xai_callbacks.probes import ProbeSet


def test_names_come_from_the_class_and_the_dataset_index():
    probes = ProbeSet.from_dataset(labelled(), 1, class_names=["cat", "dog", "owl"])
    assert probes.names == tuple(
        f"{name}_{i:05d}" for name, i in zip(("cat", "dog", "owl"), indexes(probes), strict=True)
    )
    assert ProbeSet.from_dataset(labelled(), 1).names[2].startswith("class2_000")


def with_classes(classes, **attributes):
    items = labelled(**attributes)
    items.classes = classes
    return items


def test_class_names_are_taken_from_the_dataset_through_subset_and_concatenation():
    one = with_classes(["cat", "dog", "owl"])
    for source in (one, Subset(one, range(50)), ConcatDataset([one, Subset(one, range(9))])):
        assert ProbeSet.from_dataset(source, 1).class_names == ("cat", "dog", "owl")


def test_of_synonyms_the_first_is_the_class_name():
    probes = ProbeSet.from_dataset(with_classes([("tench", "Tinca"), ("shark",), ("ray", "skate")]), 1)
    assert probes.class_names == ("tench", "shark", "ray")


@pytest.mark.parametrize("classes", [3, [], ["", "a", "b"], [1, 2, 3], "abc"])
def test_what_is_no_list_of_names_is_passed_over(classes):
    assert ProbeSet.from_dataset(with_classes(classes), 1).class_names is None


def test_names_are_not_taken_where_labels_have_another_meaning():
    source = with_classes(["cat", "dog", "owl"], target_transform=lambda label: label)
    assert ProbeSet.from_dataset(source, 1).class_names is None
    other = ConcatDataset([with_classes(["cat", "dog", "owl"]), with_classes(["dog", "cat", "owl"])])
    assert ProbeSet.from_dataset(other, 1).class_names is None


def test_given_class_names_win():
    assert ProbeSet.from_dataset(with_classes(["a", "b", "c"]), 1, class_names=["x", "y", "z"]).class_name(0) == "x"


def normalised(transform, attribute="transform"):
    return Items(20, lambda i: ((picture(i, 3) - 0.5) / 0.25, i % 2), **{attribute: transform})


NORMALIZE = v2.Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    "transform",
    [
        NORMALIZE,
        v2.Compose([v2.ToImage(), NORMALIZE]),
        v2.Compose([v2.Identity(), v2.Compose([v2.Identity(), v2.RandomApply([NORMALIZE])])]),
        torch.nn.Sequential(v2.Identity(), NORMALIZE),
        ImageClassification(crop_size=2, mean=(0.5,) * 3, std=(0.25,) * 3),
    ],
)
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(10)), lambda d: ConcatDataset([d, d])])
def test_the_normalisation_is_found_in_the_transform(transform, wrap):
    probes = ProbeSet.from_dataset(wrap(normalised(transform)), 2)
    assert probes.mean == (0.5, 0.5, 0.5)
    assert probes.std == (0.25, 0.25, 0.25)
    assert probes.pixels.max() <= 5


def test_the_normalisation_is_found_in_a_real_torchvision_dataset(tmp_path):
    from torchvision.datasets import ImageFolder

    for name, value in (("cat", 51), ("dog", 102)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / name / "1.png")
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), NORMALIZE])
    probes = ProbeSet.from_dataset(ImageFolder(tmp_path, transform), 1)
    assert probes.class_names == ("cat", "dog")
    assert probes.names == ("cat_00000", "dog_00001")
    assert probes.pixels[:, 0, 0, 0].tolist() == [51, 102]


def test_given_normalisation_wins():
    items = Items(20, lambda i: (picture(i, 3), i % 2), transform=NORMALIZE)
    assert ProbeSet.from_dataset(items, 2, mean=[0.0], std=[1.0]).mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "transform", [v2.Compose([NORMALIZE, v2.Normalize([0.0] * 3, [2.0] * 3)]), v2.Normalize([0] * 5, [1] * 5)]
)
def test_an_ambiguous_or_unfitting_normalisation_is_not_used(transform):
    items = Items(20, lambda i: (picture(i, 3), i % 2), transform=transform)
    assert ProbeSet.from_dataset(items, 2).mean is None


def test_a_transform_that_contains_itself_does_not_hang():
    loop = v2.Compose([v2.Identity()])
    loop.transforms.append(loop)
    items = Items(20, lambda i: (picture(i, 3), i % 2), transform=loop)
    assert ProbeSet.from_dataset(items, 2).mean is None
