import pytest
import torch
import torchvision
from torch import nn

from tests.explaining import explain
from xai_callbacks import GradCAM, Why
from xai_callbacks.access import NoFeatureMapError, Subject, choose_layer, name_layer, trace_model, undisturbed
from xai_callbacks.errors import TargetLayerError

OLD = torchvision.__version__.startswith("0.21.")
# Model: (image size, chosen layer, grid). Small images where the family allows them.
MODELS = {
    "alexnet": (96, "features.11", (5, 5)),
    "convnext_tiny": (64, "features", (2, 2)),
    "convnext_small": (64, "features", (2, 2)),
    "densenet121": (64, ":relu", (2, 2)),
    "densenet169": (64, ":relu", (2, 2)),
    "efficientnet_b0": (64, "features", (2, 2)),
    "efficientnet_b1": (64, "features", (2, 2)),
    "efficientnet_v2_s": (64, "features", (2, 2)),
    "googlenet": (64, "inception5b", (2, 2)),
    "inception_v3": (96, "Mixed_6e", (4, 4)),
    # Random weights, which torchvision 0.21 draws in another way, settle how far its attention mixes the places.
    "maxvit_t": (224, "blocks.3" if OLD else "blocks.3.layers.0.layers.MBconv", (7, 7)),
    "mnasnet0_5": (64, "layers", (2, 2)),
    "mnasnet1_0": (64, "layers", (2, 2)),
    "mobilenet_v2": (64, "features", (2, 2)),
    "mobilenet_v3_large": (64, "features", (2, 2)),
    "mobilenet_v3_small": (64, "features", (2, 2)),
    "regnet_x_400mf": (64, "trunk_output", (2, 2)),
    "regnet_x_800mf": (64, "trunk_output", (2, 2)),
    "regnet_y_400mf": (64, "trunk_output", (2, 2)),
    "regnet_y_800mf": (64, "trunk_output", (2, 2)),
    "resnet18": (64, "layer4", (2, 2)),
    "resnet34": (64, "layer4", (2, 2)),
    "resnet50": (64, "layer4", (2, 2)),
    "resnext50_32x4d": (64, "layer4", (2, 2)),
    "shufflenet_v2_x0_5": (64, "conv5", (2, 2)),
    "shufflenet_v2_x1_0": (64, "conv5", (2, 2)),
    "squeezenet1_0": (64, "classifier.2", (3, 3)),
    "squeezenet1_1": (64, "classifier.2", (3, 3)),
    "swin_t": (224, "norm", (7, 7)),
    "swin_v2_t": (256, "norm", (8, 8)),
    "vgg11": (64, "features.19", (4, 4)),
    "vgg16": (64, "features.29", (4, 4)),
    "vgg11_bn": (64, "features.27", (4, 4)),
    "vit_b_16": (224, "encoder.layers.encoder_layer_11.ln_1", (14, 14)),
    "vit_b_32": (224, "encoder.layers.encoder_layer_11.ln_1", (7, 7)),
    "wide_resnet50_2": (64, "layer4", (2, 2)),
}


def torchvision_net(name):
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra)
    if name.startswith("vit"):
        nn.init.normal_(model.heads.head.weight, std=0.02)  # starts at zero, where every map is zero by right
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_automatic_layer_of_torchvision_models_gives_maps(name):
    size, layer_name, grid = MODELS[name]
    model, images = torchvision_net(name), torch.randn(2, 3, size, size)
    explained = explain(GradCAM(), model, images, [Why()])
    layer, maps = explained.layer, explained.heatmaps[0]
    assert (layer.name, layer.layout.grid) == (layer_name, grid)
    assert maps.shape == (2, *grid)
    assert maps.isfinite().all()
    assert (maps.std(dim=(1, 2)) > 1e-3 * maps.abs().amax(dim=(1, 2))).all()
    assert "conv_proj" not in layer.name
    assert layer.name in layer.reason


