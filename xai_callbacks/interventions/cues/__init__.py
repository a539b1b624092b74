"""Cues: what a model must not recognise a class by, painted on images or moved between probes."""

from xai_callbacks.interventions.cues.base import Cue, Twins
from xai_callbacks.interventions.cues.overlays import TextureCue, WatermarkCue
from xai_callbacks.interventions.cues.painted import FrameCue, FunctionCue, PaintedCue, PatchCue, TintCue
from xai_callbacks.interventions.cues.paste import PasteCue
from xai_callbacks.interventions.cues.whole import BackgroundCue, QualityCue, ShiftCue

__all__ = [
    "BackgroundCue", "Cue", "FrameCue", "FunctionCue", "PaintedCue", "PasteCue", "PatchCue", "QualityCue", "ShiftCue",
    "TextureCue", "TintCue", "Twins", "WatermarkCue",
]  # fmt: skip
