"""Localization and baselines against the slow way: maps enlarged one by one, and the functions themselves."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import replace

import pytest
import torch

from tests.measures.records import Model, audit, context, map_set, measured, past, random_maps, with_metrics
from tests.tiny import tiny_probes
from xai_callbacks.errors import ConfigurationError
from xai_callbacks.measures import Baselines, Localization, localization
from xai_callbacks.metrics import (
    area_fraction,
    lift_chance,
    permuted_mass,
    relevance,
    relevance_lift,
    relevance_mass,
    relevance_rank,
    shift_p,
    sobel_magnitude,
    soft_iou,
    soft_iou_chance,
)
from xai_callbacks.probes import ProbeSet

METRICS = {
    "relevance_mass": (relevance_mass, area_fraction),
    "relevance_lift": (relevance_lift, lift_chance),
    "relevance_rank": (relevance_rank, area_fraction),
    "soft_iou": (soft_iou, soft_iou_chance),
}
AROUND = ("gradcam/why", "gradcam/why_label", "occlusion")


def probes():
    """Six probes of 12 x 10 pixels; the last has no cue, and its object covers the image."""
    masks = {name: torch.zeros(6, 12, 10, dtype=torch.bool) for name in ("core", "spurious")}
    for row in range(5):
        masks["core"][row, row : row + 5, 2:8], masks["spurious"][row, row : row + 3, 2 : 4 + row] = True, True
    masks["core"][5] = True
    images = torch.rand(6, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    return ProbeSet.from_tensors(images, torch.arange(6) % 3, masks=masks)


def given():
    maps = random_maps()
    maps[0, 2], maps[1, 3, 0, 0] = 0.0, math.nan
    return {"gradcam": map_set(maps, peaks=(3.0, 2.5)), "occlusion": map_set(random_maps(1, grid=8), about="image")}


def rows_of(record):
    maps = record.maps
    return {
        "gradcam/why": (maps["gradcam"], 0),
        "gradcam/why_label": (maps["gradcam"], 1),
        "occlusion": (maps["occlusion"], 0),
    }


# ---- localization


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_heatmaps_of_each_explainer_and_question_are_judged_as_if_they_were_enlarged(chunk_size):
    probe_set = probes()
    record = audit(probe_set, given())
    around = context(probe_set, maps=AROUND, chunk_size=chunk_size)
    found = measured(Localization(tuple(METRICS)), record, around=around)
    for key, (maps, row) in rows_of(record).items():
        for region, mask in probe_set.masks.items():
            positive = relevance(maps.heatmaps[row], (12, 10))
            for name, (judge, chance) in METRICS.items():
                judged = found[f"{key}/{name}/{region}"]
                expected = judge(positive, mask, reference=maps.peaks[row])
                torch.testing.assert_close(judged.values, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
                torch.testing.assert_close(judged.chance, chance(mask), equal_nan=True)
    assert len(found) == 3 * 4 * 2


def test_mass_and_lift_are_the_default_and_nothing_is_judged_without_regions_or_maps():
    found = measured(Localization(), audit(maps={"gradcam": map_set()}))
    assert {key.split("/")[2] for key in found} == {"relevance_mass", "relevance_lift"}
    assert measured(Localization(), audit()) == {}
    plain = tiny_probes(masks=None)
    assert measured(Localization(), audit(plain, {"gradcam": map_set()}), around=context(plain)) == {}


def test_a_map_is_dead_against_the_peak_of_its_own_question():
    maps = map_set(1e-6 * random_maps(), peaks=(1e6, 1e-6))
    found = measured(Localization(), audit(maps={"gradcam": maps}))
    assert found["gradcam/why/relevance_mass/core"].values.isnan().all()
    assert not found["gradcam/why_label/relevance_mass/core"].values.isnan().any()


@pytest.mark.parametrize("metrics", [["relevance_mass", "iou"], "mass", []])
def test_unknown_metrics_are_refused(metrics):
    with pytest.raises(ConfigurationError, match=r"Expected `metrics` to be some of relevance_mass, .*, but got"):
        Localization(metrics)


def test_regions_are_brought_to_a_grid_once_and_go_with_their_probes():
    probe_set, maps = probes(), random_maps()
    first = localization.regions_on(probe_set, maps)
    assert localization.regions_on(probe_set, maps[0]) is first
    assert localization.regions_on(probe_set, random_maps(grid=5)) is not first
    gc.collect()  # what other tests left behind
    held = len(localization._known)
    del probe_set
    gc.collect()
    assert len(localization._known) == held - 1


def test_masks_cost_next_to_nothing():
    """Of 16 probes of 224 pixels, three questions and two regions: a second would be .4 passes of a ResNet-50."""
    masks = {name: torch.rand(16, 224, 224) < share for name, share in (("core", 0.3), ("spurious", 0.05))}
    large = ProbeSet.from_tensors(torch.rand(16, 3, 224, 224), torch.arange(16) % 3, masks=masks)
    questions = {"questions": ("a", "b", "c"), "asked": ("a", "b", "c")}
    record = audit(large, {"gradcam": map_set(random_maps(3, 16, 7))}, **questions)
    around = context(large, maps=tuple(f"gradcam/{key}" for key in "abc"))
    for limit in (1.0, 0.1):  # the masks are carried back to the grid at the first audit
        start = time.process_time()
        Localization().measure(record, past(), around)
        assert time.process_time() - start < limit


# ---- baselines


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_nulls_are_those_of_their_functions(chunk_size):
    probe_set = probes()
    record = audit(probe_set, given())
    found = measured(Baselines(), record, around=context(probe_set, maps=AROUND, chunk_size=chunk_size))
    assert len(found) == 3 * 3 * 2 + 2
    for region, mask in probe_set.masks.items():
        area = area_fraction(mask)
        for key, (maps, row) in rows_of(record).items():
            small, peak = maps.heatmaps[row], maps.peaks[row]
            up, down = (relevance(sign * small, (12, 10)).double() for sign in (1, -1))
            net, total = (((up - down) * mask).sum(dim=(1, 2)), (up + down).sum(dim=(1, 2)))
            for name, expected, chance in (
                ("shift_p", shift_p(up, mask, reference=peak), lift_chance(mask) / 2),
                ("permuted_mass", permuted_mass(up, mask, reference=peak), area),
                ("signed_share", (net / total).where(~area.isnan(), math.nan), area * 0),
            ):
                judged = found[f"{key}/{name}/{region}"]
                torch.testing.assert_close(judged.values, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
                torch.testing.assert_close(judged.chance, chance, equal_nan=True)
        edges = relevance_mass(sobel_magnitude(probe_set.images), mask)
        torch.testing.assert_close(found[f"edges/relevance_mass/{region}"].values, edges, equal_nan=True)


def test_references_are_the_lifts_of_three_random_copies_taken_once_a_run():
    probe_set, copies = probes(), random_maps(seed=9)
    around = context(probe_set, maps=(*AROUND[:2], "occlusion/why"))
    record = audit(probe_set, {"gradcam": map_set()})
    model = Model(copies={"gradcam": copies})
    found = measured(Baselines(), record, around=replace(around, model=model))
    assert model.seeds == [0, 1, 2]
    for row, key in enumerate(AROUND[:2]):
        for region, mask in probe_set.masks.items():
            lifts = [
                float(relevance_lift(relevance(copies[row] * (seed + 1) + seed, (12, 10)), mask).nanmean())
                for seed in range(3)
            ]
            reference = found[f"{key}/relevance_lift/{region}/reference"]
            assert reference == pytest.approx((sum(lifts) / 3, min(lifts), max(lifts), 1.0, 3, 0), rel=1e-6)
    # Carried over, also past audits at which the explainer did not answer; models are not copied again.
    history = past(with_metrics(record, found), audit(probe_set))
    again = measured(Baselines(), record, history, replace(around, model=model))
    assert model.seeds == [0, 1, 2]
    for key in (key for key in found if key.endswith("/reference")):
        assert again[key] == found[key]


def test_references_that_fail_are_told_and_cost_nothing_else():
    probe_set = probes()
    around = context(probe_set, maps=AROUND, model=Model())
    found = measured(Baselines(), audit(probe_set, given()), around=around)
    assert len(found) == 3 * 3 * 2 + 2
    assert around.notes == ["The comparison with random weights failed and was left out. RuntimeError: no copy."]


def test_baselines_need_regions_and_to_know_black_from_white():
    plain = tiny_probes(masks=None)
    assert measured(Baselines(), audit(plain, {"gradcam": map_set()}), around=context(plain)) == {}
    with pytest.warns(UserWarning, match="normalisation is unknown"):
        odd = ProbeSet.from_tensors(probes().images * 9, masks=probes().masks)
    with pytest.raises(ConfigurationError, match="`mean` and `std`"):
        Baselines().keys(context(odd))