def test_more_than_thirty_models_are_covered():
    assert len(MODELS) >= 30


def choose(model, *shape, **settings):
    images = torch.randn(2, *(shape or (3, 16, 16)), generator=torch.Generator().manual_seed(0))
    with undisturbed(model):
        return choose_layer(trace_model(Subject(model, **settings), images))


def named(model, target, layout=None, shape=(3, 16, 16)):
    with undisturbed(model):
        return name_layer(trace_model(Subject(model), torch.randn(2, *shape)), target, layout)


def test_a_vit_whose_head_is_all_zeros_still_shows_its_layer():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    assert not model.heads.head.weight.any()
    layer = choose(model, 3, 32, 32)
    assert layer.name == "encoder.layers.encoder_layer_1.ln_1"
    assert (layer.layout.name, layer.layout.grid, layer.layout.prefix) == ("NLC", (4, 4), 1)
    assert "class token alone" in layer.reason


def test_functional_activations_and_pooling_leave_the_last_convolution():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
            self.fc = nn.Linear(6 * 36, 5)

        def forward(self, x):
            x = torch.relu(self.conv1(x))
            return self.fc(nn.functional.max_pool2d(torch.relu_(self.conv2(x)), 2).flatten(1))

    assert choose(Net()).name == ":relu_"


def test_the_tensor_is_named_after_the_last_module_that_hands_it_on():
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model = nn.Sequential(nn.Sequential(block, nn.Identity()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert choose(model).name == "0"


def test_no_pooling_at_all():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 49, 5))
    assert choose(model).name == "1"


def test_a_normalisation_layer_is_no_feature_map():
    class Normalise(nn.Module):
        def forward(self, x):
            return (x - 0.5) / 0.5

    model = nn.Sequential(Normalise(), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert choose(model).name == "1"
    with pytest.raises(NoFeatureMapError, match="no tensor that is seen in it has rows and columns"):
        choose(nn.Sequential(Normalise(), nn.Flatten(), nn.Linear(768, 5)))


def test_an_mlp_is_told_what_to_pass():
    with pytest.raises(NoFeatureMapError, match=r"explainers such as Occlusion\(\) and IntegratedGradients\(\) do not"):
        choose(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)))


def test_maps_of_one_cell_are_passed_over():
    model = torchvision_net("resnet18")
    layer = choose(model, 3, 32, 32)
    assert (layer.name, layer.layout.grid) == ("layer3", (2, 2))


def test_a_channels_last_map_that_could_be_read_both_ways_is_told_by_the_convolution_before_it():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, 2), nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    layer = choose(Square())
    assert (layer.name, layer.layout.name, layer.layout.grid) == ("norm", "NHWC", (7, 7))


def test_branches_are_joined_before_they_are_explained():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.aside, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

        def forward(self, x):
            features = self.trunk(x)
            both = torch.cat([self.left(features), self.right(features)], dim=1)
            self.aside(x)
            return self.fc(both.mean(dim=(2, 3)))

    assert choose(Branched()).name == ":cat"


def test_one_call_of_a_module_that_runs_twice_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.again(self.again(self.first(x))).mean(dim=(2, 3)))

    assert choose(Twice()).name == "again#1"
    with pytest.raises(TargetLayerError, match=r"`again` runs 2 times.* Name one call, such as 'again#0'"):
        named(Twice(), "again")
    assert named(Twice(), "again#0").layout.grid == (14, 14)


def test_registers_and_class_tokens_are_left_out_of_the_grid():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.extra = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 5, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.extra.expand(len(x), -1, -1), tokens], dim=1)
            return self.fc(self.norm(self.block(tokens))[:, 5:].mean(dim=1))

    layer = choose(Tokens(), 3, 16, 24)
    assert (layer.name, layer.layout.grid, layer.layout.prefix) == ("norm", (4, 6), 5)


