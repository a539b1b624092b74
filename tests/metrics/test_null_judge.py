"""Nulls of one audit: what they are called, and what they are made of."""

from __future__ import annotations

import torch

from tests.tiny import tiny_probes
from xai_callbacks.metrics import area_fraction, relevance, relevance_mass
from xai_callbacks.metrics.judge import KeyedMaps
from xai_callbacks.metrics.null_judge import NullJudge
from xai_callbacks.metrics.nulls import permuted_mask_null, shift_null, signed_share, sobel_magnitude
from xai_callbacks.probes import ProbeSet


def probes() -> ProbeSet:
    base = tiny_probes(6)
    size = base.images.shape[-2:]
    masks = torch.zeros(6, *size, dtype=torch.bool)
    for row in range(5):  # the last probe has no such region
        masks[row, row : row + 3, 2 : 4 + row] = True
    images = base.images.sub(base.images.min()).div(base.images.max() - base.images.min())
    return ProbeSet.from_tensors(images, base.labels, masks={"spurious": masks})


def test_nulls_are_those_of_their_functions_whatever_the_chunk():
    given = probes()
    heatmaps = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    judge = NullJudge(given, given.images)
    keyed = [
        KeyedMaps(heatmaps, ("gradcam/why", "gradcam/why_label"), "gradcam"),
        KeyedMaps(-heatmaps[:1], ("occlusion",), "occlusion"),
    ]
    rows = {"gradcam/why": heatmaps[0], "gradcam/why_label": heatmaps[1], "occlusion": -heatmaps[0]}
    masks, size = given.masks["spurious"], tuple(given.images.shape[-2:])

    for chunk_size in (1, 4, 6):
        found = judge.judge(keyed, chunk_size)
        assert len(found) == 3 * 3 + 1
        for key, given_maps in rows.items():
            maps = relevance(given_maps, size)
            expected = {
                "shift_p": shift_null(maps, masks).p,
                "permuted_mass": permuted_mask_null(maps, masks),
                "signed_share": signed_share(given_maps, masks, size),
            }
            for name, values in expected.items():
                torch.testing.assert_close(found[f"{key}/{name}/spurious"].values, values, equal_nan=True)
    edges = relevance_mass(sobel_magnitude(given.images), masks)
    torch.testing.assert_close(found["edges/relevance_mass/spurious"].values, edges, equal_nan=True)


def test_chance_levels_are_those_of_maps_that_know_nothing_and_nan_without_the_region():
    given = probes()
    keyed = KeyedMaps(torch.rand(1, 6, 4, 4), ("gradcam/why",), "gradcam")
    found = NullJudge(given, given.images).judge([keyed], 6)
    areas = area_fraction(given.masks["spurious"])

    assert torch.equal(found["gradcam/why/permuted_mass/spurious"].chance.nan_to_num(-1), areas.nan_to_num(-1))
    assert found["gradcam/why/shift_p/spurious"].chance[:5].tolist() == [0.5] * 5
    assert found["gradcam/why/signed_share/spurious"].chance[:5].tolist() == [0.0] * 5
    for judged in found.values():
        assert bool(judged.chance[5].isnan())
        assert judged.summary().degenerate == 0
