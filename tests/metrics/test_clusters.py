"""Clusters and what is said of them: values by hand, scipy, and models whose use of a cue is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from xai_callbacks.demo.digits import make_splits
from xai_callbacks.metrics.clusters import density_clusters, error_association, map_clusters, worst_cluster
from xai_callbacks.metrics.groups import wilson_interval


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


# ---- kinds


def test_each_class_is_divided_on_its_own():
    maps, labels, _ = example()
    shuffled = torch.randperm(74, generator=torch.Generator().manual_seed(2))
    numbers = map_clusters(maps[shuffled], labels[shuffled])
    assert numbers[shuffled.argsort()].tolist() == [0] * 30 + [1] * 20 + [0] * 24
    alone = density_clusters(maps[:50][shuffled[shuffled < 50]])
    assert torch.equal(numbers[labels[shuffled] == 0], alone)


def test_small_classes_maps_of_no_class_and_maps_without_an_answer_are_in_no_cluster():
    labels = torch.cat([classes(9, 10), torch.full((20,), -1)])
    numbers = map_clusters(torch.rand(39, 6, 6), labels)
    assert (numbers >= 0).tolist() == [False] * 9 + [True] * 10 + [False] * 20
    assert bool((map_clusters(torch.rand(39, 6, 6), labels, min_count=9)[:19] >= 0).all())
    maps, labels, _ = example()
    maps[3], maps[60], maps[61] = 0.0, float("nan"), -1.0
    assert (map_clusters(maps, labels) < 0).nonzero()[:, 0].tolist() == [3, 60, 61]
    assert map_clusters(torch.rand(0, 6, 6), labels[:0]).tolist() == []


# ---- errors


@pytest.mark.parametrize("sizes", [((30, 4), (20, 7)), ((25, 2), (25, 3)), ((40, 0), (15, 4))])
def test_the_p_of_one_test_is_that_of_fisher(sizes: tuple[tuple[int, int], ...]):
    correct = right(*((total, total - wrong) for total, wrong in sizes))
    numbers = classes(*(total for total, _ in sizes))
    table = [[wrong, total - wrong] for total, wrong in sizes]
    found = error_association(numbers, torch.zeros_like(numbers), correct, draws=4000)
    # Four standard errors of a share of 4,000 draws.
    assert found.value == pytest.approx(stats.fisher_exact(table).pvalue, abs=4 * 0.5 / math.sqrt(4000))
    assert found.valid == 1


def test_of_several_clusters_and_classes_the_smallest_p_of_fisher_is_held_against_permuted_ones():
    numbers = torch.cat([classes(30, 20), classes(30, 25, 20), classes(24)])
    labels = classes(50, 75, 24)
    correct = right((30, 27), (20, 14), (30, 27), (25, 20), (20, 15), (24, 20))

    def smallest(correct: torch.Tensor) -> tuple[float, int]:
        p_values = []
        for label, clusters in ((0, [0]), (1, [0, 1, 2])):
            for cluster in clusters:
                inside, outside = (
                    correct[(labels == label) & ((numbers == cluster) == where)] for where in (True, False)
                )
                table = [[int((~part).sum()), int(part.sum())] for part in (inside, outside)]
                p_values.append(float(stats.fisher_exact(table).pvalue))
        return min(p_values), len(p_values)

    observed, tests = smallest(correct)
    generator = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(400):
        order = torch.cat([torch.randperm(50, generator=generator), 50 + torch.randperm(75, generator=generator)])
        drawn.append(smallest(correct[torch.cat([order, torch.arange(125, 149)])])[0])
    expected = sum(value <= observed * (1 + 1e-7) for value in drawn) / 400
    found = error_association(numbers, labels, correct, draws=4000)
    assert 0.05 < expected < 0.95  # so that the comparison can fail
    assert found.value == pytest.approx(expected, abs=4 * 0.5 * math.sqrt(1 / 400 + 1 / 4000))
    # Each of two clusters is the rest of the other: one test. A lone cluster has nothing to be held against.
    assert found.valid == tests == 4


def test_five_percent_are_five_percent_where_classes_differ_in_difficulty():
    numbers, labels = torch.cat([classes(40, 20)] * 4), classes(60, 60, 60, 60)
    generator = torch.Generator().manual_seed(0)
    known = torch.tensor([0.95, 0.8, 0.6, 0.3])[labels]
    p_values = [
        error_association(numbers, labels, torch.rand(240, generator=generator) < known, draws=199).value
        for _ in range(400)
    ]
    share = sum(value <= 0.05 for value in p_values) / 400
    assert 0.015 < share < 0.085


@pytest.mark.parametrize("share", [0, 1])
def test_a_class_without_errors_or_with_nothing_else_is_not_tested(share: int):
    found = error_association(classes(30, 20), classes(50), right((50, 50 * share)))
    assert math.isnan(found.value)
    assert found.valid == 0


# ---- the worst cluster


def clustered() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    maps, labels, correct = example()
    return map_clusters(maps, labels), labels, correct


def test_the_worst_cluster_is_the_one_by_hand():
    worst = worst_cluster(*clustered())
    low, high = wilson_interval(torch.tensor(8), torch.tensor(20))
    assert worst[:3] == pytest.approx((8 / 20, float(low), float(high)))
    assert (worst.valid, worst.degenerate) == (20, 0)


def test_small_clusters_are_excluded():
    assert worst_cluster(*clustered(), min_count=24)[:1] == (20 / 24,)
    none = worst_cluster(*clustered(), min_count=31)
    assert math.isnan(none.value)
    assert none[1:] == (None, None, None, 0, 0)
    assert worst_cluster(classes(0), classes(0), torch.ones(0).bool()).valid == 0


def test_errors_that_have_nothing_to_do_with_the_clusters_sit_at_chance():
    numbers, labels = torch.cat([classes(30, 30)] * 4), classes(60, 60, 60, 60)
    gaps = []
    for seed in range(100):
        correct = torch.rand(240, generator=torch.Generator().manual_seed(seed)) < 0.8
        worst = worst_cluster(numbers, labels, correct, draws=100)
        assert worst.chance is not None
        gaps.append(worst.value - worst.chance)
    gap = torch.tensor(gaps)
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / math.sqrt(100)


def test_one_cluster_a_class_leaves_nothing_to_chance():
    worst = worst_cluster(torch.zeros(50).long(), classes(20, 30), right((20, 15), (30, 29)))
    assert worst.value == worst.chance == 15 / 20


def test_equal_seeds_give_equal_numbers_and_global_randomness_is_left_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one, other = (worst_cluster(*clustered(), seed=4) for _ in range(2))
    assert one == other
    assert one != worst_cluster(*clustered(), seed=5)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_chance_is_the_mean_lowest_accuracy_of_random_clusters_of_these_sizes():
    maps, labels, correct = example()
    worst = worst_cluster(map_clusters(maps, labels), labels, correct, draws=4000)
    generator = torch.Generator().manual_seed(9)
    lowest = []
    for _ in range(4000):
        drawn = correct[:50][torch.randperm(50, generator=generator)].double()
        lowest.append(min(float(drawn[:30].mean()), float(drawn[30:].mean()), 20 / 24))
    mean = torch.tensor(lowest).double()
    assert worst.chance is not None
    assert worst.chance == pytest.approx(float(mean.mean()), abs=4 * float(mean.std()) * math.sqrt(2 / 4000))
    assert worst.chance < 36 / 50  # a minimum of noise lies below what it is a minimum of


# ---- a cue that nobody named


def cue_maps(uses: torch.Tensor, patch: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Maps (n, 8, 8) of a made-up model: half of the relevance on the patch where it uses it, else all on the digit."""
    generator = torch.Generator().manual_seed(0)
    masses = [mask / mask.sum(dim=(1, 2), keepdim=True).clamp(min=1) for mask in (patch.double(), core.double())]
    large = torch.where(uses[:, None, None], (masses[0] + masses[1]) / 2, masses[1])
    small = torch.nn.functional.avg_pool2d(large[:, None], 4)[:, 0]
    return (small / small.amax(dim=(1, 2), keepdim=True) + 0.1 * torch.rand(small.shape, generator=generator)).float()


