"""Regions halved and moved, and partners that lend backgrounds: exact cases and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xai_callbacks.interventions.regions import half_masks, partners, placebo_masks


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = (12, 10)) -> torch.Tensor:
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


# ---- halves


@pytest.mark.parametrize(("size", "lines"), [((12, 10), (6, 5)), ((7, 5), (3, 2))])
def test_halves_are_of_equal_area_and_lie_where_they_are_named(size, lines):
    found = {half: half_masks(None, size, half)[0] for half in ("top", "bottom", "left", "right")}

    assert found["top"][: lines[0]].all()
    assert found["bottom"][-lines[0] :].all()
    assert found["left"][:, : lines[1]].all()
    assert found["right"][:, -lines[1] :].all()
    assert [int(one.sum()) for one in found.values()] == [lines[0] * size[1]] * 2 + [lines[1] * size[0]] * 2


@pytest.mark.parametrize(
    ("place", "marked"), [((0, 4), "bottom"), ((10, 4), "top"), ((5, 0), "right"), ((5, 8), "left"), ((5, 4), "bottom")]
)
def test_keep_object_marks_the_half_opposite_to_the_object(place, marked):
    masks = torch.cat([box(*place, 2, 2), box(0, 0, 0, 0)])

    found = half_masks(masks, (12, 10), "keep_object")

    assert torch.equal(found[0], half_masks(None, (12, 10), marked)[0])
    assert not found[1].any()  # missing


def test_there_is_a_half_for_each_image():
    assert half_masks(torch.rand(3, 12, 10) > 0.5, (12, 10), "top").shape == (3, 12, 10)


# ---- placebos


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 10), share=st.floats(0.2, 1))
def test_a_placebo_is_the_region_moved_within_the_image_or_missing(seed, height, width, share):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.rand(height, width, generator=generator) < share
    shape[0, 0] = shape[-1, -1] = shape[0, -1] = True
    mask = torch.zeros(1, 12, 10, dtype=torch.bool)
    mask[0, 12 - height :, 10 - width :] = shape
    area = int(shape.sum())
    fitting = []
    for top in range(13 - height):
        for left in range(11 - width):
            moved = torch.zeros_like(mask)
            moved[0, top : top + height, left : left + width] = shape
            if int((moved & mask).sum()) <= 0.2 * area:
                fitting.append(moved)

    found = placebo_masks(mask, seed)

    if fitting:
        assert int(found.sum()) == area
        assert any(torch.equal(found, one) for one in fitting)
    else:
        assert not found.any()


def test_a_placebo_avoids_what_it_can():
    mask = box(0, 0, 3, 3)
    avoid = box(0, 3, 12, 7)  # leaves the three columns at the left

    for seed in range(30):
        found = placebo_masks(mask, seed, avoid=avoid)
        assert int((found & avoid).sum()) <= 1
        assert int((found & mask).sum()) <= 1
    # Everything is to be avoided: a place is found nonetheless.
    assert int(placebo_masks(mask, avoid=box(0, 0, 12, 10)).sum()) == 9


def test_a_placebo_takes_the_least_overlap_where_each_is_too_large():
    mask = box(0, 0, 6, 10)  # may move down by five or six rows
    avoid = box(6, 0, 5, 10)

    found = placebo_masks(mask, avoid=avoid)

    assert torch.equal(found, box(5, 0, 6, 10)) or torch.equal(found, box(6, 0, 6, 10))


def test_a_region_too_large_to_move_and_an_empty_one_are_missing():
    assert not placebo_masks(torch.cat([box(0, 0, 12, 10), box(1, 1, 10, 8), box(0, 0, 0, 0)])).any()


def test_a_placebo_depends_on_seed_and_name_only():
    masks = box(4, 4, 2, 2).repeat(3, 1, 1)
    state = torch.get_rng_state()
    whole = placebo_masks(masks, 3, ["a", "b", "c"])

    assert torch.equal(placebo_masks(masks[:2], 3, ["c", "a"]), whole[[2, 0]])
    assert len({one.flatten().nonzero()[0].item() for one in placebo_masks(masks.repeat(9, 1, 1))}) > 5
    assert torch.equal(torch.get_rng_state(), state)


# ---- partners


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_a_partner_is_never_the_image_itself_and_keeps_to_its_class(labels, seed):
    same, rand = (partners(torch.tensor(labels), kind, seed).tolist() for kind in ("same", "rand"))

    for place, (near, far) in enumerate(zip(same, rand, strict=True)):
        assert place not in (near, far)
        assert (near == -1) == (labels.count(labels[place]) == 1)
        assert near == -1 or labels[near] == labels[place]
        assert (far == -1) == (len(labels) == 1)


def test_random_partners_come_from_each_class_equally_often_whatever_its_size():
    labels = torch.tensor([0] * 90 + [1] * 10)

    share = torch.cat([labels[partners(labels, "rand", seed)] for seed in range(20)]).double().mean()

    assert float(share) == pytest.approx(0.5, abs=0.05)


def test_partners_are_drawn_by_the_seed():
    labels = torch.zeros(20, dtype=torch.int64)

    assert torch.equal(partners(labels, seed=1), partners(labels, seed=1))
    assert not torch.equal(partners(labels, seed=1), partners(labels, seed=2))
