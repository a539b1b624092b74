"""Small nets for the study of the alarm, and their training.

| kind | net |
|---|---|
| `cnn` | four convolutions with batch norm, global average pooling |
| `flat` | three convolutions without norm, and a linear layer that knows places |
| `resnet` | three residual blocks with batch norm |
| `vit` | vision transformer, tokens of 4 px from two convolutions, width 48, three layers |
| `mobilenet` | MobileNetV2 with weights of ImageNet, frozen, images enlarged to 64 px; a linear head is trained |

All take images of 32 x 32 px in [0, 1] and normalise within.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from _alarm_data import ROOT
from _imagenet_nets import mobilenet_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, scaled_dot_product_attention

__all__ = ["NETS", "Frozen", "learnt", "net", "predictions", "train"]

NETS = ("cnn", "flat", "resnet", "vit", "mobilenet")
RATES = {"cnn": 4e-3, "flat": 3e-3, "resnet": 4e-3, "vit": 3e-3, "mobilenet": 4e-3}
# Nets that learn slowly get twice as many steps.
BATCHES = {"cnn": 64, "flat": 32, "resnet": 64, "vit": 32, "mobilenet": 64}


class Normalised(nn.Module):
    """A network on images of about zero mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.network((images - 0.45) / 0.25)
        return logits


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Half the side for a stride of 2."""
        summed: Tensor = self.body(features) + self.shortcut(features)
        return summed.relu()


class Block(nn.Module):
    """Attention, then two linear layers, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `(N, T, D)` to tokens."""
        count, length, width = tokens.shape
        parts = self.inputs(self.before_attention(tokens)).view(count, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, width)
        tokens = tokens + self.outputs(mixed)
        summed: Tensor = tokens + self.layers(self.before_layers(tokens))
        return summed


class Transformer(nn.Module):
    """A small vision transformer; its head reads the mean of the tokens."""

    def __init__(self, channels: int, classes: int, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 24, 3, 2, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, width, 3, 2, padding=1),
            nn.BatchNorm2d(width),
        )
        self.places = nn.Parameter(0.5 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads=3) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.blocks(self.stem(images).flatten(2).transpose(1, 2) + self.places)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


class Frozen(nn.Module):
    """MobileNetV2 whose features do not learn, and a linear head that does."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = _mobilenet_features()
        self.head = nn.Linear(1280, classes)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def pooled(self, images: Tensor) -> Tensor:
        """Input of the head, `(N, 1280)`."""
        large = interpolate(images.expand(-1, 3, -1, -1), size=(64, 64), mode="bilinear", align_corners=False)
        features: Tensor = self.features((large - self.mean) / self.std)
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.head(self.pooled(images))
        return logits


def net(kind: str, channels: int, classes: int, seed: int) -> nn.Module:
    """An untrained net; the weights, or those of the head, are drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "cnn":
            return Normalised(_cnn(channels, classes))
        if kind == "flat":
            return Normalised(_flat(channels, classes))
        if kind == "resnet":
            return Normalised(_resnet(channels, classes))
        if kind == "vit":
            return Normalised(Transformer(channels, classes))
        assert kind == "mobilenet", f"no such net: {kind}"
        return Frozen(classes)


def learnt(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what training changes."""
    state = model.head.state_dict(prefix="head.") if isinstance(model, Frozen) else model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def train(
    model: nn.Module,
    kind: str,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    look: Callable[[int], None],
) -> None:
    """Adam with a rate that falls to zero; `look` is called with the number of epochs done, from 0 on."""
    learner, size = model, BATCHES[kind]
    if isinstance(model, Frozen):
        model.eval()
        images, learner = pooled(model, images), model.head
    optimizer = torch.optim.Adam(learner.parameters(), lr=RATES[kind])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATES[kind], total_steps=epochs * -(-len(labels) // size), pct_start=0.15
    )
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    look(0)
    for epoch in range(1, epochs + 1):
        learner.train()
        for batch in torch.split(torch.randperm(len(labels), generator=generator), size):
            optimizer.zero_grad()
            cross_entropy(learner(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        look(epoch)


@torch.inference_mode()
def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """The class of each image, `(N,)`."""
    return torch.cat([model(part).argmax(dim=1) for part in torch.split(images, 250)])


@torch.inference_mode()
def pooled(model: Frozen, images: Tensor) -> Tensor:
    """Features of all images, `(N, 1280)`."""
    return torch.cat([model.pooled(part) for part in torch.split(images, 100)]).clone()


def _cnn(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 16, 2), (16, 32, 2), (32, 48, 1), (48, 48, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


def _flat(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 24), (24, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, classes))


def _resnet(channels: int, classes: int) -> nn.Module:
    stem = [nn.Conv2d(channels, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 48, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


@lru_cache(maxsize=1)
def _mobilenet_features() -> nn.Module:
    """The convolutions, shared by all nets."""
    features: nn.Module = mobilenet_v2(ROOT.parent / "shared" / "data" / "weights").features  # type: ignore[assignment]
    return features.requires_grad_(False).eval()
