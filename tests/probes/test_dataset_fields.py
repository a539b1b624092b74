"""Fields of items: which part of a tuple, dictionary or object is what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.probes.items import Items, indexes, picture
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet


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
