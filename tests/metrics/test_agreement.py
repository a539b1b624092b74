import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from xai_callbacks.errors import ConfigurationError
from xai_callbacks.metrics.agreement import resampled, ssim, top_overlap
from xai_callbacks.metrics.representations import centred_gram, linear_cka


def two_maps(height, width, count=3):
    first = torch.randn(count, height, width)
    return first, first + 0.5 * torch.randn(count, height, width)


def slow_ssim(first, second, window):
    """Wang et al. 2004, one window after another, over reflected borders."""
    peak = max(np.abs(first).max(), np.abs(second).max())
    pad = window // 2
    x, y = (np.pad(each / peak, pad, mode="reflect") for each in (first, second))
    small, large = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    found = []
    for row in range(first.shape[0]):
        for column in range(first.shape[1]):
            a, b = (each[row : row + window, column : column + window] for each in (x, y))
            both = ((a - a.mean()) * (b - b.mean())).mean()
            luminance = (2 * a.mean() * b.mean() + small) / (a.mean() ** 2 + b.mean() ** 2 + small)
            found.append(luminance * (2 * both + large) / (a.var() + b.var() + large))
    return np.mean(found)


@pytest.mark.parametrize(("size", "window"), [((3, 3), 3), ((7, 7), 3), ((5, 9), 3), ((16, 20), 7), ((32, 32), 7)])
def test_ssim_is_that_of_the_definition(size, window):
    first, second = two_maps(*size)
    expected = [slow_ssim(a, b, window) for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True)]
    assert ssim(first, second).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("size", "window"), [((7, 9), 3), ((20, 16), 7)])
def test_ssim_is_that_of_torchmetrics(size, window):
    first, second = (each.double()[:, None] for each in two_maps(*size))
    peak = torch.maximum(first.abs(), second.abs()).amax(dim=(-2, -1), keepdim=True)
    expected = structural_similarity_index_measure(
        first / peak, second / peak, gaussian_kernel=False, kernel_size=window, data_range=2.0, reduction="none"
    )
    assert ssim(first[:, 0], second[:, 0]).tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-9)


def test_ssim_of_the_inside_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is the second oracle")
    first = torch.zeros(1, 24, 24)
    first[0, 8:16, 8:16] = torch.rand(8, 8)  # the border, on which the two differ, is the same in both maps
    second = first.clone()
    second[0, 10:14, 10:14] += 0.2
    peak = float(second.abs().max())
    arrays = [(each[0].double() / peak).numpy() for each in (first, second)]
    expected = metrics.structural_similarity(*arrays, win_size=7, data_range=2, use_sample_covariance=False, full=True)[
        1
    ]
    assert float(ssim(first, second)) == pytest.approx(float(expected.mean()), abs=1e-6)


def test_ssim_of_special_maps():
    first, _ = two_maps(7, 7)
    zeros = torch.zeros_like(first)
    assert ssim(first, first).tolist() == pytest.approx([1, 1, 1])
    assert ssim(zeros, zeros).tolist() == [1, 1, 1]
    assert bool((ssim(first, 0.5 * first) < 0.95).all())  # half as strong is not the same
    assert bool(ssim(torch.rand(2, 2, 2), torch.rand(2, 2, 2)).isnan().all())
    assert math.isnan(float(ssim(torch.full((1, 4, 4), math.nan), torch.ones(1, 4, 4))))


def slow_overlap(first, second, count):
    chosen = [set(np.argsort(-each.ravel(), kind="stable")[:count].tolist()) for each in (first, second)]
    return len(chosen[0] & chosen[1]) / count


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_top_overlap_counts_shared_cells(share):
    first, second = two_maps(7, 9)
    count = max(1, round(share * 63))
    expected = [slow_overlap(a, b, count) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert top_overlap(first, second, share).tolist() == expected


def test_top_overlap_of_unrelated_maps_is_the_share():
    found = top_overlap(torch.randn(4000, 10, 10), torch.randn(4000, 10, 10), 0.2)
    assert float(found.mean()) == pytest.approx(0.2, abs=0.005)


def test_top_overlap_has_no_answer_for_maps_without_evidence():
    first, second = two_maps(4, 4, 2)
    assert bool(top_overlap(-first.abs(), second).isnan().all())
    assert bool(top_overlap(first, torch.full_like(first, math.nan)).isnan().all())
    with pytest.raises(ConfigurationError, match="`share` to be a number in"):
        top_overlap(first, second, 0.0)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (14, 10)])
def test_resampling_keeps_sums_or_means(grid):
    maps = torch.rand(2, 7, 7, dtype=torch.float64)
    assert resampled(maps, grid).shape == (2, *grid)
    assert resampled(maps, grid).sum(dim=(1, 2)).tolist() == pytest.approx(maps.sum(dim=(1, 2)).tolist())
    assert resampled(torch.ones_like(maps), grid, "relative").flatten().tolist() == pytest.approx(
        [1.0] * 2 * math.prod(grid)
    )


def test_resampling_by_a_whole_factor_adds_blocks():
    maps = torch.rand(2, 6, 4, dtype=torch.float64)
    expected = maps.reshape(2, 3, 2, 2, 2).sum(dim=(2, 4))
    assert torch.allclose(resampled(maps, (3, 2)), expected)


@pytest.mark.parametrize("judge", [ssim, top_overlap])
def test_maps_of_other_shapes_are_refused(judge):
    with pytest.raises(ConfigurationError, match=r"one shape \(..., h, w\), but got \(2, 4, 4\) and \(2, 4, 5\)"):
        judge(torch.zeros(2, 4, 4), torch.zeros(2, 4, 5))


# ---- representations


def cka_of_features(x, y):
    """Kornblith et al. 2019, eq. 4: by the cross-covariance of features, without Gram matrices."""
    x, y = (each.double() - each.double().mean(dim=0) for each in (x, y))
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x) ** 2 / norms)


def test_cka_of_gram_matrices_is_that_of_features():
    x = torch.randn(20, 7)
    for y in (torch.randn(20, 31), x @ torch.randn(7, 5), x + 0.1 * torch.randn(20, 7)):
        assert linear_cka(centred_gram(x), centred_gram(y)) == pytest.approx(cka_of_features(x, y), abs=1e-6)


def test_cka_is_1_whatever_the_order_the_rotation_and_the_scale_of_features():
    x = torch.randn(20, 7)
    rotation = torch.linalg.qr(torch.randn(7, 7)).Q
    assert linear_cka(centred_gram(x), centred_gram(x)) == 1.0
    assert linear_cka(centred_gram(x), centred_gram(-3 * x[:, torch.randperm(7)] + 5)) == pytest.approx(1, abs=1e-6)
    assert linear_cka(centred_gram(x), centred_gram(x @ rotation)) == pytest.approx(1, abs=1e-6)


def test_cka_of_a_layer_without_differences_is_unknown():
    gram = centred_gram(torch.ones(5, 3))
    assert bool((gram == 0).all())
    assert math.isnan(linear_cka(gram, gram))
    with pytest.raises(ConfigurationError, match="of the same images"):
        linear_cka(gram, torch.eye(4))
