"""Cues: what a model must not recognise a class by, painted on images or moved between probes."""

from xai_callbacks.interventions.cues.base import Cue, Twins
from xai_callbacks.interventions.cues.overlays import TextureCue, WatermarkCue
from xai_callbacks.interventions.cues.painted import FunctionCue, PaintedCue, PatchCue, TintCue
from xai_callbacks.interventions.cues.paste import PasteCue

__all__ = [
    "Cue",
    "FunctionCue",
    "PaintedCue",
    "PasteCue",
    "PatchCue",
    "TextureCue",
    "TintCue",
    "Twins",
    "WatermarkCue",
]
