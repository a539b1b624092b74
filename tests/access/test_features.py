import pytest
import torch
import torchvision
from torch import nn

from tests.tiny import tiny_net
from xai_callbacks.access.features import MOST_STAGES, features, stages_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("squeezenet1_1", None),
        ("vit_b_16", None),
        ("mobilenet_v2", None),
        ("vgg11", None),
        ("swin_t", None),
    ],
)
def test_stages_follow_each_other_and_are_few(name, expected):
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    stages = stages_of(net)
    order = [each for each, _ in net.named_modules()]
    assert expected is None or stages == expected
    assert 4 <= len(stages) <= MOST_STAGES
    assert [order.index(each) for each in stages] == sorted(order.index(each) for each in stages)
    assert not any(a != b and b.startswith(f"{a}.") for a in stages for b in stages)  # none is a part of another


def test_stages_of_a_net_inside_another_module():
    wrapper = nn.Module()
    wrapper.net, wrapper.loss = tiny_net(), nn.CrossEntropyLoss()
    assert stages_of(wrapper) == ["net.0", "net.1", "net.6"]
    assert stages_of(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (torch.rand(2, 5), 5),
        (torch.rand(2, 3, 8, 8), 3 * 16),
        (torch.rand(2, 8, 8, 3), 3 * 16),  # channels last
        (torch.rand(2, 3, 2, 9), 3 * 2 * 4),
        (torch.rand(2, 50, 6), 16 * 6),  # tokens
        ((torch.rand(2, 5), "more"), 5),
    ],
)
def test_features_are_small_vectors(returned, expected):
    class Part(nn.Module):
        def forward(self, images):
            return returned

    net = nn.ModuleDict({"part": Part()})
    with features(net, ["part"]) as seen:
        net["part"](None)
    assert seen["part"].shape == (2, expected)
    assert len(net["part"]._forward_hooks) == 0


def test_feature_maps_are_averaged_over_cells():
    maps = torch.rand(2, 3, 8, 8)
    for given in (maps, maps.permute(0, 2, 3, 1).contiguous()):
        net = nn.Sequential(nn.Identity())
        with features(net, ["0"]) as seen:
            net(given)
        expected = maps.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5)).flatten(1)
        assert torch.allclose(seen["0"], expected)


def test_what_is_no_features_is_left_out_and_hooks_go_in_any_case():
    net = nn.Sequential(nn.Identity())
    with features(net, ["0"]) as seen:
        net("text")
        net(torch.ones(3, dtype=torch.int64)[None])
    assert seen == {}
    with pytest.raises(ValueError, match="on purpose"), features(net, ["0"]):
        raise ValueError("on purpose")
    assert len(net[0]._forward_hooks) == 0
