"""Cues nobody named: kinds of heatmaps within each class, and how good the model is in each (SpRAy).

Source: Lapuschkin et al. 2019; graph, Laplacian and eigengap as in CoRelAy. A class needs some hundred maps, and about
ten of one kind for them to become a cluster. A cluster is no cue: one thing that moves through the image is cut into
several, and things in the same place share one.

Whether errors go with a cluster is tested as if the heatmaps knew nothing of the answer, so they must all explain the
label they are grouped by: with maps of the predicted class errors went with clusters (p < 0.05) in 27 of 30 audits of
small nets that had no cue to use, with maps of the label in 3.

Clusters are numbers `(n,)` int64 within each class `(n,)` int64; -1 stands for maps in none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.record import Estimate

__all__ = [
    "MOST_CLUSTERS",
    "error_association",
    "large_classes",
    "map_clusters",
    "spectral_clusters",
    "worst_cluster",
]

# Fewer maps stay in one cluster: two kinds of three maps each could not be told from neighbours by chance.
_FEWEST_TO_DIVIDE = 8

MOST_CLUSTERS = 8
"""Largest number of clusters of a class."""

# Largest height and width at which maps are compared.
_GRID = 16

# An eigenvalue below this is a zero with rounding errors.
_ZERO = 1e-9

# Below the rounding error of the maps themselves, which are float32.
_EPS = torch.finfo(torch.float32).eps


def map_clusters(maps: Tensor, classes: Tensor, *, min_count: int = 10, seed: int = 0) -> Tensor:
    """Divide the heatmaps of each class of at least `min_count` into clusters, see `spectral_clusters`."""
    numbers = torch.full((len(maps),), -1)
    for label in large_classes(classes, min_count):
        rows = (classes == label).nonzero()[:, 0]
        numbers[rows] = spectral_clusters(maps[rows], seed=seed)
    return numbers


def large_classes(classes: Tensor, min_count: int = 10) -> list[int]:
    """Classes of at least `min_count` maps, ascending."""
    found: list[int] = (classes[classes >= 0].bincount() >= min_count).nonzero()[:, 0].tolist()
    return found


def spectral_clusters(maps: Tensor, *, neighbours: int = 10, most: int = MOST_CLUSTERS, seed: int = 0) -> Tensor:
    """Divide the heatmaps of one class into kinds: numbers `(n,)` int64 from 0, the largest kind first.

    Positive relevance as shares of its sum; a graph that links each map to its nearest neighbours, from either side,
    without weights; the eigenvectors of its symmetric normalised Laplacian for the k smallest eigenvalues, k by the
    widest gap between them; k-means on their rows, brought to length one (Ng, Jordan and Weiss 2002). The order of the
    maps does not matter, and equal arguments give equal clusters. Cost: eigenvalues of an n x n matrix, `O(n^3)`.

    Args:
        maps: Signed `(n, h, w)`. Those that are empty or not finite are in no cluster, -1.
        neighbours: Links of each map; more where several are equally far. Of few maps a quarter, but at least 3.
        most: Largest number of clusters.
        seed: Seed of k-means. Global random states are neither read nor advanced.
    """
    shares = _shares(maps)
    usable = (~shares[:, 0].isnan()).nonzero()[:, 0]
    numbers = torch.full((len(maps),), -1)
    if len(usable) < _FEWEST_TO_DIVIDE:
        return numbers.index_fill(0, usable, 0)
    # In an order that hangs on the maps alone, so that neither starts nor ties hang on theirs.
    order = usable[sorted(range(len(usable)), key=lambda place: shares[usable[place]].numpy().tobytes())]
    # A graph of fewer neighbours falls apart by itself, and of more than a quarter of the maps hides halves.
    linked = min(neighbours, max(3, len(usable) // 4))
    numbers[order] = _divided(_laplacian(shares[order], linked), min(most, len(usable) - 1), seed)
    return numbers


def _divided(laplacian: Tensor, most: int, seed: int) -> Tensor:
    """Cluster of each point, numbered by size; of equal ones that of the first point first."""
    from sklearn.cluster import KMeans

    values, vectors = torch.linalg.eigh(laplacian)
    # The eigenvalues below the widest gap; all but the last if even that is zero.
    count = most if float(values[most]) < _ZERO else int(values[: most + 1].diff().argmax()) + 1
    if count == 1:
        return torch.zeros(len(values), dtype=torch.long)
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


def _shares(maps: Tensor) -> Tensor:
    """Positive relevance of maps by cell, as shares of its sum, `(n, cells)` float64.

    NaN for maps that are not finite or whose relevance is below the rounding error of the largest among them.
    """
    maps = maps.detach().to("cpu", torch.float64)
    size = (min(maps.shape[1], _GRID), min(maps.shape[2], _GRID))
    cells = adaptive_avg_pool2d(maps.clamp(min=0)[:, None], size).flatten(1)
    peaks = maps.abs().amax(dim=(1, 2))
    finite = peaks.isfinite()
    enough = finite & (cells.mean(dim=1) > _EPS * max(peaks[finite].tolist(), default=0.0))
    return torch.where(enough[:, None], cells / cells.sum(dim=1, keepdim=True), torch.nan)


def worst_cluster(
    numbers: Tensor, classes: Tensor, correct: Tensor, *, min_count: int = 10, draws: int = 200, seed: int = 0
) -> Estimate:
    """Lowest accuracy of the clusters with at least `min_count` images: the worst group, without group labels.

    The lowest of several noisy accuracies is below the true one on average: compare with `chance`, the mean lowest
    accuracy of clusters of these sizes drawn at random within each class. The interval is Wilson's, which takes the
    cluster as given and not as picked for being worst; `valid` is its number of images. NaN, without interval and
    chance, if all clusters are too small.

    Args:
        numbers: Cluster of each map within its class.
        classes: Class of each map.
        correct: Whether the model was right, `(n,)` bool.
        min_count: Fewest images of a cluster.
        draws: Random divisions for the level of chance.
        seed: Seed of the divisions. PyTorch's global random state is neither read nor advanced.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[float, int, int]] = []
    drawn = torch.full((draws,), math.inf, dtype=torch.float64)
    for members in _members(numbers, classes):
        right = correct[torch.cat(members)].double()
        order = torch.rand(draws, len(right), generator=generator, dtype=torch.float64).argsort(dim=1)
        parts = torch.split(right[order], [len(rows) for rows in members], dim=1)
        for rows, part in zip(members, parts, strict=True):
            if len(rows) >= min_count:
                found.append((float(correct[rows].double().mean()), int(correct[rows].sum()), len(rows)))
                drawn = drawn.minimum(part.mean(dim=1))
    if not found:
        return Estimate(math.nan, valid=0)
    accuracy, hits, total = min(found, key=lambda cluster: cluster[0])
    low, high = wilson_interval(torch.tensor(hits), torch.tensor(total))
    return Estimate(accuracy, float(low), float(high), float(drawn.mean()), total)


