"""k-means on the CPU: seeded, restarted, and without empty clusters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["KMeans", "kmeans"]


class KMeans(NamedTuple):
    """Points in clusters.

    Attributes:
        assignments: Cluster of each point, `(n,)` int64.
        centres: Mean of each cluster, `(k, d)` float64.
        inertia: Sum of the squared distances of points to their centres, which k-means makes small.
    """

    assignments: Tensor
    centres: Tensor
    inertia: float


def kmeans(points: Tensor, clusters: int, *, restarts: int = 10, iterations: int = 100, seed: int = 0) -> KMeans:
    """Divide points into clusters of small inertia: Lloyd's algorithm from k-means++ starts, the best of several.

    No cluster is empty, whatever the points: one that loses all of its points gets the point that lies farthest from
    its centre. Only distances count, so turned or mirrored points are divided the same way. PyTorch's global random
    state is neither read nor advanced. Source: Arthur and Vassilvitskii 2007.

    Args:
        points: `(n, d)`, finite.
        clusters: Their number k, in [1, n].
        restarts: Number of starts.
        iterations: Most steps from one start.
        seed: Seed of the starts.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    _check(points, clusters)
    require_integer("restarts", restarts, minimum=1)
    require_integer("iterations", iterations, minimum=1)
    points = points.detach().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    found = [_lloyd(points, _starts(points, clusters, generator), iterations) for _ in range(restarts)]
    return min(found, key=lambda result: result.inertia)


def _starts(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centres `(k, d)`: points drawn one by one, each with odds of its squared distance to those drawn before."""
    drawn = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = _squares(points, points[drawn])[:, 0]
    while len(drawn) < clusters:
        # Where all points are drawn already, copies of them follow: any will do.
        odds = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        drawn.append(int(torch.multinomial(odds, 1, generator=generator)))
        nearest = nearest.minimum(_squares(points, points[drawn[-1:]])[:, 0])
    return points[drawn]


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> KMeans:
    assignments = torch.full((len(points),), -1)
    for _ in range(iterations):
        squares = _squares(points, centres)
        moved = _filled(squares.argmin(dim=1), squares)
        if torch.equal(moved, assignments):
            break
        assignments = moved
        centres = _means(points, assignments, len(centres))
    own = (points - centres[assignments]).square().sum()
    return KMeans(assignments, centres, float(own))


def _filled(assignments: Tensor, squares: Tensor) -> Tensor:
    """The same assignments, but that clusters without a point take the worst placed of those that have several."""
    distance = squares.gather(1, assignments[:, None])[:, 0]
    for cluster in range(squares.shape[1]):
        sizes = assignments.bincount(minlength=squares.shape[1])
        if sizes[cluster] == 0:
            point = int(torch.where(sizes[assignments] > 1, distance, -1.0).argmax())
            assignments[point], distance[point] = cluster, 0.0
    return assignments


def _means(points: Tensor, assignments: Tensor, clusters: int) -> Tensor:
    sums = torch.zeros(clusters, points.shape[1], dtype=points.dtype).index_add_(0, assignments, points)
    return sums / assignments.bincount(minlength=clusters)[:, None]


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances `(n, k)`, by differences: a product of matrices would lose the digits of small ones."""
    return (points[:, None] - centres).square().sum(dim=2)


def _check(points: Tensor, clusters: int) -> None:
    if points.ndim != 2 or not points.numel() or not bool(points.isfinite().all()):
        raise ConfigurationError(f"Expected `points` to be finite (n, d), but got shape {tuple(points.shape)}.")
    require_integer("clusters", clusters, minimum=1)
    if clusters > len(points):
        raise ConfigurationError(
            f"Expected `clusters` to be at most the number of points, {len(points)}, but got {clusters}."
        )
