"""See why an image classifier decides, while it trains.

Names are imported when they are first used, so that `import xai_callbacks` itself is instant and pulls in nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xai_callbacks.audit import Auditor, NoveltyAuditor
    from xai_callbacks.callbacks import AuditCallback, NoveltyCallback
    from xai_callbacks.errors import (
        AuditError,
        ConfigurationError,
        NoveltyError,
        OutputError,
        ProbeSetError,
        TargetLayerError,
        XAICallbacksError,
    )
    from xai_callbacks.explainers import GradCAM, HiResCAM, LayerCAM
    from xai_callbacks.novelty import (
        ODIN,
        ConfoundingLabels,
        Energy,
        Entropy,
        FisherNovelty,
        GradConScore,
        GradientConstraint,
        GradientNorm,
        GradNorm,
        GradTrust,
        KNearest,
        Mahalanobis,
        MaxLogit,
        MaxSoftmax,
        PerSampleGradients,
        PurviewDistance,
        ReconstructionError,
        ViM,
    )
    from xai_callbacks.probes import ProbeSet
    from xai_callbacks.questions import WhatIfNot, Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan
    from xai_callbacks.record import AuditRecord, NoveltyRecord
    from xai_callbacks.sinks import TensorBoardSink

__version__ = "0.1.0"

_HOMES = {
    "AuditCallback": "callbacks",
    "AuditError": "errors",
    "AuditRecord": "record",
    "Auditor": "audit",
    "ConfigurationError": "errors",
    "ConfoundingLabels": "novelty",
    "Energy": "novelty",
    "Entropy": "novelty",
    "FisherNovelty": "novelty",
    "GradCAM": "explainers",
    "GradConScore": "novelty",
    "GradNorm": "novelty",
    "GradTrust": "novelty",
    "GradientConstraint": "novelty",
    "GradientNorm": "novelty",
    "HiResCAM": "explainers",
    "KNearest": "novelty",
    "LayerCAM": "explainers",
    "Mahalanobis": "novelty",
    "MaxLogit": "novelty",
    "MaxSoftmax": "novelty",
    "NoveltyAuditor": "audit",
    "NoveltyCallback": "callbacks",
    "NoveltyError": "errors",
    "NoveltyRecord": "record",
    "ODIN": "novelty",
    "OutputError": "errors",
    "PerSampleGradients": "novelty",
    "ProbeSet": "probes",
    "ProbeSetError": "errors",
    "PurviewDistance": "novelty",
    "ReconstructionError": "novelty",
    "TargetLayerError": "errors",
    "TensorBoardSink": "sinks",
    "ViM": "novelty",
    "WhatIfNot": "questions",
    "Why": "questions",
    "WhyNotCertain": "questions",
    "WhyRatherThan": "questions",
    "WhyValueRatherThan": "questions",
    "XAICallbacksError": "errors",
}

__all__ = [
    "ODIN",
    "AuditCallback",
    "AuditError",
    "AuditRecord",
    "Auditor",
    "ConfigurationError",
    "ConfoundingLabels",
    "Energy",
    "Entropy",
    "FisherNovelty",
    "GradCAM",
    "GradConScore",
    "GradNorm",
    "GradTrust",
    "GradientConstraint",
    "GradientNorm",
    "HiResCAM",
    "KNearest",
    "LayerCAM",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "NoveltyAuditor",
    "NoveltyCallback",
    "NoveltyError",
    "NoveltyRecord",
    "OutputError",
    "PerSampleGradients",
    "ProbeSet",
    "ProbeSetError",
    "PurviewDistance",
    "ReconstructionError",
    "TargetLayerError",
    "TensorBoardSink",
    "ViM",
    "WhatIfNot",
    "Why",
    "WhyNotCertain",
    "WhyRatherThan",
    "WhyValueRatherThan",
    "XAICallbacksError",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
