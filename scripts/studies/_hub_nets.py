"""Image classifiers of Hugging Face transformers, built small from their configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["HUB_NETS", "HubNet", "build_hub_net"]

# Plain vision transformers share these.
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "patch_size": 8,
}
_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4}
_PYRAMID: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "embedding_size": 16}
_PERCEIVER: dict[str, Any] = {
    "num_latents": 16,
    "d_latents": 32,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class HubNet:
    """A class, its configuration, and settings that make it small.

    Attributes:
        config: Name of the class of the configuration.
        size: Side of the images.
        settings: Arguments of the configuration.
        vision: Whether they are those of its `vision_config`.
        sized: Whether the configuration wants to know the side of the images.
    """

    config: str
    size: int = 64
    settings: Mapping[str, Any] = field(default_factory=dict)
    vision: bool = False
    sized: bool = True


HUB_NETS: dict[str, HubNet] = {
    "BeitForImageClassification": HubNet("BeitConfig", settings={**_TRANSFORMER, "drop_path_rate": 0.0}),
    "BitForImageClassification": HubNet(
        "BitConfig", 192, {"hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "embedding_size": 16, "num_groups": 4}
    ),
    "CLIPForImageClassification": HubNet("CLIPConfig", settings=_TRANSFORMER, vision=True),
    "ConvNextForImageClassification": HubNet(
        "ConvNextConfig", 128, {**_PYRAMID, "num_stages": 4, "layer_scale_init_value": 0.1}
    ),
    "ConvNextV2ForImageClassification": HubNet("ConvNextV2Config", 128, {**_PYRAMID, "num_stages": 4}),
    "CvtForImageClassification": HubNet(
        "CvtConfig", settings={"embed_dim": [16, 32, 48], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, sized=False
    ),
    "Data2VecVisionForImageClassification": HubNet(
        "Data2VecVisionConfig", settings={**_TRANSFORMER, "drop_path_rate": 0.0}
    ),
    "DeiTForImageClassification": HubNet("DeiTConfig", settings=_TRANSFORMER),
    "DeiTForImageClassificationWithTeacher": HubNet("DeiTConfig", settings=_TRANSFORMER),
    "Dinov2ForImageClassification": HubNet("Dinov2Config", settings={**_TRANSFORMER, "mlp_ratio": 2}),
    "Dinov2WithRegistersForImageClassification": HubNet(
        "Dinov2WithRegistersConfig", settings={**_TRANSFORMER, "mlp_ratio": 2}
    ),
    "DonutSwinForImageClassification": HubNet("DonutSwinConfig", settings=_SWIN),
    "EfficientNetForImageClassification": HubNet(
        "EfficientNetConfig",
        192,
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.5,
            "hidden_dim": 320,
            "dropout_rate": 0.0,
            "drop_connect_rate": 0.0,
        },
    ),
    "FocalNetForImageClassification": HubNet(
        "FocalNetConfig",
        settings={"embed_dim": 16, "hidden_sizes": [32, 64], "depths": [1, 2, 1], "drop_path_rate": 0.0},
    ),
    "HGNetV2ForImageClassification": HubNet(
        "HGNetV2Config",
        192,
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16, 32, 48],
            "stage_mid_channels": [8, 16, 16, 16],
            "stage_out_channels": [16, 32, 48, 64],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        sized=False,
    ),
    "HieraForImageClassification": HubNet(
        "HieraConfig",
        settings={
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False, False],
        },
        sized=False,
    ),
    "IJepaForImageClassification": HubNet("IJepaConfig", settings=_TRANSFORMER),
    "LevitForImageClassification": HubNet(
        "LevitConfig",
        128,
        {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
    "LevitForImageClassificationWithTeacher": HubNet(
        "LevitConfig",
        128,
        {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
    "MetaClip2ForImageClassification": HubNet("MetaClip2Config", settings=_TRANSFORMER, vision=True),
    "MobileNetV1ForImageClassification": HubNet(
        "MobileNetV1Config", 192, {"depth_multiplier": 0.25, "classifier_dropout_prob": 0.0}
    ),
    "MobileNetV2ForImageClassification": HubNet(
        "MobileNetV2Config", 192, {"depth_multiplier": 0.25, "classifier_dropout_prob": 0.0}
    ),
    "MobileViTForImageClassification": HubNet(
        "MobileViTConfig",
        192,
        {"hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96], "num_attention_heads": 4},
    ),
    "MobileViTV2ForImageClassification": HubNet("MobileViTV2Config", 192, {"width_multiplier": 0.25}),
    "PPLCNetForImageClassification": HubNet("PPLCNetConfig", 192, {"scale": 0.25}, sized=False),
    "PerceiverForImageClassificationConvProcessing": HubNet("PerceiverConfig", settings=_PERCEIVER, sized=False),
    "PerceiverForImageClassificationFourier": HubNet("PerceiverConfig", 32, _PERCEIVER, sized=False),
    "PerceiverForImageClassificationLearned": HubNet("PerceiverConfig", 32, _PERCEIVER),
    "PoolFormerForImageClassification": HubNet(
        "PoolFormerConfig", 128, {**_PYRAMID, "layer_scale_init_value": 0.1}, sized=False
    ),
    "PvtForImageClassification": HubNet("PvtConfig", 128, {**_PYRAMID, "num_attention_heads": [1, 2, 3, 4]}),
    "PvtV2ForImageClassification": HubNet("PvtV2Config", 128, {**_PYRAMID, "num_attention_heads": [1, 2, 3, 4]}),
    "RegNetForImageClassification": HubNet("RegNetConfig", 192, {**_STAGES, "groups_width": 8}, sized=False),
    "ResNetForImageClassification": HubNet("ResNetConfig", 192, {**_STAGES, "layer_type": "basic"}, sized=False),
    "SegformerForImageClassification": HubNet(
        "SegformerConfig", 128, {**_PYRAMID, "num_attention_heads": [1, 2, 3, 4]}, sized=False
    ),
    "SiglipForImageClassification": HubNet("SiglipConfig", settings=_TRANSFORMER, vision=True),
    "SwiftFormerForImageClassification": HubNet(
        "SwiftFormerConfig",
        192,
        {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_scale_init_value": 0.1},
    ),
    "SwinForImageClassification": HubNet("SwinConfig", settings=_SWIN),
    "Swinv2ForImageClassification": HubNet("Swinv2Config", settings=_SWIN),
    "TextNetForImageClassification": HubNet(
        "TextNetConfig", 192, {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 32, 64]}
    ),
    "ViTForImageClassification": HubNet("ViTConfig", settings=_TRANSFORMER),
    "ViTMSNForImageClassification": HubNet("ViTMSNConfig", settings=_TRANSFORMER),
}
"""By name of the class. `ImageGPT` (reads colours as words), `Siglip2` (reads cut patches), `Dinat` (needs natten) and
`ShieldGemma2` (a language model) do not classify tensors of images."""


def build_hub_net(name: str, *, labels: int = 2) -> nn.Module:
    """Build a classifier with random weights of the global generator; nothing is downloaded."""
    import transformers

    net = HUB_NETS[name]
    settings = dict(net.settings)
    if net.sized:
        settings["image_size"] = net.size
    if net.vision:
        settings = {"vision_config": settings}
    config: Callable[..., Any] = getattr(transformers, net.config)
    build: Callable[..., nn.Module] = getattr(transformers, name)
    return build(config(num_labels=labels, **settings))
