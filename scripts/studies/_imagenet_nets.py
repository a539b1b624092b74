"""Nets with weights of ImageNet that are kept in half precision; each takes the folder of its file."""

from __future__ import annotations

from pathlib import Path

import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["deit_tiny", "mobilenet_v2", "squeezenet"]


class TensorFlowPadding(nn.Conv2d):
    """A strided convolution that pads right and below only, as the net from which the weights came does."""

    def forward(self, images: Tensor) -> Tensor:
        """Pad, then convolve."""
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def mobilenet_v2(weights: Path) -> nn.Module:
    """MobileNetV2 with the padding its weights were trained with."""
    model: nn.Module = torchvision.models.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size == (3, 3):
            module.padding = (0, 0)
            module.__class__ = TensorFlowPadding
    return _filled(model, weights / "mobilenet_v2_imagenet.fp16.safetensors")


def squeezenet(weights: Path) -> nn.Module:
    """SqueezeNet 1.0, which ends in a convolution and pooling."""
    return _filled(torchvision.models.squeezenet1_0(weights=None), weights / "squeezenet1_0_imagenet.fp16.safetensors")


def deit_tiny(weights: Path) -> nn.Module:
    """DeiT-tiny, a vision transformer of 14 x 14 patches and a class token."""
    model = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
    return _filled(model, weights / "deit_tiny_imagenet.fp16.safetensors")


def _filled(model: nn.Module, path: Path) -> nn.Module:
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.eval()
