"""Which heatmaps look alike? Spectral clustering of the maps of one class, as in SpRAy (Lapuschkin et al. 2019).

A model that answers by a cue in some images and by the object in others makes heatmaps of two kinds. Clusters find them
without anybody naming the cue. They know places, not things: a cue that wanders makes a cluster for each of its places,
or none. Maps are compared as they lie, so a class needs some hundred maps for a reliable picture, and about ten of one
kind for them to become a cluster at all.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.kmeans import kmeans

__all__ = [
    "FEWEST_TO_DIVIDE",
    "Clustering",
    "adjusted_rand_index",
    "map_shares",
    "match_clusters",
    "spectral_clusters",
]

FEWEST_TO_DIVIDE = 8
"""Fewer maps stay in one cluster: two kinds of three maps each could not be told from neighbours by chance."""

# A graph of fewer neighbours falls apart by itself, and of more than a quarter of the maps hides halves.
_FEWEST_NEIGHBOURS = 3
_MOST_NEIGHBOURS = 4

# An eigenvalue below this is a zero with rounding errors.
_ZERO = 1e-9

# Below the rounding error of the maps themselves, which are float32.
_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Clustering:
    """Maps of one class in clusters.

    Attributes:
        assignments: Cluster of each map, `(n,)` int64, numbered by size from 0, the largest first; -1 for maps that are
            empty or not finite.
        count: Number of clusters; 0 if no map is usable.
        eigenvalues: The smallest of the normalised Laplacian, ascending, at most `most + 1` of them, in [0, 2] float64.
            As many are 0 as the graph has separate parts. Empty where nothing was divided.
        eigengap: Distance of eigenvalue `count` to the next, in [0, 2]: how clear the division is. NaN likewise.
    """

    assignments: Tensor
    count: int
    eigenvalues: Tensor
    eigengap: float


def spectral_clusters(
    maps: Tensor, *, neighbours: int = 10, most: int = 8, grid: int = 16, seed: int = 0
) -> Clustering:
    """Divide the heatmaps of one class into kinds.

    Positive relevance, pooled and as shares of its sum (`map_shares`); a graph that links each map to its nearest
    neighbours, from either side, without weights; the eigenvectors of its symmetric normalised Laplacian for the k
    smallest eigenvalues, k by the widest gap between them; k-means on their rows, brought to length one (Ng, Jordan and
    Weiss 2002). The order of the maps does not matter, and equal arguments give equal clusters: k-means sees distances
    only, not the signs or the rotation of the eigenvectors. Cost: eigenvalues of an n x n matrix, `O(n^3)`.

    With fewer than `4 * neighbours` maps a graph of so many neighbours would link half of them to the other half, and a
    quarter of the maps are taken for neighbours instead, but at least 3; fewer than `FEWEST_TO_DIVIDE` maps stay
    together. k is at most `most` also where the graph has more separate parts, some of which then share a cluster.

    Args:
        maps: Signed `(n, h, w)`.
        neighbours: Links of each map; more where several are equally far. A cluster has more members than this, or is
            linked to others.
        most: Largest number of clusters.
        grid: Largest height and width at which maps are compared.
        seed: Seed of k-means. PyTorch's global random state is neither read nor advanced.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    for name, value in (("neighbours", neighbours), ("most", most), ("grid", grid)):
        require_integer(name, value, minimum=1)
    shares = map_shares(maps, grid).flatten(1)
    usable = (~shares[:, 0].isnan()).nonzero()[:, 0]
    assignments = torch.full((len(maps),), -1)
    if len(usable) < FEWEST_TO_DIVIDE:
        assignments[usable] = 0
        return Clustering(assignments, int(len(usable) > 0), torch.empty(0, dtype=torch.float64), math.nan)
    # In an order that hangs on the maps alone, so that neither starts nor ties hang on theirs.
    order = usable[sorted(range(len(usable)), key=lambda place: shares[usable[place]].numpy().tobytes())]
    few = max(_FEWEST_NEIGHBOURS, len(usable) // _MOST_NEIGHBOURS)
    values, vectors = torch.linalg.eigh(_laplacian(_affinity(shares[order], min(neighbours, few))))
    most = min(most, len(usable) - 1)
    count = _count(values[: most + 1])
    rows = vectors[:, :count]
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=_ZERO)
    assignments[order] = _by_size(kmeans(rows, count, seed=seed).assignments)
    return Clustering(assignments, count, values[: most + 1], float(values[count] - values[count - 1]))


def map_shares(maps: Tensor, grid: int = 16) -> Tensor:
    """Positive relevance of signed maps `(n, h, w)` by cell, as shares of its sum: float64 `(n, g, g')` that sum to 1.

    Maps of more than `grid` rows or columns are pooled by area. NaN for maps that are not finite or whose relevance is
    below the rounding error of the largest among them.
    """
    if maps.ndim != 3 or not maps.shape[1] or not maps.shape[2] or not maps.is_floating_point():
        raise ConfigurationError(
            f"Expected `maps` to be floating point (n, h, w), but got {maps.dtype} {tuple(maps.shape)}."
        )
    height, width = maps.shape[1:]
    maps = maps.detach().to("cpu", torch.float64)
    finite = maps.isfinite().all(dim=(1, 2))
    peaks = torch.where(finite, maps.abs().amax(dim=(1, 2)), 0.0)
    positive = maps.clamp(min=0) / peaks[:, None, None]  # so that no sum overflows
    cells = _pooling(height, grid) @ positive @ _pooling(width, grid).T
    totals = cells.sum(dim=(1, 2))
    enough = finite & (totals * peaks > _EPS * height * width * max(peaks.tolist(), default=0.0))
    return torch.where(enough[:, None, None], cells / totals[:, None, None], torch.nan)


