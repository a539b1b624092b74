from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from xai_callbacks import ProbeSet
from xai_callbacks.demo.digits import (
    CLASS_NAMES,
    CUE_COLOURS,
    GROUP_NAMES,
    PROBE_FIELDS,
    DecoyDataModule,
    DecoyDigits,
    SmallCNN,
    make_splits,
)

TRAIN, HELD_OUT = 1200, 300
Splits = tuple[DecoyDigits, DecoyDigits, DecoyDigits]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(0.8, train_images=TRAIN, held_out=HELD_OUT, seed=3)


def same(left: DecoyDigits, right: DecoyDigits) -> bool:
    return all(torch.equal(value, getattr(right, name)) for name, value in vars(left).items())


def test_same_arguments_give_the_same_bytes(splits: Splits) -> None:
    again = make_splits(0.8, train_images=TRAIN, held_out=HELD_OUT, seed=3)

    assert all(same(left, right) for left, right in zip(splits, again, strict=True))


def test_another_seed_gives_other_images_and_another_partition(splits: Splits) -> None:
    train, val, _ = make_splits(0.8, train_images=TRAIN, held_out=HELD_OUT, seed=4)

    assert not torch.equal(train.images, splits[0].images)
    assert set(val.sources.tolist()) != set(splits[1].sources.tolist())


def test_building_leaves_every_global_generator_alone() -> None:
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    make_splits(0.5, train_images=50, held_out=50, seed=0)
    after = (random.getstate(), np.random.get_state(), torch.get_rng_state())

    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert torch.equal(before[2], after[2])


def test_no_source_digit_is_on_both_sides(splits: Splits) -> None:
    train, val, conflict = splits

    assert set(train.sources.tolist()).isdisjoint(val.sources.tolist())
    assert torch.equal(val.sources, conflict.sources)
    assert len(set(val.sources.tolist())) == HELD_OUT


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.95])
def test_cues_agree_with_the_digit_for_the_share_asked_for(strength: float) -> None:
    train, val, conflict = make_splits(strength, train_images=TRAIN, held_out=HELD_OUT, seed=1)

    for split in (train, val):
        bound = 4 * math.sqrt(strength * (1 - strength) / len(split))
        assert abs(split.groups.double().mean().item() - strength) < bound
    assert not conflict.groups.any()


def test_contradicting_cues_are_spread_over_the_nine_other_classes(splits: Splits) -> None:
    conflict = splits[2]
    offsets = (conflict.cues - conflict.labels) % 10
    counts = torch.bincount(offsets, minlength=10)

    assert counts[0] == 0
    bound = 4 * math.sqrt(HELD_OUT * (1 / 9) * (8 / 9))
    assert (counts[1:].double() - HELD_OUT / 9).abs().max() < bound


def test_strengths_nought_and_one_are_exact() -> None:
    never, _, _ = make_splits(0.0, train_images=200, held_out=50)
    always, _, _ = make_splits(1.0, train_images=200, held_out=50)

    assert not never.groups.any()
    assert always.groups.all()


def test_conflicting_images_do_not_depend_on_the_strength() -> None:
    weak, strong = (make_splits(strength, train_images=20, held_out=50)[2] for strength in (0.1, 0.95))

    assert same(weak, strong)


def test_val_and_conflict_differ_in_the_patch_alone(splits: Splits) -> None:
    _, val, conflict = splits
    differs = (val.images != conflict.images).any(dim=1)

    assert not (differs & ~val.spurious).any()
    assert torch.equal(differs.any(dim=(1, 2)), val.cues != conflict.cues)


def test_spurious_mask_is_the_patch_in_the_colour_of_the_cue(splits: Splits) -> None:
    for split in splits:
        assert (split.spurious.sum(dim=(1, 2)) == 36).all()
        for image, mask, cue in zip(split.images, split.spurious, split.cues.tolist(), strict=True):
            expected = torch.tensor(CUE_COLOURS[cue]) / 255
            assert torch.equal(image[:, mask], expected[:, None].expand(3, 36))


def test_patches_are_in_all_four_corners_about_equally_often(splits: Splits) -> None:
    train = splits[0]
    corners = torch.stack([train.spurious[:, row, column] for row in (1, 30) for column in (1, 30)], dim=1)

    assert (corners.sum(dim=1) == 1).all()
    bound = 4 * math.sqrt(TRAIN * 0.25 * 0.75)
    assert (corners.sum(dim=0) - TRAIN / 4).abs().max() < bound


def test_core_mask_covers_the_bright_strokes_and_never_the_patch(splits: Splits) -> None:
    conflict = splits[2]
    grey = conflict.images.mean(dim=1)
    inside = (grey * conflict.core).sum(dim=(1, 2)) / conflict.core.sum(dim=(1, 2))
    ground = ~conflict.core & ~conflict.spurious
    outside = (grey * ground).sum(dim=(1, 2)) / ground.sum(dim=(1, 2))

    assert not (conflict.core & conflict.spurious).any()
    assert (inside > outside).all()
    area = conflict.core.double().mean(dim=(1, 2))
    assert area.min() > 0.1
    assert area.max() < 0.5


def test_core_mask_follows_the_digit(splits: Splits) -> None:
    """In the middle of the image a nought has its hole and a one its stroke: the mask is no box."""
    conflict = splits[2]
    middle = conflict.core[:, 14:18, 14:18].double().mean(dim=(1, 2))

    assert middle[conflict.labels == 0].mean() < 0.5
    assert middle[conflict.labels == 1].mean() > 0.8


def test_items_become_probes_with_masks_and_groups(splits: Splits) -> None:
    probes = ProbeSet.from_dataset(
        splits[2], per_class=2, fields=PROBE_FIELDS, class_names=CLASS_NAMES, group_names=GROUP_NAMES
    )

    assert len(probes) == 20
    assert sorted(probes.masks) == ["core", "spurious"]
    assert probes.labels is not None
    assert torch.bincount(probes.labels).tolist() == [2] * 10
    assert probes.groups is not None
    assert not probes.groups.any()
    for name, image in zip(probes.names, probes.images, strict=True):
        index = next(i for i in range(len(splits[2])) if splits[2].name(i) == name)
        assert torch.equal(splits[2].images[index], image)


def test_training_order_is_seeded_and_independent_of_the_global_generator() -> None:
    data = DecoyDataModule(0.5, train_images=128, held_out=50, seed=5)
    torch.manual_seed(1)
    first = [labels for _, labels in data.train_dataloader()]
    torch.manual_seed(2)
    second = [labels for _, labels in data.train_dataloader()]

    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_validation_goes_over_biased_and_conflicting_images() -> None:
    data = DecoyDataModule(0.5, train_images=64, held_out=50)
    biased, conflicting = (torch.cat([images for images, _ in loader]) for loader in data.val_dataloader())

    assert torch.equal(biased, data.val.images)
    assert torch.equal(conflicting, data.conflict.images)


def test_the_network_sees_a_grid_of_eight_by_eight() -> None:
    model = SmallCNN().eval()

    assert model.features(torch.rand(2, 3, 32, 32)).shape[-2:] == (8, 8)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_impossible_strength_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="Expected `strength` to be in"):
        make_splits(strength)


@pytest.mark.parametrize(("train_images", "held_out"), [(9, 600), (100, 9), (100, 1790)])
def test_splits_without_digits_are_refused(train_images: int, held_out: int) -> None:
    with pytest.raises(ValueError, match="Expected `held_out` to be in"):
        make_splits(0.5, train_images=train_images, held_out=held_out)
