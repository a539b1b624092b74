"""Kinds of heatmaps: planted ones, what changes steadily, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from xai_callbacks.metrics.clusters import _shares, density_clusters

CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5))
PLACES = torch.tensor([(0.2, 0.2), (0.8, 0.8), (0.2, 0.8)])
SEEDS = 12


def corner_maps(sizes: tuple[int, ...], noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps (n, 8, 8) with most of their relevance in one of the corners, and which corner that is."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    maps = noise * torch.rand(len(kinds), 8, 8, generator=generator)
    for row, kind in enumerate(kinds.tolist()):
        top, left = CORNERS[kind]
        maps[row, top : top + 3, left : left + 3] += 1.0
    return maps, kinds


def spots(places: Tensor, grid: int, generator: torch.Generator, widths: Tensor | None = None) -> Tensor:
    """Smooth spots `(n, grid, grid)` of unequal height at places `(n, 2)`, both as shares of the side."""
    at = torch.arange(grid).float()
    rows, columns = (places * (grid - 1)).T[:, :, None]
    widths = (torch.full((len(places),), 0.2) if widths is None else widths)[:, None, None] * grid
    squares = (at - rows).square()[:, :, None] + (at - columns).square()[:, None, :]
    heights = 0.5 + 1.5 * torch.rand(len(places), 1, 1, generator=generator)
    return heights * torch.exp(-squares / (2 * widths**2))


def planted(kinds: int, grid: int, seed: int, noise: float, count: int = 60) -> tuple[Tensor, Tensor]:
    """Spots at up to three places, moved by a twentieth of the side, in noise; and the place of each."""
    generator = torch.Generator().manual_seed(100 * seed + grid)
    numbers = torch.arange(count) % kinds
    places = PLACES[numbers] + 0.05 * torch.randn(count, 2, generator=generator)
    maps = spots(places, grid, generator)
    return maps + noise * torch.randn(maps.shape, generator=generator), numbers


def cloud(count: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 6, generator=torch.Generator().manual_seed(seed))


# ---- kinds


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("grid", [7, 14])
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_as_many_kinds_are_found_as_were_planted(kinds: int, grid: int, noise: float):
    right = 0
    for seed in range(SEEDS):
        maps, numbers = planted(kinds, grid, seed, noise)
        found = density_clusters(maps)
        right += len(found.unique()) == kinds and adjusted_rand_score(found, numbers) > 0.8
    assert right >= SEEDS - 1


def _moved(generator: torch.Generator) -> Tensor:
    return torch.tensor([0.5, 0.5]) + 0.1 * torch.randn(60, 2, generator=generator)


def _in_a_line(generator: torch.Generator) -> Tensor:
    return torch.stack([torch.full((60,), 0.5), 0.1 + 0.8 * torch.rand(60, generator=generator)], dim=1)


def _anywhere(generator: torch.Generator) -> Tensor:
    return 0.1 + 0.8 * torch.rand(60, 2, generator=generator)


@pytest.mark.parametrize("places", [_moved, _in_a_line, _anywhere])
def test_what_moves_steadily_is_one_kind(places: Callable[[torch.Generator], Tensor]):
    counts = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        counts.append(len(density_clusters(spots(places(generator), 7, generator)).unique()))
    assert counts.count(1) >= SEEDS - 2


def test_what_grows_steadily_is_one_kind():
    generator = torch.Generator().manual_seed(0)
    maps = spots(torch.full((60, 2), 0.5), 7, generator, widths=0.1 + 0.2 * torch.rand(60, generator=generator))
    assert density_clusters(maps).tolist() == [0] * 60


@pytest.mark.parametrize("sizes", [(10, 10), (12, 12), (20, 14, 12), (30, 15, 14, 13), (200, 12)])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_kinds_of_unequal_size_are_found(sizes: tuple[int, ...], noise: float):
    maps, kinds = corner_maps(sizes, noise)
    assert adjusted_rand_score(density_clusters(maps), kinds) == 1.0


def test_clusters_are_numbered_by_size():
    maps, kinds = corner_maps((12, 30, 20))
    assert torch.equal(density_clusters(maps), torch.tensor([2, 0, 1])[kinds])


def test_a_map_apart_from_all_joins_the_nearest_kind():
    maps, kinds = corner_maps((30, 20))
    between = 0.7 * maps[30:31] + 0.3 * maps[:1]
    assert density_clusters(torch.cat([maps, between])).tolist() == [*kinds.tolist(), 1]


def test_noise_is_one_kind():
    found = [density_clusters(torch.rand(64, 8, 8, generator=torch.Generator().manual_seed(k))) for k in range(10)]
    assert [int(numbers.max()) for numbers in found] == [0] * 10


def test_maps_that_are_all_the_same_are_one_cluster():
    assert density_clusters(torch.ones(30, 7, 7)).tolist() == [0] * 30


# ---- what must not matter


def test_the_order_of_the_maps_does_not_matter():
    maps, _ = planted(3, 7, 0, 0.1, count=90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    assert torch.equal(density_clusters(maps)[order], density_clusters(maps[order]))


def test_the_scale_of_a_map_and_what_speaks_against_the_class_do_not_matter():
    maps, kinds = corner_maps((30, 20), noise=0.5)
    changed = torch.where(maps > 0.1, maps, -7.0) * torch.arange(1, 51)[:, None, None]
    one, other = density_clusters(maps.where(maps > 0.1, 0.0)), density_clusters(changed)
    assert torch.equal(one, other)
    assert adjusted_rand_score(one, kinds) == 1.0


def test_equal_maps_give_equal_clusters_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    assert torch.equal(density_clusters(cloud()), density_clusters(cloud()))
    assert torch.equal(torch.get_rng_state(), before)


# ---- what has no answer


def test_maps_that_are_empty_or_not_finite_are_in_no_cluster_and_change_nothing():
    maps, _ = corner_maps((20, 15))
    broken = torch.stack([torch.zeros(8, 8), torch.full((8, 8), -1.0), torch.full((8, 8), 1e-12), maps[0], maps[0]])
    broken[3, 2, 2], broken[4, 0, 0] = math.nan, math.inf
    found = density_clusters(torch.cat([broken, maps]))
    assert found[:5].tolist() == [-1] * 5
    assert torch.equal(found[5:], density_clusters(maps))


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_usable_map_there_is_no_cluster(count: int):
    assert density_clusters(torch.zeros(count, 4, 4)).tolist() == [-1] * count


@pytest.mark.parametrize("sizes", [(3, 4), (10, 9)])
def test_fewer_maps_than_two_kinds_need_stay_together(sizes: tuple[int, int]):
    maps, _ = corner_maps(sizes)
    assert density_clusters(maps).tolist() == [0] * sum(sizes)


# ---- what is compared


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


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_kinds_are_those_of_sklearn_on_three_principal_components(noise: float):
    maps, _ = planted(3, 7, 1, noise)
    components = PCA(3, svd_solver="full").fit_transform(_shares(maps).numpy())
    theirs = torch.from_numpy(HDBSCAN(10, min_samples=5, allow_single_cluster=True, copy=True).fit(components).labels_)
    inside = theirs >= 0
    assert inside.float().mean() > 0.6
    assert adjusted_rand_score(density_clusters(maps)[inside], theirs[inside]) == 1.0
