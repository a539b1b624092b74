"""`Patchwise`: what it takes from the explainer inside, and what it refuses."""

import pytest
import torch
from torch import nn

from tests.explaining import explain
from xai_callbacks import Auditor, DeepSHAP, Every, GradCAM, Patchwise, ProbeSet, Regression, Why
from xai_callbacks.errors import ConfigurationError


class Texture(nn.Module):
    """The mean square of a convolution, of images of any size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        return self.conv(images).relu().mean(dim=(2, 3)).sum(dim=1, keepdim=True)


def test_schedules_go_around_it_and_not_inside():
    with pytest.raises(ConfigurationError, match=r"at every audit, but got Every\(5, .*Write Every\(5, Patchwise"):
        Patchwise(Every(5, GradCAM()), 8)
    assert Every(5, Patchwise(GradCAM(), 8)).every == 5


def test_familiar_images_are_known_by_the_window_in_their_middle():
    images, familiar, model = torch.rand(2, 3, 24, 24), torch.rand(3, 3, 24, 24), Texture()
    probes, inliers = (ProbeSet.from_tensors(each, targets=torch.rand(len(each))) for each in (images, familiar))
    explainers = [Patchwise(DeepSHAP("sample"), 8, 8)]
    auditor = Auditor(probes, [Why()], explainers=explainers, novelty=[], measures=[], inliers=inliers)
    found = auditor.audit(model).heatmaps[0].sum(dim=(1, 2))
    parts = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    with torch.no_grad():
        expected = model(parts).reshape(2, 9).mean(dim=1) - model(familiar[..., 8:16, 8:16]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_background_of_a_window_is_that_of_the_window():
    images = torch.rand(2, 3, 16, 16)
    found = explain(Patchwise(DeepSHAP("mean"), 8, 8), Texture(), images, [Why()], task=Regression())
    model = Texture()
    parts = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    with torch.no_grad():
        change = model(parts) - model(parts.mean(dim=(2, 3), keepdim=True).expand_as(parts))
    expected = change.reshape(2, 4).mean(dim=1)
    torch.testing.assert_close(found.heatmaps[0].sum(dim=(1, 2)), expected, rtol=1e-4, atol=1e-6)