@pytest.fixture(scope="module")
def cue_users() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Digits with a patch in one place: the model uses it in half of them, and is right in a third of those only."""
    digits = make_splits(0.5, train_images=10, held_out=600)[1]
    generator = torch.Generator().manual_seed(0)
    uses = torch.rand(600, generator=generator) < 0.5
    patch = torch.zeros(600, 32, 32, dtype=torch.bool)
    patch[:, 1:7, 1:7] = True
    correct = torch.rand(600, generator=generator) < torch.where(uses, 0.3, 0.95)
    maps = cue_maps(uses, patch, digits.core)
    return map_clusters(maps, digits.labels), digits.labels, uses, correct


def test_clusters_separate_the_images_in_which_a_cue_is_used(cue_users):
    numbers, labels, uses, _ = cue_users
    for label in range(10):
        assert adjusted_rand_score(numbers[labels == label], uses[labels == label]) == 1.0


def test_the_worst_cluster_is_worse_than_chance_and_errors_go_with_it(cue_users):
    numbers, labels, _, correct = cue_users
    worst = worst_cluster(numbers, labels, correct)
    assert worst.chance is not None
    assert worst.value < worst.chance - 0.1
    assert error_association(numbers, labels, correct).value == 1 / 1000


def test_errors_that_know_nothing_of_the_cue_go_with_no_cluster(cue_users):
    numbers, labels, *_ = cue_users
    correct = torch.rand(600, generator=torch.Generator().manual_seed(1)) < 0.7
    found = error_association(numbers, labels, correct)
    assert found.valid == 10
    assert found.value > 0.05
