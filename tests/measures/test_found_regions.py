"""Found regions of heatmaps against the functions, map by map."""

import math

import pytest
import torch

from tests.measures.records import audit, context, map_set, measured, random_maps
from tests.tiny import tiny_probes
from xai_callbacks import Auditor, FoundRegions, ProbeSet, SlidingWindow, Why
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics import Threshold, found_iou, found_on


def probes():
    """Four probes of 12 x 10 pixels; the last has no object."""
    masks = torch.zeros(4, 12, 10, dtype=torch.bool)
    masks[:3, 2:7, 3:8] = True
    images = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    return ProbeSet.from_tensors(images, torch.arange(4) % 3, masks={"core": masks})


THRESHOLDS = [Threshold(min_area=0.02), Threshold("otsu", min_area=0.02), Threshold("value", 0.4, 0.02)]


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=repr)
def test_each_map_is_judged_by_the_regions_that_it_finds(threshold):
    probe_set, maps = probes(), random_maps(count=4)
    maps[0, 1] = 0.0
    maps[1, 2, 0, 0] = math.nan
    around = context(probe_set)
    record = audit(probe_set, {"gradcam": map_set(maps, peaks=(3.0, 2.5))})
    found = measured(FoundRegions(threshold), record, around=around)
    assert len(found) == 2 * 3
    for row, question in enumerate(("why", "why_label")):
        for index in range(4):
            regions = found_on(maps[row, index], (12, 10), threshold)
            known = bool(maps[row, index].isfinite().all())
            values = {name: found[f"gradcam/{question}/found/{name}"] for name in ("count", "area", "iou/core")}
            iou, chance = found_iou(regions, probe_set.masks["core"][index])
            expected = (len(regions), sum(each.area for each in regions) / 120, iou)
            for each, number in zip(values.values(), expected, strict=True):
                assert each.values[index].item() == pytest.approx(number if known else math.nan, nan_ok=True)
            assert values["iou/core"].chance[index].item() == pytest.approx(chance, nan_ok=True)
    assert found["gradcam/why/found/count"].values[1] == 0
    assert found["gradcam/why/found/iou/core"].values[3].isnan()


def test_without_regions_there_are_count_and_area_and_an_empty_map_beside_the_run_finds_nothing():
    plain = tiny_probes(masks=None)
    maps = map_set(1e-6 * random_maps(count=len(plain)), peaks=(1e6, 1e-6))
    found = measured(FoundRegions(), audit(plain, {"gradcam": maps}), around=context(plain))
    assert {key.rpartition("/")[2] for key in found} == {"count", "area"}
    assert (found["gradcam/why/found/count"].values == 0).all()
    assert (found["gradcam/why_label/found/count"].values > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FoundRegions("otsu"), "Expected `threshold` to be a Threshold such as"),
        (lambda: Threshold(min_area=1), "Expected `min_area` to be a number in [0, 1), but got 1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert message in str(caught.value)


def test_probabilities_of_large_images_are_held_against_a_value():
    """Where maps are kept on fewer cells than there are pixels, those of places keep their values."""

    def bright(batch):
        level = batch.mean(dim=(1, 2, 3)) * 20 - 10
        return torch.stack([-level, level], dim=1)

    images, masks = torch.zeros(2, 3, 160, 160), torch.zeros(2, 160, 160, dtype=torch.bool)
    images[:, :, 40:80, 80:120] = 1
    masks[:, 40:80, 80:120] = True
    probe_set = ProbeSet.from_tensors(images, [1, 1], masks={"core": masks}, mean=[0.0] * 3, std=[1.0] * 3)
    sliding = SlidingWindow(40, 20, enlarge=False)
    auditor = Auditor(
        probe_set, [Why(of=1)], explainers=[sliding], novelty=[], measures=[FoundRegions(Threshold("value", 0.4))]
    )
    record = auditor.audit(bright)
    assert record.failed == ()
    assert record.heatmaps.shape == (1, 2, 54, 54)
    assert 0.5 < record.heatmaps.max() <= 1
    assert record.metrics["sliding_window/why_1/found/count"].value == 1
    assert record.metrics["sliding_window/why_1/found/iou/core"].value > 0.3