def test_a_frozen_net_and_one_that_changes_its_input_in_place():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    model = InPlace(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).requires_grad_(False)
    assert choose(model).name == "0"


def test_layers_are_named():
    layer = named(torchvision_net("resnet18"), "layer3.1", shape=(3, 64, 64))
    assert layer.layout.grid == (4, 4)
    assert "as named" in layer.reason


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("layer5", "Expected `target_layer` to name a submodule of ResNet, but got 'layer5'. Did you mean 'layer"),
        ("backbone", "Its parts are 'conv1', 'bn1'"),
        ("layer4.1.relu", "runs 2 times"),
        ("avgpool", "a feature map of more than one cell, but `avgpool` is (2, 512, 1, 1)"),
        ("fc", "a feature map of more than one cell, but `fc` is (2, 1000)"),
    ],
)
def test_layers_that_cannot_be_used_are_refused_with_advice(target, message):
    with pytest.raises(TargetLayerError) as caught:
        named(torchvision_net("resnet18"), target, shape=(3, 64, 64))
    assert message in str(caught.value)


def test_a_layout_is_told_by_what_moves_and_a_wrong_one_refused():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 7, 4, 2), nn.LayerNorm(7), nn.Linear(7, 5)

        def forward(self, x):
            return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    # 7 x 7 x 7 cells: the shape does not tell, what moves does.
    assert named(Square(), "norm").layout.name == "NHWC"
    assert named(Square(), "norm", "NHWC").layout.name == "NHWC"
    with pytest.raises(TargetLayerError, match="Expected `norm` to lie on the image"):
        named(Square(), "norm", "NCHW")


class Pooled(nn.Module):
    """A backbone and a head; what lies between is up to the subclass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.body(x).mean(dim=(2, 3)))


class WithoutGradients(Pooled):
    def forward(self, x):
        with torch.no_grad():
            features = self.body(x).mean(dim=(2, 3))
        return self.fc(features)


class Detached(Pooled):
    def forward(self, x):
        return self.fc(self.body(x).detach().mean(dim=(2, 3)))


def test_a_backbone_that_runs_without_gradients_has_its_layer_all_the_same():
    expected, found = choose(Pooled()), choose(WithoutGradients())
    assert found == expected
    assert found.name == "body"


def test_a_net_that_cuts_its_graph_is_told_what_was_seen():
    with pytest.raises(TargetLayerError, match="Expected to differentiate Detached, but its outputs are detached"):
        choose(Detached())


def test_compiling_a_part_does_not_change_the_choice():
    model = Pooled()
    expected = choose(model)
    model.body = torch.compile(model.body, backend="eager")
    assert choose(model) == choose(torch.compile(model, backend="eager")) == expected
    assert named(model, "body").name == "body"


def test_channels_last_tokens_of_a_small_net_on_images_that_are_not_square():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.mix, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.LayerNorm(8)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.norm(self.mix(self.patch(x).permute(0, 2, 3, 1))).mean(dim=(1, 2)))

    layer = choose(Last(), 3, 16, 24)
    assert (layer.name, layer.layout.name, layer.layout.grid) == ("norm", "NHWC", (4, 6))


def test_only_the_class_token_is_read_after_registers():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.extra = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 5, 8))
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.blocks, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 5)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            return self.fc(self.blocks(torch.cat([self.extra.expand(len(x), -1, -1), tokens], dim=1))[:, 0])

    for model in (Tokens(), Tokens().requires_grad_(False)):
        layer = choose(model, 3, 24, 16)
        assert (layer.name, layer.layout.grid, layer.layout.prefix) == ("blocks.layers.1.norm1", (6, 4), 5)


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (15, 33)])
def test_the_grid_follows_images_that_are_not_square(size):
    assert choose(Pooled(), 3, *size).layout.grid == (size[0] - 4, size[1] - 4)


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(TargetLayerError, match="say how to read it with `layout=`"):
        named(Pooled(), "body", "NLC")
