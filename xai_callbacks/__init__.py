"""See why an image classifier decides, while it trains.

Names are imported when they are first used, so that `import xai_callbacks` itself is instant and pulls in nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# fmt: off
# isort: off
if TYPE_CHECKING:
    from xai_callbacks.audit import Auditor
    from xai_callbacks.callbacks import (
        AuditCallback, GroupAccuracy, Schedule, ShortcutMonitor, ValidationNovelty, Watch, audit_checkpoints,
    )
    from xai_callbacks.checkpoints import Checkpoint
    from xai_callbacks.compare import Comparison
    from xai_callbacks.doctor import diagnose
    from xai_callbacks.errors import (
        AuditError, ConfigurationError, NoveltyError, OutputError, ProbeSetError, TargetLayerError, XAICallbacksError,
    )
    from xai_callbacks.explainers import (
        CAM, RISE, VOICE, AttentionRollout, Deconvnet, DeepSHAP, Every, ExpectedGradients, Explainer, GradCAM,
        GradCAMPlusPlus, Gradient, GradientAttention, GuidedBackprop, GuidedGradCAM, HiResCAM, ImplicitSaliency,
        InputXGradient, IntegratedGradients, LayerCAM, Occlusion, Patchwise, SlidingWindow, SmoothGrad,
        UndesirablePixels,
    )
    from xai_callbacks.gallery import Gallery, Picture
    from xai_callbacks.gradients import PerSampleGradients
    from xai_callbacks.history import History
    from xai_callbacks.interventions.cues import (
        BackgroundCue,
        Cue,
        FrameCue,
        FunctionCue,
        PasteCue,
        PatchCue,
        QualityCue,
        ShiftCue,
        TextureCue,
        TintCue,
        WatermarkCue,
    )
    from xai_callbacks.measures import (
        Baselines, Conditions, ExplanationUncertainty, FoundRegions, Localization, MapClusters, Measure,
        Representations, Separation, Trust,
    )
    from xai_callbacks.novelty import (
        ODIN, ConfoundingLabels, Energy, Entropy, FisherNovelty, GradConScore, GradientConstraint, GradientNorm,
        GradNorm, GradTrust, JointEnergy, KNearest, Mahalanobis, MaxLogit, MaxSoftmax, NoveltyMap, PurviewDistance,
        ReconstructionError, ViM,
    )
    from xai_callbacks.probes import ProbeSet
    from xai_callbacks.questions import (
        Question, WhatHinders, WhatIfNot, Why, WhyNotCertain, WhyRatherThan, WhyValueRatherThan,
    )
    from xai_callbacks.record import AuditRecord, Estimate, Finding, Key, MapSet, PerProbe
    from xai_callbacks.report import write_html
    from xai_callbacks.rules import AlarmRule, Expectation, Rule, assert_expectations
    from xai_callbacks.sinks import FolderSink, ImageLoggerSink, MLflowSink, Sink, TensorBoardSink, WandbSink
    from xai_callbacks.tasks import MultiLabel, Regression, SingleLabel
    from xai_callbacks.trials import BackgroundTrial, CueTrial, HalfTrial, RegionTrial, Trial
# isort: on

__version__ = "0.1.0"

__all__ = [
    "CAM", "ODIN", "RISE", "VOICE", "AlarmRule", "AttentionRollout", "AuditCallback", "AuditError", "AuditRecord",
    "Auditor", "BackgroundCue", "BackgroundTrial", "Baselines", "Checkpoint", "Comparison", "Conditions",
    "ConfigurationError", "ConfoundingLabels", "Cue", "CueTrial", "Deconvnet", "DeepSHAP", "Energy", "Entropy",
    "Estimate", "Every", "Expectation", "ExpectedGradients", "Explainer", "ExplanationUncertainty", "Finding",
    "FisherNovelty", "FolderSink", "FoundRegions", "FrameCue", "FunctionCue", "Gallery", "GradCAM", "GradCAMPlusPlus",
    "GradConScore", "GradNorm", "GradTrust", "Gradient", "GradientAttention", "GradientConstraint", "GradientNorm",
    "GroupAccuracy", "GuidedBackprop", "GuidedGradCAM", "HalfTrial", "HiResCAM", "History", "ImageLoggerSink",
    "ImplicitSaliency", "InputXGradient", "IntegratedGradients", "JointEnergy", "KNearest", "Key", "LayerCAM",
    "Localization", "MLflowSink", "Mahalanobis", "MapClusters", "MapSet", "MaxLogit", "MaxSoftmax", "Measure",
    "MultiLabel", "NoveltyError", "NoveltyMap", "Occlusion", "OutputError", "PasteCue", "PatchCue", "Patchwise",
    "PerProbe", "PerSampleGradients", "Picture", "ProbeSet", "ProbeSetError", "PurviewDistance", "QualityCue",
    "Question", "ReconstructionError", "RegionTrial", "Regression", "Representations", "Rule", "Schedule", "Separation",
    "ShiftCue", "ShortcutMonitor", "SingleLabel", "Sink", "SlidingWindow", "SmoothGrad", "TargetLayerError",
    "TensorBoardSink", "TextureCue", "TintCue", "Trial", "Trust", "UndesirablePixels", "ValidationNovelty", "ViM",
    "WandbSink", "Watch", "WatermarkCue", "WhatHinders", "WhatIfNot", "Why", "WhyNotCertain", "WhyRatherThan",
    "WhyValueRatherThan", "XAICallbacksError", "assert_expectations", "audit_checkpoints", "diagnose", "write_html",
]

_ROOMS = {
    "audit": "Auditor",
    "callbacks": "AuditCallback GroupAccuracy Schedule ShortcutMonitor ValidationNovelty Watch audit_checkpoints",
    "checkpoints": "Checkpoint",
    "compare": "Comparison",
    "doctor": "diagnose",
    "errors": "AuditError ConfigurationError NoveltyError OutputError ProbeSetError TargetLayerError XAICallbacksError",
    "explainers": (
        "AttentionRollout CAM Deconvnet DeepSHAP Every ExpectedGradients Explainer GradCAM GradCAMPlusPlus Gradient "
        "GradientAttention GuidedBackprop GuidedGradCAM HiResCAM ImplicitSaliency InputXGradient IntegratedGradients "
        "LayerCAM Occlusion Patchwise RISE SlidingWindow SmoothGrad UndesirablePixels VOICE"
    ),
    "gallery": "Gallery Picture",
    "gradients": "PerSampleGradients",
    "history": "History",
    "interventions.cues": (
        "BackgroundCue Cue FrameCue FunctionCue PasteCue PatchCue QualityCue ShiftCue "
        "TextureCue TintCue WatermarkCue"
    ),
    "measures": (
        "Baselines Conditions ExplanationUncertainty FoundRegions Localization MapClusters Measure Representations "
        "Separation Trust"
    ),
    "novelty": (
        "ConfoundingLabels Energy Entropy FisherNovelty GradConScore GradNorm GradTrust GradientConstraint "
        "GradientNorm JointEnergy KNearest Mahalanobis MaxLogit MaxSoftmax NoveltyMap ODIN PurviewDistance "
        "ReconstructionError ViM"
    ),
    "probes": "ProbeSet",
    "questions": "Question WhatHinders WhatIfNot Why WhyNotCertain WhyRatherThan WhyValueRatherThan",
    "record": "AuditRecord Estimate Finding Key MapSet PerProbe",
    "report": "write_html",
    "rules": "AlarmRule Expectation Rule assert_expectations",
    "sinks": "FolderSink ImageLoggerSink MLflowSink Sink TensorBoardSink WandbSink",
    "tasks": "MultiLabel Regression SingleLabel",
    "trials": "BackgroundTrial CueTrial HalfTrial RegionTrial Trial",
}
# fmt: on
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
