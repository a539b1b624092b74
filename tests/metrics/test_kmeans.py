"""k-means: sklearn, values by hand, and points that leave clusters empty."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.kmeans import kmeans
from xai_callbacks.metrics.spectral import adjusted_rand_index


def blobs(centres: int = 4, each: int = 25, dimensions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    middle = 10 * torch.eye(centres, dimensions, dtype=torch.float64) - 5 * torch.ones(dimensions, dtype=torch.float64)
    kinds = torch.arange(centres).repeat_interleave(each)
    noise = torch.randn(len(kinds), dimensions, generator=generator, dtype=torch.float64)
    return middle[kinds] + noise, kinds


def noise(count: int = 120) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_separate_blobs_are_found_as_sklearn_finds_them():
    points, kinds = blobs()
    ours = kmeans(points, 4)
    theirs = KMeans(4, n_init=10, random_state=0).fit(points.numpy())
    assert adjusted_rand_index(ours.assignments, kinds) == 1.0
    assert adjusted_rand_index(ours.assignments, torch.from_numpy(theirs.labels_)) == 1.0
    assert ours.inertia == pytest.approx(theirs.inertia_)


@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_without_structure_the_inertia_is_within_two_percent_of_that_of_sklearn(clusters: int):
    theirs = KMeans(clusters, n_init=20, random_state=0).fit(noise().numpy())
    assert kmeans(noise(), clusters, restarts=20).inertia <= 1.02 * theirs.inertia_


def test_centres_are_the_means_of_their_points_and_each_point_is_with_the_nearest():
    points = noise()
    found = kmeans(points, 5)
    for cluster in range(5):
        assert_close(found.centres[cluster], points[found.assignments == cluster].mean(dim=0))
    assert torch.equal(torch.cdist(points, found.centres).argmin(dim=1), found.assignments)
    assert found.inertia == pytest.approx(float((points - found.centres[found.assignments]).square().sum()))


def test_more_restarts_never_make_it_worse():
    inertias = [kmeans(noise(), 9, restarts=restarts).inertia for restarts in (1, 3, 30)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]


@pytest.mark.parametrize(("count", "clusters"), [(6, 4), (5, 5), (1, 1)])
def test_no_cluster_is_empty_where_all_points_are_the_same(count: int, clusters: int):
    found = kmeans(torch.ones(count, 2), clusters)
    assert found.assignments.bincount(minlength=clusters).min() >= 1
    assert found.inertia == 0


def test_no_cluster_is_empty_where_points_repeat():
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [9.0]])
    found = kmeans(points, 4)
    assert found.assignments.bincount(minlength=4).min() == 1
    assert found.inertia == 0


def test_one_cluster_is_the_mean_and_as_many_as_points_are_the_points():
    points = noise(7)
    assert_close(kmeans(points, 1).centres[0], points.mean(dim=0))
    assert sorted(kmeans(points, 7).assignments.tolist()) == list(range(7))


def test_turned_and_mirrored_points_are_divided_the_same_way():
    points, _ = blobs()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    expected = kmeans(points, 4).assignments
    assert torch.equal(kmeans(points @ turn, 4).assignments, expected)
    assert torch.equal(kmeans(points * torch.tensor([-1.0, 1.0, -1.0]), 4).assignments, expected)


def test_equal_seeds_give_equal_bits_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    one, other = (kmeans(noise(), 6, seed=3) for _ in range(2))
    assert torch.equal(one.assignments, other.assignments)
    assert torch.equal(one.centres, other.centres)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("points", "clusters", "match"),
    [
        (torch.rand(3), 1, r"`points` to be finite \(n, d\)"),
        (torch.full((3, 2), float("nan")), 1, "`points` to be finite"),
        (torch.empty(0, 2), 1, "`points` to be finite"),
        (torch.rand(3, 2), 4, "at most the number of points, 3, but got 4"),
        (torch.rand(3, 2), 0, "`clusters` to be an integer of 1 or more"),
    ],
)
def test_bad_arguments_are_refused(points: torch.Tensor, clusters: int, match: str):
    with pytest.raises(ConfigurationError, match=match):
        kmeans(points, clusters)
