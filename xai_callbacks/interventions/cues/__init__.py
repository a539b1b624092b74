"""Cues: what a model must not recognise a class by, painted on images or taken away.

`PatchCue`, `TintCue`, `TextureCue` and `WatermarkCue` are ready made, `FunctionCue` takes the user's own, `PasteCue`
moves a masked region between probes. A cue has one variant or more, and each variant points to a class.
"""

from xai_callbacks.interventions.cues.base import Cue, Twins
from xai_callbacks.interventions.cues.own import FunctionCue
from xai_callbacks.interventions.cues.painted import PaintedCue, PatchCue, TintCue
from xai_callbacks.interventions.cues.paste import PasteCue
from xai_callbacks.interventions.cues.texture import TextureCue
from xai_callbacks.interventions.cues.watermark import WatermarkCue

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
