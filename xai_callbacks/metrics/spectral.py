"""Which heatmaps look alike? Spectral clustering of the maps of one class, as in SpRAy (Lapuschkin et al. 2019).

A model that answers by a cue in some images and by the object in others makes heatmaps of two kinds. Maps are compared
as they lie, so a class needs some hundred maps for a reliable picture, and about ten of one kind for them to become a
cluster at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer

__all__ = ["FEWEST_TO_DIVIDE", "MOST_CLUSTERS", "map_shares", "spectral_clusters"]

FEWEST_TO_DIVIDE = 8
"""Fewer maps stay in one cluster: two kinds of three maps each could not be told from neighbours by chance."""

MOST_CLUSTERS = 8
"""Largest number of clusters of a class."""

# A graph of fewer neighbours falls apart by itself, and of more than a quarter of the maps hides halves.
_FEWEST_NEIGHBOURS = 3
_MOST_NEIGHBOURS = 4

# An eigenvalue below this is a zero with rounding errors.
_ZERO = 1e-9

# Below the rounding error of the maps themselves, which are float32.
_EPS = torch.finfo(torch.float32).eps


def spectral_clusters(
    maps: Tensor, *, neighbours: int = 10, most: int = MOST_CLUSTERS, grid: int = 16, seed: int = 0
) -> Tensor:
    """Divide the heatmaps of one class into kinds: numbers `(n,)` int64 from 0, the largest kind first.

    Positive relevance, pooled and as shares of its sum (`map_shares`); a graph that links each map to its nearest
    neighbours, from either side, without weights; the eigenvectors of its symmetric normalised Laplacian for the k
    smallest eigenvalues, k by the widest gap between them; k-means on their rows, brought to length one (Ng, Jordan and
    Weiss 2002). The order of the maps does not matter, and equal arguments give equal clusters: k-means sees distances
    only, not the signs or the rotation of the eigenvectors. Cost: eigenvalues of an n x n matrix, `O(n^3)`.

    With fewer than `4 * neighbours` maps, a quarter of them are taken for neighbours, but at least 3; fewer than
    `FEWEST_TO_DIVIDE` maps stay together. k is at most `most` also where the graph has more separate parts.

    Args:
        maps: Signed `(n, h, w)`. Those that are empty or not finite are in no cluster, -1.
        neighbours: Links of each map; more where several are equally far. A cluster has more members than this, or is
            linked to others.
        most: Largest number of clusters.
        grid: Largest height and width at which maps are compared.
        seed: Seed of k-means. Global random states are neither read nor advanced.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    for name, value in (("neighbours", neighbours), ("most", most), ("grid", grid)):
        require_integer(name, value, minimum=1)
    shares = map_shares(maps, grid).flatten(1)
    usable = (~shares[:, 0].isnan()).nonzero()[:, 0]
    assignments = torch.full((len(maps),), -1)
    if len(usable) < FEWEST_TO_DIVIDE:
        return assignments.index_fill(0, usable, 0)
    # In an order that hangs on the maps alone, so that neither starts nor ties hang on theirs.
    order = usable[sorted(range(len(usable)), key=lambda place: shares[usable[place]].numpy().tobytes())]
    few = max(_FEWEST_NEIGHBOURS, len(usable) // _MOST_NEIGHBOURS)
    assignments[order] = _divided(shares[order], min(neighbours, few), min(most, len(usable) - 1), seed)
    return assignments


def _divided(points: Tensor, neighbours: int, most: int, seed: int) -> Tensor:
    """Clusters of points `(n, d)`, `(n,)`, numbered by size; of equal ones that of the first point first."""
    values, vectors = torch.linalg.eigh(_laplacian(points, neighbours))
    # The eigenvalues below the widest gap; all but the last if even that is zero.
    count = most if float(values[most]) < _ZERO else int(values[: most + 1].diff().argmax()) + 1
    if count == 1:
        return torch.zeros(len(points), dtype=torch.long)
    from sklearn.cluster import KMeans

    rows = vectors[:, :count]
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=_ZERO)
    found = torch.from_numpy(KMeans(count, n_init=10, random_state=seed).fit(rows.numpy()).labels_).long()
    parts = [(found == cluster).nonzero()[:, 0] for cluster in range(count)]
    for number, members in enumerate(sorted(parts, key=lambda rows: (-len(rows), int(rows[0])))):
        found[members] = number
    return found


def _laplacian(points: Tensor, neighbours: int) -> Tensor:
    """`I - D^-1/2 A D^-1/2`, `(n, n)` float64; A is 1 where either of two points is among the nearest of the other."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    near = distances <= distances.kthvalue(neighbours, dim=1, keepdim=True).values
    affinity = (near | near.T).double()
    scale = affinity.sum(dim=1).rsqrt()
    return torch.eye(len(affinity), dtype=torch.float64) - scale[:, None] * affinity * scale


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


def _pooling(size: int, grid: int) -> Tensor:
    """Share of each of `size` pixels in each cell of a row of at most `grid`, `(cells, size)`; columns sum to 1."""
    cells = min(size, grid)
    edges = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    left = torch.arange(size, dtype=torch.float64)
    return ((left + 1).minimum(edges[1:, None]) - left.maximum(edges[:-1, None])).clamp(min=0)
