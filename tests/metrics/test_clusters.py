"""Clusters and what is said of them: values by hand, scipy, and models whose use of a cue is known."""

from __future__ import annotations

import math

import pytest
import torch
from decoy_digits import make_splits
from scipy import stats
from torch.testing import assert_close

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.association import holm
from xai_callbacks.metrics.clusters import ClassClusters, cluster_numbers, spray, worst_cluster
from xai_callbacks.metrics.groups import wilson_interval
from xai_callbacks.metrics.localization import relevance, relevance_lift, relevance_mass
from xai_callbacks.metrics.spectral import adjusted_rand_index, map_shares, spectral_clusters


def two_kinds(sizes: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Maps (n, 8, 8): the first kind has its relevance above, the second below."""
    generator = torch.Generator().manual_seed(seed)
    maps = 0.2 * torch.rand(sum(sizes), 8, 8, generator=generator)
    maps[: sizes[0], 0:3, 2:5] += 1.0
    maps[sizes[0] :, 5:8, 2:5] += 1.0
    return maps


def right(*parts: tuple[int, int]) -> torch.Tensor:
    """For each (total, correct): that many images, the correct ones first."""
    return torch.cat([torch.arange(total) < correct for total, correct in parts])


def classes(*sizes: int) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class 0: 30 and 20 of a kind, errors in the second; class 1: one kind of 24."""
    maps = torch.cat([two_kinds((30, 20)), two_kinds((24, 0), seed=1)])
    return maps, classes(50, 24), right((30, 28), (20, 8), (24, 20))


# ---- spray


def test_each_class_is_divided_on_its_own():
    maps, labels, correct = example()
    shuffled = torch.randperm(74, generator=torch.Generator().manual_seed(2))
    found = spray(maps[shuffled], labels[shuffled], correct[shuffled])
    assert [kind.label for kind in found] == [0, 1]
    assert [[len(cluster.members) for cluster in kind.clusters] for kind in found] == [[30, 20], [24]]
    kinds = [{int(shuffled[row]) for row in cluster.members} for kind in found for cluster in kind.clusters]
    assert kinds == [set(range(30)), set(range(30, 50)), set(range(50, 74))]
    for kind in found:
        alone = spectral_clusters(maps[labels == kind.label])
        assert_close(kind.eigenvalues, alone.eigenvalues)
        assert kind.eigengap == pytest.approx(alone.eigengap)


def test_accuracies_and_tests_are_those_by_hand():
    found = spray(*example())
    clusters = [cluster for kind in found for cluster in kind.clusters]
    assert [cluster.accuracy.value for cluster in clusters] == [28 / 30, 8 / 20, 20 / 24]
    low, high = wilson_interval(torch.tensor([28, 8, 20]), torch.tensor([30, 20, 24]))
    assert [cluster.accuracy.low for cluster in clusters] == pytest.approx(low.tolist())
    assert [cluster.accuracy.high for cluster in clusters] == pytest.approx(high.tolist())
    assert [cluster.accuracy.valid for cluster in clusters] == [30, 20, 24]
    # Each of two clusters is the rest of the other: one test. The third has nothing to be held against.
    expected = stats.fisher_exact([[2, 28], [12, 8]]).pvalue
    assert [cluster.p for cluster in clusters[:2]] == pytest.approx([expected, expected])
    assert math.isnan(clusters[2].p)


def test_tests_are_corrected_over_all_clusters_of_all_classes():
    one, three = two_kinds((30, 20)), torch.cat([two_kinds((30, 20)), two_kinds((25, 0)).transpose(1, 2)])
    correct = right((30, 28), (20, 12), (30, 27), (20, 9), (25, 20))
    found = spray(torch.cat([one, three]), classes(50, 75), correct)
    assert [len(kind.clusters) for kind in found] == [2, 3]
    p_values = [stats.fisher_exact([[2, 28], [8, 12]]).pvalue]
    for total, wrong in ((30, 3), (25, 5), (20, 11)):  # by size
        rest = [[wrong, total - wrong], [19 - wrong, 75 - total - (19 - wrong)]]
        p_values.append(stats.fisher_exact(rest).pvalue)
    first, *others = holm(p_values)
    got = [cluster.p for kind in found for cluster in kind.clusters]
    assert got == pytest.approx([first, first, *others])


@pytest.mark.parametrize("correct", [right((50, 50), (24, 20)), right((50, 0), (24, 20))])
def test_a_class_without_errors_or_with_nothing_else_is_not_tested(correct: torch.Tensor):
    maps, labels, _ = example()
    found = spray(maps, labels, correct)
    assert all(math.isnan(cluster.p) for kind in found for cluster in kind.clusters)


def test_without_knowing_what_is_right_there_is_no_accuracy_and_no_test():
    maps, labels, correct = example()
    unknown, untested = spray(maps, labels), spray(maps, labels, correct, test_errors=False)
    for one, other in zip(unknown, untested, strict=True):
        for cluster, known in zip(one.clusters, other.clusters, strict=True):
            assert torch.equal(cluster.members, known.members)
            assert math.isnan(cluster.accuracy.value)
            assert cluster.accuracy[1:] == (None, None, None, 0, 0)
            assert known.accuracy.valid == len(known.members)
            assert math.isnan(cluster.p)
            assert math.isnan(known.p)


def test_the_mean_map_and_the_examples_are_those_of_the_members():
    maps, labels, correct = example()
    cluster = spray(maps, labels, correct, examples=4)[0].clusters[1]
    shares = map_shares(maps[cluster.members])
    assert_close(cluster.mean_map, shares.mean(dim=0))
    assert float(cluster.mean_map.sum()) == pytest.approx(1)
    distance = torch.linalg.vector_norm((shares - cluster.mean_map).flatten(1), dim=1)
    assert torch.equal(cluster.examples, cluster.members[distance.argsort()[:4]])
    assert len(spray(maps, labels, examples=100)[0].clusters[1].examples) == 20
    assert len(spray(maps, labels, examples=0)[0].clusters[1].examples) == 0


def test_relevance_in_a_region_is_the_mean_over_the_members_that_have_it():
    maps, labels, _ = example()
    mask = torch.zeros(74, 32, 32, dtype=torch.bool)
    mask[:, 20:, 8:20] = True
    mask[5:40] = False  # no such region
    nowhere, everywhere = torch.zeros_like(mask), torch.ones_like(mask)
    found = spray(maps, labels, regions={"cue": mask, "none": nowhere, "all": everywhere})
    large = relevance(maps, (32, 32))
    for cluster in (cluster for kind in found for cluster in kind.clusters):
        share = cluster.regions["cue"]
        assert share.mass == pytest.approx(float(relevance_mass(large, mask)[cluster.members].nanmean()))
        assert share.lift == pytest.approx(float(relevance_lift(large, mask)[cluster.members].nanmean()))
        assert share.valid == int(mask[cluster.members].any(dim=(1, 2)).sum())
        assert math.isnan(cluster.regions["none"].mass)
        assert cluster.regions["none"].valid == 0
        assert cluster.regions["all"].mass == 1
        assert math.isnan(cluster.regions["all"].lift)
    above, below = (cluster.regions["cue"].lift for cluster in found[0].clusters)
    assert above < 1
    assert below > 3


def test_small_classes_and_maps_of_no_class_are_left_out():
    labels = torch.cat([classes(9, 10), torch.full((20,), -1)])
    assert [kind.label for kind in spray(torch.rand(39, 6, 6), labels)] == [1]
    assert [kind.label for kind in spray(torch.rand(39, 6, 6), labels, min_count=9)] == [0, 1]
    assert spray(torch.rand(39, 6, 6), labels, min_count=11) == ()
    assert spray(torch.rand(0, 6, 6), labels[:0]) == ()


def test_maps_without_an_answer_are_counted_and_in_no_cluster():
    maps, labels, correct = example()
    maps[3], maps[60], maps[61] = 0.0, float("nan"), -1.0
    found = spray(maps, labels, correct)
    assert [kind.degenerate for kind in found] == [1, 2]
    numbers = cluster_numbers(found, 74)
    assert (numbers < 0).nonzero()[:, 0].tolist() == [3, 60, 61]
    assert torch.equal(numbers.clamp(min=0), torch.tensor([0] * 30 + [1] * 20 + [0] * 24))
    assert found[1].clusters[0].accuracy.valid == 22


def test_a_class_without_any_usable_map_has_no_cluster():
    found = spray(torch.zeros(12, 4, 4), classes(12), right((12, 3)))
    assert found[0].clusters == ()
    assert found[0].degenerate == 12
    worst = worst_cluster(found, right((12, 3)))
    assert math.isnan(worst.estimate.value)
    assert worst.estimate.degenerate == 12


# ---- the worst cluster


def test_the_worst_cluster_is_the_one_by_hand():
    found = spray(*example())
    worst = worst_cluster(found, example()[2])
    low, high = wilson_interval(torch.tensor(8), torch.tensor(20))
    assert worst.estimate.value == 8 / 20
    assert (worst.estimate.low, worst.estimate.high) == pytest.approx((float(low), float(high)))
    assert (worst.label, worst.number, worst.excluded, worst.estimate.valid) == (0, 1, 0, 20)
    assert worst.p == 1 / 201  # none of the divisions drawn is as bad


def test_chance_is_the_mean_lowest_accuracy_of_random_clusters_of_these_sizes():
    maps, labels, correct = example()
    worst = worst_cluster(spray(maps, labels, correct), correct, draws=4000)
    generator = torch.Generator().manual_seed(9)
    lowest = []
    for _ in range(4000):
        drawn = correct[:50][torch.randperm(50, generator=generator)].double()
        lowest.append(min(float(drawn[:30].mean()), float(drawn[30:].mean()), 20 / 24))
    mean = torch.tensor(lowest).double()
    assert worst.estimate.chance is not None
    assert worst.estimate.chance == pytest.approx(float(mean.mean()), abs=4 * float(mean.std()) * math.sqrt(2 / 4000))
    assert worst.estimate.chance < 36 / 50  # a minimum of noise lies below what it is a minimum of


def test_errors_that_have_nothing_to_do_with_the_clusters_sit_at_chance():
    maps = torch.cat([two_kinds((30, 30), seed) for seed in range(4)])
    found = spray(maps, classes(60, 60, 60, 60))
    gaps, p_values = [], []
    for seed in range(100):
        correct = torch.rand(240, generator=torch.Generator().manual_seed(seed)) < 0.8
        worst = worst_cluster(found, correct, draws=100)
        assert worst.estimate.chance is not None
        gaps.append(worst.estimate.value - worst.estimate.chance)
        p_values.append(worst.p)
    gap = torch.tensor(gaps)
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / math.sqrt(100)
    # p is valid: at most 5 % of such models have 0.05 or less, here within three standard errors.
    assert sum(p <= 0.05 for p in p_values) / 100 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


def test_one_cluster_a_class_leaves_nothing_to_chance():
    maps, labels = torch.cat([two_kinds((20, 0)), two_kinds((30, 0), 1)]), classes(20, 30)
    correct = right((20, 15), (30, 29))
    worst = worst_cluster(spray(maps, labels), correct)
    assert worst.estimate.value == worst.estimate.chance == 15 / 20
    assert worst.p == 1


def test_small_clusters_are_excluded_and_counted():
    found = spray(*example())
    worst = worst_cluster(found, example()[2], min_count=24)
    assert (worst.label, worst.number, worst.excluded) == (1, 0, 1)
    none = worst_cluster(found, example()[2], min_count=31)
    assert math.isnan(none.estimate.value)
    assert none.estimate[1:] == (None, None, None, 0, 0)
    assert (none.label, none.number, none.excluded) == (None, None, 3)
    assert math.isnan(none.p)
    assert worst_cluster((), torch.empty(0, dtype=torch.bool)).excluded == 0


def test_equal_seeds_give_equal_numbers_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    maps, labels, correct = example()
    one, other = (worst_cluster(spray(maps, labels, correct, seed=4), correct, seed=4) for _ in range(2))
    assert one == other
    assert one != worst_cluster(spray(maps, labels, correct), correct, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


# ---- a cue that nobody named


def cue_maps(uses: torch.Tensor, patch: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Maps (n, 8, 8) of a made-up model: half of the relevance on the patch where it uses it, else all on the digit."""
    generator = torch.Generator().manual_seed(0)
    masses = [mask / mask.sum(dim=(1, 2), keepdim=True).clamp(min=1) for mask in (patch.double(), core.double())]
    large = torch.where(uses[:, None, None], (masses[0] + masses[1]) / 2, masses[1])
    small = torch.nn.functional.avg_pool2d(large[:, None], 4)[:, 0]
    return (small / small.amax(dim=(1, 2), keepdim=True) + 0.1 * torch.rand(small.shape, generator=generator)).float()


@pytest.fixture(scope="module")
def cue_users() -> tuple[tuple[ClassClusters, ...], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits with a patch in one place: the model uses it in half of them, and is right in a third of those only."""
    digits = make_splits(0.5, train_images=10, held_out=600)[1]
    generator = torch.Generator().manual_seed(0)
    uses = torch.rand(600, generator=generator) < 0.5
    patch = torch.zeros(600, 32, 32, dtype=torch.bool)
    patch[:, 1:7, 1:7] = True
    correct = torch.rand(600, generator=generator) < torch.where(uses, 0.3, 0.95)
    maps = cue_maps(uses, patch, digits.core)
    return spray(maps, digits.labels, correct, regions={"patch": patch}), uses, correct, digits.labels


def test_clusters_separate_the_images_in_which_a_cue_is_used(cue_users):
    found, uses, _, labels = cue_users
    numbers = cluster_numbers(found, 600)
    # Digits of one class are written in several ways, so there are more than two clusters; but each is of one kind.
    for kind in found:
        for cluster in kind.clusters:
            used = float(uses[cluster.members].double().mean())
            assert used > 0.9 or used < 0.1
            assert (cluster.regions["patch"].lift > 3) == (used > 0.5)
    agreement = [adjusted_rand_index(numbers[labels == kind.label], uses[labels == kind.label]) for kind in found]
    assert sum(agreement) / 10 > 0.7


def test_the_worst_cluster_uses_the_cue_and_is_worse_than_chance(cue_users):
    found, uses, correct, _ = cue_users
    worst = worst_cluster(found, correct)
    (members,) = (
        cluster.members
        for kind in found
        for cluster in kind.clusters
        if (kind.label, cluster.number) == (worst.label, worst.number)
    )
    assert float(uses[members].double().mean()) > 0.9
    assert worst.estimate.chance is not None
    assert worst.estimate.value < worst.estimate.chance - 0.1
    assert worst.p < 0.01
    assert min(cluster.p for kind in found for cluster in kind.clusters) < 1e-4


def test_errors_that_know_nothing_of_the_cue_go_with_no_cluster(cue_users):
    _, uses, _, labels = cue_users
    digits = make_splits(0.5, train_images=10, held_out=600)[1]
    correct = torch.rand(600, generator=torch.Generator().manual_seed(1)) < 0.7
    found = spray(cue_maps(uses, digits.spurious, digits.core), labels, correct)
    tested = [cluster.p for kind in found for cluster in kind.clusters if not math.isnan(cluster.p)]
    assert len(tested) > 10
    assert min(tested) > 0.05
    assert worst_cluster(found, correct).p > 0.05


# ---- arguments


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: spray(torch.rand(4, 3, 3), torch.zeros(4)), r"`classes` to be int64 \(4,\)"),
        (lambda: spray(torch.rand(4, 3, 3), torch.zeros(3).long()), "`classes` to be int64"),
        (lambda: spray(torch.rand(4, 3, 3), classes(4), torch.ones(4)), r"`correct` to be bool \(4,\)"),
        (lambda: spray(torch.rand(20, 3), classes(20)), "`maps` to be floating point"),
        (
            lambda: spray(torch.rand(4, 3, 3), classes(4), regions={"sky": torch.zeros(4, 9, 9)}),
            r"`regions\['sky'\]` to be bool \(4, H, W\)",
        ),
        (
            lambda: spray(torch.rand(4, 3, 3), classes(4), regions={"sky": torch.zeros(3, 9, 9).bool()}),
            "one mask a map",
        ),
        (lambda: spray(torch.rand(4, 3, 3), classes(4), min_count=0), "`min_count` to be an integer"),
        (lambda: worst_cluster((), torch.ones(0).bool(), draws=0), "`draws` to be an integer"),
    ],
)
def test_bad_arguments_are_refused(call, match: str):
    with pytest.raises(ConfigurationError, match=match):
        call()
