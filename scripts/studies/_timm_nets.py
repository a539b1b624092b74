"""Image classifiers of timm: a small variant of each family, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["TIMM_NETS", "TimmNet", "build_timm_net"]


@dataclass(frozen=True)
class TimmNet:
    """What is made of a variant.

    Attributes:
        train: Side of the images that it is trained on; None for one that is too large to be trained here.
        size: Side of the images at which its layer is looked for; None for that of its pretrained weights.
        settings: Arguments that make a large net smaller, such as fewer blocks; its kind stays what it is.
    """

    train: int | None = 64
    size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_VIT: dict[str, Any] = {"embed_dim": 192, "num_heads": 3, "depth": 4}
_SWIN: dict[str, Any] = {"embed_dim": 48, "num_heads": (1, 2, 4, 8), "depths": (1, 1, 2, 1)}
_TWINS: dict[str, Any] = {"embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4), "depths": (1, 1, 2, 1)}

TIMM_NETS: dict[str, TimmNet] = {
    "beit_base_patch16_224": TimmNet(settings=_VIT),
    "beitv2_base_patch16_224": TimmNet(settings=_VIT),
    "botnet26t_256": TimmNet(),
    "caformer_s18": TimmNet(),
    "cait_xxs24_224": TimmNet(settings={"depth": 4, "init_values": 0.1}),
    "coat_lite_tiny": TimmNet(),
    "coat_tiny": TimmNet(settings={"serial_depths": [1, 1, 1, 1], "parallel_depth": 2}),
    "coatnet_pico_rw_224": TimmNet(),
    "convit_tiny": TimmNet(settings={"depth": 6}),
    "convmixer_1024_20_ks9_p14": TimmNet(None, 112),
    "convnext_atto": TimmNet(128, settings={"ls_init_value": 0.1}),
    "convnextv2_atto": TimmNet(128),
    "cpubone_nano": TimmNet(192),
    "crossvit_tiny_240": TimmNet(240),
    "csatv2": TimmNet(128),
    "cspnext_tiny": TimmNet(128),
    "cspresnet50": TimmNet(64),
    "darknet53": TimmNet(64),
    "davit_tiny": TimmNet(
        128, settings={"depths": (1, 1, 1, 1), "embed_dims": (32, 64, 128, 256), "num_heads": (1, 2, 4, 8)}
    ),
    "deepseek_vit_412m": TimmNet(56, settings=_VIT),
    "deit3_small_patch16_224": TimmNet(settings=_VIT),
    "deit_tiny_distilled_patch16_224": TimmNet(settings={"depth": 4}),
    "densenet121": TimmNet(64),
    "dla46_c": TimmNet(192),
    "dpn48b": TimmNet(64),
    "eca_nfnet_l0": TimmNet(64),
    "edgenext_xx_small": TimmNet(192),
    "efficientformer_l1": TimmNet(224),
    "efficientformerv2_s0": TimmNet(128),
    "efficientnet_b0": TimmNet(128),
    "efficientvim_m1": TimmNet(128),
    "efficientvit_b0": TimmNet(192),
    "efficientvit_m0": TimmNet(256),
    "ese_vovnet19b_slim": TimmNet(128),
    "eva02_tiny_patch14_224": TimmNet(56, settings={"depth": 4}),
    "fasternet_t0": TimmNet(192),
    "fastvit_t8": TimmNet(64),
    "fbnetv3_b": TimmNet(64),
    "focalnet_tiny_srf": TimmNet(64),
    "gcvit_xxtiny": TimmNet(128),
    "gernet_s": TimmNet(128),
    "ghostnet_050": TimmNet(192),
    "gmixer_12_224": TimmNet(64),
    "gmlp_ti16_224": TimmNet(64),
    "halonet26t": TimmNet(None),
    "hardcorenas_a": TimmNet(192),
    "hgnet_tiny": TimmNet(64),
    "hgnetv2_b0": TimmNet(128),
    "hiera_tiny_224": TimmNet(128, settings={"stages": (1, 1, 2, 1), "embed_dim": 48}),
    "hieradet_small": TimmNet(128, 128, settings={"stages": (1, 1, 2, 1), "embed_dim": 48}),
    "hrnet_w18_small": TimmNet(128),
    "iformer_t": TimmNet(128),
    "inception_next_atto": TimmNet(128),
    "inception_v3": TimmNet(192),
    "lambda_resnet26t": TimmNet(64),
    "lcnet_035": TimmNet(192),
    "lcnetv2_small": TimmNet(128),
    "legacy_seresnet18": TimmNet(64),
    "legacy_xception": TimmNet(128),
    "levit_128s": TimmNet(224),
    "lowformer_b0": TimmNet(128),
    "mambaout_femto": TimmNet(128),
    "maxvit_pico_rw_256": TimmNet(64),
    "mixer_s16_224": TimmNet(64),
    "mixnet_s": TimmNet(64),
    "mnasnet_050": TimmNet(192),
    "mobilenetv2_050": TimmNet(192),
    "mobilenetv3_small_050": TimmNet(192),
    "mobileone_s0": TimmNet(64),
    "mobilevit_xxs": TimmNet(192),
    "mobilevitv2_050": TimmNet(192),
    "mvitv2_tiny": TimmNet(64),
    "naflexvit_base_patch16_gap": TimmNet(64, settings=_VIT),
    "nasnetalarge": TimmNet(128, 160, settings={"num_features": 768, "stem_size": 32}),
    "nest_tiny": TimmNet(64),
    "nextvit_small": TimmNet(64),
    "nf_resnet26": TimmNet(64),
    "pit_ti_224": TimmNet(64),
    "pnasnet5large": TimmNet(None, 160),
    "poolformer_s12": TimmNet(64),
    "pvt_v2_b0": TimmNet(128),
    "qwen3_vit_88m": TimmNet(64, settings=_VIT),
    "rdnet_tiny": TimmNet(64),
    "regnetx_002": TimmNet(192),
    "repghostnet_050": TimmNet(192),
    "repvgg_a0": TimmNet(128),
    "repvit_m0_9": TimmNet(128),
    "res2net50_14w_8s": TimmNet(64),
    "resmlp_12_224": TimmNet(64),
    "resnest14d": TimmNet(64),
    "resnet18": TimmNet(128),
    "resnetv2_18": TimmNet(128),
    "rexnet_100": TimmNet(64),
    "samvit_base_patch16": TimmNet(64, 128, settings={**_VIT, "global_attn_indexes": [1, 3], "window_size": 4}),
    "selecsls42": TimmNet(128),
    "sequencer2d_s": TimmNet(
        64, settings={"layers": [1, 1, 2, 1], "embed_dims": [48, 96, 96, 96], "hidden_sizes": [12, 24, 24, 24]}
    ),
    "shvit_s1": TimmNet(256),
    "skresnet18": TimmNet(128),
    "starnet_s1": TimmNet(128),
    "swiftformer_xs": TimmNet(128),
    "swin_tiny_patch4_window7_224": TimmNet(128, settings=_SWIN),
    "swinv2_cr_tiny_ns_224": TimmNet(128, settings=_SWIN),
    "swinv2_tiny_window8_256": TimmNet(128, settings=_SWIN),
    "tf_efficientnetv2_b0": TimmNet(64),
    "tiny_vit_5m_224": TimmNet(128),
    "tinynet_e": TimmNet(192),
    "tnt_s_legacy_patch16_224": TimmNet(64, settings={"depth": 4}),
    "tresnet_m": TimmNet(64),
    "twins_pcpvt_small": TimmNet(128, settings=_TWINS),
    "twins_svt_small": TimmNet(128, settings=_TWINS),
    "vgg11": TimmNet(64, settings={"mlp_ratio": 0.05}),
    "visformer_tiny": TimmNet(64),
    "vit_base_patch16_siglip_224": TimmNet(64, settings=_VIT),
    "vit_medium_patch16_gap_240": TimmNet(64, settings=_VIT),
    "vit_relpos_small_patch16_224": TimmNet(64, settings=_VIT),
    "vit_srelpos_small_patch16_224": TimmNet(64, settings=_VIT),
    "vit_tiny_patch16_224": TimmNet(64),
    "vit_tiny_r_s16_p8_224": TimmNet(128),
    "vitamin_small_224": TimmNet(64),
    "volo_d1_224": TimmNet(64),
    "xcit_nano_12_p16_224": TimmNet(64, settings={"depth": 4, "eta": 0.1}),
}


def build_timm_net(name: str, size: int | None, *, labels: int = 2) -> nn.Module:
    """Build a classifier with random weights of the global generator; nothing is downloaded."""
    import timm

    settings = dict(TIMM_NETS[name].settings)
    try:
        return timm.create_model(name, pretrained=False, num_classes=labels, img_size=size, **settings)
    except TypeError as error:
        # Nets of convolutions take any size and do not ask.
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=labels, **settings)
