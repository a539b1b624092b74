"""Trials: what a model makes of probes that were edited. Only what a model *uses* changes its answer when it changes.

`CueTrial` puts a cue in and takes it out; `RegionTrial` fills a region, and as much area elsewhere; `BackgroundTrial`
sets objects on other backgrounds; `NoiseTrial` and `HalfTrial` tell how robust a model is, which is no evidence of a
shortcut by itself.
"""

from xai_callbacks.trials.backgrounds import BackgroundTrial
from xai_callbacks.trials.base import Answers, Trial, Views
from xai_callbacks.trials.cue import CueTrial
from xai_callbacks.trials.regions import RegionTrial
from xai_callbacks.trials.robustness import HalfTrial, NoiseTrial

__all__ = [
    "Answers",
    "BackgroundTrial",
    "CueTrial",
    "HalfTrial",
    "NoiseTrial",
    "RegionTrial",
    "Trial",
    "Views",
]
