"""Scenes of the study of found regions, its scores against counts by hand, and one short run."""

import json

import found_regions
import pytest
import torch
from _lesion_scenes import CLOTH, SIDE, Material, Scenes, build, material, scenes, training

from xai_callbacks.metrics import FoundRegion


def made_up():
    generator = torch.Generator().manual_seed(0)
    return Material(torch.rand(3, 3, 128, 128, generator=generator), torch.rand(4, 3, 64, 64, generator=generator))


def test_scenes_hold_lesions_apart_on_the_skin_and_a_cloth_beside():
    given = scenes(made_up(), 6, seed=1)
    assert given.images.shape == (6, 3, SIDE, SIDE)
    assert [len(each) for each in given.lesions] == [1, 2, 3] * 2
    for lesions, cloth in zip(given.lesions, given.cloth, strict=True):
        assert lesions.sum(dim=0).max() == 1
        assert not (lesions & cloth).any()
        assert cloth[:, CLOTH:].all()
    alone = scenes(made_up(), 2, seed=1, numbers=(0,))
    assert [len(each) for each in alone.lesions] == [0, 0]
    assert not alone.cloth.any()
    assert torch.equal(scenes(made_up(), 6, seed=1).images, given.images)


def test_half_of_the_training_images_are_lesions():
    for lookalikes in (False, True):
        images, labels = training(made_up(), 12, 0, lookalikes=lookalikes)
        assert images.shape == (12, 3, 64, 64)
        assert labels.tolist() == [0, 1] * 6
    assert build(0)(images).shape == (12, 2)


def region(rows, columns, place):
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[rows, columns] = True
    return FoundRegion(mask, (0, 0, 0, 0), int(mask.sum()), 1.0, 1.0, place)


def test_recall_precision_and_overlap_are_those_counted_by_hand():
    lesions = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    lesions[0, 10:30, 10:30] = True
    lesions[1, 100:120, 100:120] = True
    cloth = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    cloth[..., CLOTH:] = True
    found = (
        region(slice(10, 30), slice(10, 20), (15, 12)),
        region(slice(0, 9), slice(200, 220), (4, 210)),
        region(slice(60, 70), slice(60, 70), (65, 65)),
    )
    figures = found_regions.judged([found], Scenes(torch.zeros(1, 3, SIDE, SIDE), (lesions,), cloth))
    assert figures["recall"][0] == 0.5
    assert figures["precision"][0] == figures["on_cloth"][0] == pytest.approx(1 / 3, abs=1e-3)
    assert figures["iou"][0] == 0.25
    assert 0 < figures["iou_chance"] < 0.01
    nothing = found_regions.judged([()], Scenes(torch.zeros(1, 3, SIDE, SIDE), (lesions,), cloth))
    assert (nothing["recall"][0], nothing["precision"][0]) == (0, None)


@pytest.mark.data
def test_lesions_are_darker_in_their_middle_than_around(shared_data):
    found = material(shared_data / "isic2017", "val", 60)
    assert len(found.lesions) > 5
    middle = found.lesions[..., 54:74, 54:74].mean(dim=(1, 2, 3))
    assert (middle < found.lesions.mean(dim=(1, 2, 3))).all()
    assert found.skin.shape[1:] == (3, 64, 64)


@pytest.mark.data
@pytest.mark.slow
def test_the_study_fills_its_page(shared_data, tmp_path):
    (tmp_path / "pictures").mkdir()
    page = tmp_path / "found_regions.md"
    page.write_text("before\n<!-- found table -->\n<!-- end of found table -->\nafter\n")
    sizes = ["--images", "60", "--draws", "64", "--epochs", "1", "--scenes", "3", "--drawn", "0"]
    json_file = tmp_path / "found.json"
    found_regions.main(["--data", str(shared_data), *sizes, "--json", str(json_file), "--docs", str(tmp_path)])
    result = json.loads(json_file.read_text())
    assert result["setup"]["gradcam_less_hirescam_at_the_last_layer"] < 1e-5
    assert all(len(each) == len(found_regions.FINDERS) for each in result["nets"].values())
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert found_regions.table(result) in text
    assert (tmp_path / "pictures" / "found_regions.png").stat().st_size > 10_000
