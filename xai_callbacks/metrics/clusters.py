"""Cues nobody named: kinds of heatmaps within each class, and how good the model is in each (SpRAy).

Source: Lapuschkin et al. 2019; graph, Laplacian and eigengap as in CoRelAy, see `spectral_clusters`. Kinds of maps are
numbers `(n,)` int64 within each class `(n,)` int64; -1 stands for maps in none.

What they can and cannot say:

- They show where to look. A cluster is no cue: one thing that moves through the image is cut into several clusters, and
  things that lie in the same place share one.
- Whether errors go with a cluster is tested as if the heatmaps knew nothing of the answer. So they must all explain the
  label they are grouped by. With maps of the predicted class, errors went with clusters (p < 0.05) in 27 of 30 audits
  of small nets that had no cue to use, with maps of the label in 3. Grouping by the predicted class did not help.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.metrics.spectral import spectral_clusters
from xai_callbacks.metrics.summary import Estimate

__all__ = ["error_association", "large_classes", "map_clusters", "match_clusters", "worst_cluster"]


def map_clusters(maps: Tensor, classes: Tensor, *, min_count: int = 10, seed: int = 0) -> Tensor:
    """Divide the heatmaps of each class into clusters, numbered from 0, the largest first: see `spectral_clusters`.

    Args:
        maps: Signed heatmaps `(n, h, w)`.
        classes: Class of each map, `(n,)` int64; -1 for none.
        min_count: Classes with fewer maps are left out.
        seed: Seed of k-means.

    Raises:
        ConfigurationError: An argument is out of range, or shapes contradict each other.
    """
    require_integer("min_count", min_count, minimum=1)
    if classes.dtype != torch.long or classes.shape != (len(maps),):
        raise ConfigurationError(
            f"Expected `classes` to be int64 ({len(maps)},), one a map, but got {classes.dtype} {tuple(classes.shape)}."
        )
    numbers = torch.full((len(maps),), -1)
    for label in large_classes(classes, min_count):
        rows = (classes == label).nonzero()[:, 0]
        numbers[rows] = spectral_clusters(maps[rows], seed=seed)
    return numbers


def large_classes(classes: Tensor, min_count: int = 10) -> list[int]:
    """Classes of at least `min_count` maps, ascending."""
    found: list[int] = (classes[classes >= 0].bincount() >= min_count).nonzero()[:, 0].tolist()
    return found


def worst_cluster(
    numbers: Tensor, classes: Tensor, correct: Tensor, *, min_count: int = 10, draws: int = 200, seed: int = 0
) -> Estimate:
    """Lowest accuracy of the clusters with at least `min_count` images: the worst group, without group labels.

    The lowest of several noisy accuracies is below the true one on average: compare with `chance`, at which a model
    sits whose errors have nothing to do with the clusters.

    Args:
        numbers: Cluster of each map within its class.
        classes: Class of each map.
        correct: Whether the model was right, `(n,)` bool.
        min_count: Fewest images of a cluster.
        draws: Random divisions for the level of chance.
        seed: Seed of the divisions. PyTorch's global random state is neither read nor advanced.

    Returns:
        Accuracy with a Wilson interval, which takes the cluster as given and not as picked for being worst; `valid` is
        its number of images. `chance` is the mean lowest accuracy of clusters of these sizes drawn at random within
        each class. Value NaN, no interval and no chance, if all clusters are too small.
    """
    for name, value in (("min_count", min_count), ("draws", draws)):
        require_integer(name, value, minimum=1)
    generator = torch.Generator().manual_seed(seed)
    worst: tuple[float, int, int] = (math.inf, 0, 0)
    drawn = torch.full((draws,), math.inf, dtype=torch.float64)
    for members in _members(numbers, classes):
        right = correct[torch.cat(members)].double()
        order = torch.rand(draws, len(right), generator=generator, dtype=torch.float64).argsort(dim=1)
        parts = torch.split(right[order], [len(rows) for rows in members], dim=1)
        for rows, part in zip(members, parts, strict=True):
            if (size := len(rows)) >= min_count:
                right_here = int(correct[rows].sum())
                worst = min(worst, (right_here / size, right_here, size), key=lambda found: found[0])
                drawn = drawn.minimum(part.sum(dim=1) / size)
    accuracy, hits, total = worst
    if not total:
        return Estimate(math.nan, valid=0)
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


def match_clusters(before: Tensor, after: Tensor, *, fresh: int) -> Tensor:
    """Give the clusters of `after` the numbers of those of `before` that they grew out of, `(n,)` int64.

    Clusters are matched one to one so that the shares of their unions that they have in common add up to the most; a
    pair must share no fewer members than two clusters drawn independently would. Of a cluster that splits, the larger
    part keeps the number and the others get new ones.

    Args:
        before: Cluster of each probe at the earlier audit, `(n,)` int64; -1 for none.
        after: The same probes at the later audit.
        fresh: First number for clusters without a forerunner.
    """
    from scipy.optimize import linear_sum_assignment

    if before.shape != after.shape or before.ndim != 1 or before.dtype != torch.long or after.dtype != torch.long:
        raise ConfigurationError(
            f"Expected `before` and `after` to be int64 (n,) of one length, but got {before.dtype} "
            f"{tuple(before.shape)} and {after.dtype} {tuple(after.shape)}. Cluster the same probes."
        )
    old, new = (torch.unique(numbers[numbers >= 0]) for numbers in (before, after))
    inside = (before == old[:, None]).double() @ (after == new[:, None]).double().T
    sizes, later = (before == old[:, None]).sum(dim=1), (after == new[:, None]).sum(dim=1)
    overlap = inside / (sizes[:, None] + later - inside)
    # Whole numbers, so that one cluster of all matches one cluster of all.
    alien = inside * inside.sum() < inside.sum(dim=1, keepdim=True) * inside.sum(dim=0)
    overlap = torch.where(alien, 0.0, overlap)
    pairs = zip(*linear_sum_assignment(overlap.numpy(), maximize=True), strict=True)
    names = {int(column): int(old[row]) for row, column in pairs if overlap[row, column] > 0}
    following = itertools.count(fresh)
    numbered = after.clone()
    for column, number in enumerate(new.tolist()):
        numbered[after == number] = names[column] if column in names else next(following)
    return numbered


def _members(numbers: Tensor, classes: Tensor) -> list[list[Tensor]]:
    """Rows of each cluster, class by class, in the order of their numbers; classes without a cluster are left out."""
    found = []
    for label in torch.unique(classes[(numbers >= 0) & (classes >= 0)]).tolist():
        own = torch.where(classes == label, numbers, -1)
        found.append([(own == number).nonzero()[:, 0] for number in torch.unique(own[own >= 0]).tolist()])
    return found
