"""Choosing probes from a dataset: stratified, reproducible, and without leaving a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


def picture(index, channels=1):
    """Return an image that tells which item it belongs to."""
    return torch.full((channels, 2, 2), index / 10000)


def indexes(probes):
    return [round(value * 10000) for value in probes.images[:, 0, 0, 0].tolist()]


class Items(Dataset):
    """Items made by a function of the index, counting how often each is read."""

    def __init__(self, count, make, **attributes):
        self.count, self.make, self.reads = count, make, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.reads.append(index)
        return self.make(index)


def labelled(count=60, classes=3, **attributes):
    return Items(count, lambda i: (picture(i), i % classes), **attributes)


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


# --- regression


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


# --- what the dataset tells of itself


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


# --- fields


def rich(index):
    core = np.zeros((2, 2), dtype=np.uint8)
    core[0, index % 2] = 255
    cue = Image.fromarray(core)
    return {"img": picture(index), "y": index % 2, "where": index % 3, "id": f"p{index}", "seg": core, "cue": cue}


RICH = {"image": "img", "label": "y", "group": "where", "name": "id", "masks": {"core": "seg", "spurious": "cue"}}


def test_fields_map_the_parts_of_dictionary_items():
    probes = ProbeSet.from_dataset(Items(30, rich), 3, fields=RICH)
    chosen = indexes(probes)
    assert probes.names == tuple(f"p{index}" for index in chosen)
    assert probes.labels.tolist() == [index % 2 for index in chosen]
    assert probes.groups.tolist() == [index % 3 for index in chosen]
    for region in ("core", "spurious"):
        assert probes.masks[region].flatten(1).tolist() == [[i % 2 == 0, i % 2 == 1, False, False] for i in chosen]


def test_fields_map_tuples_by_position_and_objects_by_attribute():
    class Sample:
        def __init__(self, index):
            self.img, self.y = picture(index), index % 2

    tuples = Items(30, lambda i: (i % 2, torch.ones(1, 2, 2, dtype=torch.bool), picture(i)))
    one = ProbeSet.from_dataset(tuples, 2, fields={"image": 2, "label": 0, "masks": {"core": 1}})
    two = ProbeSet.from_dataset(Items(30, Sample), 2, fields={"image": "img", "label": "y"})
    assert indexes(one) == indexes(two)
    assert one.masks["core"].all()


def test_an_item_without_a_mask_gives_an_all_false_row():
    items = Items(20, lambda i: (picture(i), 0, None if i % 2 else torch.ones(2, 2)))
    probes = ProbeSet.from_dataset(items, 8, fields={"masks": {"core": 2}})
    assert probes.masks["core"].any(dim=(1, 2)).tolist() == [index % 2 == 0 for index in indexes(probes)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lable": 1}, r"\['image', 'label', 'target', 'group', 'name', 'masks'\].*'lable'"),
        ({"mask": {"core": 2}}, "`fields`.*'mask'"),
        ({"image": None}, "`fields`.*'image': None"),
        ({"image": True}, "`fields`.*'image': True"),
        ({"masks": "seg"}, "`fields`.*'seg'"),
        ({"masks": {"core": 1.5}}, "`fields`.*1.5"),
        ({"label": 1, "target": 1}, "`fields`.*not both 'label' and 'target'"),
        (["image"], r"`fields` to map some of .*got \['image'\]"),
        ({"image": 9}, "item 0 .*image at 9.*tuple of 2"),
        ({"label": "y"}, "item 0 .*label at 'y'.*tuple of 2"),
        ({"masks": {"core": 5}}, "item 0 .*mask 'core' at 5"),
    ],
)
def test_a_wrong_fields_mapping_is_refused(fields, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_dataset([(picture(0), 0)], fields=fields)


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