def match_clusters(before: Tensor, after: Tensor, *, fresh: int | None = None) -> Tensor:
    """Give the clusters of `after` the numbers of those of `before` that they grew out of, `(n,)` int64.

    Pairs of clusters are matched one to one, those that share the largest part of their union first; a pair must share
    no fewer members than two clusters drawn independently would. Of a cluster that splits, the larger part keeps the
    number and the others get new ones.

    Args:
        before: Cluster of each probe at the earlier audit, `(n,)` int64; -1 for none.
        after: The same probes at the later audit.
        fresh: First number for clusters without a forerunner; None for one more than the largest in `before`.
    """
    if before.shape != after.shape or before.ndim != 1 or before.dtype != torch.long or after.dtype != torch.long:
        raise ConfigurationError(
            f"Expected `before` and `after` to be int64 (n,) of one length, but got {before.dtype} "
            f"{tuple(before.shape)} and {after.dtype} {tuple(after.shape)}. Cluster the same probes."
        )
    old, new = (numbers[numbers >= 0].bincount().nonzero()[:, 0] for numbers in (before, after))
    inside = (before == old[:, None]).double() @ (after == new[:, None]).double().T
    sizes, later = (before == old[:, None]).sum(dim=1), (after == new[:, None]).sum(dim=1)
    overlap = inside / (sizes[:, None] + later - inside)
    # Whole numbers, so that one cluster of all matches one cluster of all.
    alien = inside * inside.sum() < inside.sum(dim=1, keepdim=True) * inside.sum(dim=0)
    overlap = torch.where(alien, 0.0, overlap)
    names: dict[int, int] = {}
    for place in overlap.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(place, len(new))
        if overlap[row, column] > 0 and column not in names and int(old[row]) not in names.values():
            names[column] = int(old[row])
    following = itertools.count(int(before.max()) + 1 if fresh is None and len(before) else fresh or 0)
    numbered = after.clone()
    for column, number in enumerate(new.tolist()):
        numbered[after == number] = names[column] if column in names else next(following)
    return numbered


def adjusted_rand_index(one: Tensor, other: Tensor) -> float:
    """How far two divisions `(n,)` of the same things agree: 1 if they are the same, 0 on average by chance.

    Numbers of clusters do not matter. Source: Hubert and Arabie 1985.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ConfigurationError(
            f"Expected `one` and `other` to be (n,) of one length, but got {tuple(one.shape)} and {tuple(other.shape)}."
        )
    first, second = one.tolist(), other.tolist()
    together, rows, columns = (_pairs(kinds) for kinds in (zip(first, second, strict=True), first, second))
    pairs = len(first) * (len(first) - 1) // 2
    # Multiplied by the number of pairs: whole numbers tell exactly whether there is anything to agree on.
    expected, most = 2 * rows * columns, (rows + columns) * pairs
    return 1.0 if most == expected else (2 * together * pairs - expected) / (most - expected)


def _pairs(kinds: Iterable[object]) -> int:
    """Number of pairs of one kind."""
    return sum(size * (size - 1) // 2 for size in Counter(kinds).values())


def _pooling(size: int, grid: int) -> Tensor:
    """Share of each of `size` pixels in each cell of a row of at most `grid`, `(cells, size)`; columns sum to 1."""
    cells = min(size, grid)
    edges = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    left = torch.arange(size, dtype=torch.float64)
    return ((left + 1).minimum(edges[1:, None]) - left.maximum(edges[:-1, None])).clamp(min=0)


def _affinity(points: Tensor, neighbours: int) -> Tensor:
    """1 where either of two points `(n, d)` is among the nearest of the other, else 0; `(n, n)` float64."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    near = distances <= distances.kthvalue(neighbours, dim=1, keepdim=True).values
    return (near | near.T).double()


def _laplacian(affinity: Tensor) -> Tensor:
    """`I - D^-1/2 A D^-1/2` of a graph without lonely nodes."""
    scale = affinity.sum(dim=1).rsqrt()
    return torch.eye(len(affinity), dtype=torch.float64) - scale[:, None] * affinity * scale


def _count(values: Tensor) -> int:
    """Number of clusters: the eigenvalues below the widest gap; all but the last if even that is zero."""
    return len(values) - 1 if float(values[-1]) < _ZERO else int(values.diff().argmax()) + 1


def _by_size(assignments: Tensor) -> Tensor:
    """The same clusters, the largest numbered 0; of equal ones that of the first point first."""
    order = sorted(range(int(assignments.max()) + 1), key=lambda cluster: _size_and_place(assignments == cluster))
    return torch.tensor(order).argsort()[assignments]


def _size_and_place(inside: Tensor) -> tuple[int, int]:
    return -int(inside.sum()), int(inside.int().argmax())
