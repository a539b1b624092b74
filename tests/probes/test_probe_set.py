"""What a probe set accepts, refuses and promises."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet
from xai_callbacks.tasks import Regression

NAMES = ["ant", "bee", "cow"]
PIXELS = torch.zeros(3, 4, 5, 3, dtype=torch.uint8)


def images(count=3, channels=3, height=4, width=5, low=0):
    return torch.linspace(low, 1, count * channels * height * width).view(count, channels, height, width)


def full_set(**changes):
    arguments = {
        "labels": [0, 1, 1],
        "names": NAMES,
        "groups": [0, -1, 1],
        "masks": {"core": torch.ones(3, 4, 5), "spurious": [None, torch.eye(4, 5), None]},
        "class_names": ["cat", "dog"],
        "group_names": ["land", "water"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.5],
    }
    return ProbeSet.from_tensors(images(low=-1), **(arguments | changes))


def replaced(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


def test_all_parts_are_kept_in_their_documented_types():
    probes = full_set()
    assert len(probes) == 3
    assert (probes.task.kind, probes.task.names) == ("single-label", ("cat", "dog"))
    assert probes.truth is probes.labels
    assert probes.images.dtype == torch.float32
    assert torch.equal(probes.images, images(low=-1))
    assert probes.pixels.shape == (3, 4, 5, 3)
    assert probes.pixels.dtype == torch.uint8
    assert torch.equal(probes.labels, torch.tensor([0, 1, 1]))
    assert probes.targets is None
    assert torch.equal(probes.groups, torch.tensor([0, -1, 1]))
    assert list(probes.masks) == ["core", "spurious"]
    assert probes.masks["core"].dtype == torch.bool
    assert probes.masks["spurious"].sum(dim=(1, 2)).tolist() == [0, 4, 0]
    assert probes.names == tuple(NAMES)
    assert probes.class_names == ("cat", "dog")
    assert probes.group_names == ("land", "water")
    assert probes.mean == (0.5, 0.5, 0.5)
    assert probes.std == (0.25, 0.25, 0.5)


def test_targets_make_it_a_regression_set():
    probes = ProbeSet.from_tensors(images(), targets=[1, 2.5, -3])
    assert probes.task == Regression()
    assert probes.labels is None
    assert probes.truth is probes.targets
    assert torch.equal(probes.targets, torch.tensor([1.0, 2.5, -3.0]))


def test_images_alone_are_enough():
    probes = ProbeSet.from_tensors(images())
    assert probes.labels is None
    assert probes.targets is None
    assert probes.truth is None
    assert probes.names == ("probe_000", "probe_001", "probe_002")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype):
    given = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype).view(1, 1, 2, 2)
    assert torch.equal(ProbeSet.from_tensors(given).images, given.float())


@pytest.mark.parametrize("channels", [1, 3, 2, 5])
def test_any_number_of_channels_is_accepted(channels):
    probes = ProbeSet.from_tensors(images(channels=channels))
    assert probes.images.shape[1] == channels
    assert probes.pixels.shape == (3, 4, 5, 3)


def test_a_list_of_images_equals_their_stack():
    assert ProbeSet.from_tensors(list(images())).fingerprint == ProbeSet.from_tensors(images()).fingerprint


def test_later_changes_of_the_given_tensors_do_not_reach_the_set():
    given = {"images": images(), "labels": torch.tensor([0, 1, 1]), "groups": torch.tensor([0, 0, 1])}
    mask, pixels = torch.ones(3, 4, 5, dtype=torch.bool), PIXELS.clone()
    probes = ProbeSet.from_tensors(**given, masks={"core": mask}, pixels=pixels)
    before = copy.deepcopy(probes)
    for tensor in (*given.values(), mask, pixels):
        tensor.zero_()
    pixels.fill_(9)
    for name in ("images", "labels", "groups", "pixels"):
        assert torch.equal(getattr(probes, name), getattr(before, name)), name
    assert probes.masks["core"].all()


def test_the_given_tensors_are_not_modified():
    given = images() * 4 - 2
    kept = given.clone()
    ProbeSet.from_tensors(given, mean=[0.5], std=[0.25])
    assert torch.equal(given, kept)


def test_tensors_are_detached_and_plain_and_usable_for_gradients():
    with torch.inference_mode():
        probes = ProbeSet.from_tensors(tv_tensors.Image(images()), masks={"core": tv_tensors.Mask(torch.ones(3, 4, 5))})
    assert type(probes.images) is torch.Tensor
    assert type(probes.masks["core"]) is torch.Tensor
    weight = torch.ones(1, requires_grad=True)
    (probes.images * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(images().sum().item())
    assert not ProbeSet.from_tensors(images().requires_grad_()).images.requires_grad


def test_attributes_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        full_set().images = torch.zeros(1)


def test_copies_and_pickles_are_the_same_set():
    probes = full_set()
    for twin in (copy.deepcopy(probes), pickle.loads(pickle.dumps(probes))):
        assert twin.fingerprint == probes.fingerprint
        assert torch.equal(twin.images, probes.images)
        assert twin.std == probes.std


def test_class_name_falls_back_to_the_number():
    assert [full_set().class_name(k) for k in (0, 1, 2, -1)] == ["cat", "dog", "2", "-1"]
    assert ProbeSet.from_tensors(images(), [0, 1, 2]).class_name(1) == "1"


def test_repr_is_one_short_line():
    probes = full_set()
    assert repr(probes) == (f"ProbeSet(3 probes; 3x4x5; single-label of 2; masks core, spurious; {probes.fingerprint})")


# --- fingerprint


def test_fingerprint_is_16_hex_characters_and_pinned():
    probes = ProbeSet.from_tensors(torch.zeros(1, 1, 2, 2), [0], names=["a"])
    assert len(probes.fingerprint) == 16
    # A changed value makes saved sets and old records unreadable or incomparable: raise the file version with it.
    assert probes.fingerprint == "42d0c8ae794c61a2"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 0, 1]},
        {"labels": None, "class_names": None},
        {"groups": [0, 0, 1]},
        {"groups": None},
        {"names": ["ant", "bee", "cat"]},
        {"class_names": ["cat", "fox"]},
        {"class_names": None},
        {"group_names": ["land", "air"]},
        {"masks": {}},
        {"masks": {"core": replaced(torch.ones(3, 4, 5), (2, 1, 1), 0), "spurious": [None, torch.eye(4, 5), None]}},
        {"masks": {"object": torch.ones(3, 4, 5), "spurious": [None, torch.eye(4, 5), None]}},
        {"pixels": PIXELS},
        {"mean": [0.5, 0.5, 0.25]},
        {"std": [0.25, 0.25, 0.25]},
        {"labels": [[1, 0], [0, 1], [0, 1]]},
    ],
)
def test_fingerprint_changes_with_content(change):
    assert full_set(**change).fingerprint != full_set().fingerprint


def test_fingerprint_sees_the_smallest_change_of_one_pixel():
    nudged = images()
    nudged[1, 2, 3, 4] = torch.nextafter(nudged[1, 2, 3, 4], torch.tensor(2.0))
    one, two = (ProbeSet.from_tensors(x, pixels=PIXELS) for x in (images(), nudged))
    assert one.fingerprint != two.fingerprint


def test_fingerprint_tells_labels_from_groups_and_targets():
    sets = [
        ProbeSet.from_tensors(images(), labels=[0, 1, 2]),
        ProbeSet.from_tensors(images(), groups=[0, 1, 2]),
        ProbeSet.from_tensors(images(), targets=[0, 1, 2]),
    ]
    assert len({probes.fingerprint for probes in sets}) == 3


def test_fingerprint_does_not_depend_on_memory_layout():
    one = ProbeSet.from_tensors(images(), pixels=PIXELS)
    two = ProbeSet.from_tensors(images().to(memory_format=torch.channels_last), pixels=PIXELS)
    assert one.fingerprint == two.fingerprint


def test_the_same_images_with_another_normalisation_are_another_set():
    sets = [
        ProbeSet.from_tensors(images(low=-1), pixels=PIXELS, **normalisation)
        for normalisation in ({}, {"mean": [0.5], "std": [0.5]}, {"mean": [0.25], "std": [0.5]})
    ]
    assert len({probes.fingerprint for probes in sets}) == 3
    assert full_set(mean=[0.5]).fingerprint == full_set().fingerprint  # one mean stands for three


# --- select


def test_select_takes_probes_in_the_order_asked_for():
    probes = full_set()
    chosen = probes.select([2, 0])
    assert chosen.names == ("cow", "ant")
    assert torch.equal(chosen.images, probes.images[[2, 0]])
    assert torch.equal(chosen.pixels, probes.pixels[[2, 0]])
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.groups.tolist() == [1, 0]
    assert torch.equal(chosen.masks["spurious"], probes.masks["spurious"][[2, 0]])
    assert (chosen.class_names, chosen.mean) == (probes.class_names, probes.mean)


def test_selecting_everything_keeps_the_fingerprint():
    probes = full_set()
    assert probes.select(range(3)).fingerprint == probes.fingerprint
    assert probes.select([0, 1]).fingerprint != probes.fingerprint


def test_select_takes_negative_indexes_tensors_and_bool_masks():
    probes = full_set()
    assert probes.select([-1]).names == ("cow",)
    assert probes.select(torch.tensor([1, 2])).names == ("bee", "cow")
    assert probes.select(probes.labels == 1).names == ("bee", "cow")
    assert probes.select((probes.labels == 1).numpy()).names == ("bee", "cow")


def test_select_keeps_regression_targets():
    assert ProbeSet.from_tensors(images(), targets=[1, 2, 3]).select([1]).targets.tolist() == [2.0]


def test_a_selection_shares_no_memory_with_its_origin():
    probes = full_set()
    chosen = probes.select([0, 1, 2])
    chosen.images.zero_()
    assert torch.equal(probes.images, images(low=-1))


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([], "one or more"),
        ([3], r"from -3 to 2, each once, or a bool tensor \(3,\), but got \[3\]"),
        ([-4], r"but got \[-4\]"),
        ([1, 1], "each once"),
        (["x"], "whole numbers"),
        ("01", "whole numbers"),
        ([0.7], "whole numbers"),
        ([True, False], "a bool tensor"),
        (None, "whole numbers"),
        (3, "whole numbers"),
        (torch.tensor([True]), r"\(3,\)"),
    ],
)
def test_select_refuses_what_is_no_selection(indices, said):
    with pytest.raises(ProbeSetError, match=said):
        full_set().select(indices)


# --- faults of one probe: the message names it

BEE = "probe 1 \\('bee'\\)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": replaced(images(), (1, 0, 0, 0), float("nan"))}, BEE),
        ({"images": replaced(images(), (1, 2, 3, 4), float("inf"))}, BEE),
        ({"images": replaced(images().double(), (1, 0, 0, 0), 1e300)}, BEE),
        ({"images": [images()[0], images()[1, :1], images()[2]]}, BEE + " is \\(1, 4, 5\\)"),
        ({"images": [images()[0], images()[1, 0], images()[2]]}, BEE + " is \\(4, 5\\)"),
        ({"images": [images()[0], images()[1].numpy(), images()[2]]}, BEE + " is ndarray"),
        ({"images": [images()[0], (images()[1] * 255).byte(), images()[2]]}, BEE + r" is \(3, 4, 5\) torch.uint8"),
        ({"labels": [0, -1, 1]}, BEE + " has label -1"),
        ({"labels": [0, 2, 1], "class_names": ["cat", "dog"]}, BEE + " has label 2"),
        ({"labels": [0, "cat", 1]}, BEE + ".* got str 'cat'"),
        ({"labels": [0, None, 1]}, BEE + ".* got NoneType"),
        ({"labels": [0, [0, 1], 1]}, BEE),
        ({"targets": [0.0, float("nan"), 1.0]}, BEE + " has target nan"),
        ({"targets": [0.0, float("inf"), 1.0]}, BEE + " has target inf"),
        ({"targets": [0.0, "1", 1.0]}, BEE + ".* got str '1'"),
        ({"groups": [0, -2, 1]}, BEE + " has group -2"),
        ({"groups": [0, 7, 1], "group_names": ["a", "b"]}, BEE + " has group 7"),
        ({"names": ["ant", "bee", "bee"]}, "2 probes are named 'bee'"),
        ({"names": ["ant", "", "cow"]}, r"names\[1\]` is ''"),
        ({"names": ["ant", "b\nee", "cow"]}, r"names\[1\]` is 'b\\nee'"),
        ({"names": ["ant", 3, "cow"]}, r"names\[1\]` is 3"),
        ({"masks": {"core": [torch.ones(4, 5), torch.ones(5, 4), None]}}, "mask 'core' of " + BEE),
        ({"masks": {"core": [torch.ones(4, 5), torch.full((4, 5), 0.5), None]}}, "mask 'core' of " + BEE),
        ({"masks": {"core": [torch.ones(4, 5), torch.full((4, 5), float("nan")), None]}}, "mask 'core' of " + BEE),
        ({"masks": {"core": [torch.ones(4, 5), "x.png", None]}}, "mask 'core' of " + BEE),
    ],
)
def test_a_fault_of_one_probe_is_refused_by_name(change, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_tensors(**({"images": images(), "names": NAMES} | change))


def test_a_mask_tensor_of_the_wrong_size_names_region_and_probe():
    with pytest.raises(ProbeSetError, match=r"mask 'core' of probe 0 \('ant'\) to be \(4, 5\).* got \(8, 8\)"):
        full_set(masks={"core": torch.ones(3, 8, 8)})


def test_the_number_of_further_faulty_probes_is_told():
    with pytest.raises(ProbeSetError, match=r"probe 0 \('probe_000'\) has label -1.*2 more"):
        ProbeSet.from_tensors(images(), [-1, -1, -1])


# --- faults of the set: the message says what to do


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.zeros(0, 3, 4, 5)}, "at least one probe"),
        ({"images": []}, "at least one probe"),
        ({"images": torch.zeros(3, 4, 5)}, r"\(C, H, W\)"),
        ({"images": torch.zeros(3, 3, 0, 5)}, "no empty axis"),
        ({"images": torch.tensor(1.0)}, r"\(N, C, H, W\).*got Tensor"),
        ({"images": "abc"}, "tensors .*is str"),
        ({"images": np.zeros((3, 3, 4, 5))}, "from_numpy"),
        (
            {"images": torch.zeros(3, 3, 4, 5, dtype=torch.uint8)},
            r"float tensors.*torch.uint8.*images\.float\(\) / 255",
        ),
        ({"images": torch.zeros(3, 3, 4, 5, dtype=torch.complex64)}, "float tensors"),
        ({"labels": [0, 1]}, r"`labels` to be \(3,\)"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, "targets="),
        ({"labels": [0, 1, 1], "targets": [0, 1, 1]}, "got both"),
        ({"targets": [0, 1, 1], "class_names": ["a"]}, "class_names"),
        ({"target_names": ["age"]}, "`target_names` to come with `targets`"),
        ({"labels": [0, 1, 1], "target_names": ["age"]}, "`target_names` to come with `targets`"),
        ({"class_names": []}, "non-empty sequence"),
        ({"groups": [0.5, 1, 1]}, "whole numbers"),
        ({"names": ["a"]}, "each of 3 probes"),
        ({"names": "abc"}, "sequence of strings"),
        ({"class_names": "abc"}, "sequence of strings"),
        ({"class_names": ["a", ""]}, "class_names"),
        ({"masks": torch.ones(3, 4, 5)}, "core"),
        ({"masks": {"core": torch.ones(2, 4, 5)}}, "each of 3 probes"),
        ({"masks": {"core": torch.tensor(1)}}, "each of 3 probes"),
        ({"masks": {1: torch.ones(3, 4, 5)}}, "non-empty printable"),
        ({"mean": [0.5] * 3}, "`std` .*Give both"),
        ({"mean": [0.5] * 2, "std": [1.0] * 2}, "3 finite numbers"),
        ({"mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]}, "above 0"),
        ({"mean": [0.5, 0.5, float("nan")], "std": [1.0] * 3}, "finite"),
        ({"mean": 0.5, "std": 1.0}, "sequence of 3 finite numbers"),
        ({"pixels": torch.zeros(3, 4, 5, 3)}, "uint8"),
        ({"pixels": torch.zeros(3, 3, 4, 5, dtype=torch.uint8)}, r"\(3, 4, 5, 3\)"),
    ],
)
def test_a_malformed_set_is_refused(change, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_tensors(**({"images": images(), "names": NAMES} | change))


def test_every_error_is_a_value_error_of_the_package():
    with pytest.raises(ValueError, match="Expected"):
        ProbeSet.from_tensors(torch.zeros(1))


def test_masks_may_have_a_channel_axis_and_any_nonzero_whole_number():
    mask = torch.zeros(3, 1, 4, 5, dtype=torch.uint8)
    mask[1, 0, 2, 3] = 255
    probes = full_set(masks={"core": mask})
    assert probes.masks["core"].nonzero().tolist() == [[1, 2, 3]]


def test_one_mean_stands_for_all_channels():
    assert full_set(mean=[0.5], std=[0.5]).std == (0.5, 0.5, 0.5)
