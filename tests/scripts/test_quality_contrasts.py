"""The net of image quality, patch by patch: closed forms on real weights, and what the study does to photos."""

import json

import pytest
import quality_contrasts
import torch
from _quality_net import CORRUPTIONS, PatchQuality, _normalised, corrupted, photos

from tests.explaining import explain
from xai_callbacks import HiResCAM, Patchwise, SlidingWindow, Why, WhyValueRatherThan
from xai_callbacks.tasks import Regression

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def quality(shared_data):
    return PatchQuality(shared_data / "weights").eval(), photos(shared_data, 2, 96)


def patches_of(images):
    return images.unfold(2, 32, 32).unfold(3, 32, 32)[:, 0]


def test_a_photo_scores_the_mean_of_its_patches_and_a_window_its_own(quality):
    model, images = quality
    parts = patches_of(images)
    with torch.no_grad():
        each = model.net(_normalised(parts.flatten(0, 2)[:, None])).reshape(2, 3, 3)
        torch.testing.assert_close(model(images)[:, 0], each.mean(dim=(1, 2)))
    tiles = SlidingWindow(32, 32, enlarge=False, probability=False)
    found = explain(tiles, model, images, [Why()], task=Regression()).heatmaps[0]
    expected = each.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_contrast_is_2_y_less_q_times_the_map_of_each_patch(quality):
    """HiResCAM of each patch by hand: gradient times activations of the one convolution, before global max and min."""
    model, images = quality
    q, net = 30.0, model.net
    found = explain(Patchwise(HiResCAM(), 32, 32), model, images, [Why(), WhyValueRatherThan(q)], task=Regression())
    assert found.plan.inner.layers[0].name == "net.conv1"
    signs = set()
    for row in range(2):
        for place in range(9):
            at = slice(32 * (place // 3), 32 * (place // 3) + 32), slice(32 * (place % 3), 32 * (place % 3) + 32)
            features = net.conv1(_normalised(images[row : row + 1, :, *at])).detach().requires_grad_(True)
            pooled = torch.cat([features.amax(dim=(2, 3)), features.amin(dim=(2, 3))], dim=1)
            score = net.fc3(net.fc2(net.fc1(pooled).relu()).relu())
            raw = (torch.autograd.grad(score.sum(), features)[0] * features).detach().sum(dim=1) * 26 * 26
            drawn = torch.nn.functional.interpolate(raw[None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
            why, contrast = found.heatmaps[:, row, *at] * 96 * 96
            scale = float(drawn.abs().max())
            torch.testing.assert_close(why / scale, drawn / scale, rtol=0, atol=1e-4)
            weight = 2 * (score.item() - q)
            torch.testing.assert_close(contrast / scale, weight * drawn / scale, rtol=0, atol=1e-4 * abs(weight) + 1e-4)
            signs.add(weight > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_one_half_is_corrupted_and_gets_worse(quality, kind):
    model, images = quality
    half = torch.zeros(2, 1, 96, 96, dtype=torch.bool)
    half[..., :48] = True
    worse = corrupted(images, kind, half)
    assert torch.equal(worse[..., 48:], images[..., 48:])
    assert (worse[..., :48] != images[..., :48]).float().mean() > 0.5
    with torch.no_grad():
        assert (model(corrupted(images, kind, half | True)) > model(images)).all()


@pytest.mark.slow
def test_the_study_keeps_its_figures(shared_data, tmp_path, capsys):
    path, drawn = tmp_path / "quality.json", tmp_path / "photo.png"
    quality_contrasts.main(["--data", str(shared_data), "--photos", "2", "--json", str(path), "--picture", str(drawn)])
    found = json.loads(path.read_text())
    assert set(found["conditions"]) == {"none", *CORRUPTIONS}
    assert found["conditions"]["blur"]["change"]["beside"][0] == 0
    assert drawn.stat().st_size > 10_000
    assert "noise" in capsys.readouterr().out
