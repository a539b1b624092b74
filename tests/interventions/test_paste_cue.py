"""Cues cut from probes and pasted on others: where they come from, what they never hide, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.interventions.paint import noise
from tests.trials.exact import COLOURS, HEIGHT, OBJECT, WIDTH, box, scenes
from tests.trials.exact import shown_of as shown
from xai_callbacks import ConfigurationError, ProbeSet
from xai_callbacks.interventions.cues import PasteCue
from xai_callbacks.interventions.fills import apply_fill, dilate


def pasted_probes(has=(True, False, True, False, False), *, core=OBJECT, cues=None, **fields):
    """Noise with a cue of red on some probes, in another place each."""
    count = len(has)
    places = [box(0, 2 * index, 2, 2) for index in range(count)] if cues is None else cues
    masks = {"spurious": torch.stack([place & flag for place, flag in zip(places, has, strict=True)])}
    if core is not None:
        masks["core"] = core.expand(count, -1, -1)
    images = torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) * 0.5
    for image, mask in zip(images, masks["spurious"], strict=True):
        image[:, mask] = torch.tensor(COLOURS[0])[:, None]
    return ProbeSet.from_tensors(images, masks=masks, **fields)


@pytest.mark.parametrize("grow", [0, 1])
def test_a_cue_is_pasted_where_it_lies_in_its_source_and_the_rest_is_bit_identical(grow):
    probes = pasted_probes()
    twins = PasteCue(1, grow=grow).twins(shown(probes))
    masks = dilate(probes.masks["spurious"], grow)

    assert twins.added.tolist() == [False, True, False, True, True]
    assert twins.points_to.tolist() == [1] * 5
    for row in (1, 3, 4):
        sources = [donor for donor in (0, 2) if torch.equal(twins.region[row], masks[donor])]
        assert len(sources) == 1
        mask = masks[sources[0]]
        assert torch.equal(twins.present[row][:, mask], probes.images[sources[0]][:, mask])
        assert torch.equal(twins.present[row][:, ~mask], probes.images[row][:, ~mask])
        assert torch.equal(twins.absent[row], probes.images[row])


@pytest.mark.parametrize("fill", ["local_mean", "road", "shuffle"])
def test_a_cue_is_taken_from_those_that_have_it_and_filled(fill):
    probes = pasted_probes()
    twins = PasteCue(1, fill=fill, grow=1).twins(shown(probes))
    masks = dilate(probes.masks["spurious"], 1)
    emptied = apply_fill(probes.images, masks, fill, names=probes.names)
    for row in (0, 2):
        assert torch.equal(twins.present[row], probes.images[row])
        assert torch.equal(twins.absent[row], emptied[row])
        assert torch.equal(twins.region[row], masks[row])
    assert twins.neutral is twins.absent


def test_sources_are_drawn_by_name_among_all_that_have_the_cue():
    probes = pasted_probes([index < 3 for index in range(40)], cues=[box(0, 4 * (i % 3), 2, 2) for i in range(40)])
    whole = PasteCue(0, grow=0).twins(shown(probes))
    places = whole.region[3:].flatten(1).double().argmax(dim=1)
    assert set(places.tolist()) == {0, 4, 8}
    part = PasteCue(0, grow=0).twins(shown(probes, [30, 5]))
    assert torch.equal(part.present, whole.present[[30, 5]])
    assert not torch.equal(PasteCue(0, grow=0).twins(shown(probes, seed=1)).region, whole.region)


@pytest.mark.parametrize("grow", [0, 1])
def test_no_source_ever_hides_the_object_and_without_one_there_is_no_pair(grow):
    """One source lies clear of the object, one touches it where it has grown, one covers it."""
    # The object is 16 pixels, of which a fifth, three, may be hidden. The second source has one row of four beside it.
    places = [box(0, 0, 2, 2), box(4, 4, 1, 4), OBJECT, *[box(0, 0, 1, 1)] * 30]
    probes = pasted_probes([True] * 3 + [False] * 30, cues=places)
    regions = PasteCue(0, grow=grow).twins(shown(probes)).region[3:]

    assert int((regions & OBJECT).flatten(1).sum(dim=1).max()) <= 3
    allowed = {0, 1} if grow == 0 else {0}
    grown = dilate(torch.stack(places[:3]), grow)
    assert {next(k for k in range(3) if torch.equal(region, grown[k])) for region in regions} == allowed

    only = pasted_probes([True, False, False], cues=[places[1] if grow else OBJECT] * 3)
    twins = PasteCue(0, grow=grow).twins(shown(only))
    assert twins.points_to.tolist() == [0, -1, -1]
    assert torch.equal(twins.present[1:], only.images[1:])
    assert not twins.region[1:].any()


@pytest.mark.parametrize(("rows", "points_to"), [(2, 0), (3, -1)])
def test_a_source_may_hide_a_fifth_of_the_object_and_no_more(rows, points_to):
    probes = pasted_probes([True, False], core=box(4, 4, 5, 2), cues=[box(4, 5, rows, 2)] * 2)
    assert int(probes.masks["core"][0].sum()) == 10
    assert PasteCue(0, grow=0).twins(shown(probes)).points_to.tolist() == [0, points_to]


def test_without_a_mask_of_the_object_any_source_will_do():
    probes = pasted_probes([True, False], core=None, cues=[OBJECT, OBJECT])
    assert PasteCue(0).twins(shown(probes)).points_to.tolist() == [0, 0]


def test_one_source_serves_all_and_where_all_have_the_cue_none_is_added():
    one = PasteCue(0, grow=0).twins(shown(pasted_probes([False, True, False])))
    assert torch.equal(one.region, box(0, 2, 2, 2).expand(3, -1, -1))
    everyone = PasteCue(0).twins(shown(pasted_probes([True] * 4)))
    assert not everyone.added.any()
    assert everyone.points_to.tolist() == [0] * 4


def test_a_cue_is_pasted_as_displayed_between_normalised_probes():
    plain = pasted_probes()
    probes = ProbeSet.from_tensors(plain.images * 2 - 1, masks=plain.masks, mean=[0.5] * 3, std=[0.5] * 3)
    torch.testing.assert_close(PasteCue(0).twins(shown(probes)).present, PasteCue(0).twins(shown(plain)).present)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PasteCue([0, 1]), "to be one class, that of the region, but got"),
        (lambda: PasteCue(0, fill="swap"), "Expected `fill` of the cue 'paste' to be one of black, white, local_mean"),
        (lambda: PasteCue(0, fill="fog"), "but got 'fog'"),
        (lambda: PasteCue(0, grow=-1), "Expected `grow` to be an integer of 0 or more, but got -1"),
        (lambda: PasteCue(0, region="patch").check(scenes()), "`region` of 'paste' to be a region of the probes"),
        (lambda: PasteCue(0).check(noise()), "They have none; pass `masks="),
        (lambda: PasteCue(0).check(pasted_probes([False] * 3)), "Expected some probes to have the region 'spurious'"),
    ],
)
def test_what_cannot_be_pasted_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
