"""See why an image classifier decides, while it trains.

Names are imported when they are first used, so that `import xai_callbacks` itself is instant and pulls in nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xai_callbacks.alarms import AlarmRule, Finding
    from xai_callbacks.audit import Auditor, NoveltyAuditor
    from xai_callbacks.callbacks import AuditCallback, Group, NoveltyCallback, ShortcutMonitor
    from xai_callbacks.errors import (
        AuditError,
        ConfigurationError,
        NoveltyError,
        OutputError,
        ProbeSetError,
        TargetLayerError,
        XAICallbacksError,
    )
    from xai_callbacks.expectations import Expectation, Vocabulary, assert_expectations
    from xai_callbacks.explainers import CAM, Every, GradCAM, HiResCAM, IntegratedGradients, LayerCAM, Occlusion
    from xai_callbacks.gradients import PerSampleGradients
    from xai_callbacks.interventions.cues import Cue, FunctionCue, PasteCue, PatchCue, TextureCue, TintCue, WatermarkCue
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
        JointEnergy,
        KNearest,
        Mahalanobis,
        MaxLogit,
        MaxSoftmax,
        PurviewDistance,
        ReconstructionError,
        ViM,
    )
    from xai_callbacks.probes import ProbeSet
    from xai_callbacks.questions import WhatIfNot, Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan
    from xai_callbacks.record import AuditRecord, NoveltyRecord
    from xai_callbacks.sinks import TensorBoardSink
    from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel
    from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, NoiseTrial, RegionTrial, Trial

__version__ = "0.1.0"

_HOMES = {
    "AlarmRule": "alarms",
    "AuditCallback": "callbacks",
    "AuditError": "errors",
    "AuditRecord": "record",
    "Auditor": "audit",
    "BackgroundTrial": "trials",
    "CAM": "explainers",
    "ConfigurationError": "errors",
    "ConfoundingLabels": "novelty",
    "Cue": "interventions.cues",
    "CueTrial": "trials",
    "Energy": "novelty",
    "Entropy": "novelty",
    "Every": "explainers",
    "Expectation": "expectations",
    "Finding": "alarms",
    "FisherNovelty": "novelty",
    "FunctionCue": "interventions.cues",
    "GradCAM": "explainers",
    "GradConScore": "novelty",
    "GradNorm": "novelty",
    "GradTrust": "novelty",
    "GradientConstraint": "novelty",
    "GradientNorm": "novelty",
    "Group": "callbacks",
    "HalfTrial": "trials",
    "HiResCAM": "explainers",
    "JointEnergy": "novelty",
    "IntegratedGradients": "explainers",
    "KNearest": "novelty",
    "LayerCAM": "explainers",
    "Mahalanobis": "novelty",
    "MaxLogit": "novelty",
    "MaxSoftmax": "novelty",
    "MultiLabel": "tasks",
    "NoiseTrial": "trials",
    "NoveltyAuditor": "audit",
    "NoveltyCallback": "callbacks",
    "NoveltyError": "errors",
    "NoveltyRecord": "record",
    "ODIN": "novelty",
    "Occlusion": "explainers",
    "OutputError": "errors",
    "PasteCue": "interventions.cues",
    "PatchCue": "interventions.cues",
    "PerSampleGradients": "gradients",
    "ProbeSet": "probes",
    "ProbeSetError": "errors",
    "PurviewDistance": "novelty",
    "ReconstructionError": "novelty",
    "RegionTrial": "trials",
    "Regression": "tasks",
    "ShortcutMonitor": "callbacks",
    "SingleLabel": "tasks",
    "TargetLayerError": "errors",
    "TensorBoardSink": "sinks",
    "TextureCue": "interventions.cues",
    "TintCue": "interventions.cues",
    "Trial": "trials",
    "ViM": "novelty",
    "Vocabulary": "expectations",
    "WatermarkCue": "interventions.cues",
    "WhatIfNot": "questions",
    "Why": "questions",
    "WhyNotCertain": "questions",
    "WhyRatherThan": "questions",
    "WhyValueRatherThan": "questions",
    "XAICallbacksError": "errors",
    "assert_expectations": "expectations",
}

__all__ = [
    "CAM",
    "ODIN",
    "AlarmRule",
    "AuditCallback",
    "AuditError",
    "AuditRecord",
    "Auditor",
    "BackgroundTrial",
    "ConfigurationError",
    "ConfoundingLabels",
    "Cue",
    "CueTrial",
    "Energy",
    "Entropy",
    "Every",
    "Expectation",
    "Finding",
    "FisherNovelty",
    "FunctionCue",
    "GradCAM",
    "GradConScore",
    "GradNorm",
    "GradTrust",
    "GradientConstraint",
    "GradientNorm",
    "Group",
    "HalfTrial",
    "HiResCAM",
    "IntegratedGradients",
    "JointEnergy",
    "KNearest",
    "LayerCAM",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "MultiLabel",
    "NoiseTrial",
    "NoveltyAuditor",
    "NoveltyCallback",
    "NoveltyError",
    "NoveltyRecord",
    "Occlusion",
    "OutputError",
    "PasteCue",
    "PatchCue",
    "PerSampleGradients",
    "ProbeSet",
    "ProbeSetError",
    "PurviewDistance",
    "ReconstructionError",
    "RegionTrial",
    "Regression",
    "ShortcutMonitor",
    "SingleLabel",
    "TargetLayerError",
    "TensorBoardSink",
    "TextureCue",
    "TintCue",
    "Trial",
    "ViM",
    "Vocabulary",
    "WatermarkCue",
    "WhatIfNot",
    "Why",
    "WhyNotCertain",
    "WhyRatherThan",
    "WhyValueRatherThan",
    "XAICallbacksError",
    "assert_expectations",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
