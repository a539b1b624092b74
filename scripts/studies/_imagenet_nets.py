"""MobileNetV2 and SqueezeNet with weights of ImageNet that are kept in half precision."""

from __future__ import annotations

from pathlib import Path

import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["mobilenet_v2", "squeezenet"]


class TensorFlowPadding(nn.Conv2d):
    """A strided convolution that pads right and below only, as the net from which the weights came does."""

    def forward(self, images: Tensor) -> Tensor:
        """Pad, then convolve."""
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def mobilenet_v2(weights: Path) -> nn.Module:
    """MobileNetV2 with the padding its weights were trained with; `weights` is the folder of the file."""
    model: nn.Module = torchvision.models.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size == (3, 3):
            module.padding = (0, 0)
            module.__class__ = TensorFlowPadding
    kept = load_file(weights / "mobilenet_v2_imagenet.fp16.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in kept.items()})
    return model


def squeezenet(weights: Path) -> nn.Module:
    """SqueezeNet 1.0; `weights` is the folder of the file."""
    model: nn.Module = torchvision.models.squeezenet1_0(weights=None)
    kept = load_file(weights / "squeezenet1_0_imagenet.fp16.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in kept.items()})
    return model
