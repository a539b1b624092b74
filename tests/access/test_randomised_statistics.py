"""Statistics of batch norm in random copies: those of the images given, and of nothing before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.access.trained import pictures, trained
from xai_callbacks.access import randomised_copy
from xai_callbacks.errors import ConfigurationError


def test_statistics_are_those_of_the_images_with_dropout_off():
    model, images = trained(), pictures()
    copied = randomised_copy(model, images, seed=0)

    with torch.no_grad():
        maps = copied.conv(images)
        # In training mode a batch norm divides by the biased variance, and keeps the other one.
        normed = (maps - maps.mean((0, 2, 3), keepdim=True)) / (
            maps.var((0, 2, 3), correction=0, keepdim=True) + copied.first.eps
        ).sqrt()
        for layer, given in ((copied.first, maps), (copied.second, normed.relu())):
            torch.testing.assert_close(layer.running_mean, given.mean((0, 2, 3)))
            torch.testing.assert_close(layer.running_var, given.var((0, 2, 3)))
            assert layer.num_batches_tracked == 1


def test_statistics_of_chunks_are_averaged():
    images = pictures(7)
    copied = randomised_copy(trained(), images, seed=0, chunk_size=3)

    maps = copied.conv(images).detach()
    chunks = [maps[:3], maps[3:5], maps[5:]]  # as equal as can be
    for name, statistic in (("running_mean", torch.Tensor.mean), ("running_var", torch.Tensor.var)):
        expected = torch.stack([statistic(chunk, (0, 2, 3)) for chunk in chunks]).mean(dim=0)
        torch.testing.assert_close(getattr(copied.first, name), expected)


def test_chunks_hold_two_images_at_least():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))

    copied = randomised_copy(model, pictures(5), seed=0, chunk_size=2)  # three chunks would leave one image alone

    assert copied[2].num_batches_tracked == 2


def test_norms_without_statistics_need_no_images():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2))

    copied = randomised_copy(model, torch.empty(0), seed=0)

    assert not torch.equal(copied[0].weight, model[0].weight)


def test_norm_that_synchronises_processes_waits_for_none(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.SyncBatchNorm(2))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        copied = randomised_copy(model, pictures(), seed=0)  # on the CPU, an attempt to synchronise raises
    finally:
        torch.distributed.destroy_process_group()

    torch.testing.assert_close(copied[1].running_mean, copied[0](pictures()).detach().mean((0, 2, 3)))
    assert type(model[1]) is nn.SyncBatchNorm


def test_old_statistics_do_not_outlive_a_method_that_forgets_them():
    class Forgetful(nn.BatchNorm2d):
        def reset_parameters(self):
            pass

    model = nn.Sequential(Forgetful(3))
    model.train()(pictures() + 100)

    copied = randomised_copy(model, pictures(), seed=0)

    torch.testing.assert_close(copied[0].running_mean, pictures().mean((0, 2, 3)))


def test_other_buffers_are_kept():
    model = trained()
    model.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]))

    assert torch.equal(randomised_copy(model, pictures(), seed=0).mean, model.mean)


@pytest.mark.parametrize("images", [pictures(1), pictures()[0]])
def test_statistics_need_two_images(images):
    with pytest.raises(ConfigurationError, match="Expected `images` to be two or more"):
        randomised_copy(trained(), images, seed=0)
