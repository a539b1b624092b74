"""Spectral clustering: sklearn and scipy, and eigenvalues by hand of graphs that fall apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.spectral import (
    FEWEST_TO_DIVIDE,
    adjusted_rand_index,
    map_shares,
    match_clusters,
    spectral_clusters,
)

CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5))
numbers = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=2, max_size=40)


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


# ---- the graph and its eigenvalues


@pytest.mark.parametrize(("sizes", "gap"), [((12, 12), 12 / 11), ((20, 14, 12), 20 / 19), ((30, 15, 14, 13), 30 / 29)])
def test_parts_that_are_complete_graphs_have_the_eigenvalues_by_hand(sizes: tuple[int, ...], gap: float):
    # Maps of one kind are equal, hence all linked: K_m has the eigenvalues 0 and, m - 1 times, m / (m - 1).
    maps, kinds = corner_maps(sizes, noise=0.0)
    found = spectral_clusters(maps)
    assert found.count == len(sizes)
    assert_close(found.eigenvalues[: len(sizes)], torch.zeros(len(sizes), dtype=torch.float64))
    assert found.eigengap == pytest.approx(gap)
    assert adjusted_rand_index(found.assignments, kinds) == 1.0


def test_clusters_are_numbered_by_size():
    maps, kinds = corner_maps((12, 30, 20))
    assert torch.equal(spectral_clusters(maps).assignments, torch.tensor([2, 0, 1])[kinds])


@pytest.mark.parametrize("neighbours", [3, 10])
def test_eigenvalues_are_those_of_scipy_on_the_graph_of_sklearn(neighbours: int):
    maps = cloud()
    found = spectral_clusters(maps, neighbours=neighbours, most=20)
    shares = maps.double().clamp(min=0).flatten(1)
    shares = (shares / shares.sum(dim=1, keepdim=True)).numpy()
    graph = kneighbors_graph(shares, neighbours).toarray()
    expected = np.linalg.eigvalsh(laplacian(np.maximum(graph, graph.T), normed=True))
    np.testing.assert_allclose(found.eigenvalues, expected[:21], atol=1e-12)
    count = int(np.diff(expected[:21]).argmax()) + 1
    assert found.count == count
    assert found.eigengap == pytest.approx(expected[count] - expected[count - 1])


@pytest.mark.parametrize("sizes", [(40, 40), (60, 30, 20), (40, 30, 30, 20)])
def test_separate_kinds_are_found_as_sklearn_finds_them(sizes: tuple[int, ...]):
    maps, kinds = corner_maps(sizes)
    found = spectral_clusters(maps)
    shares = map_shares(maps).flatten(1).numpy()
    graph = kneighbors_graph(shares, 10).toarray()
    # sklearn rightly warns that such a graph is not connected; a faint link between all changes nothing else.
    theirs = SpectralClustering(len(sizes), affinity="precomputed", assign_labels="kmeans", random_state=0).fit(
        np.maximum(graph, graph.T) + 1e-6
    )
    assert found.count == len(sizes)
    assert adjusted_rand_index(found.assignments, torch.from_numpy(theirs.labels_).long()) == 1.0
    assert adjusted_rand_index(found.assignments, kinds) == 1.0


def test_kinds_that_touch_are_found_for_the_most_part():
    maps, kinds = corner_maps((60, 60), noise=2.5)
    found = spectral_clusters(maps, most=2)
    assert float(found.eigenvalues[1]) > 0.01  # the graph is connected: k-means has work to do
    assert found.count == 2
    assert adjusted_rand_index(found.assignments, kinds) > 0.8


def test_noise_is_one_kind():
    found = [spectral_clusters(torch.rand(64, 8, 8, generator=torch.Generator().manual_seed(k))) for k in range(10)]
    assert [clustering.count for clustering in found] == [1] * 10


def test_there_are_at_most_as_many_clusters_as_asked_for():
    maps, kinds = corner_maps((14, 13, 12, 11), noise=0.0)
    found = spectral_clusters(maps, most=3)
    assert found.count == 3
    # All eigenvalues looked at are zero: two of the four parts share a cluster, and none is torn.
    assert found.eigengap == pytest.approx(0, abs=1e-12)
    for kind in range(4):
        assert len(found.assignments[kinds == kind].unique()) == 1
    assert found.assignments.bincount(minlength=3).min() >= 11


def test_maps_that_are_all_the_same_are_one_cluster():
    found = spectral_clusters(torch.ones(30, 7, 7))
    assert found.count == 1
    assert found.eigengap == pytest.approx(30 / 29)


# ---- what must not matter


def test_the_order_of_the_maps_does_not_matter():
    maps = cloud(90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    one, other = spectral_clusters(maps, most=5, neighbours=4), spectral_clusters(maps[order], most=5, neighbours=4)
    assert torch.equal(one.assignments[order], other.assignments)
    assert torch.equal(one.eigenvalues, other.eigenvalues)


def test_the_scale_of_a_map_and_what_speaks_against_the_class_do_not_matter():
    maps, kinds = corner_maps((30, 20), noise=0.5)
    changed = torch.where(maps > 0.1, maps, -7.0) * torch.arange(1, 51)[:, None, None]
    one, other = spectral_clusters(maps.where(maps > 0.1, 0.0)), spectral_clusters(changed)
    assert torch.equal(one.assignments, other.assignments)
    assert adjusted_rand_index(one.assignments, kinds) == 1.0
    assert_close(one.eigenvalues, other.eigenvalues)


def test_equal_seeds_give_equal_bits_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    one, other = (spectral_clusters(cloud(), neighbours=4, seed=5) for _ in range(2))
    assert torch.equal(one.assignments, other.assignments)
    assert torch.equal(one.eigenvalues, other.eigenvalues)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what has no answer


def test_maps_that_are_empty_or_not_finite_are_in_no_cluster_and_change_nothing():
    maps, _ = corner_maps((20, 15))
    broken = torch.stack([torch.zeros(8, 8), torch.full((8, 8), -1.0), torch.full((8, 8), 1e-12), maps[0], maps[0]])
    broken[3, 2, 2], broken[4, 0, 0] = float("nan"), float("inf")
    found = spectral_clusters(torch.cat([broken, maps]))
    assert found.assignments[:5].tolist() == [-1] * 5
    assert torch.equal(found.assignments[5:], spectral_clusters(maps).assignments)


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_usable_map_there_is_no_cluster(count: int):
    found = spectral_clusters(torch.zeros(count, 4, 4))
    assert found.count == 0
    assert found.assignments.tolist() == [-1] * count
    assert np.isnan(found.eigengap)


def test_few_maps_stay_together():
    maps, _ = corner_maps((3, 4))
    assert len(maps) < FEWEST_TO_DIVIDE
    found = spectral_clusters(maps)
    assert found.count == 1
    assert found.assignments.tolist() == [0] * 7
    assert len(found.eigenvalues) == 0
    assert np.isnan(found.eigengap)


@pytest.mark.parametrize("sizes", [(4, 4), (8, 8), (10, 8, 6), (12, 8, 8, 8)])
def test_with_few_maps_fewer_neighbours_are_linked(sizes: tuple[int, ...]):
    maps, kinds = corner_maps(sizes)
    found = spectral_clusters(maps, neighbours=10)
    assert found.count == len(sizes)
    assert adjusted_rand_index(found.assignments, kinds) == 1.0


# ---- shares


def test_shares_sum_to_one_and_hold_the_positive_part_alone():
    maps = cloud(5)
    shares = map_shares(maps)
    positive = maps.double().clamp(min=0)
    assert shares.dtype == torch.float64
    assert_close(shares, positive / positive.sum(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize(("size", "grid"), [(32, 16), (48, 16), (6, 2)])
def test_large_maps_are_pooled_as_torch_pools_them(size: int, grid: int):
    maps = torch.rand(3, size, size, dtype=torch.float64)
    pooled = avg_pool2d(maps[:, None], size // grid)[:, 0]
    assert_close(map_shares(maps, grid), pooled / pooled.sum(dim=(1, 2), keepdim=True))


def test_a_pixel_between_two_cells_is_split_by_area():
    maps = torch.tensor([[[0.0, 1.0, 0.0]] * 3, [[1.0, 0.0, 0.0]] * 3])
    expected = torch.tensor([[[0.25, 0.25], [0.25, 0.25]], [[0.5, 0.0], [0.5, 0.0]]], dtype=torch.float64)
    assert_close(map_shares(maps, 2), expected)


def test_sides_are_pooled_each_on_its_own():
    assert map_shares(torch.rand(2, 20, 7), 16).shape == (2, 16, 7)


def test_huge_and_tiny_maps_have_shares():
    maps = torch.rand(2, 4, 4).double()
    for factor in (1e300, 1e-300):
        assert_close(map_shares(maps * factor), map_shares(maps))


# ---- over audits


def test_clusters_keep_their_numbers_where_only_their_names_changed():
    before = torch.tensor([0, 0, 0, 1, 1, 2, -1])
    after = torch.tensor([2, 2, 2, 0, 0, 1, -1])
    assert torch.equal(match_clusters(before, after), before)


def test_the_larger_part_of_a_split_keeps_the_number_and_the_other_gets_a_new_one():
    before = torch.tensor([0] * 10 + [1] * 5)
    after = torch.tensor([1] * 6 + [2] * 4 + [0] * 5)
    assert match_clusters(before, after).tolist() == [0] * 6 + [2] * 4 + [1] * 5
    assert match_clusters(before, after, fresh=7).tolist() == [0] * 6 + [7] * 4 + [1] * 5


def test_merged_clusters_take_the_number_of_the_larger():
    before = torch.tensor([0] * 4 + [1] * 6)
    assert match_clusters(before, torch.zeros(10).long()).tolist() == [1] * 10


def test_a_single_cluster_stays_what_it_was():
    assert match_clusters(torch.full((5,), 3), torch.zeros(5).long()).tolist() == [3] * 5


def test_a_pair_that_shares_fewer_members_than_chance_is_no_match():
    before = torch.arange(3).repeat_interleave(10)
    # Numbers 0 and 1 live on in the first two. The third has one of the ten of number 2, where chance gives 4 / 3.
    after = torch.tensor([0] * 8 + [2] * 2 + [1] * 9 + [2] + [0] * 3 + [1] * 6 + [2])
    assert match_clusters(before, after).tolist() == [0] * 8 + [3] * 2 + [1] * 9 + [3] + [0] * 3 + [1] * 6 + [3]


def test_the_first_audit_numbers_from_zero_without_gaps():
    assert match_clusters(torch.full((4,), -1), torch.tensor([0, -1, 2, 0])).tolist() == [0, -1, 1, 0]
    assert match_clusters(torch.empty(0).long(), torch.empty(0).long()).tolist() == []


@given(numbers)
def test_matching_renames_and_never_regroups(pairs: list[tuple[int, int]]):
    before, after = torch.tensor(pairs).unbind(dim=1)
    renamed = match_clusters(before, after)
    assert torch.equal(renamed < 0, after < 0)
    assert adjusted_rand_score(renamed, after) == 1.0


@given(numbers)
def test_agreement_is_that_of_sklearn(pairs: list[tuple[int, int]]):
    one, other = torch.tensor(pairs).unbind(dim=1)
    assert adjusted_rand_index(one, other) == pytest.approx(adjusted_rand_score(one, other))


# ---- arguments


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: spectral_clusters(torch.rand(4, 4)), r"`maps` to be floating point \(n, h, w\)"),
        (lambda: spectral_clusters(torch.ones(4, 4, 4).long()), "`maps` to be floating point"),
        (lambda: spectral_clusters(torch.rand(9, 4, 0)), "`maps` to be floating point"),
        (lambda: spectral_clusters(cloud(), neighbours=0), "`neighbours` to be an integer of 1 or more"),
        (lambda: spectral_clusters(cloud(), most=0), "`most` to be an integer"),
        (lambda: spectral_clusters(cloud(), grid=0), "`grid` to be an integer"),
        (lambda: match_clusters(torch.zeros(3).long(), torch.zeros(4).long()), "of one length"),
        (lambda: match_clusters(torch.zeros(3), torch.zeros(3)), "`before` and `after` to be int64"),
        (lambda: adjusted_rand_index(torch.zeros(3), torch.zeros(4)), "of one length"),
    ],
)
def test_bad_arguments_are_refused(call, match: str):
    with pytest.raises(ConfigurationError, match=match):
        call()