def error_association(numbers: Tensor, classes: Tensor, correct: Tensor) -> Estimate:
    """Smallest p-value of errors being more, or less, common in a cluster than in the rest of its class.

    Fisher's exact test, two-sided, corrected by Holm's method for all clusters; arguments are those of `worst_cluster`.
    NaN where that cannot be asked: each class has one cluster, no error, or nothing but errors. `valid` is the number
    of tests: of two clusters each is the rest of the other, which is one.
    """
    from scipy.stats import fisher_exact

    tests = []
    for members in _members(numbers, classes):
        sizes = [len(rows) for rows in members]
        wrong = [int((~correct[rows]).sum()) for rows in members]
        if len(members) < 2 or not 0 < sum(wrong) < sum(sizes):
            continue
        for errors, size in list(zip(wrong, sizes, strict=True))[: 1 if len(members) == 2 else None]:
            others, rest = sum(wrong) - errors, sum(sizes) - size
            tests.append(float(fisher_exact([[errors, size - errors], [others, rest - others]]).pvalue))
    # The smallest of Holm's corrected values is that of Bonferroni.
    return Estimate(min(1.0, min(tests) * len(tests)) if tests else math.nan, valid=len(tests))


def _members(numbers: Tensor, classes: Tensor) -> list[list[Tensor]]:
    """Rows of each cluster, class by class, in the order of their numbers; classes without a cluster are left out."""
    found = []
    for label in torch.unique(classes[(numbers >= 0) & (classes >= 0)]).tolist():
        own = torch.where(classes == label, numbers, -1)
        found.append([(own == number).nonzero()[:, 0] for number in torch.unique(own[own >= 0]).tolist()])
    return found
