"""Cues nobody named: kinds of heatmaps within each class, and how good the model is in each.

The idea is that of SpRAy (Lapuschkin et al. 2019): what a class is told by in one part of its images only shows as a
kind of heatmaps. Kinds are found by density (HDBSCAN, Campello et al. 2013) and not by the widest gap of a spectrum,
which cuts one smooth kind of heatmaps into three to seven. About ten maps of one kind are needed. A kind is no cue: one
thing in two places makes two, and things in the same place share one.

Whether errors go with a cluster is tested as if the heatmaps knew nothing of the answer, so they must all explain the
label they are grouped by: maps of the predicted class differ where the answer is wrong. How often errors go with a
cluster in nets without a cue is measured by `scripts/studies/unnamed_cues.py`.

Clusters are numbers `(n,)` int64 within each class `(n,)` int64; -1 stands for maps in none.
"""

import math

import torch
from torch import Tensor

from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.metrics.trust import coarse
from xai_callbacks.record import Estimate

_FEWEST, _DENSE = 10, 5  # fewest maps of a kind, and of them those that make a place dense
_COMPONENTS = 3  # principal components by which maps are compared: more of them hold noise
_EPS = torch.finfo(torch.float32).eps  # below the rounding error of the maps themselves, which are float32


def map_clusters(maps: Tensor, classes: Tensor, *, min_count: int = 10) -> Tensor:
    """Divide the heatmaps of each class of at least `min_count` into clusters, see `density_clusters`."""
    numbers = torch.full((len(maps),), -1)
    for label in large_classes(classes, min_count):
        rows = (classes == label).nonzero()[:, 0]
        numbers[rows] = density_clusters(maps[rows])
    return numbers


def large_classes(classes: Tensor, min_count: int = 10) -> list[int]:
    """Classes of at least `min_count` maps, ascending."""
    found: list[int] = (classes[classes >= 0].bincount() >= min_count).nonzero()[:, 0].tolist()
    return found


def density_clusters(maps: Tensor) -> Tensor:
    """Divide the heatmaps of one class into kinds: numbers `(n,)` int64 from 0, the largest kind first.

    Positive relevance as shares of its sum; its three largest principal components; HDBSCAN with at least ten maps a
    kind. Maps that change steadily, along a line or over the whole image, are one kind, for no place between them is
    empty. Maps that HDBSCAN takes for outliers join the kind of the map nearest to them. The order of the maps does
    not matter.

    Args:
        maps: Signed `(n, h, w)`. Those that are empty or not finite are in no cluster, -1.
    """
    shares = _shares(maps)
    usable = (~shares[:, 0].isnan()).nonzero()[:, 0]
    numbers = torch.full((len(maps),), -1)
    if len(usable) < 2 * _FEWEST:
        return numbers.index_fill(0, usable, 0)
    # In an order that hangs on the maps alone, so that ties do not hang on theirs.
    order = usable[sorted(range(len(usable)), key=lambda place: shares[usable[place]].numpy().tobytes())]
    points = shares[order]
    left, scale, _ = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    numbers[order] = _by_size(_dense(left[:, :_COMPONENTS] * scale[:_COMPONENTS]))
    return numbers


def _dense(points: Tensor) -> Tensor:
    """Cluster of each point by HDBSCAN; outliers are in that of the nearest point that has one."""
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(_FEWEST, min_samples=_DENSE, allow_single_cluster=True, copy=True).fit(points.numpy()).labels_
    labels = torch.from_numpy(found).long()
    inside = labels >= 0
    if not inside.any():
        return torch.zeros_like(labels)
    nearest = torch.cdist(points, points[inside], compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    return torch.where(inside, labels, labels[inside][nearest])


def _by_size(found: Tensor) -> Tensor:
    """Numbers from 0 of the largest cluster on; of equal ones that of the first point first."""
    parts = [(found == cluster).nonzero()[:, 0] for cluster in torch.unique(found)]
    numbers = torch.empty_like(found)
    for number, members in enumerate(sorted(parts, key=lambda rows: (-len(rows), int(rows[0])))):
        numbers[members] = number
    return numbers


def _shares(maps: Tensor) -> Tensor:
    """Positive relevance of maps by cell, as shares of its sum, `(n, cells)` float64.

    NaN for maps that are not finite or whose relevance is below the rounding error of the largest among them.
    """
    maps = maps.detach().to("cpu", torch.float64)
    cells = coarse(maps.clamp(min=0)).flatten(1)
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


def error_association(
    numbers: Tensor, classes: Tensor, correct: Tensor, *, draws: int = 999, seed: int = 0
) -> Estimate:
    """p-value of errors being more, or less, common in any cluster than in the rest of its class.

    The smallest p-value of Fisher's exact test, two-sided, over all clusters, against the smallest ones after errors
    were permuted within each class (Westfall and Young 1993): neither classes of different difficulty nor the number
    of clusters make it small, and it is never below 1 / (draws + 1). NaN where that cannot be asked: each class has
    one cluster, no error, or nothing but errors. `valid` is the number of tests: of two clusters each is the rest of
    the other, which is one. Arguments are those of `worst_cluster`.
    """
    from scipy.stats import hypergeom

    generator = torch.Generator().manual_seed(seed)
    smallest = torch.full((draws + 1,), math.inf, dtype=torch.float64)
    tests = 0
    for members in _members(numbers, classes):
        sizes = [len(rows) for rows in members]
        wrong = (~correct[torch.cat(members)]).long()
        total, errors = len(wrong), int(wrong.sum())
        if len(members) < 2 or not 0 < errors < total:
            continue
        order = torch.rand(draws, total, generator=generator, dtype=torch.float64).argsort(dim=1)
        parts = torch.split(torch.cat([wrong[None], wrong[order]]), sizes, dim=1)
        for size, part in list(zip(sizes, parts, strict=True))[: 1 if len(members) == 2 else None]:
            density = torch.from_numpy(hypergeom(total, errors, size).pmf(range(size + 1)))
            # Two-sided as Fisher's: all counts of errors that are as unlikely, but for rounding.
            p_values = density.where(density <= density[:, None] * (1 + 1e-7), 0.0).sum(dim=1)
            smallest = smallest.minimum(p_values[part.sum(dim=1)])
            tests += 1
    return Estimate(float((smallest <= smallest[0] * (1 + 1e-7)).double().mean()) if tests else math.nan, valid=tests)


def _members(numbers: Tensor, classes: Tensor) -> list[list[Tensor]]:
    """Rows of each cluster, class by class, in the order of their numbers; classes without a cluster are left out."""
    found = []
    for label in torch.unique(classes[(numbers >= 0) & (classes >= 0)]).tolist():
        own = torch.where(classes == label, numbers, -1)
        found.append([(own == number).nonzero()[:, 0] for number in torch.unique(own[own >= 0]).tolist()])
    return found
