"""Spectral clustering: sklearn and scipy, and graphs that fall apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from xai_callbacks.metrics.clusters import _FEWEST_TO_DIVIDE, _shares, spectral_clusters

CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5))


def corner_maps(sizes: tuple[int, ...], noise: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (n, 8, 8) with most of their relevance in one of the corners, and which corner that is."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    maps = noise * torch.rand(len(kinds), 8, 8, generator=generator)
    for row, kind in enumerate(kinds.tolist()):
        top, left = CORNERS[kind]
        maps[row, top : top + 3, left : left + 3] += 1.0
    return maps, kinds


def cloud(count: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, 6, generator=torch.Generator().manual_seed(seed))


# ---- kinds


@pytest.mark.parametrize("sizes", [(12, 12), (20, 14, 12), (30, 15, 14, 13)])
def test_separate_parts_of_equal_maps_are_the_clusters(sizes: tuple[int, ...]):
    maps, kinds = corner_maps(sizes, noise=0.0)
    assert adjusted_rand_score(spectral_clusters(maps), kinds) == 1.0


@pytest.mark.parametrize("neighbours", [3, 10])
def test_there_are_as_many_clusters_as_eigenvalues_of_scipy_below_the_widest_gap(neighbours: int):
    maps = cloud()
    shares = maps.double().clamp(min=0).flatten(1)
    shares = (shares / shares.sum(dim=1, keepdim=True)).numpy()
    graph = kneighbors_graph(shares, neighbours).toarray()
    expected = np.linalg.eigvalsh(laplacian(np.maximum(graph, graph.T), normed=True))
    count = int(np.diff(expected[:21]).argmax()) + 1
    assert len(spectral_clusters(maps, neighbours=neighbours, most=20).unique()) == count


def test_clusters_are_numbered_by_size():
    maps, kinds = corner_maps((12, 30, 20))
    assert torch.equal(spectral_clusters(maps), torch.tensor([2, 0, 1])[kinds])


@pytest.mark.parametrize("sizes", [(40, 40), (60, 30, 20), (40, 30, 30, 20)])
def test_separate_kinds_are_found_as_sklearn_finds_them(sizes: tuple[int, ...]):
    maps, kinds = corner_maps(sizes)
    found = spectral_clusters(maps)
    shares = _shares(maps).numpy()
    graph = kneighbors_graph(shares, 10).toarray()
    # sklearn rightly warns that such a graph is not connected; a faint link between all changes nothing else.
    theirs = SpectralClustering(len(sizes), affinity="precomputed", assign_labels="kmeans", random_state=0).fit(
        np.maximum(graph, graph.T) + 1e-6
    )
    assert adjusted_rand_score(found, theirs.labels_) == 1.0
    assert adjusted_rand_score(found, kinds) == 1.0


def test_kinds_that_touch_are_found_for_the_most_part():
    maps, kinds = corner_maps((60, 60), noise=2.5)
    found = spectral_clusters(maps, most=2)
    assert int(found.max()) == 1
    assert adjusted_rand_score(found, kinds) > 0.8


def test_noise_is_one_kind():
    found = [spectral_clusters(torch.rand(64, 8, 8, generator=torch.Generator().manual_seed(k))) for k in range(10)]
    assert [int(numbers.max()) for numbers in found] == [0] * 10


def test_there_are_at_most_as_many_clusters_as_asked_for():
    maps, kinds = corner_maps((14, 13, 12, 11), noise=0.0)
    found = spectral_clusters(maps, most=3)
    # All eigenvalues looked at are zero: two of the four parts share a cluster, and none is torn.
    for kind in range(4):
        assert len(found[kinds == kind].unique()) == 1
    assert len(found.unique()) == 3
    assert found.bincount(minlength=3).min() >= 11


def test_maps_that_are_all_the_same_are_one_cluster():
    assert spectral_clusters(torch.ones(30, 7, 7)).tolist() == [0] * 30


# ---- what must not matter


def test_the_order_of_the_maps_does_not_matter():
    maps = cloud(90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    one, other = spectral_clusters(maps, most=5, neighbours=4), spectral_clusters(maps[order], most=5, neighbours=4)
    assert torch.equal(one[order], other)


def test_the_scale_of_a_map_and_what_speaks_against_the_class_do_not_matter():
    maps, kinds = corner_maps((30, 20), noise=0.5)
    changed = torch.where(maps > 0.1, maps, -7.0) * torch.arange(1, 51)[:, None, None]
    one, other = spectral_clusters(maps.where(maps > 0.1, 0.0)), spectral_clusters(changed)
    assert torch.equal(one, other)
    assert adjusted_rand_score(one, kinds) == 1.0


def test_equal_seeds_give_equal_bits_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    one, other = (spectral_clusters(cloud(), neighbours=4, seed=5) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what has no answer


def test_maps_that_are_empty_or_not_finite_are_in_no_cluster_and_change_nothing():
    maps, _ = corner_maps((20, 15))
    broken = torch.stack([torch.zeros(8, 8), torch.full((8, 8), -1.0), torch.full((8, 8), 1e-12), maps[0], maps[0]])
    broken[3, 2, 2], broken[4, 0, 0] = float("nan"), float("inf")
    found = spectral_clusters(torch.cat([broken, maps]))
    assert found[:5].tolist() == [-1] * 5
    assert torch.equal(found[5:], spectral_clusters(maps))


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_usable_map_there_is_no_cluster(count: int):
    assert spectral_clusters(torch.zeros(count, 4, 4)).tolist() == [-1] * count


def test_few_maps_stay_together():
    maps, _ = corner_maps((3, 4))
    assert len(maps) < _FEWEST_TO_DIVIDE
    assert spectral_clusters(maps).tolist() == [0] * 7


@pytest.mark.parametrize("sizes", [(4, 4), (8, 8), (10, 8, 6), (12, 8, 8, 8)])
def test_with_few_maps_fewer_neighbours_are_linked(sizes: tuple[int, ...]):
    maps, kinds = corner_maps(sizes)
    assert adjusted_rand_score(spectral_clusters(maps, neighbours=10), kinds) == 1.0


# ---- shares


def test_shares_sum_to_one_and_hold_the_positive_part_alone():
    maps = cloud(5)
    shares = _shares(maps)
    positive = maps.double().clamp(min=0).flatten(1)
    assert shares.dtype == torch.float64
    assert_close(shares, positive / positive.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("size", [32, 48])
def test_large_maps_are_pooled(size: int):
    maps = torch.rand(3, size, size, dtype=torch.float64)
    pooled = avg_pool2d(maps[:, None], size // 16).flatten(1)
    assert_close(_shares(maps), pooled / pooled.sum(dim=1, keepdim=True))


def test_sides_are_pooled_each_on_its_own():
    assert _shares(torch.rand(2, 20, 7)).shape == (2, 16 * 7)
