"""Cues nobody named: kinds of heatmaps within each class, and how good the model is in each (SpRAy).

`spray` divides the heatmaps of each class into clusters and says of each what it looks like, how often the answer is
right, and where its relevance lies. `worst_cluster` is the lowest accuracy of all: the worst group, without group
labels. Source: Lapuschkin et al. 2019; graph, Laplacian and eigengap as in CoRelAy, see `spectral_clusters`.

What it can and cannot say:

- It shows where to look. A cluster is no cue: one thing that moves through the image is cut into several clusters, and
  things that lie in the same place share one.
- Whether errors go with a cluster is tested as if the heatmaps knew nothing of the answer. So they must all explain the
  label they are grouped by. Maps of the predicted class look different where another class was predicted: with such
  maps, errors went with clusters (p < 0.05) in 27 of 30 audits of small nets that had no cue to use, with maps of the
  label in 3. Grouping by the predicted class did not help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from xai_callbacks.errors import ConfigurationError, require_integer
from xai_callbacks.metrics.association import fisher_exact, holm
from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.metrics.localization import area_fraction, relevance, relevance_mass
from xai_callbacks.metrics.spectral import map_shares, spectral_clusters
from xai_callbacks.metrics.summary import Estimate

__all__ = ["ClassClusters", "Cluster", "RegionShare", "WorstCluster", "cluster_numbers", "spray", "worst_cluster"]

# Maps enlarged to the size of their images at a time.
_CHUNK = 16


class RegionShare(NamedTuple):
    """Where the relevance of a cluster lies, as means over its maps that have an answer.

    Attributes:
        mass: Share of the relevance in the region, in [0, 1]; NaN if no member has the region.
        lift: That share over the area of the region, in [0, inf); chance 1. NaN likewise.
        valid: Number of maps behind `mass`.
    """

    mass: float
    lift: float
    valid: int


@dataclass(frozen=True, eq=False)
class Cluster:
    """Maps of one class that look alike.

    Attributes:
        number: Its number within the class, from 0.
        members: Indices of its maps `(m,)` int64, ascending.
        examples: The members closest to the mean map, closest first, `(e,)` int64.
        mean_map: Mean of the members' positive relevance, as shares that sum to 1, float64 `(g, g')`.
        accuracy: Share of right answers with a Wilson interval; NaN without one if it is not known what is right.
        p: Whether errors are more, or less, common here than in the rest of the class: Fisher's exact test, two-sided,
            corrected by Holm's method for all clusters of the audit. NaN where that cannot be asked: the class has one
            cluster, no error, or nothing but errors, or its maps do not explain the label.
        regions: Where the relevance lies, by name of the region.
    """

    number: int
    members: Tensor
    examples: Tensor
    mean_map: Tensor
    accuracy: Estimate
    p: float
    regions: Mapping[str, RegionShare]


@dataclass(frozen=True, eq=False)
class ClassClusters:
    """The clusters of one class.

    Attributes:
        label: The class.
        clusters: Its clusters, the largest first.
        degenerate: Number of its maps that are empty or not finite, and in no cluster.
        eigenvalues: See `Clustering.eigenvalues`.
        eigengap: See `Clustering.eigengap`.
    """

    label: int
    clusters: tuple[Cluster, ...]
    degenerate: int
    eigenvalues: Tensor
    eigengap: float


class WorstCluster(NamedTuple):
    """The cluster with the lowest accuracy.

    Attributes:
        estimate: Its accuracy with a Wilson interval, which takes the cluster as given and not as picked for being
            worst; `valid` is its number of images, `degenerate` that of all images in no cluster. `chance` is what the
            lowest accuracy would be on average if clusters of these sizes were drawn at random within each class. Value
            NaN, no interval and no chance, if all clusters are too small.
        label: Its class; None if there is none.
        number: Its number within the class; None likewise.
        excluded: Number of clusters with fewer than `min_count` images.
        p: Share of random divisions whose lowest accuracy is as low, this one counted in; in (0, 1], NaN without a
            value. One test for all clusters: nothing is left to correct for.
    """

    estimate: Estimate
    label: int | None
    number: int | None
    excluded: int
    p: float


def spray(
    maps: Tensor,
    classes: Tensor,
    correct: Tensor | None = None,
    *,
    test_errors: bool = True,
    regions: Mapping[str, Tensor] | None = None,
    min_count: int = 10,
    examples: int = 6,
    neighbours: int = 10,
    most: int = 8,
    grid: int = 16,
    seed: int = 0,
) -> tuple[ClassClusters, ...]:
    """Divide the heatmaps of each class into clusters, and judge each cluster.

    Cost: see `spectral_clusters`, for each class; 320 maps of ten classes take a tenth of a second.

    Args:
        maps: Signed heatmaps `(n, h, w)`.
        classes: Class of each map, `(n,)` int64; -1 for none.
        correct: Whether the model was right, `(n,)` bool; None if that is not known.
        test_errors: Whether to test if errors go with clusters. Only for maps that explain the label and are grouped by
            it: see the module.
        regions: Masks of the images by name, `(n, H, W)` bool.
        min_count: Classes with fewer maps are left out.
        examples: Largest number of examples a cluster.
        neighbours: Links of each map, see `spectral_clusters`.
        most: Largest number of clusters of a class.
        grid: Largest height and width at which maps are compared.
        seed: Seed of k-means.

    Returns:
        Classes in ascending order.

    Raises:
        ConfigurationError: An argument is out of range, or shapes contradict each other.
    """
    _check(maps, classes, correct, regions or {})
    require_integer("min_count", min_count, minimum=1)
    require_integer("examples", examples, minimum=0)
    shares = _region_values(maps, regions or {})
    found = []
    for label in classes[classes >= 0].bincount().nonzero()[:, 0].tolist():
        rows = (classes == label).nonzero()[:, 0]
        if len(rows) < min_count:
            continue
        divided = spectral_clusters(maps[rows], neighbours=neighbours, most=most, grid=grid, seed=seed)
        cells = map_shares(maps[rows], grid)
        clusters = []
        for number in range(divided.count):
            inside = divided.assignments == number
            members = rows[inside]
            mean, order = _mean_and_order(cells[inside])
            where = {name: _region_share(values[:, members]) for name, values in shares.items()}
            accuracy = _accuracy(members, correct)
            clusters.append(Cluster(number, members, members[order[:examples]], mean, accuracy, math.nan, where))
        lost = int((divided.assignments < 0).sum())
        found.append(ClassClusters(label, tuple(clusters), lost, divided.eigenvalues, divided.eigengap))
    return tuple(found) if correct is None or not test_errors else _with_tests(found, correct)


def worst_cluster(
    found: Sequence[ClassClusters], correct: Tensor, *, min_count: int = 10, draws: int = 200, seed: int = 0
) -> WorstCluster:
    """Lowest accuracy of the clusters with at least `min_count` images; of equal ones the first.

    The lowest of several noisy accuracies is below the true one on average, the more clusters and the smaller, the
    lower: compare with `chance`, at which a model sits whose errors have nothing to do with the clusters.

    Args:
        found: Clusters, from `spray`.
        correct: Whether the model was right, `(n,)` bool, of the maps that were clustered.
        min_count: Fewest images of a cluster.
        draws: Random divisions for the level of chance.
        seed: Seed of the divisions. PyTorch's global random state is neither read nor advanced.
    """
    for name, value in (("min_count", min_count), ("draws", draws)):
        require_integer(name, value, minimum=1)
    cells = [(kind.label, cluster) for kind in found for cluster in kind.clusters]
    large = [(label, cluster) for label, cluster in cells if len(cluster.members) >= min_count]
    lost, excluded = sum(kind.degenerate for kind in found), len(cells) - len(large)
    if not large:
        return WorstCluster(Estimate(math.nan, None, None, None, 0, lost), None, None, excluded, math.nan)
    estimates = [_accuracy(cluster.members, correct) for _, cluster in large]
    place = min(range(len(large)), key=lambda index: estimates[index].value)
    worst = estimates[place]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([_lowest_drawn(kind, correct, min_count, draws, generator) for kind in found]).amin(dim=0)
    # The same divisions of whole numbers: equal shares are equal to the last bit.
    p = (1 + int((drawn <= worst.value).sum())) / (1 + draws)
    estimate = worst._replace(chance=float(drawn.mean()), degenerate=lost)
    return WorstCluster(estimate, large[place][0], large[place][1].number, excluded, p)


def cluster_numbers(found: Sequence[ClassClusters], count: int) -> Tensor:
    """Number of the cluster of each of `count` maps within its class, `(count,)` int64; -1 for maps in none."""
    numbers = torch.full((count,), -1)
    for kind in found:
        for cluster in kind.clusters:
            numbers[cluster.members] = cluster.number
    return numbers


def _mean_and_order(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of shares `(m, g, g')`, and their places by distance to it, `(m,)`."""
    mean = cells.mean(dim=0)
    return mean, (cells - mean).square().sum(dim=(1, 2)).argsort(stable=True)


def _accuracy(members: Tensor, correct: Tensor | None) -> Estimate:
    if correct is None:
        return Estimate(math.nan, None, None, None, 0, 0)
    right, total = correct[members].sum(), torch.tensor(len(members))
    low, high = wilson_interval(right, total)
    return Estimate(float(right.double() / total), float(low), float(high), None, len(members), 0)


def _with_tests(found: Sequence[ClassClusters], correct: Tensor) -> tuple[ClassClusters, ...]:
    # Of two clusters each is the rest of the other: one test, which is counted once.
    asked = [kind.clusters[: 1 if len(kind.clusters) == 2 else None] for kind in found]
    tests = [
        _association(kind.clusters, cluster, correct) for kind, few in zip(found, asked, strict=True) for cluster in few
    ]
    corrected = iter(holm(tests))
    judged = []
    for kind, few in zip(found, asked, strict=True):
        values = [next(corrected) for _ in few] * (2 if len(few) < len(kind.clusters) else 1)
        clusters = tuple(replace(cluster, p=p) for cluster, p in zip(kind.clusters, values, strict=True))
        judged.append(replace(kind, clusters=clusters))
    return tuple(judged)


def _association(clusters: Sequence[Cluster], cluster: Cluster, correct: Tensor) -> float:
    """p-value of the errors in a cluster against the rest of its class, before correction; NaN if there is none."""
    wrong = [int((~correct[other.members]).sum()) for other in clusters]
    total = sum(len(other.members) for other in clusters)
    if len(clusters) < 2 or not 0 < sum(wrong) < total:
        return math.nan
    return fisher_exact(wrong[cluster.number], len(cluster.members), sum(wrong), total)


def _lowest_drawn(
    kind: ClassClusters, correct: Tensor, min_count: int, draws: int, generator: torch.Generator
) -> Tensor:
    """Lowest accuracy in each random division of a class into its own sizes, `(draws,)`; inf if all are small."""
    sizes = [len(cluster.members) for cluster in kind.clusters]
    lowest = torch.full((draws,), math.inf, dtype=torch.float64)
    if not sizes:
        return lowest
    right = correct[torch.cat([cluster.members for cluster in kind.clusters])].double()
    order = torch.rand(draws, len(right), generator=generator, dtype=torch.float64).argsort(dim=1)
    for part, size in zip(torch.split(right[order], sizes, dim=1), sizes, strict=True):
        if size >= min_count:
            lowest = lowest.minimum(part.sum(dim=1) / size)
    return lowest


def _region_values(maps: Tensor, regions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mass and lift of each map in each region, `(2, n)` float64; NaN where there is none."""
    values = {name: torch.empty(2, len(maps), dtype=torch.float64) for name in regions}
    for start in range(0, len(maps), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        positive: dict[tuple[int, int], Tensor] = {}  # the same for masks of one size, which most are
        for name, mask in regions.items():
            size = (mask.shape[1], mask.shape[2])
            if size not in positive:
                positive[size] = relevance(maps[chunk].detach().cpu(), size)
            mass, area = relevance_mass(positive[size], mask[chunk]), area_fraction(mask[chunk])
            values[name][0, chunk] = mass
            values[name][1, chunk] = torch.where(area < 1, mass / area, torch.nan)
    return values


def _region_share(values: Tensor) -> RegionShare:
    mass, lift = values.nanmean(dim=1).tolist()
    return RegionShare(mass, lift, int((~values[0].isnan()).sum()))


def _check(maps: Tensor, classes: Tensor, correct: Tensor | None, regions: Mapping[str, Tensor]) -> None:
    count = (len(maps),)
    if classes.dtype != torch.long or classes.shape != count:
        raise ConfigurationError(
            f"Expected `classes` to be int64 {count}, one a map, but got {classes.dtype} {tuple(classes.shape)}."
        )
    if correct is not None and (correct.dtype != torch.bool or correct.shape != count):
        raise ConfigurationError(
            f"Expected `correct` to be bool {count}, one a map, but got {correct.dtype} {tuple(correct.shape)}."
        )
    for name, mask in regions.items():
        if mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != len(maps):
            raise ConfigurationError(
                f"Expected `regions[{name!r}]` to be bool ({len(maps)}, H, W), one mask a map, but got {mask.dtype} "
                f"{tuple(mask.shape)}."
            )
